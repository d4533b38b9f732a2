import numpy as np
from numpy.typing import NDArray

def bon(
    scores: NDArray[np.float64],
    rewards: NDArray[np.float64],
    k: int,
    baseline: int,
    value: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def bon_rl(
    scores: NDArray[np.float64],
    rewards: NDArray[np.float64],
    chance: NDArray[np.float64] | None,
    win_rate: NDArray[np.float64] | None,
    log_normaliser: NDArray[np.float64] | None,
    k: int,
    exact: bool,
    strength: float,
    winners: bool,
    value: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def bon_sft(
    scores: NDArray[np.float64],
    logp: NDArray[np.float64],
    expert: NDArray[np.bool_],
    chance: NDArray[np.float64] | None,
    win_rate: NDArray[np.float64] | None,
    log_normaliser: NDArray[np.float64] | None,
    k: int,
    strength: float,
    value: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def count_correct(
    rewards: NDArray[np.float64],
    correct: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def weigh_by_count(
    rewards: NDArray[np.float64],
    hit: NDArray[np.float64],
    miss: NDArray[np.float64],
    correct: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
def two_weights(
    rewards: NDArray[np.float64],
    hit: NDArray[np.float64],
    miss: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: int,
    stop: int,
    /,
) -> None: ...
