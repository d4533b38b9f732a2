"""max_rl: the likelihood of being right, by the mean over the right samples only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_choice
from bonaware.losses._binary import need_binary

__all__ = ["LOSS", "MaxRl"]


@dataclass(frozen=True)
class MaxRl(Loss):
    """Raises the logarithm of the chance to be right; hard prompts count more.

    Parameters
    ----------
    baseline : "mean" or "none"
        "mean": 1/n is subtracted from every sample of a prompt with a right one, as the
        paper's algorithm 1 does; takes two samples of every prompt. "none": right samples
        alone have weights.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-log p`` of the chance p of a right sample, up to order T of its series:
    ``sum of (1 - p)**j / j for j = 1 .. T``, whose gradient is ``-sum of grad pass@j / j``.
    With c right samples of n, ``weight_i = -(R_i / c - 1/n)``, or ``-R_i / c`` with the
    baseline "none"; all 0 where c = 0. Unbiased for T = n with "none" and for T = n - 1 with
    "mean" (the prompts without a right sample, where the baseline is left out, are what one
    order less is made of). The value is the unbiased estimate of the sum, ``H_n - H_c`` with
    the harmonic numbers H (``H_(n-1)`` where c = 0 with "mean").

    Rewards must be 0 or 1: the series is one in the chance of failure.
    Source: Tajwar et al. 2026, arXiv:2602.02710, theorem 2 and algorithm 1.

    Examples
    --------
    >>> MaxRl()([[0, 0, 0, 1], [0, 0, 1, 1]])[1]
    array([[ 0.25,  0.25,  0.25, -0.75],
           [ 0.25,  0.25, -0.25, -0.25]])
    """

    baseline: str = "mean"
    kl: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_choice(self.baseline, "baseline", "mean", "none")

    @property
    def fewest(self) -> int:
        return 2 if self.baseline == "mean" else 1

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        need_binary(batch, there)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        right = batch.rewards == 1
        n = right.shape[1]
        c = right.sum(1)
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
        value = harmonic[n] - harmonic[c]
        weights = np.where(right, -1.0 / np.maximum(c, 1)[:, None], 0.0)
        if self.baseline == "mean":
            value = np.where(c > 0, value, harmonic[n - 1])
            weights = np.where(c[:, None] > 0, weights + 1.0 / n, 0.0)
        return value, weights


LOSS = MaxRl
