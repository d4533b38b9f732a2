"""Evaluation on the way: what k samples of held-out problems give, as figures for a log."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bonaware.evaluation import evaluate
from bonaware.tasks import Task

__all__ = ["Evaluation"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Draws the same problems with the same seed whenever it is called, and measures.

    Parameters
    ----------
    task : Task or str
    n : int
        Samples per problem.
    k : sequence of int, optional
        Default: 1, 2, 4, ... n.
    verifiers : sequence of str or verifier
        For best-of-k by each of them.
    temperature : float
    max_new_tokens : int, optional
        Default: the task's.
    split : str
    limit : int, optional
        The first problems only.
    seed : int
    """

    task: Task | str
    n: int = 32
    k: Sequence[int] | None = None
    verifiers: Sequence[Any] = ()
    temperature: float = 1.0
    max_new_tokens: int | None = None
    split: str = "validation"
    limit: int | None = 200
    seed: int = 0

    def __call__(self, lm: Any) -> dict[str, float]:
        """Figures such as "pass@8" and "best-of-8 by likelihood", means over problems."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "interrupted")  # the trainer says it
            run = evaluate(
                lm, self.task, self.n, k=self.k, verifiers=self.verifiers, rng=self.seed,
                temperature=self.temperature, max_new_tokens=self.max_new_tokens,
                split=self.split, limit=self.limit, progress=False,
            )  # fmt: skip
        if not run.complete:
            raise KeyboardInterrupt
        curves = run.curves()
        return {
            name.replace("@k", f"@{k}").replace("-of-k", f"-of-{k}"): float(value)
            for name, values in curves.mean.items()
            for k, value in zip(curves.k, values, strict=True)
        }
