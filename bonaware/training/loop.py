"""The loop of `Trainer.fit`: step, record, evaluate, save, until the last step or Ctrl-C."""

import warnings
from collections.abc import Callable
from typing import Any

from bonaware.training.folder import Record, RunFolder, StepBar, plain

__all__ = ["Loop"]


class Loop:
    """One call of `Trainer.fit`, whose parameters these are.

    Attributes
    ----------
    records : list of dict
        As they were written.
    """

    def __init__(self, trainer: Any, source: Callable[[Any], Record], steps: int,
                 folder: RunFolder, bar: StepBar, save_every: int,
                 evaluation: Callable[[Any], Record] | None, eval_every: int) -> None:
        self.trainer, self.source, self.steps = trainer, source, steps
        self.folder, self.bar, self.save_every = folder, bar, save_every
        self.evaluation, self.eval_every = evaluation, eval_every
        self.records: list[Record] = []
        self.begun = self.told = self.saved = trainer.steps

    def run(self) -> None:
        """Make the steps that are missing."""
        if self.told == 0 and self.eval_every:
            self._evaluate()
        while self.told < self.steps:
            record = self.source(self.trainer)
            if self.trainer.steps != self.told + 1:
                raise ValueError("a source must make one step of the trainer, but "
                                 f"{self.source!r} made {self.trainer.steps - self.told}")
            self._tell(record)
            if self._due(self.eval_every):
                self._evaluate()
            if self._due(self.save_every) or self.told == self.steps:
                self._save()

    def stop(self, found: Record) -> None:
        """After Ctrl-C: keep the last completed step and say so; found is its metrics."""
        self.told = now = self.trainer.steps
        if now > self.begun:
            # It may have come anywhere in between: the lines of this step are written anew.
            if not any(record["step"] == now for record in self.records):
                self.records.append(plain({"step": now} | found))
            self.folder.rewrite([record for record in self.records if record["step"] == now])
        if now > self.saved:
            self._save()
        kept = "in memory" if self.folder.path is None else (
            f"in {self.folder.path}, where resume goes on")
        warnings.warn(f"interrupted: {self.told} of {self.steps} steps are made and kept {kept}",
                      stacklevel=3)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.told % every == 0 or self.told == self.steps)

    def _tell(self, record: Record) -> None:
        self.told = self.trainer.steps
        self._write({"step": self.told} | record)

    def _evaluate(self) -> None:
        if self.evaluation is not None:
            figures = self.evaluation(self.trainer.lm)
            self._write({"step": self.told} | {f"eval/{x}": y for x, y in figures.items()})

    def _write(self, record: Record) -> None:
        self.records.append(plain(record))
        self.folder.write(self.records[-1])
        self.bar(self.records[-1])

    def _save(self) -> None:
        self.folder.checkpoint(self.trainer)
        self.saved = self.told
