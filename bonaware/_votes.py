"""Answers as the C core wants them: one integer code per sample.

Shared by `bonaware.select` and `bonaware.estimators`; csrc/votes.h says what codes mean.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Answers", "as_codes", "as_mask"]

Answers = Sequence[Sequence[str | None]] | NDArray[np.integer]

NO_VOTE = -1
NO_SAMPLE = -2


class _Codes(dict[str | None, int]):
    """Numbers answers as they come; asking for an answer is what numbers it."""

    def __init__(self) -> None:
        super().__init__({None: NO_VOTE, "": NO_VOTE})

    def __missing__(self, answer: str | None) -> int:
        if not isinstance(answer, str):
            raise TypeError
        code = self[answer] = len(self) - 2
        return code


def as_codes(answers: Answers, mask: ArrayLike | None) -> NDArray[np.int64]:
    """int64 [P, n]: equal codes for equal answers, NO_VOTE or NO_SAMPLE.

    `answers` are nested sequences of str, with None and "" for samples that do not vote,
    or an integer array of codes with -1 for them, as `pandas.factorize` makes it.
    """
    if isinstance(answers, np.ndarray) and answers.dtype.kind in "iu":
        codes = _checked_codes(answers)
    else:
        codes = _numbered(answers.tolist() if isinstance(answers, np.ndarray) else answers)
    if mask is None:
        return codes
    return np.where(as_mask(mask, codes.shape, "answers"), codes, NO_SAMPLE)


def as_mask(mask: ArrayLike, shape: tuple[int, ...], of: str) -> NDArray[np.bool_]:
    """mask as a contiguous bool array of this shape; `of` names what it belongs to."""
    array = np.ascontiguousarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must hold bools, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"mask must have the shape of {of}, {shape}, got {array.shape}")
    return array


def _checked_codes(answers: NDArray[np.integer]) -> NDArray[np.int64]:
    if answers.ndim != 2:
        raise ValueError(f"answers must have the shape [P, n], got {answers.shape}")
    if answers.size and answers.min() < NO_VOTE:
        row, column = np.argwhere(answers < NO_VOTE)[0]
        raise ValueError(
            f"answer codes must be >= 0, or -1 for no vote, but row {row}, column {column} "
            f"has {answers[row, column]}"
        )
    return np.ascontiguousarray(answers, np.int64)


def _numbered(answers: Sequence[Sequence[str | None]]) -> NDArray[np.int64]:
    rows = list(answers)
    if any(isinstance(row, str) or not hasattr(row, "__len__") for row in rows):
        raise TypeError("answers must be nested: for each prompt a list of answers")
    n = len(rows[0]) if rows else 0
    for at, row in enumerate(rows):
        if len(row) != n:
            raise ValueError(
                f"need equally many answers for every prompt (None where there is none), but "
                f"row 0 has {n} and row {at} has {len(row)}"
            )
    codes = _Codes()
    try:
        flat = np.fromiter(
            map(codes.__getitem__, chain.from_iterable(rows)), np.int64, len(rows) * n
        )
    except TypeError:
        raise TypeError(_what_is_no_answer(rows)) from None
    return flat.reshape(len(rows), n)


def _what_is_no_answer(rows: list[Sequence[str | None]]) -> str:
    for at, row in enumerate(rows):
        for column, answer in enumerate(row):
            if answer is not None and not isinstance(answer, str):
                return (
                    "answers must be str or None (or an integer array of codes), but row "
                    f"{at}, column {column} is {type(answer).__name__}"
                )
    return "answers must be str or None"
