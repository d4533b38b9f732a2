"""Options that policies have in common, checked."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware._checks import count, number

__all__ = ["Waves", "as_waves", "kept", "rising", "schedule", "share", "wave_at"]

Waves = int | Sequence[int]


def share(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    if not 0 < number(name, value) <= 1:
        raise ValueError(f"need 0 < {name} <= 1, got {value}")
    return float(value)


def rising(name: str, values: Any) -> tuple[int, ...]:
    """One whole number >= 1, or several, each larger than the one before."""
    several = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    numbers = tuple(count(name, value) for value in (values if several else [values]))
    if not numbers or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError(f"{name} must be at least one number of tokens, rising, got {values}")
    return numbers


def kept(fraction: float, held: int) -> int:
    """How many of the samples at a checkpoint go on: a fraction, rounded up, at least one.

    Examples
    --------
    >>> kept(0.25, 16), kept(0.25, 5), kept(0.01, 3), kept(0.07, 100)
    (4, 2, 1, 7)
    """
    return max(1, ceil(round(fraction * held, 9)))  # 0.07 * 100 > 7


def as_waves(waves: Waves) -> int | tuple[int, ...]:
    """Sizes of waves, checked: one, or several."""
    if not isinstance(waves, Sequence | np.ndarray):
        return count("a wave", waves)
    if not len(waves):
        raise ValueError("need at least one wave, got none")
    return tuple(count("a wave", size) for size in waves)


def wave_at(waves: Waves, drawn: int) -> int:
    """Size of the wave that begins where `drawn` samples are there.

    Examples
    --------
    >>> [wave_at([1, 3], drawn) for drawn in (0, 1, 4, 7)]
    [1, 3, 3, 3]
    """
    sizes = [waves] if isinstance(waves, int) else waves
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
        return 1 - 0.5 ** np.arange(n, dtype=float) if anneal == "exponential" else np.ones(n)
    factors = np.asarray(anneal, np.float64)
    if factors.shape != (n,) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(f"anneal needs n={n} finite factors >= 0, got {anneal}")
    if (factors == 0).sum() > 1:
        raise ValueError("at temperature 0 every sample of a prompt is the same: need at most one "
                         f"such sample, got {int((factors == 0).sum())} in {anneal}")
    return factors
