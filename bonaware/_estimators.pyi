import numpy as np
from numpy.typing import NDArray

def pass_at_k(
    n: NDArray[np.int64],
    c: NDArray[np.int64],
    k: NDArray[np.int64],
    out: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def best_of_k(
    scores: NDArray[np.float64],
    rewards: NDArray[np.float64],
    k: NDArray[np.int64],
    out: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def win_rate(
    preferences: NDArray[np.float64],
    rates: NDArray[np.float64],
    errors: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def majority_at_k(
    codes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    rewards: NDArray[np.float64],
    k: NDArray[np.int64],
    seed: int,
    out: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
