"""Curves drawn without a library: in characters for a terminal, as SVG for a page.

It knows no run and no page; the colours of the SVG are classes c0, c1, ... that the page's
style sheet fills.
"""

import html
from dataclasses import dataclass
from math import floor, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware.curves import Curves

__all__ = ["HUES", "legend", "svg", "text"]

HUES = 7  # classes c0 to c6, and as many shapes
STEPS = 6  # of the vertical axis that the values span, at most

# -- axes ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """A scale from values to places: 0 at the first, `length` at the last.

    Parameters
    ----------
    first, last : float
        Ends of the scale, different.
    length : float
    """

    first: float
    last: float
    length: float

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        share = (np.asarray(values, np.float64) - self.first) / (self.last - self.first)
        return share * self.length


def _ticks(low: float, high: float) -> NDArray[np.float64]:
    """Round values at equal steps, the first <= low, the last >= high."""
    span = (high - low) or abs(high) or 1.0
    rough = 10.0 ** floor(log10(span / STEPS))
    step = next(rough * m for m in (1, 2, 5, 10) if span / (rough * m) <= STEPS)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    if first == last:
        first, last = (first - 1, last) if last > 0 else (first, last + 1)
    return np.arange(first, last + 1) * step


def _labels(ticks: NDArray[np.float64]) -> list[str]:
    """Ticks with as many digits as their step needs."""
    digits = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:.{digits}f}" if abs(tick) < 1e6 else f"{tick:.3g}" for tick in ticks]


def _k_axis(k: NDArray[np.int64], length: float) -> NDArray[np.float64]:
    """Places of the k on a logarithmic axis; a single one stands at its beginning."""
    if len(k) == 1:
        return np.zeros(1)
    return _Axis(np.log2(k.min()), np.log2(k.max()), length)(np.log2(k))


def _titles(curves: Curves) -> tuple[str, str]:
    solved = "pass@k" in curves.mean
    across = "k, samples the selector sees"
    return across, "solved (share of prompts)" if solved else "mean reward of the chosen sample"


# -- characters ------------------------------------------------------------------

ROWS = 13  # of the chart, without its axes
LEAST, MOST = 24, 56  # columns between the axis and the names
ASCII = {"marks": "o#^x*+@", "dot": ".", "up": "|", "tick": "+", "across": "-", "cut": "~"}
UNICODE = {"marks": "●■▲◆▼○□", "dot": "·", "up": "│", "tick": "┤", "across": "─", "cut": "…"}


def text(curves: Curves, width: int = 80, encoding: str = "utf-8") -> str:
    """The curves over k as lines of characters, each with its name at its end.

    Parameters
    ----------
    curves : Curves
    width : int
        Columns of the terminal; the least that is used is 60.
    encoding : str
        Of the terminal: one that cannot show the marks gets ASCII.

    Examples
    --------
    >>> from bonaware.curves import curves
    >>> made = curves(np.array([[0.0, 1.0], [1.0, 1.0]]), {"length": np.array([[2, 1], [1, 2]])})
    >>> print(text(made, 60, "ascii"))
    solved (share of prompts)
    1.0 +                             ..o  o pass@k
        |                        .....
    0.9 +                   .....
        |             ......
        |        .....
    0.8 +   .....
        |o..
    0.7 +   .....
        |        .....
        |             ......
    0.6 +                   .....
        |                        .....
    0.5 +                             ..#  # best-of-k by length
        ---------------------------------
         1                              2
         k, samples the selector sees
    """
    signs = _signs(encoding)
    ticks = _ticks(*_bounds(curves, intervals=False))
    labels = _labels(ticks)
    margin = max(map(len, labels)) + 2
    height = max(ROWS, len(curves.mean))
    room = max(width, 60) - margin
    names = [_cut(f"{signs['marks'][c % HUES]} {name}", room - LEAST - 2, signs["cut"])
             for c, name in enumerate(curves.mean)]
    columns = min(room - 2 - max(map(len, names)), MOST)
    rows = _Axis(ticks[-1], ticks[0], height - 1)
    xs = _k_axis(curves.k, columns - 1)
    cells = [[" "] * columns for _ in range(height)]
    for c, mean in reversed(list(enumerate(curves.mean.values()))):  # the first one on top
        _draw(cells, xs, rows(mean), signs["marks"][c % HUES], signs["dot"])
    ends = _apart([float(rows(mean[-1])) for mean in curves.mean.values()], height)
    at = dict(zip(ends, names, strict=True))
    ticked = dict(zip(np.rint(rows(ticks)).astype(int).tolist(), labels, strict=True))
    across, up = _titles(curves)
    return "\n".join([
        up,
        *(_line(ticked.get(row), "".join(cells[row]), at.get(row), margin, signs)
          for row in range(height)),
        " " * (margin - 1) + signs["across"] * (columns + 1),
        " " * margin + _k_line(curves.k, xs, columns + 4),
        " " * margin + across,
    ])  # fmt: skip


def _signs(encoding: str) -> dict[str, str]:
    try:
        "".join(UNICODE.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def _cut(name: str, width: int, sign: str) -> str:
    return name if len(name) <= width else name[: width - 1] + sign


def _draw(cells: list[list[str]], xs: NDArray[np.float64], ys: NDArray[np.float64],
          mark: str, dot: str) -> None:
    """A curve into the cells: its points, and dots between them."""
    for x in range(int(np.rint(xs[0])), int(np.rint(xs[-1])) + 1):
        cells[int(np.rint(np.interp(x, xs, ys)))][x] = dot
    for x, y in zip(np.rint(xs).astype(int), np.rint(ys).astype(int), strict=True):
        cells[y][x] = mark


def _apart(places: list[float], height: int) -> list[int]:
    """Rows for names, near their places, no two in one row."""
    order = sorted(range(len(places)), key=places.__getitem__)
    rows = [0] * len(places)
    free = 0
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        rows[i] = min(max(round(places[i]), free), height - left)
        free = rows[i] + 1
    return rows


def _line(label: str | None, cells: str, name: str | None, margin: int,
          signs: dict[str, str]) -> str:
    axis = signs["tick"] if label else signs["up"]
    return f"{label or '':>{margin - 2}} {axis}{cells}  {name or ''}".rstrip()


def _k_line(k: NDArray[np.int64], xs: NDArray[np.float64], width: int) -> str:
    """Each k below its point, where there is room for it."""
    line = ""
    for value, x in zip(k.tolist(), np.rint(xs).astype(int).tolist(), strict=True):
        at = max(0, x - (len(str(value)) - 1) // 2)
        if (not line or at > len(line)) and at + len(str(value)) <= width:
            line = f"{line:<{at}}{value}"
    return line


def _bounds(curves: Curves, intervals: bool) -> tuple[float, float]:
    """The least and the largest value that is drawn."""
    parts = (curves.mean, curves.low, curves.high) if intervals else (curves.mean,)
    values = np.concatenate([row for part in parts for row in part.values()])
    return float(np.nanmin(values)), float(np.nanmax(values))


# -- SVG -------------------------------------------------------------------------

WIDTH, HEIGHT = 520, 340  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 26, 50
# A shape for each hue, around 0, 0: also told apart without colour.
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.5-3.5h7v7h-7z", "M0-4.5l4.5 8h-9z",
    "M0-5l5 5-5 5-5-5z", "M0 4.5l4.5-8h-9z", "M-1.5-5h3v10h-3zM-5-1.5h10v3h-10z",
    "M-4-4l8 8M4-4l-8 8",
)  # fmt: skip


def svg(curves: Curves) -> str:
    """The curves over k with their intervals as bands: an <svg> element.

    Parameters
    ----------
    curves : Curves

    Returns
    -------
    str
        To be put into a page whose style sheet knows the classes grid, band, line, mark and
        c0 to c6. Every point says its value and interval in a <title>.
    """
    ticks = _ticks(*_bounds(curves, intervals=True))
    y = _Axis(ticks[-1], ticks[0], HEIGHT - TOP - BOTTOM)
    xs = LEFT + _k_axis(curves.k, WIDTH - LEFT - RIGHT)
    across, up = _titles(curves)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{html.escape(', '.join(curves.mean))}, over k</title>",
        *_frame(curves.k, xs, ticks, TOP + y(ticks)),
        f'<text x="4" y="14">{up}</text>',
        f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{across}</text>',
    ]
    curve = list(enumerate(curves.mean))[::-1]  # the first one on top
    for c, name in curve:
        if not np.isnan(curves.low[name]).any():
            low, high = (TOP + y(part[name]) for part in (curves.low, curves.high))
            band = _points(np.append(xs, xs[::-1]), np.append(high, low[::-1]))
            parts.append(f'<polygon class="band c{c % HUES}" points="{band}"/>')
    for c, name in curve:
        ys = TOP + y(curves.mean[name])
        parts.append(f'<polyline class="line c{c % HUES}" points="{_points(xs, ys)}"/>')
        parts += _marks(curves, name, c % HUES, xs, ys)
    return "".join([*parts, "</svg>"])


def legend(curves: Curves) -> str:
    """A list of the curves' names with their shapes and colours: a <ul> element."""
    items = (
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true">{_mark(c % HUES)}</svg>'
        f"{html.escape(name)}</li>"
        for c, name in enumerate(curves.mean)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _frame(k: NDArray[np.int64], xs: NDArray[np.float64], ticks: NDArray[np.float64],
           ys: NDArray[np.float64]) -> list[str]:
    """Lines and numbers of both axes."""
    made = []
    for label, y in zip(_labels(ticks), ys.tolist(), strict=True):
        made.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                    f'<text class="end" x="{LEFT - 8}" y="{y + 5:.1f}">{label}</text>')
    bottom = HEIGHT - BOTTOM
    last = -np.inf
    for value, x in zip(k.tolist(), xs.tolist(), strict=True):
        made.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        if x - last >= 8 * len(str(value)) + 6:  # a digit is some 8 units wide
            made.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 19}">{value}</text>')
            last = x
    return made


def _marks(curves: Curves, name: str, hue: int, xs: NDArray[np.float64],
           ys: NDArray[np.float64]) -> list[str]:
    made = []
    for j, (x, y) in enumerate(zip(xs.tolist(), ys.tolist(), strict=True)):
        mean, low, high = (part[name][j] for part in (curves.mean, curves.low, curves.high))
        bounds = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        said = html.escape(f"{name}, k = {curves.k[j]}: {mean:.3f}{bounds}")
        made.append(f'<g transform="translate({x:.1f} {y:.1f})"><title>{said}</title>'
                    f"{_mark(hue)}</g>")
    return made


def _mark(hue: int) -> str:
    return f'<path class="mark c{hue}" d="{SHAPES[hue]}"/>'


def _points(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
