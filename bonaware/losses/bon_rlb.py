"""bon_rlb: best-of-k for rewards 0 and 1, from the probability of failure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.losses._base import (
    Batch,
    Loss,
    has_gaps,
    need_choice,
    need_count,
    need_nonnegative,
)
from bonaware.losses._binary import by_count, fail_by_reward, need_binary

__all__ = ["LOSS", "BonRlb"]

TINY = np.finfo(np.float64).tiny
BELOW_ONE = 1 - 2.0**-53


@dataclass(frozen=True)
class BonRlb(Loss):
    """Raises pass@k, with weights from the probability of failure (BoN-RLB).

    Parameters
    ----------
    k : int
        Tries that the user will have, >= 1; may be larger than n.
    sign : "exact" or "penalise"
        How wrong winners count: "exact", with a plus sign, which gives the gradient of
        pass@k; "penalise", with a minus sign as in the paper: the same direction, larger
        by ``(1 + f) / (1 - f)``, a heuristic that leans on hard prompts.
    bounded : bool
        True: the pair of factors that stays below k, without leave-one-out mean. The same
        expectation as "exact". Goes with sign="exact" and without clip.
    clip : float, optional
        Largest factor of the pair (g+, g-). It biases prompts of large f.
    estimate_from : "all" or "loo"
        Which samples f is estimated from where ``fail`` is not given: all n, or for each
        sample the other n - 1.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-(1 - f**k)``, f the probability of a wrong sample. The winner of k draws is
    right with probability 1 - f**k; its factors are ``g+ = k f**(k-1) / (1 - f**k)`` if right
    and ``g- = k f / (1 - f)`` if wrong, bounded ``k f**k (1 - f) / (1 - f**k)`` and ``-k (1 -
    f)``. Samples of the policy stand for winners with the ratio of both laws, ``(1 - f**k) /
    (1 - f)`` and ``f**(k-1)``, which leaves ``a+`` and ``a-`` for right and wrong samples, and
    ``weight_i = -(a_i - mean of the others' a) / n``. For the exact sign this is

    ``weight_i = -(k/n) f**(k-1) (R_i - mean of the others)``,

    and bounded, ``-(k/n) f**(k-1) (R_i - (1 - f))``. Unbiased for a given ``fail`` [P]. With f
    estimated it is biased, and how much depends on f: with f = 0.7355, the expectation is
    0.75, 0.82, 0.93 of the gradient for (k, n) = (3, 4), (4, 6), (8, 6) from all samples, and
    1.12, 1.21, 2.61 from the others, which is unbiased for k = 2 (docs/design/losses.md).
    `bon` is unbiased for n >= k. With "penalise" and clip, an estimate of f is at most ``1 -
    1/(2n)``. A prompt whose samples are all right or all wrong has weights 0, unless bounded
    with a given ``fail``. The value is ``-(1 - f**k)`` for the given f or the share of wrong
    samples.

    O(n) per prompt, without the GIL.
    Source: Chow et al. 2024, arXiv:2412.15287, BoN-RLB; the exact sign and the bounded pair
    are derived in docs/design/losses.md.

    Examples
    --------
    >>> BonRlb(k=4)([[0, 0, 0, 1]])
    (array([-0.68359375]), array([[ 0.140625,  0.140625,  0.140625, -0.421875]]))
    >>> BonRlb(k=4, sign="penalise")([[0, 0, 0, 1]])[1]
    array([[ 0.984375,  0.984375,  0.984375, -2.953125]])
    """

    k: int
    sign: str = "exact"
    bounded: bool = False
    clip: float | None = None
    estimate_from: str = "all"
    kl: float = 0.0

    takes = ("fail",)
    kernel_checks = ("rewards",)
    fewest = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")
        need_choice(self.sign, "sign", "exact", "penalise")
        need_choice(self.estimate_from, "estimate_from", "all", "loo")
        if self.clip is not None:
            need_nonnegative(self.clip, "clip")
        if self.bounded and (self.sign == "penalise" or self.clip is not None):
            raise ValueError('bounded=True goes with sign="exact" and clip=None only')

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        if has_gaps(there):  # otherwise counting them checks them
            need_binary(batch, there)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        n = batch.rewards.shape[1]
        most = 1 - 1 / (2 * n) if batch.fail is None else BELOW_ONE

        def figures(correct: Floats) -> tuple[Floats, Floats, Floats]:
            fails = fail_by_reward(correct, n, batch.fail, self.estimate_from)
            overall = 1 - correct / n if batch.fail is None else batch.fail
            hit, miss = (
                # where no sample has this reward the mean of the others is meaningless and unused
                -self._factor(fail, reward, reward - (correct - reward) / (n - 1), most) / n
                for reward, fail in zip((1.0, 0.0), fails, strict=True)
            )
            return overall**self.k - 1, hit, miss

        return by_count(batch, figures)

    def _factor(self, fail: Floats, reward: float, ahead: Floats, most: float) -> Floats:
        """a_i less its baseline; ahead: the reward less the mean of the others."""
        slope = self.k * fail ** (self.k - 1)
        if self.bounded:
            return slope * (reward - (1 - fail))
        if self.clip is None and self.sign == "exact":
            return slope * ahead
        return self._pair_gap(np.minimum(fail, most)) * ahead

    def _pair_gap(self, fail: Floats) -> Floats:
        """a+ - a- of the pair (g+, g-), clipped."""
        right = -np.expm1(self.k * np.log(np.maximum(fail, TINY)))  # 1 - f**k
        g_plus = self.k * fail ** (self.k - 1) / right
        g_minus = self.k * fail / (1 - fail)
        if self.clip is not None:
            g_plus, g_minus = np.minimum(g_plus, self.clip), np.minimum(g_minus, self.clip)
        sign = 1.0 if self.sign == "exact" else -1.0
        return g_plus * right / (1 - fail) - sign * g_minus * fail ** (self.k - 1)


LOSS = BonRlb
