"""grpo: group-relative advantages, a clipped ratio, every sample divided by its length."""

from dataclasses import dataclass

import numpy as np

from bonaware._arguments import Floats
from bonaware.losses._base import Batch
from bonaware.losses._clipped import Clipped
from bonaware.losses._group import centred

__all__ = ["LOSS", "Grpo"]


@dataclass(frozen=True)
class Grpo(Clipped):
    """Raises rewards in units of their spread within the prompt.

    Parameters
    ----------
    clip : float
        The ratio of a sample counts up to ``1 + clip`` and down to ``1 - clip``, >= 0.
    clip_high : float, optional
        Another bound above, >= 0. Default: clip.
    std : bool
        Advantages are divided by the standard deviation of the prompt's rewards.
    kl : float
        Strength of the KL term, see `Loss`; it is unbiased for samples of the policy itself.

    Notes
    -----
    Minimises ``-mean_i min(s_i A_i, clip(s_i) A_i)`` with ``A_i = (R_i - mean) / std`` (std
    with n - 1; A = 0 where all rewards are equal) and the ratio of a whole sample per token,
    ``s_i = exp((logp_i - old_logp_i) / length_i)``; without ``old_logp`` it is 1. ``weight_i
    = -s_i A_i / (n length_i)`` where the clip leaves s_i alone, else 0. The value is that of
    the surrogate, 0 while all ratios are 1.

    One weight per sample can not clip token by token: the ratio is the geometric mean of the
    ratios of the tokens. On the samples of the policy itself the weights are those of the
    form with one ratio per token. Reference implementations add 1e-4 or 1e-6 to std.

    Not the gradient of the mean reward: the division by std makes it, for rewards 0 and 1
    and many samples, that of ``2 arcsin(sqrt(p))`` of the chance p to be right (at p = 0.3,
    0.65, 0.84 and 0.93 times that for n = 4, 8 and 16), and the division by the length
    favours short right and long wrong samples. `dr_grpo` has neither.
    Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, eq. 3; the ratio is that of
    Zheng et al. 2025 (GSPO), arXiv:2507.18071, eq. 5 and 7; clip_high is that of Yu et al.
    2025 (DAPO), arXiv:2503.14476.

    Examples
    --------
    >>> Grpo()([[0.0, 0.0, 1.0, 1.0]], lengths=[[2, 4, 2, 4]])[1].round(4)
    array([[ 0.1083,  0.0541, -0.1083, -0.0541]])
    """

    clip: float = 0.2
    clip_high: float | None = None
    std: bool = True
    kl: float = 0.0

    needs = ("lengths",)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        n = batch.rewards.shape[1]
        advantages = centred(batch.rewards)
        if self.std:
            spread = np.sqrt((advantages**2).sum(1, keepdims=True) / (n - 1))
            advantages = advantages / np.where(spread > 0, spread, 1.0)
        gain, slope = self.clipped(batch, advantages, batch.lengths)
        return -gain.mean(1), -slope / n


LOSS = Grpo
