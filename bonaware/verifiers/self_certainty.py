"""self_certainty: how far the model's predictions were from uniform, mean per token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Samples
from bonaware.tasks import Problem
from bonaware.verifiers import check_prompts

__all__ = ["VERIFIER", "SelfCertainty"]


@dataclass(frozen=True)
class SelfCertainty:
    """Scores the mean over tokens of KL(uniform ‖ model's distribution).

    Notes
    -----
    ``-(1 / (T V)) * sum_t sum_v log(V p(v | prompt, tokens before t))`` for T tokens and a
    vocabulary of V, at temperature 1. The engine adds it up while it draws.
    Source: Kang, Zhao, Song 2025, arXiv:2502.18581, where self-certainty is defined.
    """

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Mean certainty, nats, shape [P, n]; NaN where there is no sample or no token."""
        check_prompts(problems, samples)
        return samples.certainty.copy()


VERIFIER = SelfCertainty
