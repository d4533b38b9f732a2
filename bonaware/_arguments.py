"""What the estimators ask of their arguments, and what they say about wrong ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Floats",
    "Ks",
    "as_floats",
    "as_int64",
    "as_ks",
    "as_probability",
    "need_same_shape",
    "place",
]

Floats = NDArray[np.float64]
Ks = int | Sequence[int] | NDArray[np.integer]


def as_ks(k: Ks) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """k as int64 [K], and the axes it adds to a result: none or (K,)."""
    array = as_int64(k, "k")
    if array.ndim > 1:
        raise ValueError(f"k must be an int or a sequence of ints, got shape {array.shape}")
    if array.size and array.min() < 1:
        raise ValueError(f"k must be >= 1, got {array.min()}")
    return np.ascontiguousarray(array.ravel()), array.shape


def as_floats(x: ArrayLike, name: str) -> Floats:
    """x as a contiguous float64 array."""
    try:
        return np.ascontiguousarray(x, np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} must be an array of numbers, rows equally long (a mask says where no sample "
            f"is): {error}"
        ) from None


def as_int64(x: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(x)
    if array.size and (array.dtype == bool or not np.can_cast(array.dtype, np.int64)):
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    return array.astype(np.int64, copy=False)


def as_probability(x: ArrayLike, name: str) -> Floats:
    array = np.asarray(x, np.float64)
    wrong = ~((array >= 0) & (array <= 1))
    if wrong.any():
        raise ValueError(f"{name} must be in [0, 1], but {place(wrong)} is {array[wrong][0]}")
    return array


def need_same_shape(a: NDArray, a_name: str, b: NDArray, b_name: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{a_name} and {b_name} must have the same shape, got {a.shape} and {b.shape}"
        )


def place(where: NDArray[np.bool_]) -> str:
    """The first true place, in words."""
    at = [int(i) for i in np.argwhere(where)[0]]
    if len(at) == 2:
        return f"row {at[0]}, column {at[1]}"
    return f"element {at[0] if len(at) == 1 else tuple(at)}" if at else "it"
