"""What a trainer learns from: sources of batches, evaluation on the way, the folder of a run.

A source is a callable that makes one step of a trainer and returns its metrics:
`trainer.fit(Rollouts("countdown", n=32), steps=200)`. What it takes for a step depends on its
seed and on `trainer.steps` only, so that it needs no state of its own to be resumed.
"""

from bonaware.training.evaluation import Evaluation
from bonaware.training.sources import Labels, Rollouts, Texts

__all__ = ["Evaluation", "Labels", "Rollouts", "Texts"]
