"""Curves drawn without a library: in characters for a terminal, as SVG for a page.

It knows no run and no page; the colours of the SVG are classes c0, c1, ... that the page's
style sheet fills.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats
from bonaware._html import text as as_html
from bonaware.curves import Curves

__all__ = ["HUES", "Line", "chart", "legend", "lines_of", "svg", "text"]

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

    def __call__(self, values: ArrayLike) -> Floats:
        share = (np.asarray(values, np.float64) - self.first) / (self.last - self.first)
        return share * self.length


def _ticks(low: float, high: float) -> Floats:
    """Round values at equal steps, the first <= low, the last >= high."""
    span = (high - low) or abs(high) or 1.0
    rough = 10.0 ** floor(log10(span / STEPS))
    step = next(rough * m for m in (1, 2, 5, 10) if span / (rough * m) <= STEPS)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    if first == last:
        first, last = (first - 1, last) if last > 0 else (first, last + 1)
    return np.arange(first, last + 1) * step


def _labels(ticks: Floats) -> list[str]:
    """Ticks with as many digits as their step needs."""
    digits = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:.{digits}f}" if abs(tick) < 1e6 else f"{tick:.3g}" for tick in ticks]


def _k_axis(k: NDArray[np.int64], length: float) -> Floats:
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
    ticks = _ticks(*_span([*curves.mean.values()]))
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


def _draw(cells: list[list[str]], xs: Floats, ys: Floats,
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


def _k_line(k: NDArray[np.int64], xs: Floats, width: int) -> str:
    """Each k below its point, where there is room for it."""
    line = ""
    for value, x in zip(k.tolist(), np.rint(xs).astype(int).tolist(), strict=True):
        at = max(0, x - (len(str(value)) - 1) // 2)
        if (not line or at > len(line)) and at + len(str(value)) <= width:
            line = f"{line:<{at}}{value}"
    return line


# -- SVG -------------------------------------------------------------------------

WIDTH, HEIGHT = 520, 340  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 26, 50
PLOT = WIDTH - LEFT - RIGHT
# A shape for each hue, around 0, 0: also told apart without colour.
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.5-3.5h7v7h-7z", "M0-4.5l4.5 8h-9z",
    "M0-5l5 5-5 5-5-5z", "M0 4.5l4.5-8h-9z", "M-1.5-5h3v10h-3zM-5-1.5h10v3h-10z",
    "M-4-4l8 8M4-4l-8 8",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Line:
    """Points of a chart that share a name, a shape and a colour.

    Parameters
    ----------
    name : str
    hue : int
        Number of shape and colour.
    x, y : float, shape [K]
    low, high : float, shape [K], optional
        Interval of y, NaN where there is none: a band along a line, a stroke through a point.
    joined, marked : bool
        Whether a line joins the points, and whether they are shown.
    """

    name: str
    hue: int
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    joined: bool = True
    marked: bool = True

    @property
    def bounded(self) -> bool:
        return self.low is not None and self.high is not None and not np.isnan(self.low).any()


def lines_of(curves: Curves) -> list[Line]:
    """A line for each curve."""
    return [Line(name, c, curves.k, mean, curves.low[name], curves.high[name])
            for c, (name, mean) in enumerate(curves.mean.items())]


def svg(curves: Curves) -> str:
    """The curves over k with their intervals as bands; see `chart`."""
    across, up = _titles(curves)
    return chart(lines_of(curves), f"{', '.join(curves.mean)}, over k", across, up, "k",
                 logarithmic=True, at=curves.k)


def chart(lines: Sequence[Line], title: str, across: str, up: str, x: str, *,
          logarithmic: bool = False, at: ArrayLike | None = None, equal: bool = False) -> str:
    """Lines over a common axis: an <svg> element.

    Parameters
    ----------
    lines : sequence of Line
        The first is drawn on top.
    title : str
        For those who do not see it.
    across, up : str
        What the axes count.
    x : str
        What a point says its place across is.
    logarithmic : bool
        Of the axis across; it then takes x > 0.
    at : float, shape [T], optional
        Numbers on the axis across. Default: round ones.
    equal : bool
        Whether to draw where both axes are equal.

    Returns
    -------
    str
        To be put into a page whose style sheet knows the classes grid, band, line, bar, mark and
        c0 to c6. Every point says its value and interval in a <title>.
    """
    ticks = _ticks(*_span([*(line.y for line in lines),
                           *(part for line in lines if line.bounded
                             for part in (line.low, line.high))]))
    place_y = _Axis(ticks[-1], ticks[0], HEIGHT - TOP - BOTTOM)
    low, high = _span([line.x for line in lines])
    if at is None:
        at = _steps(low, high) if logarithmic else _ticks(low, high)
    marks = np.asarray(at, np.float64)
    first, last = (low, high) if logarithmic else (marks[0], marks[-1])
    scale = np.log2 if logarithmic else np.asarray
    place_x = _Axis(scale(first), scale(last if last > first else 2 * first), PLOT)

    def points(values: ArrayLike) -> Floats:
        return LEFT + place_x(scale(np.asarray(values, np.float64)))

    def heights(values: ArrayLike) -> Floats:
        return TOP + place_y(values)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{as_html(title)}</title>",
        *_frame(marks, points(marks), ticks, heights(ticks), logarithmic),
        f'<text x="4" y="14">{as_html(up)}</text>',
        f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">'
        f"{as_html(across)}</text>",
    ]
    if equal:
        ends = np.array([max(first, ticks[0]), min(last, ticks[-1])])
        parts.append('<polyline class="grid equal" '
                     f'points="{_points(points(ends), heights(ends))}"/>')
    for line in reversed(lines):
        parts += _interval(line, points(line.x), heights)
    for line in reversed(lines):
        xs, ys = points(line.x), heights(line.y)
        if line.joined:
            parts.append(f'<polyline class="line c{line.hue % HUES}" points="{_points(xs, ys)}"/>')
        parts += _marks(line, x, xs, ys) if line.marked else []
    return "".join([*parts, "</svg>"])


def _span(parts: Sequence[Floats]) -> tuple[float, float]:
    """The least and the largest of all values."""
    values = np.concatenate(parts)
    return float(np.nanmin(values)), float(np.nanmax(values))


def _steps(low: float, high: float) -> Floats:
    """The numbers 1, 2 and 5 times a power of ten between two positive ones; at least these."""
    powers = 10.0 ** np.arange(floor(log10(low)), floor(log10(high)) + 1)
    steps = (powers[:, None] * [1, 2, 5]).ravel()
    within = steps[(steps >= low) & (steps <= high)]
    return within if len(within) > 1 else np.unique([low, high])


def _interval(line: Line, xs: Floats, heights: Callable[[ArrayLike], Floats]) -> list[str]:
    """A band along a line, strokes through points without one."""
    if not line.bounded:
        return []
    low, high = heights(line.low), heights(line.high)
    if line.joined and len(xs) > 1:
        band = _points(np.append(xs, xs[::-1]), np.append(high, low[::-1]))
        return [f'<polygon class="band c{line.hue % HUES}" points="{band}"/>']
    return [f'<path class="bar c{line.hue % HUES}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
            for x, bottom, top in zip(xs.tolist(), low.tolist(), high.tolist(), strict=True)]


def legend(names: Iterable[str]) -> str:
    """A list of names with shapes and colours by their number: a <ul> element."""
    items = (
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true">{_mark(c % HUES)}</svg>'
        f"{as_html(name)}</li>"
        for c, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _frame(at: Floats, xs: Floats, ticks: Floats, ys: Floats, plain: bool) -> list[str]:
    """Lines and numbers of both axes; plain: numbers across as they are, else by their step."""
    made = []
    for label, y in zip(_labels(ticks), ys.tolist(), strict=True):
        made.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                    f'<text class="end" x="{LEFT - 8}" y="{y + 5:.1f}">{label}</text>')
    bottom = HEIGHT - BOTTOM
    last = -np.inf
    labels = [f"{value:.4g}" for value in at] if plain else _labels(at)
    for label, x in zip(labels, xs.tolist(), strict=True):
        made.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        if x - last >= 8 * len(label) + 6:  # a digit is some 8 units wide
            made.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 19}">{label}</text>')
            last = x
    return made


def _marks(line: Line, x_name: str, xs: Floats, ys: Floats) -> list[str]:
    made = []
    for j, (x, y) in enumerate(zip(xs.tolist(), ys.tolist(), strict=True)):
        bounds = f" [{line.low[j]:.3f}, {line.high[j]:.3f}]" if line.bounded else ""
        said = as_html(f"{line.name}, {x_name} = {line.x[j]:.4g}: {line.y[j]:.3f}{bounds}")
        made.append(f'<g transform="translate({x:.1f} {y:.1f})"><title>{said}</title>'
                    f"{_mark(line.hue % HUES)}</g>")
    return made


def _mark(hue: int) -> str:
    return f'<path class="mark c{hue}" d="{SHAPES[hue]}"/>'


def _points(xs: Floats, ys: Floats) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
