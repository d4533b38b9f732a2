"""Rewards 0 and 1: counts, estimates of the failure probability, two weights per prompt."""

import numpy as np
from numpy.typing import NDArray

from bonaware import _losses
from bonaware._arguments import Floats
from bonaware._parallel import for_rows
from bonaware.losses._base import Batch, has_gaps

__all__ = ["count_correct", "fail_by_reward", "need_binary", "two_weights"]


def need_binary(batch: Batch, there: NDArray[np.bool_]) -> None:
    """Refuse rewards that are neither 0 nor 1, where samples are."""
    count_correct(np.where(there, batch.rewards, 0.0) if has_gaps(there) else batch.rewards)


def count_correct(rewards: Floats) -> Floats:
    """[P]: how many of rewards [P, n] are 1; all others must be 0."""
    correct = np.empty(len(rewards))
    for_rows(
        lambda start, stop: _losses.count_correct(rewards, correct, start, stop),
        len(rewards),
        rewards.shape[1],
    )
    return correct


def fail_by_reward(
    correct: Floats, n: int, fail: Floats | None, estimate_from: str
) -> tuple[Floats, Floats]:
    """Probability of failure [P] as right samples and as wrong samples use it.

    The given one, or the share of wrong samples among all, or among the other n - 1.
    """
    if fail is not None:
        return fail, fail
    wrong = n - correct
    if estimate_from == "all":
        return wrong / n, wrong / n
    return np.minimum(wrong / (n - 1), 1.0), np.maximum(wrong - 1, 0.0) / (n - 1)


def two_weights(rewards: Floats, hit: Floats, miss: Floats) -> Floats:
    """[P, n]: hit [P] for right samples, miss [P] for wrong ones."""
    weights = np.empty(rewards.shape)
    for_rows(
        lambda start, stop: _losses.two_weights(rewards, hit, miss, weights, start, stop),
        len(rewards),
        rewards.shape[1],
    )
    return weights
