"""Options that policies have in common, checked."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["count", "schedule", "wave_at"]


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"need {name} >= {least}, got {value}")
    return int(value)


def wave_at(waves: int | Sequence[int], drawn: int) -> int:
    """Size of the wave that begins where `drawn` samples are there.

    Examples
    --------
    >>> [wave_at([1, 3], drawn) for drawn in (0, 1, 4, 7)]
    [1, 3, 3, 3]
    """
    sizes = list(waves) if isinstance(waves, Sequence | np.ndarray) else [waves]
    if not sizes:
        raise ValueError("need at least one wave, got none")
    for size in sizes:
        count("a wave", size)
    for size, start in zip(sizes, accumulate(sizes, initial=0), strict=False):
        if drawn <= start:
            return size
    return sizes[-1]


def schedule(anneal: str | Sequence[float], n: int) -> NDArray[np.float64]:
    """Factors of the temperature over the sample index, shape [n].

    Raises
    ------
    ValueError
        There is no such schedule; or there are not n factors, one is negative or not finite, or
        more than one is 0.

    Examples
    --------
    >>> schedule("exponential", 4)
    array([0.   , 0.5  , 0.75 , 0.875])
    """
    if isinstance(anneal, str):
        if anneal not in ("exponential", "constant"):
            raise ValueError("anneal must be 'exponential', 'constant' or n factors, got "
                             f"{anneal!r}")
        return 1 - 0.5 ** np.arange(n) if anneal == "exponential" else np.ones(n)
    factors = np.asarray(anneal, np.float64)
    if factors.shape != (n,) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(f"anneal needs n={n} finite factors >= 0, got {anneal}")
    if (factors == 0).sum() > 1:
        raise ValueError("at temperature 0 every sample of a prompt is the same: need at most one "
                         f"such sample, got {int((factors == 0).sum())} in {anneal}")
    return factors
