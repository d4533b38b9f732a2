"""The folder of a run: metrics.jsonl, one line per record, config.toml, checkpoints step-NNNNNN.

A checkpoint is written under another name and renamed when it is complete; the line of a step is
there before the step's checkpoint is. So after a kill the newest checkpoint is whole, and lines
behind it belong to steps that will be made again: they are cut off when the run goes on.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bonaware._export import SAVING

__all__ = [
    "CONFIG", "METRICS", "RunFolder", "StepBar", "checkpoints", "holds_run", "newest", "plain",
]

METRICS, CONFIG = "metrics.jsonl", "config.toml"
EVALUATED = "eval/"  # what the names of an evaluation's figures begin with
CHECKPOINT = re.compile(r"step-(\d{6,})")
# Of a process that was killed while it saved.
LEFTOVER = re.compile(CHECKPOINT.pattern + re.escape(SAVING) + r"\w{8}")
# Figures beside the bar, those of them that a record has.
SHOWN = ("loss", "reward", "accuracy", "auroc", "kl", "entropy", "nats_per_token")

Record = dict[str, Any]


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints in the folder of a run, oldest first."""
    found = [(CHECKPOINT.fullmatch(entry.name), entry) for entry in path.iterdir()]
    return [entry for _, entry in sorted((int(match[1]), entry) for match, entry in found if match)]


def holds_run(path: str | os.PathLike[str]) -> bool:
    """Whether a run has begun in this folder."""
    path = Path(path)
    return (path / METRICS).exists() or (path.is_dir() and bool(checkpoints(path)))


def newest(path: Path) -> Path | None:
    """The newest checkpoint of a run; None where it was ended before the first.

    Raises
    ------
    FileNotFoundError
        The folder holds no run.
    """
    if not holds_run(path):
        raise FileNotFoundError(f"need the folder of a run, with {METRICS}, or a checkpoint; "
                                f"found neither in {path}")
    return next(reversed(checkpoints(path)), None)


class RunFolder:
    """Where a run is written, by one process at a time.

    Parameters
    ----------
    path : path or None
        None: nothing is written.
    steps : int
        Steps made so far; lines of later ones are cut off.
    resumed : Path or None
        The folder that these steps come from; another one must not hold a run.
    keep : int
        How many checkpoints stay.
    config : str, optional
        What config.toml is to hold from now on.

    Raises
    ------
    FileExistsError
        path holds another run.
    RuntimeError
        Another process trains in it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, steps: int, resumed: Path | None,
                 keep: int, config: str | None = None) -> None:
        self.path = None if path is None else Path(path).resolve()
        self.keep = keep
        self._file: BinaryIO | None = None
        self._steps = steps  # of the newest line
        self._measured: int | None = None  # step of the newest evaluation
        if self.path is None:
            self._measured = steps or None  # of earlier calls nothing is known
            return
        if holds_run(self.path) and self.path != resumed:
            raise FileExistsError(f"{path} holds a run: resume it with trainer.resume({str(path)!r}"
                                  ") or bonaware train --resume, or write to another folder")
        self._new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path / METRICS, "ab+")  # noqa: SIM115 - closed by __exit__
        try:
            _lock(self._file, self.path)
            for record in _cut(self._file, steps):
                self._look(record)
            for entry in self.path.iterdir():
                if LEFTOVER.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
            if config is not None:
                _replace(self.path / CONFIG, config)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.path is None or self._file is None:
            return
        if error is not None and self._steps == 0:  # nothing was made: it is no run yet
            for name in (METRICS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
            if self._new and not any(self.path.iterdir()):
                self.path.rmdir()
        self._file.close()

    def measured(self, step: int) -> bool:
        """Whether the evaluation behind the newest step was made."""
        return self._measured == step

    def write(self, record: Record) -> None:
        """Append a record."""
        self._look(record)
        if self._file is not None:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def _look(self, record: Record) -> None:
        self._steps = max(self._steps, record["step"])
        if any(name.startswith(EVALUATED) for name in record):
            self._measured = record["step"]

    def rewrite(self, records: Sequence[Record]) -> None:
        """Put these records of one step in place of its lines, and of later ones."""
        if self._file is not None:
            _cut(self._file, records[0]["step"] - 1)
        for record in records:
            self.write(record)

    def checkpoint(self, trainer: Any) -> None:
        """Save the trainer, then remove the oldest checkpoints that are too many."""
        if self.path is None:
            return
        target = self.path / f"step-{trainer.steps:06d}"
        if not target.exists():  # else Ctrl-C came when it was just complete
            trainer.save(target)
            _to_disk(target)
        for old in checkpoints(self.path)[: -self.keep]:
            shutil.rmtree(old)


def plain(record: Record) -> Record:
    """The record as JSON has it: None for what is not a finite number.

    Raises
    ------
    TypeError
        JSON has nothing like one of its values.
    """
    return {name: _plain(name, value) for name, value in record.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"figures must be what JSON holds, but {name} is a "
                        f"{type(value).__name__}: {error}") from None
    return value


def _to_disk(folder: Path) -> None:
    """Wait until the disk holds it: only then older checkpoints may go."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """The file holds what it held, or all of this."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _lock(file: BinaryIO, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"another process trains in {path}") from None


def _cut(file: BinaryIO, steps: int) -> list[Record]:
    """Cut the file before the first line that is broken or of a later step; what stays."""
    file.seek(0)
    end, records = 0, []
    for line in file:
        try:
            record = json.loads(line)
            if not line.endswith(b"\n") or record["step"] > steps:
                break
        except (ValueError, KeyError, TypeError):
            break
        end += len(line)
        records.append(record)
    file.truncate(end)
    return records


class StepBar:
    """A tqdm bar over steps, the caller's function in its place, or nothing.

    Parameters
    ----------
    done, total : int
        Steps made before, and steps wanted.
    progress : bool, callable or None
        True or False shows or hides the bar; None shows it in terminals and notebooks. A
        callable gets every record.
    """

    def __init__(self, done: int, total: int,
                 progress: bool | Callable[[Record], None] | None) -> None:
        self.call = progress if callable(progress) else None
        self.bar = None
        if self.call is None and progress is not False:
            from tqdm.auto import tqdm

            disable = None if progress is None else False
            self.bar = tqdm(total=total, initial=done, unit="step", disable=disable)

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, record: Record) -> None:
        if self.call is not None:
            self.call(record)
        elif self.bar is not None:
            shown = {name: record[name] for name in SHOWN if record.get(name) is not None}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(record["step"] - self.bar.n)
