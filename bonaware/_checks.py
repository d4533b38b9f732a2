"""What the engine's callers ask of their arguments, and what they say about wrong ones."""

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["as_ids", "count", "floats", "megabytes", "number"]


def count(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"need {name} >= {least}, got {value}")
    if value > most:
        raise ValueError(f"need {name} <= {most}, got {value}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A number; one that is NaN is refused by whoever compares it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def as_ids(tokens: ArrayLike, what: str) -> NDArray[np.int32]:
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, got shape {array.shape}")
    if array.size == 0:
        return np.empty(0, np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what} must hold integer token ids, got dtype {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array > np.iinfo(np.int32).max))
    if bad.size:
        raise ValueError(f"token ids of {what} must be >= 0 and fit in 32 bits, but position "
                         f"{bad[0]} holds {array[bad[0]]}")
    return np.ascontiguousarray(array, np.int32)


def floats(name: str, value: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}") from None


def megabytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
