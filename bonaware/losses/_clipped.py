"""The clipped ratio of a policy to the one that drew the samples, shared by grpo and dr_grpo."""

from typing import Any

import numpy as np

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, need_nonnegative

__all__ = ["Clipped"]

LARGEST = 600.0  # logarithm of a ratio: its product with a reward is finite


class Clipped(Loss):
    """Checks and formula of `grpo` and `dr_grpo`, whose options these are."""

    clip: float
    clip_high: float | None
    takes: Any = ("logp", "old_logp")

    def __post_init__(self) -> None:
        super().__post_init__()
        need_nonnegative(self.clip, "clip")
        if self.clip_high is not None:
            need_nonnegative(self.clip_high, "clip_high")

    @property
    def fewest(self) -> int:
        return 2

    def clipped(
        self, batch: Batch, advantages: Floats, lengths: Floats | float
    ) -> tuple[Floats, Floats]:
        """min(s A, clip(s) A) of each sample and its derivative by logp, both [P, n].

        s = exp((logp - old_logp) / lengths), 1 without old_logp.
        """
        if batch.old_logp is None:
            return advantages, advantages / lengths
        if batch.logp is None:
            raise TypeError(f"loss {self.name}: logp is missing; old_logp needs it")
        ratio = np.exp(np.minimum((batch.logp - batch.old_logp) / lengths, LARGEST))
        high = self.clip if self.clip_high is None else self.clip_high
        within = np.clip(ratio, 1.0 - self.clip, 1.0 + high)
        gain = np.minimum(ratio * advantages, within * advantages)
        free = ratio * advantages <= within * advantages
        return gain, np.where(free, ratio * advantages, 0.0) / lengths
