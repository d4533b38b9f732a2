"""reinforce: the mean reward of one sample, each sample against the others."""

from dataclasses import dataclass

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_choice
from bonaware.losses._group import centred

__all__ = ["LOSS", "Reinforce"]


@dataclass(frozen=True)
class Reinforce(Loss):
    """Raises the mean reward of a single sample.

    Parameters
    ----------
    baseline : "loo" or "none"
        "loo": the mean reward of the other samples is subtracted from each reward, which
        takes two samples of every prompt. "none": nothing is subtracted; the same
        expectation with more variance.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-E[R]`` over single samples; ``weight_i = -(R_i - mean of the others) / n``.
    Unbiased. The value is ``-mean(R)``. A prompt whose rewards are all equal has no weights
    with the baseline "loo".
    Source: Williams 1992, Mach. Learn. 8:229; the baseline is that of Kool et al. 2019,
    "Buy 4 REINFORCE samples, get a baseline for free!", known as RLOO from Ahmadian et al.
    2024, arXiv:2402.14740.

    Examples
    --------
    >>> Reinforce()([[0.0, 0.0, 1.0]])
    (array([-0.33333333]), array([[ 0.16666667,  0.16666667, -0.33333333]]))
    """

    baseline: str = "loo"
    kl: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_choice(self.baseline, "baseline", "loo", "none")

    @property
    def fewest(self) -> int:
        return 2 if self.baseline == "loo" else 1

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        n = batch.rewards.shape[1]
        value = -batch.rewards.mean(1)
        if self.baseline == "none":
            return value, -batch.rewards / n
        # (R_i - mean of the others) / n = (R_i - mean of all) / (n - 1)
        return value, -centred(batch.rewards) / (n - 1)


LOSS = Reinforce
