"""Policies that draw all samples at once and drop some of them at checkpoints."""

import numpy as np
from numpy.typing import NDArray

from bonaware.policies._base import Decision, Policy, Seen

__all__ = ["Pruning"]


class Pruning(Policy):
    """Draws n samples; at each checkpoint the first ones of a ranking of the held go on."""

    def stay(self, at: int, held: int) -> int:
        """How many of the samples held at checkpoint `at` go on, >= 1."""
        raise NotImplementedError

    def ranks(self, seen: Seen) -> NDArray[np.float64]:
        """Of each held sample: high ones go on, at equal ones the lower index; NaN goes last."""
        return seen.prefix_scores[seen.held, seen.at]

    def decide(self, seen: Seen) -> Decision:
        if seen.at is None:
            return Decision(draw=self.n - seen.drawn)
        held = seen.held
        best_first = held[np.argsort(-self.ranks(seen), kind="stable")]  # NaN sorts last
        return Decision(drop=sorted(best_first[self.stay(seen.at, held.size):].tolist()))
