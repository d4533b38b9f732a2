"""likelihood: the log-probability of a sample under the model that drew it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Samples
from bonaware.tasks import Problem
from bonaware.verifiers import check_prompts
from bonaware.verifiers._beginnings import of_beginnings

__all__ = ["VERIFIER", "Likelihood"]

NORMALIZE = (None, "length")


@dataclass(frozen=True)
class Likelihood:
    """Scores log π(sample | prompt) at temperature 1.

    Parameters
    ----------
    normalize : str, optional
        None: summed over the tokens, nats; long samples score low. "length": mean per
        token, nats.

    Raises
    ------
    ValueError
        normalize is something else.
    """

    normalize: str | None = None
    probabilities: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize must be None or 'length', got {self.normalize!r}")

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Log-probabilities, nats, shape [P, n]; NaN where there is no sample."""
        check_prompts(problems, samples)
        if self.normalize is None:
            return samples.sum_logp.copy()
        return samples.sum_logp / np.maximum(samples.lengths, 1)

    def prefix_scores(self, problems: Sequence[Problem], samples: Samples,
                      checkpoints: Sequence[int]) -> NDArray[np.float64]:
        """Of the first tokens of each sample, shape [P, n, checkpoints]; NaN where it has ended."""
        check_prompts(problems, samples)
        return of_beginnings(samples, samples.logp, checkpoints, self._of)

    def read(self, live: Any) -> NDArray[np.float64]:
        """Of samples under way as they are, shape [m]; see `bonaware.policies`."""
        return np.array([self._of(sample.logp) for sample in live.samples], np.float64)

    def _of(self, logp: NDArray[np.float32]) -> float:
        total = logp.sum(dtype=np.float64)
        return float(total if self.normalize is None else total / max(len(logp), 1))


VERIFIER = Likelihood
