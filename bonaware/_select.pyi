import numpy as np
from numpy.typing import NDArray

def best_of_n(
    scores: NDArray[np.float64], mask: NDArray[np.bool_] | None, /
) -> NDArray[np.int64]: ...
def majority(
    codes: NDArray[np.int64], weights: NDArray[np.float64] | None, /
) -> NDArray[np.int64]: ...
