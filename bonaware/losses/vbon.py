"""vbon: variational best-of-k, the logarithm of the rank among samples of the reference."""

from dataclasses import dataclass, field

import numpy as np

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_count
from bonaware.losses._group import centred, lower

__all__ = ["LOSS", "Vbon"]


@dataclass(frozen=True)
class Vbon(Loss):
    """Brings a single sample to where the best of k samples of the reference is.

    Parameters
    ----------
    k : int
        Samples that the imitated selector sees, >= 2.

    Attributes
    ----------
    kl : float
        Strength of the KL term, ``1 / (k - 1)``.

    Notes
    -----
    Minimises ``-E[log F(score)] + KL(pi || reference) / (k - 1)``, F the chance of a lower
    score under the reference. Times ``k - 1``, less ``log k``, that is a bound from above on
    ``KL(pi || best-of-k of the reference)``, tight where no sample is likely and no scores
    are equal. ``weight_i = -(log F_i - mean of the others) / n``, plus the KL term of `Loss`.

    F is estimated from m scores of samples of the reference, ``ref_scores``, as ``(1 +
    number of lower ones) / (m + 1)``, never 0. Given them the weights are the unbiased
    gradient of the objective with that F, whose logarithm is off by a term of order 1/m (for
    F = 0.3 on average by 0.29, 0.072 and 0.018 for m = 4, 16 and 64). Without them the other
    n - 1 samples of the prompt stand in for the reference: F then moves with the policy, and
    the baseline adds a bias of order 1/n (without equal scores, the factor n/(n-1) on the
    first term). Scores are ranked within a prompt only, so any rising function of them does
    the same; without ``scores`` the rewards are ranked.
    Source: Amini et al. 2024, arXiv:2407.06057, the bound L1; the estimate of F is that of
    the authors' code.

    Examples
    --------
    >>> loss = Vbon(k=5)
    >>> loss.kl
    0.25
    >>> logp = [[-2.0, -2.0]]
    >>> loss([[0.0, 1.0]], logp=logp, ref_logp=logp, ref_scores=[[0.0, 0.0, 2.0]])[1].round(3)
    array([[ 0.549, -0.549]])
    """

    k: int = 16
    kl: float = field(init=False, repr=False)

    takes = ("scores", "ref_scores")

    def __post_init__(self) -> None:
        need_count(self.k, "k")
        if self.k < 2:
            raise ValueError(f"k must be >= 2, got {self.k}")
        object.__setattr__(self, "kl", 1.0 / (self.k - 1))

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        n = batch.rewards.shape[1]
        scores = batch.rewards if batch.scores is None else batch.scores
        log_f = np.log(_share_below(scores, batch.ref_scores))
        return -log_f.mean(1), -centred(log_f) / (n - 1)


def _share_below(scores: Floats, ref_scores: Floats | None) -> Floats:
    """(1 + lower ones) / (1 + ones to compare with), among the reference or the others."""
    if ref_scores is None:
        return (1 + lower(scores, scores)) / scores.shape[1]
    return (1 + lower(scores, ref_scores)) / (1 + ref_scores.shape[1])


LOSS = Vbon
