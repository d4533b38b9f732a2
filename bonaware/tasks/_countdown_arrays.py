"""Countdown problems by the million: every way to combine some numbers, as arrays.

A *program* combines `size` numbers in size - 1 steps; each step takes two of the numbers that
are left and puts their sum, product, difference or quotient in their place. All programs of a
size are tried on many problems at once. Here every result is a whole number from 1 to
`limit`: the larger number comes first in a difference or quotient, and quotients are exact.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARES", "SIZES", "draw", "programs", "results", "shares", "write"]

SIGNS = "+*-/"  # a program's signs are indices into this
SIZES = range(2, 6)  # six numbers would have 2.8 million programs
SHARES = 16
CELLS = 1 << 22  # results computed at once, at most: 16 MB
ROWS = 1 << 14  # problems tried at once, at most: a few are had quickly


@cache
def programs(size: int) -> NDArray[np.int8]:
    """All ways to combine so many numbers.

    Parameters
    ----------
    size : int
        In `SIZES`.

    Returns
    -------
    int8, shape [E, size - 1, 3]
        Two places and a sign of each step. Places 0 to size - 1 hold the given numbers, and
        the result of step s goes to place size + s. E is 4, 48, 1152 or 46080.

    Raises
    ------
    ValueError
        There is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"need {SIZES[0]} to {SIZES[-1]} numbers, got {size}")
    return np.array(list(_extend([], list(range(size)))), np.int8)


def _extend(
    steps: list[tuple[int, int, int]], left: list[int]
) -> Iterator[list[tuple[int, int, int]]]:
    if len(left) == 1:
        yield steps
        return
    place = left[-1] + 1
    for one, other in combinations(left, 2):
        rest = [kept for kept in left if kept not in (one, other)]
        for sign in range(len(SIGNS)):
            yield from _extend([*steps, (one, other, sign)], [*rest, place])


def results(numbers: NDArray[np.integer], limit: int) -> NDArray[np.int16]:
    """What every program gives on every problem.

    Parameters
    ----------
    numbers : int, shape [P, size]
    limit : int
        Largest number a step may give, <= 32767.

    Returns
    -------
    int16, shape [P, E]
        In the order of `programs`; 0 where a step would leave the range.

    Examples
    --------
    >>> import numpy as np
    >>> results(np.array([[3, 4], [2, 6]]), 99)
    array([[ 7, 12,  1,  0],
           [ 8, 12,  4,  3]], dtype=int16)
    """
    left = numbers.astype(np.int32)
    while left.shape[1] > 1:
        left = _step(left, limit)
    return left.reshape(len(numbers), len(programs(numbers.shape[1]))).astype(np.int16)


def _step(left: NDArray[np.int32], limit: int) -> NDArray[np.int32]:
    """What is left after every possible step; rows in the order of `programs`."""
    rows, count = left.shape
    pairs = list(combinations(range(count), 2))
    rest = [[kept for kept in range(count) if kept not in pair] for pair in pairs]
    one, other = np.array(pairs).T
    after = np.empty((rows, len(pairs), len(SIGNS), count - 1), np.int32)
    after[..., :-1] = left[:, np.array(rest, int).reshape(len(pairs), 1, -1)]
    after[..., -1] = _signs(left[:, one], left[:, other], limit)
    return after.reshape(-1, count - 1)


def _signs(
    one: NDArray[np.int32], other: NDArray[np.int32], limit: int
) -> NDArray[np.int32]:
    """Sum, product, difference, quotient on a last axis; 0 outside 1 to limit, 0 stays 0."""
    high, low = np.maximum(one, other), np.minimum(one, other)
    quotient, remainder = np.divmod(high, np.maximum(low, 1))
    found = np.stack([high + low, high * low, high - low, quotient * (remainder == 0)], axis=-1)
    return found * ((low > 0)[..., None] & (found <= limit))


def shares(numbers: NDArray[np.integer]) -> NDArray[np.int64]:
    """Which of `SHARES` equal shares each multiset of numbers belongs to.

    Depends on the numbers alone, not on their order, a seed or a machine: splits made of
    different shares have no multiset in common, however many problems are drawn.

    Parameters
    ----------
    numbers : int, shape [P, size]

    Returns
    -------
    int64, shape [P]
        0 to SHARES - 1.

    Notes
    -----
    Source: the mixing steps of SplitMix64 (Steele, Lea, Flood 2014), once per number.
    """
    key = np.zeros(len(numbers), np.uint64)
    for column in np.sort(numbers, axis=1).T.astype(np.uint64):
        key = (key ^ column) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return (key % np.uint64(SHARES)).astype(np.int64)


def draw(
    rng: np.random.Generator, size: int, high: int, limit: int,
    taken: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Endless chunks of random problems that have a solution.

    Numbers are uniform in 1 to high and sorted; the target is uniform over all that they can
    reach and that is not one of them.

    Parameters
    ----------
    rng : Generator
    size, high, limit : int
    taken : callable
        From numbers, int64 [P, size], to whether to take them, bool [P].

    Yields
    ------
    numbers : int64, shape [P, size]
    targets : int64, shape [P]
    program : int64, shape [P]
        The first program that reaches the target: a canonical solution.
    """
    rows = min(ROWS, CELLS // len(programs(size)))
    while True:
        numbers = np.sort(rng.integers(1, high + 1, (rows, size)), axis=1)
        numbers = numbers[taken(numbers)]
        reached = results(numbers, limit)
        row = np.arange(len(numbers))[:, None]
        possible = np.zeros((len(numbers), limit + 1), bool)
        possible[row, reached] = True
        possible[row, numbers * (numbers <= limit)] = False
        possible[:, 0] = False
        targets = (rng.random(possible.shape) * possible).argmax(axis=1)
        solved = possible.any(axis=1)
        program = (reached == targets[:, None]).argmax(axis=1)
        yield numbers[solved], targets[solved], program[solved]


def write(numbers: NDArray[np.integer], program: NDArray[np.integer]) -> NDArray[np.int64]:
    """The steps of one program per problem, larger number first.

    Parameters
    ----------
    numbers : int, shape [P, size]
    program : int, shape [P]
        Rows of `programs`; one that stays within whole numbers above 0.

    Returns
    -------
    int64, shape [P, size - 1, 4]
        Number, index into `SIGNS`, number, result.

    Examples
    --------
    >>> import numpy as np
    >>> write(np.array([[3, 4]]), np.array([2]))
    array([[[4, 2, 3, 1]]])
    """
    count, size = numbers.shape
    rows = np.arange(count)
    places = np.zeros((count, 2 * size - 1), np.int64)
    places[:, :size] = numbers
    steps = np.empty((count, size - 1, 4), np.int64)
    for step, (one, other, sign) in enumerate(programs(size)[program].transpose(1, 2, 0)):
        pair = places[rows, one], places[rows, other]
        high, low = np.maximum(*pair), np.minimum(*pair)
        result = np.choose(sign, [high + low, high * low, high - low, high // low])
        steps[:, step] = np.stack([high, sign, low, result], axis=1)
        places[:, size + step] = result
    return steps
