"""Curves: what k tries give, as a table with intervals.

Estimates come from bonaware.estimators; this file names them, averages them over prompts
and shows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import estimators
from bonaware._html import text as as_html

__all__ = ["Curves", "curves", "which_k"]

BOOTSTRAP_SEED = 0
GAP = "   "  # between the columns of a table


@dataclass(frozen=True, eq=False, repr=False)
class Curves:
    """Mean over prompts of each estimate at each k, with bootstrap intervals.

    Parameters
    ----------
    k : int64, shape [K]
        Samples that the selector sees.
    mean, low, high : dict of name -> float64, shape [K]
        In the unit of the reward; low and high bound the interval, NaN for a single prompt.
    n : int
        Samples per prompt that the estimates come from (the fewest, where prompts differ).
    prompts : int
        Prompts that the mean is over, and that the bootstrap draws from.
    level : float
        Of the intervals, such as 0.95.
    """

    k: NDArray[np.int64]
    mean: dict[str, NDArray[np.float64]]
    low: dict[str, NDArray[np.float64]]
    high: dict[str, NDArray[np.float64]]
    n: int
    prompts: int
    level: float

    def to_pandas(self):
        """A pandas.DataFrame, a row per curve and k: curve, k, mean, low, high, n, prompts."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas needs pandas: pip install 'bonaware[pandas]'") from None
        rows = [
            (name, int(k), *(part[name][j] for part in (self.mean, self.low, self.high)))
            for name in self.mean
            for j, k in enumerate(self.k)
        ]
        table = pandas.DataFrame(rows, columns=["curve", "k", "mean", "low", "high"])
        return table.assign(n=self.n, prompts=self.prompts)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists and numbers, for JSON; a missing bound is None."""
        parts = {"mean": self.mean, "low": self.low, "high": self.high}
        return {
            "k": self.k.tolist(),
            "n": self.n,
            "prompts": self.prompts,
            "level": self.level,
            "curves": {
                name: {part: _plain(values[name]) for part, values in parts.items()}
                for name in self.mean
            },
        }

    def to_text(self, width: int | None = None) -> str:
        """The table in characters.

        Parameters
        ----------
        width : int, optional
            Columns of characters. Curves that do not fit go on below, under their own k.
        """
        k, *curves = zip(*self._cells(), strict=True)
        blocks: list[list[tuple[str, ...]]] = []
        used = 0
        for curve in curves:
            wide = len(GAP) + max(map(len, curve))
            if not blocks or (width is not None and used + wide > width):
                blocks.append([k])
                used = max(map(len, k))
            blocks[-1].append(curve)
            used += wide
        return "\n\n".join("\n".join(_lines(block)) for block in blocks) + f"\n{self.note}"

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        titles = "".join(f'<th scope="col">{as_html(cell)}</th>' for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{as_html(cell)}</td>" for cell in row) + "</tr>"
            for row in body
        )
        return (
            f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{as_html(self.note)}</p>"
        )

    def _cells(self) -> list[list[str]]:
        rows = [["k", *self.mean]]
        for j, k in enumerate(self.k):
            row = [str(k)]
            for name in self.mean:
                mean, low, high = (part[name][j] for part in (self.mean, self.low, self.high))
                bounds = "" if np.isnan(low) else f" [{_number(low)}, {_number(high)}]"
                row.append(_number(mean) + bounds)
            rows.append(row)
        return rows

    @property
    def note(self) -> str:
        """What the figures are estimated from, in a sentence."""
        if self.prompts == 1:
            return f"estimated from n={self.n} samples of 1 prompt; an interval needs at least 2"
        return (
            f"estimated from n={self.n} samples of each of {self.prompts} prompts; "
            f"[{100 * self.level:g} % interval, bootstrap over prompts]"
        )


def curves(
    rewards: NDArray[np.float64],
    scores: Mapping[str, NDArray[np.float64]],
    answers: Sequence[Sequence[str | None]] | None = None,
    *,
    k: Sequence[int] | None = None,
    level: float = 0.95,
) -> Curves:
    """Estimate pass@k, best-of-k by each score, and majority@k, averaged over prompts.

    Parameters
    ----------
    rewards : float, shape [P, n]
        NaN where there is no sample; every prompt has at least one.
    scores : dict of name -> float, shape [P, n]
        What selectors rank by.
    answers : nested list [P][n] of str or None, optional
        What the samples vote for; None does not vote.
    k : sequence of int, optional
        Default: 1, 2, 4, ... and the number of samples that every prompt has.
    level : float
        Of the intervals, in (0, 1).

    Returns
    -------
    Curves
        First "pass@k" (rewards 0 and 1 only) or "max@k" (any other rewards), then
        "best-of-k by NAME", then "majority@k".

    Raises
    ------
    ValueError
        There is no prompt, or a k exceeds the samples that some prompt has.

    Notes
    -----
    Unbiased from n >= k samples. Equal scores share their subset's reward evenly. The
    bootstrap draws whole prompts.

    Examples
    --------
    >>> made = curves(np.array([[0.0, 1.0], [1.0, 1.0]]), {"length": np.array([[2, 1], [1, 2]])})
    >>> made.k, made.mean["pass@k"], made.mean["best-of-k by length"]
    (array([1, 2]), array([0.75, 1.  ]), array([0.75, 0.5 ]))
    """
    mask = ~np.isnan(rewards)
    if not len(rewards):
        raise ValueError("need at least one prompt with samples, got none")
    n = int(mask.sum(axis=1).min())
    ks = which_k(k, n)
    best = "pass@k" if np.isin(rewards[mask], (0.0, 1.0)).all() else "max@k"
    values = {best: estimators.best_of_k(rewards, ks, mask=mask)}
    for name, score in scores.items():
        values[f"best-of-k by {name}"] = estimators.best_of_k(rewards, ks, score, mask=mask)
    if answers is not None:
        values["majority@k"] = estimators.majority_at_k(answers, rewards, ks, mask=mask)
    bounds = {name: _interval(value, level) for name, value in values.items()}
    return Curves(
        k=np.array(ks),
        mean={name: value.mean(axis=0) for name, value in values.items()},
        low={name: low for name, (low, _) in bounds.items()},
        high={name: high for name, (_, high) in bounds.items()},
        n=n,
        prompts=len(rewards),
        level=level,
    )


def which_k(k: Sequence[int] | None, n: int) -> list[int]:
    """The given k, checked; else the powers of two up to n, and n.

    Raises
    ------
    ValueError
        There is no k, or one is not in 1 ... n.
    TypeError
        k is no sequence.

    Examples
    --------
    >>> which_k(None, 12)
    [1, 2, 4, 8, 12]
    """
    if k is None:
        return sorted({*(2**i for i in range(n.bit_length())), n} - {0})
    if np.ndim(k) != 1:
        raise TypeError(f"k must be a sequence of int, got {k!r}")
    if not len(k) or min(k) < 1 or max(k) > n:
        raise ValueError(f"need 1 <= k <= n, but n is {n} and k is {list(k)}")
    return list(k)


def _interval(
    values: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds [K] of the mean over prompts of values [P, K]; NaN where P is 1."""
    if len(values) == 1:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    return estimators.interval(values, axis=0, level=level, rng=BOOTSTRAP_SEED)


def _lines(columns: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of cells as aligned lines, the first column to the right."""
    widths = [max(map(len, column)) for column in columns]
    return [
        GAP.join(
            cell.rjust(width) if column == 0 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.5g}"
