"""dr_grpo: GRPO without its two biases, neither spread nor length divides."""

from dataclasses import dataclass

from bonaware._arguments import Floats
from bonaware.losses._base import Batch
from bonaware.losses._clipped import Clipped
from bonaware.losses._group import centred

__all__ = ["LOSS", "DrGrpo"]


@dataclass(frozen=True)
class DrGrpo(Clipped):
    """Raises the mean reward of a single sample, with a clipped ratio.

    Parameters
    ----------
    clip : float
        The ratio of a sample counts up to ``1 + clip`` and down to ``1 - clip``, >= 0.
    clip_high : float, optional
        Another bound above, >= 0. Default: clip.
    kl : float
        Strength of the KL term, see `Loss`; it is unbiased for samples of the policy itself.

    Notes
    -----
    Minimises ``-mean_i min(s_i A_i, clip(s_i) A_i)`` with ``A_i = R_i - mean`` and the ratio
    of a whole sample, ``s_i = exp(logp_i - old_logp_i)``; without ``old_logp`` it is 1.
    ``weight_i = -s_i A_i / n`` where the clip leaves s_i alone, else 0. The value is that of
    the surrogate, 0 while all ratios are 1.

    On samples of the policy itself the expected weights are exactly ``(n-1)/n`` times the
    gradient of ``-E[R]``, which `reinforce` has without the factor. The ratio of a whole
    sample moves with its length: for long samples that are trained on more than once the
    clip has to be wider, or `grpo` with std=False.
    Source: Liu et al. 2025, arXiv:2503.20783, sec. 3.2, with one ratio per sample instead of
    one per token.

    Examples
    --------
    >>> DrGrpo()([[0.0, 0.0, 1.0, 1.0]])[1]
    array([[ 0.125,  0.125, -0.125, -0.125]])
    """

    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        gain, slope = self.clipped(batch, centred(batch.rewards), 1.0)
        return -gain.mean(1), -slope / batch.rewards.shape[1]


LOSS = DrGrpo
