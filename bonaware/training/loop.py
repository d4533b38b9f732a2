"""The loop of `Trainer.fit`: step, record, evaluate, save, until the last step or an error."""

import warnings
from collections.abc import Callable
from typing import Any

from bonaware.training.folder import EVALUATED, Record, RunFolder, StepBar, plain

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
        """Make the steps that are missing, and the evaluation behind the last one that is not."""
        if self._unmeasured():
            self._evaluate()
        while self.told < self.steps:
            record = self.source(self.trainer)
            if self.trainer.steps != self.told + 1:
                raise ValueError("a source must make one step of the trainer, but "
                                 f"{self.source!r} made {self.trainer.steps - self.told}")
            self._tell(record)
            if self._unmeasured():
                self._evaluate()
            if self._due(self.save_every) or self.told == self.steps:
                self._save()

    @property
    def complete(self) -> bool:
        """Whether all steps are made, and the evaluation behind the last one."""
        return self.told >= self.steps and not self._unmeasured()

    def keep(self, found: Record) -> None:
        """After an error: keep the last completed step; found is its metrics."""
        self.told = now = self.trainer.steps
        if now > self.begun:
            # The error may have come anywhere in between: the lines of this step are written anew.
            if not any(record["step"] == now for record in self.records):
                self.records.append(plain({"step": now} | found))
            self.folder.rewrite([record for record in self.records if record["step"] == now])
        if now > self.saved:
            self._save()

    def stop(self, found: Record) -> None:
        """After Ctrl-C: the same, and say so."""
        self.keep(found)
        kept = "in memory" if self.folder.path is None else (
            f"in {self.folder.path}, where resume goes on")
        warnings.warn(f"interrupted: {self.told} of {self.steps} steps are made and kept {kept}",
                      stacklevel=3)

    def _unmeasured(self) -> bool:
        return (self.evaluation is not None and self._due(self.eval_every)
                and not self.folder.measured(self.told))

    def _due(self, every: int) -> bool:
        return every > 0 and (self.told % every == 0 or self.told == self.steps)

    def _tell(self, record: Record) -> None:
        self.told = self.trainer.steps
        self._write({"step": self.told} | record)

    def _evaluate(self) -> None:
        assert self.evaluation is not None  # _unmeasured
        figures = self.evaluation(self.trainer.lm)
        self._write({"step": self.told} | {EVALUATED + x: y for x, y in figures.items()})

    def _write(self, record: Record) -> None:
        self.records.append(plain(record))
        self.folder.write(self.records[-1])
        self.bar(self.records[-1])

    def _save(self) -> None:
        self.folder.checkpoint(self.trainer)
        self.saved = self.told
