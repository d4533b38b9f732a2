"""bonbon: the best sample preferred to the worst by as much as best-of-n prefers it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_nonnegative

__all__ = ["LOSS", "Bonbon", "bonbon_beta"]


def bonbon_beta(n: int) -> float:
    """The strength at which the preference part is met by the best-of-n policy.

    Parameters
    ----------
    n : int
        Samples of a prompt, >= 2.

    Returns
    -------
    float
        ``1 / (2 (n-1) H_(n-1))`` with the harmonic number H.

    Notes
    -----
    Source: Gui et al. 2024, arXiv:2406.00832, eq. 4.2.

    Examples
    --------
    >>> round(bonbon_beta(8), 10)
    0.0275482094
    """
    return 0.5 / ((n - 1) * sum(1.0 / i for i in range(1, n)))


@dataclass(frozen=True)
class Bonbon(Loss):
    """Imitates the best of n samples and keeps the best-of-n distance from the worst.

    Parameters
    ----------
    alpha : float
        Share of the supervised part, in [0, 1].

    Notes
    -----
    Minimises ``alpha * -logp(best) + (1 - alpha) * (h - 1 / (2 beta))**2`` with ``h =
    (logp - ref_logp)(best) - (logp - ref_logp)(worst)`` and beta of `bonbon_beta`: the mean
    of h under best-of-n and worst-of-n of the reference, without equal scores, is ``1 / (2
    beta)`` for the best-of-n policy. Weights: ``2 (1 - alpha) (h - 1 / (2 beta)) - alpha`` on
    the best, ``-2 (1 - alpha) (h - 1 / (2 beta))`` on the worst, 0 between.

    Samples are meant to come from the reference; nothing corrects for it if they do not.
    Equal scores share: value and weights are the means over all choices of a best and a
    worst. A prompt whose scores are all equal has neither, value 0 and no weights. Without
    ``scores`` the rewards are ranked. The weights are the exact gradient of the value.
    Source: Gui et al. 2024, arXiv:2406.00832, eq. 4.1 to 4.4 (alpha is theirs).

    Examples
    --------
    >>> logp = [[-2.0, -2.0, -2.0]]
    >>> value, weights = Bonbon(alpha=0.5)([[0.0, 1.0, 2.0]], logp=logp, ref_logp=logp)
    >>> value, weights
    (array([5.5]), array([[ 3. ,  0. , -3.5]]))
    """

    alpha: float = 0.005

    needs = ("logp", "ref_logp")
    takes = ("scores",)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_nonnegative(self.alpha, "alpha")
        if self.alpha > 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")

    @property
    def fewest(self) -> int:
        return 2

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        scores = batch.rewards if batch.scores is None else batch.scores
        top, bottom = scores.max(1), scores.min(1)
        best, worst = scores == top[:, None], scores == bottom[:, None]
        gain = batch.logp - batch.ref_logp
        high, high_spread = _mean(best, gain)
        low, low_spread = _mean(worst, gain)
        margin = 0.5 / bonbon_beta(scores.shape[1])
        squares = (high - low - margin) ** 2 + high_spread + low_spread
        value = (1 - self.alpha) * squares - self.alpha * _mean(best, batch.logp)[0]
        slope = 2 * (1 - self.alpha)
        of_best = slope * (gain - low[:, None] - margin) - self.alpha
        of_worst = -slope * (high[:, None] - gain - margin)
        weights = np.where(best, of_best / best.sum(1)[:, None], 0.0)
        weights += np.where(worst, of_worst / worst.sum(1)[:, None], 0.0)
        differ = top > bottom
        return np.where(differ, value, 0.0), np.where(differ[:, None], weights, 0.0)


def _mean(some: NDArray[np.bool_], x: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of x over some of each row, both [P]."""
    count = some.sum(1)
    mean = np.where(some, x, 0.0).sum(1) / count
    return mean, (np.where(some, x - mean[:, None], 0.0) ** 2).sum(1) / count


LOSS = Bonbon
