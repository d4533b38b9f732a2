"""Tasks: problems, how to pose them, and how to tell whether a sample solves one.

One file = one task, found by its name: `get("gsm8k")`. A task file has an attribute `TASK`,
a class whose options are keywords. What a task must offer stands in the class `Task`.
Nothing is downloaded: a task that needs data names the file it looked for.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import _lookup

__all__ = ["Problem", "Task", "available", "data_path", "get", "read_jsonl", "require"]


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem of a task.

    Parameters
    ----------
    id : str
        Unique within the task and split.
    prompt : str
        The problem itself; `task.prompt(problem)` is what the model gets.
    answer : Any
        What `task.reward` compares with.
    fields : dict
        The record it was read from.
    """

    id: str
    prompt: str
    answer: Any
    fields: dict[str, Any] = field(default_factory=dict, repr=False)


class Task:
    """Base class: a task defines `load` and `reward`, and whatever else differs.

    Attributes
    ----------
    name : str
        Its file's name.
    max_new_tokens : int
        How long a sample needs to be able to get.
    stop_strings : tuple of str
        What ends a sample besides the end token.
    """

    name = ""
    max_new_tokens = 256
    stop_strings: tuple[str, ...] = ()

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The first `limit` problems of a split; all of them for None.

        Raises
        ------
        ValueError
            There is no such split, or a record is broken.
        OSError
            The data are not where they are looked for; the message says where.
        """
        raise NotImplementedError

    def reward(self, problem: Problem, text: str) -> float:
        """The truth about one sample: 1.0 right, 0.0 wrong, or a value between."""
        raise NotImplementedError

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        """What the model gets: text, or chat messages."""
        return problem.prompt

    def answer(self, problem: Problem, text: str) -> str | None:
        """What the sample answers, for majority voting; None where it has no vote."""
        return None

    def rewards(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str | None]]
    ) -> NDArray[np.float64]:
        """Rewards of many samples.

        Parameters
        ----------
        problems : sequence of Problem, length P
        texts : sequence of P sequences of n str or None

        Returns
        -------
        float64, shape [P, n]
            NaN where the text is None.

        Raises
        ------
        ValueError
            There is not one equally long row of texts per problem.

        Notes
        -----
        Equal texts of a problem are judged once.
        """
        check_texts(problems, texts)
        return as_rewards(
            self._row(problem, row) for problem, row in zip(problems, texts, strict=True)
        )

    def _row(self, problem: Problem, texts: Sequence[str | None]) -> list[float | None]:
        """Rewards of the texts of one problem."""
        known = {text: self.reward(problem, text) for text in dict.fromkeys(texts)
                 if text is not None}
        return [None if text is None else known[text] for text in texts]

    def settings(self) -> dict[str, Any]:
        """How samples are judged on this machine, for those who read about a run.

        Raises
        ------
        RuntimeError
            They cannot be judged here.
        """
        return {}

    def remarks(self) -> str:
        """What one should know of how the last samples were judged; "" for nothing."""
        return ""

    def check_split(self, split: str, *splits: str) -> None:
        """Refuse a split that the task does not have."""
        if split not in splits:
            raise ValueError(
                f"task {self.name} has the splits {', '.join(splits)}, not {split!r}"
            )


def available() -> tuple[str, ...]:
    """Names that `get` knows.

    Examples
    --------
    >>> available()
    ('aime', 'countdown', 'gsm8k', 'humaneval', 'jsonl', 'keywords', 'math', 'mbpp')
    """
    return _lookup.available(__name__)


def get(name: str, **options: Any) -> Task:
    """A task by name.

    Parameters
    ----------
    name : str
        One of `available()`:
        "gsm8k", grade-school problems with whole numbers as answers;
        "math", competition problems compared by math-verify;
        "aime", competition problems whose answer is a whole number from 0 to 999;
        "humaneval" and "mbpp", Python programs whose tests run in a sandbox;
        "countdown", reaching a target from given numbers, made by a seed;
        "keywords", openings that must go on with given words, shipped with the package;
        "jsonl", any file of prompts and answers.
    **options
        Of that task; see its class, for instance `help(bonaware.tasks.get("gsm8k"))`.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        There is no such task; the message lists those there are.
    TypeError
        The task has no such option, or needs one that is missing.

    Examples
    --------
    >>> task = get("keywords")
    >>> len(task.load())
    64
    """
    return _lookup.make(__name__, name, "TASK", options)


# -- for those who write tasks ---------------------------------------------


def data_path(folder: str, path: str | Path | None) -> Path:
    """`path` if given, else `folder` in the directory that BONAWARE_DATA names.

    Raises
    ------
    FileNotFoundError
        Neither is there; the message says what to set.
    """
    if path is None:
        root = os.environ.get("BONAWARE_DATA")
        if not root:
            raise FileNotFoundError(
                f"task {folder} needs its data: pass path=, or set the environment variable "
                f"BONAWARE_DATA to a directory that contains {folder}/"
            )
        path = Path(root) / folder
    if not Path(path).exists():
        raise FileNotFoundError(f"task {folder} needs its data, but {path} does not exist")
    return Path(path)


def read_jsonl(path: str | Path, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line of a JSONL file; blank lines are left out.

    A file whose name ends in .gz is unpacked on the way.

    Raises
    ------
    ValueError
        limit is negative, or a line is not a JSON object; the message names file and line.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be >= 0 or None, got {limit}")
    opened = gzip.open if Path(path).suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for count, (number, line) in enumerate(lines):
            if count == limit:
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON: {_not_json(error)}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: need a JSON object, "
                                 f"got {type(record).__name__}")
            yield number, record


def _not_json(error: Exception) -> str:
    """What json says, without its own count of lines, which starts again at each line."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.pos + 1}"
    return str(error)


def require(record: dict[str, Any], name: str, kind: type | tuple[type, ...],
            path: str | Path, number: int) -> Any:
    """A field of a record, or one sentence that names file, line and field."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    if name not in record:
        raise ValueError(f"{path}, line {number}: need a field {name!r} ({wanted}); "
                         f"there are {', '.join(map(str, record))}")
    if not isinstance(record[name], kinds):
        raise ValueError(f"{path}, line {number}: field {name!r} must be {wanted}, "
                         f"got {type(record[name]).__name__}")
    return record[name]


def check_texts(problems: Sequence[Problem], texts: Sequence[Sequence[str | None]]) -> None:
    """Refuse texts that are not one equally long row per problem."""
    widths = sorted({len(row) for row in texts})
    if len(problems) != len(texts) or len(widths) > 1:
        raise ValueError(
            f"need one row of texts per problem, all equally long, got {len(texts)} rows of "
            f"lengths {widths} for {len(problems)} problems"
        )


def as_rewards(rows: Any) -> NDArray[np.float64]:
    """Nested floats and None as an array `[P, n]`; None becomes NaN."""
    values = [[np.nan if value is None else value for value in row] for row in rows]
    return np.array(values, np.float64).reshape(len(values), -1 if any(values) else 0)
