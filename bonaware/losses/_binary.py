"""Rewards 0 and 1: counts, estimates of the failure probability, two weights per prompt."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bonaware import _losses, _memory
from bonaware._arguments import Floats
from bonaware._parallel import for_rows
from bonaware.losses._base import Batch, has_gaps

__all__ = ["by_count", "fail_by_reward", "need_binary"]


def need_binary(batch: Batch, there: NDArray[np.bool_]) -> None:
    """Refuse rewards that are neither 0 nor 1, where samples are."""
    count_correct(np.where(there, batch.rewards, 0.0) if has_gaps(there) else batch.rewards)


def count_correct(rewards: Floats) -> Floats:
    """[P]: how many of rewards [P, n] are 1; all others must be 0."""
    correct = np.empty(len(rewards))
    _for_rows(rewards, _losses.count_correct, correct)
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


def by_count(batch: Batch, figures: Callable[[Floats], tuple[Floats, Floats, Floats]]
             ) -> tuple[Floats, Floats]:
    """Value [P] and weights [P, n] of a loss that looks at how many samples of a row are right.

    figures(correct) gives the value of rows with so many right samples, and the weights of
    their right and of their wrong samples. Where batch.fail is given it belongs to the rows,
    so figures are of each; else a table of all counts does, and rewards are read once.
    """
    rewards = batch.rewards
    weights = _memory.empty(rewards.shape)
    if batch.fail is not None or not len(rewards):
        correct = count_correct(rewards)
        value, hit, miss = figures(correct)
        _for_rows(rewards, _losses.two_weights, hit, miss, weights)
        return value, weights
    value, hit, miss = figures(np.arange(rewards.shape[1] + 1.0))
    correct = np.empty(len(rewards))
    _for_rows(rewards, _losses.weigh_by_count, hit, miss, correct, weights)
    return value[correct.astype(np.intp)], weights


def _for_rows(rewards: Floats, kernel: Callable[..., None], *arrays: Floats) -> None:
    for_rows(lambda start, stop: kernel(rewards, *arrays, start, stop), *rewards.shape)
