"""pkpo: the largest reward of k samples, and pass@k for rewards 0 and 1."""

from dataclasses import dataclass

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_choice, need_count
from bonaware.losses.bon import bon_weights

__all__ = ["LOSS", "Pkpo"]

BASELINES = {"loo_minus_one": "subset", "none": "none"}


@dataclass(frozen=True)
class Pkpo(Loss):
    """Raises the expected largest reward of k samples (max@k; pass@k if binary).

    Parameters
    ----------
    k : int
        Tries that the user will have, ``1 <= k <= n``.
    baseline : "loo_minus_one" or "none"
        "loo_minus_one": each subset's largest reward less that of the subset without the
        sample, the paper's estimator of lowest variance. "none": nothing is subtracted,
        the paper's plain estimator.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-E[max of k rewards]``; ``weight_i = -1/C(n,k) * sum over S with i of (max of
    S - max of S without i)``. For ``k = 1`` the max of nothing is the mean of the others.
    Unbiased. The value is minus the unbiased estimate of max@k. It is `bon` with a perfect
    selector.
    Source: Walder & Karkhanis 2025, arXiv:2505.15201: their transformed rewards divided by
    what their loss divides by.

    Examples
    --------
    >>> Pkpo(k=2)([[0.0, 0.5, 1.0]])[1]
    array([[ 0.        , -0.16666667, -0.5       ]])
    >>> Pkpo(k=2, baseline="none")([[0, 0, 1]])[1]
    array([[-0.33333333, -0.33333333, -0.66666667]])
    """

    k: int
    baseline: str = "loo_minus_one"
    kl: float = 0.0

    kernel_checks = ("rewards",)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")
        need_choice(self.baseline, "baseline", *BASELINES)

    @property
    def fewest(self) -> int:
        return self.k if self.baseline == "none" else max(self.k, 2)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        return bon_weights(batch, batch.rewards, self.k, BASELINES[self.baseline])


LOSS = Pkpo
