"""bond: J-BOND, the Jeffreys divergence from the best of two samples of an anchor."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_nonnegative
from bonaware.losses._group import lower

__all__ = ["LOSS", "Bond"]

PENALTY = math.log(16.0)  # eq. 17: makes the mean reward log(1/2) where half the anchor is lower


@dataclass(frozen=True)
class Bond(Loss):
    """Brings the policy to the best of two samples of an anchor that follows it.

    Parameters
    ----------
    beta : float
        Share of the backward divergence, in [0, 1].
    gamma : float
        Strength of a further KL term to the anchor, >= 0.

    Notes
    -----
    Minimises ``(1 - beta) KL(best of 2 || pi) + beta (-E_pi[r] + KL(pi || anchor)) + gamma
    KL(pi || anchor)``. The first is the likelihood of the better of two samples of the anchor
    (its entropy, which does not move, is left out); r stands in for the logarithm of the
    chance of an equal or lower score: ``-log(16)`` where the sample scores lower than both of
    two samples of the anchor, else 0.

    ``expert`` marks the samples of the anchor, at least two of every prompt; the others, at
    least one, are the policy's. ``ref_logp`` is log-probability under the anchor. With a
    samples of the anchor and m of the policy, averaged over all pairs of the anchor:
    ``weight_j = -(1 - beta) P(j is the better of a random pair)`` on those of the anchor
    (equal scores share), and ``weight_i = (beta x_i + gamma d_i) / m`` on those of the
    policy, with ``d = logp - ref_logp`` and ``x = d - r``, both less their mean over the
    others where m > 1. a = 2 and m = 1 are the paper's; its baseline is a mean over the
    batch. Unbiased, with the anchor held fixed. ``ref_scores`` are scores of more samples of
    the anchor, to rank the policy's by instead.

    Without ``expert`` the policy is its own anchor: every sample of a prompt, three or more,
    is both, and the baseline adds a bias in proportion to ``1 / (n - 1)`` to the term in r.
    How the anchor follows the policy is not the loss's business. Without ``scores`` the
    rewards are ranked.
    Source: Sessa et al. 2024, arXiv:2407.14622, eq. 11, 17 and algorithm 2.

    Examples
    --------
    >>> logp = [[-2.0, -2.0, -2.0]]
    >>> expert = [[False, True, True]]
    >>> Bond()([[0.0, 1.0, 2.0]], logp=logp, ref_logp=logp, expert=expert)[1].round(3)
    array([[ 1.386,  0.   , -0.5  ]])
    """

    beta: float = 0.5
    gamma: float = 0.0

    needs = ("logp", "ref_logp")
    takes = ("scores", "ref_scores", "expert")

    def __post_init__(self) -> None:
        super().__post_init__()
        need_nonnegative(self.beta, "beta")
        need_nonnegative(self.gamma, "gamma")
        if self.beta > 1:
            raise ValueError(f"beta must be in [0, 1], got {self.beta}")

    @property
    def fewest(self) -> int:
        return 3

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        if batch.ref_scores is not None and batch.ref_scores.shape[1] < 2:
            raise ValueError(f"{self} needs ref_scores of at least 2 samples, got 1")
        if batch.expert is None:
            return
        ours, anchor = (there & ~batch.expert).sum(1), (there & batch.expert).sum(1)
        few = (ours < 1) | (anchor < 2)
        if few.any():
            row = int(np.argmax(few))
            raise ValueError(
                f"{self} needs 1 sample of the policy and 2 of the anchor (expert) of every "
                f"prompt, but row {row} has {ours[row]} and {anchor[row]}"
            )

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        scores = batch.rewards if batch.scores is None else batch.scores
        anchor = np.ones(scores.shape, bool) if batch.expert is None else batch.expert
        ours = anchor if batch.expert is None else ~anchor
        above = _lower_than(-scores, anchor)
        better = _better_of_two(scores, anchor, above)
        gain = batch.logp - batch.ref_logp
        cost = gain + PENALTY * _below_both(batch, scores, anchor, above)
        m = ours.sum(1, keepdims=True)
        forward = -better * batch.logp
        backward = np.where(ours, self.beta * cost + self.gamma * gain, 0.0)
        value = (1 - self.beta) * forward.sum(1) + backward.sum(1) / m[:, 0]
        weights = -(1 - self.beta) * better + _less_the_others(backward, ours, m) / m
        return value, weights


def _better_of_two(scores: Floats, anchor: NDArray[np.bool_], above: Floats) -> Floats:
    """[P, n]: chance to be the better of a random pair of the anchor's; 0 for the others."""
    a = anchor.sum(1, keepdims=True)
    below = _lower_than(scores, anchor)
    wins = below + (a - 1 - below - above) / 2
    return np.where(anchor, wins / (a * (a - 1) / 2), 0.0)


def _below_both(batch: Batch, scores: Floats, anchor: NDArray[np.bool_], above: Floats) -> Floats:
    """[P, n]: share of the pairs of (other) samples of the anchor that both score higher."""
    a = anchor.sum(1, keepdims=True) - (1 if batch.expert is None else 0)
    if batch.ref_scores is not None:
        above = lower(-scores, -batch.ref_scores)
        a = batch.ref_scores.shape[1]
    return above * (above - 1) / (a * (a - 1))


def _lower_than(scores: Floats, some: NDArray[np.bool_]) -> Floats:
    """How many of some of the row are lower than each of its scores."""
    return lower(scores, np.where(some, scores, np.inf))


def _less_the_others(x: Floats, some: NDArray[np.bool_], m: NDArray[np.int64]) -> Floats:
    """x, 0 but for some, less its mean over the other m - 1 of them; itself where m is 1."""
    others = (x.sum(1, keepdims=True) - x) / np.maximum(m - 1, 1)
    return np.where(some, x - others, 0.0)


LOSS = Bond
