import numpy as np
from numpy.typing import NDArray

def best_of_n(
    scores: NDArray[np.float64],
    mask: NDArray[np.bool_] | None,
    out: NDArray[np.int64],
    start: int,
    stop: int,
    /,
) -> None: ...
def majority(
    codes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    out: NDArray[np.int64],
    start: int,
    stop: int,
    /,
) -> None: ...
