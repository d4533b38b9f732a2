"""exact: the task's own reward as the score; what a perfect selector would see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Samples
from bonaware.tasks import Problem, Task
from bonaware.verifiers import check_prompts

__all__ = ["VERIFIER", "Exact"]


@dataclass(frozen=True)
class Exact:
    """Scores with the reward of a task.

    Parameters
    ----------
    task : Task
        Whose reward it is.
    """

    task: Task

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Rewards, shape [P, n]; NaN where there is no sample.

        Raises
        ------
        ValueError
            There is not one prompt per problem, a prompt is of no problem, or a sample has no
            text.
        """
        check_prompts(problems, samples)
        if any(problem is None for problem in problems):
            raise ValueError("verifier exact rewards answers to problems, but there are prompts "
                             "only: use bonaware.evaluate")
        mute = samples.valid & np.array(
            [[text is None for text in row] for row in samples.text], bool
        ).reshape(samples.valid.shape)
        if mute.any():
            raise ValueError(f"verifier exact needs texts, but {mute.sum()} samples have none")
        return self.task.rewards(problems, samples.text)


VERIFIER = Exact
