"""Recorded samples that somebody has scored, from the store of a run or from JSONL."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bonaware._arguments import Floats
from bonaware.recorded import REWARDS, SQLITE_MAGIC, evaluate_recorded
from bonaware.samples import FINISH_REASONS, Sample, Samples
from bonaware.selfeval.rows import ids_of
from bonaware.tasks import read_jsonl, require

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["Recorded", "recorded"]

# Where to look for samples, best first: ids need no tokenizer.
SAMPLES = ("tokens", "completion", "completions", "text", "texts")


class Recorded(NamedTuple):
    """What `build` takes: ``build(r.samples, r.scores, problems=r.problems)``.

    Parameters
    ----------
    samples : Samples
    scores : float64, shape [P, n]
    problems : list of P str
    """

    samples: Samples
    scores: Floats
    problems: list[str]


def recorded(path: str | os.PathLike[str], scores: str | None = None,
             lm: "LM | None" = None) -> Recorded:
    """Read samples and what they are worth.

    Parameters
    ----------
    path : str or path
        The store of a run; or a JSONL file with one row per sample, or with one per problem
        whose fields are lists. A row has a prompt (text, ids or messages); tokens (ids), or a
        completion or text; a score; perhaps a problem, which names the prompt, and a
        finish_reason, which is "eos" if it is not there.
    scores : str, optional
        Which verifier's scores, or which field. Default: the rewards; in JSONL the first of
        rewards, reward, correct, is_correct, passed, score that is there.
    lm : LM, optional
        Whose tokenizer encodes texts, and whose end token stands behind those that ended.

    Returns
    -------
    Recorded

    Raises
    ------
    ValueError
        A field is missing or of another kind; the message names file, line and field. There are
        texts and no model. Or a policy decided what was drawn into the store.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "rows.jsonl")
    >>> _ = path.write_text('{"prompt": [1, 2], "tokens": [[5, 3], [6]], "correct": [1, 0]}')
    >>> found = recorded(path)
    >>> found.scores, found.samples.lengths
    (array([[1., 0.]]), array([[2, 1]]))
    >>> folder.cleanup()
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            return _from_store(path, scores)
    reader = _Reader(path, scores, lm)
    for line, row in read_jsonl(path):
        reader.add(line, row)
    return reader.recorded()


def _from_store(path: Path, name: str | None) -> Recorded:
    run = evaluate_recorded(path)
    if "policy" in run.settings:
        raise ValueError(f"{path}: a policy decided how much was drawn by looking at the samples, "
                         "so labels by comparison would be biased: draw them without one")
    if name is not None and name not in run.scores:
        known = ", ".join(run.scores) or "none"
        raise ValueError(f"{path}: need scores by {name!r}, found {known}")
    assert run.samples is not None  # a store has some
    return Recorded(run.samples, run.rewards if name is None else run.scores[name],
                    [problem.id for problem in run.problems])


class _Reader:
    """Prompts in order of appearance, with their samples and scores."""

    def __init__(self, path: Path, score: str | None, lm: "LM | None") -> None:
        self.path, self.score, self.lm = path, score, lm
        self.place: dict[str, int] = {}  # problem -> position
        self.prompts: list[Any] = []
        self.names: list[str] = []
        self.rows: list[list[tuple[Sample, float]]] = []

    def add(self, line: int, row: dict[str, Any]) -> None:
        prompt = require(row, "prompt", (str, list), self.path, line)
        key = json.dumps([row.get("problem"), prompt])
        p = self.place.setdefault(key, len(self.prompts))
        if p == len(self.prompts):
            self.prompts.append(prompt)
            self.names.append(str(row.get("problem", p)))
            self.rows.append([])
        field = self._first(line, row, SAMPLES)
        score = self.score or self._first(line, row, REWARDS)
        drawn = require(row, field, (str, list), self.path, line)
        if isinstance(drawn, str) or (drawn and isinstance(drawn[0], int)):
            columns = [[drawn], [row.get(score)], [row.get("finish_reason", "eos")]]
        else:
            columns = [drawn, require(row, score, list, self.path, line), ["eos"] * len(drawn)]
            if "finish_reason" in row:
                columns[2] = require(row, "finish_reason", list, self.path, line)
        if len({len(column) for column in columns}) > 1:
            raise self._wrong(line, f"need as many entries of {score} and finish_reason as of "
                                    f"{field}, found {[len(column) for column in columns]}")
        for sample, value, reason in zip(*columns, strict=True):
            made = self._sample(line, p, sample, reason)
            self.rows[p].append((made, self._number(line, score, value)))

    def _first(self, line: int, row: dict[str, Any], names: tuple[str, ...]) -> str:
        for name in names:
            if name in row:
                return name
        raise self._wrong(line, f"need one of the fields {', '.join(names)}, found "
                                f"{', '.join(row)}")

    def _number(self, line: int, name: str, value: Any) -> float:
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            raise self._wrong(line, f"{name} must hold finite numbers, or true and false, found "
                                    f"{value!r:.80}")
        return float(value)

    def _sample(self, line: int, p: int, drawn: Any, reason: Any) -> Sample:
        if reason not in FINISH_REASONS:
            raise self._wrong(line, f"finish_reason must be one of {', '.join(FINISH_REASONS)}, "
                                    f"found {reason!r:.80}")
        ids = self._ids(line, drawn, reason == "eos")
        unknown = np.full(len(ids), np.nan, np.float32)
        return Sample(p, len(self.rows[p]), ids, unknown, unknown, unknown,
                      drawn if isinstance(drawn, str) else None, reason, math.nan)

    def _ids(self, line: int, drawn: Any, ended: bool) -> Any:
        if isinstance(drawn, str):
            if self.lm is None:
                raise self._wrong(line, "samples as text need a model, lm, whose tokenizer "
                                        "encodes them")
            ends = self.lm.eos_token_ids[:1] if ended else ()
            return np.concatenate([self.lm._completion(drawn), np.array(ends, np.int32)])
        ids = ids_of(drawn) if isinstance(drawn, list) else None
        if ids is None:
            raise self._wrong(line, "a sample must be a text or a list of ids, found "
                                    f"{drawn!r:.80}")
        return ids

    def _wrong(self, line: int, sentence: str) -> ValueError:
        return ValueError(f"{self.path}, line {line}: {sentence}")

    def recorded(self) -> Recorded:
        """All of it."""
        if not self.rows:
            raise ValueError(f"{self.path}: need at least one row, but the file is empty")
        n = max(map(len, self.rows))
        scores = np.full((len(self.rows), n), np.nan)
        for p, row in enumerate(self.rows):
            scores[p, : len(row)] = [score for _, score in row]
        drawn = [sample for row in self.rows for sample, _ in row]
        return Recorded(Samples.from_list(self.prompts, drawn, n), scores, self.names)
