"""self_certainty: how far the model's predictions were from uniform, mean per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Samples
from bonaware.tasks import Problem
from bonaware.verifiers import check_prompts
from bonaware.verifiers._beginnings import of_beginnings

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

    probabilities: ClassVar[bool] = False

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Mean certainty, nats, shape [P, n]; NaN where there is no sample or no token."""
        check_prompts(problems, samples)
        return samples.certainty.copy()

    def prefix_scores(self, problems: Sequence[Problem], samples: Samples,
                      checkpoints: Sequence[int]) -> NDArray[np.float64]:
        """Of the first tokens of each sample, shape [P, n, checkpoints]; NaN where it has ended."""
        check_prompts(problems, samples)
        certainty = [[np.empty(0, np.float32)] * samples.n for _ in samples.prompts]
        for sample in samples:
            certainty[sample.prompt][sample.index - samples.start] = sample.certainty
        return of_beginnings(samples, certainty, checkpoints, _mean)

    def read(self, live: Any) -> NDArray[np.float64]:
        """Of samples under way as they are, shape [m]; see `bonaware.policies`."""
        return np.array([_mean(sample.certainty) for sample in live.samples], np.float64)


def _mean(certainty: NDArray[np.float32]) -> float:
    return float(certainty.mean(dtype=np.float64)) if len(certainty) else np.nan


VERIFIER = SelfCertainty
