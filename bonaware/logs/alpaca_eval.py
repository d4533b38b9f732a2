"""Annotations of AlpacaEval: which of two answers a judge prefers, as rewards.

The reward of an answer is how surely it wins over the reference: 0 lost, 0.5 a draw, 1 won. Its
mean is the win rate; several answers to one instruction are the samples of one problem, so that
curves say what the best of k wins.

Source: Li et al. 2023, github.com/tatsu-lab/alpaca_eval; lengths are not controlled for.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonaware.logs import Log

__all__ = ["FIELDS", "from_annotations"]

FIELDS = {"instruction", "output_1", "output_2", "preference"}
DRAW = 0  # else 1, the reference wins, to 2, the model wins


def from_annotations(path: Path, rows: list[tuple[str, dict[str, Any]]]) -> Log:
    """The rows of annotations.json, one per answer.

    Fields of a row: problem (the instruction), text, reference, reward_win; what begins with
    `score_` stays. Those that the judge gave no preference are left out, and a warning counts them.

    Raises
    ------
    ValueError
        A field is missing, a preference is none, or nothing is left.
    """
    for where, row in rows:
        if not row.keys() >= FIELDS:
            raise ValueError(f"{where}: need the fields {', '.join(sorted(FIELDS))}, found "
                             f"{', '.join(row)}")
    judged = [(where, row) for where, row in rows if row["preference"] is not None]
    if not judged:
        raise ValueError(f"{path}: need at least one annotation with a preference, found "
                         f"{len(rows)} without")
    if len(judged) < len(rows):
        warnings.warn(f"{path}: {len(rows) - len(judged)} of {len(rows)} annotations have no "
                      "preference and are left out", stacklevel=2)
    first = judged[0][1]
    settings = {"model": first.get("generator_2"), "task": "AlpacaEval",
                "against": first.get("generator_1"), "annotator": first.get("annotator")}
    return Log(_rows(judged), settings)


def _rows(judged: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in judged:
        scores = {name: value for name, value in row.items() if name.startswith("score_")}
        yield where, {
            "problem": row["instruction"], "text": row["output_2"], "reference": row["output_1"],
            "reward_win": _win(where, row["preference"]), **scores,
        }  # fmt: skip


def _win(where: str, preference: Any) -> float:
    """1 to 2 as 0 to 1."""
    number = isinstance(preference, int | float) and not isinstance(preference, bool)
    if not number or not (preference == DRAW or 1 <= preference <= 2):
        raise ValueError(f"{where}: preference must be from 1 (the reference wins) to 2, or 0 for "
                         f"a draw, found {preference!r:.80}")
    return 0.5 if preference == DRAW else float(preference) - 1
