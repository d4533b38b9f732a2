"""Plots: functions that take the Axes to draw on and return them.

Nothing here calls `show` or changes matplotlib's global style.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bonaware.curves import Curves

if TYPE_CHECKING:
    from bonaware.selfeval import Calibration

__all__ = [
    "auroc_by_fraction", "coscaling", "curves", "policies", "reliability", "samples_per_prompt",
]

# Okabe & Ito's colours, told apart by colour-blind readers; markers for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curves(curves: Curves, ax: Any = None) -> Any:
    """Draw each curve over k, with its interval as a band.

    Parameters
    ----------
    curves : Curves
        As `Run.curves()` gives.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    for place, name in enumerate(curves.mean):
        colour, marker = _style(place)
        band = (curves.low[name], curves.high[name])
        ax.fill_between(curves.k, *band, color=colour, alpha=0.15, linewidth=0)
        ax.plot(curves.k, curves.mean[name], color=colour, marker=marker, markersize=4, label=name)
    _k_axis(ax, curves.k, "k, samples the selector sees")
    binary = "pass@k" in curves.mean
    ax.set_ylabel("solved (share of prompts)" if binary else "mean reward of the chosen sample")
    ax.set_title(
        f"n={curves.n} samples of each of {curves.prompts} prompts, "
        f"{100 * curves.level:g} % intervals",
        fontsize="medium",
    )
    ax.legend(frameon=False)
    return ax


def coscaling(
    temperatures: Sequence[float],
    k: Sequence[int],
    pass_at: ArrayLike,
    fit: Any = None,
    ax: Any = None,
) -> Any:
    """Draw pass@k over k for each temperature, and the fitted law beside it.

    Parameters
    ----------
    temperatures : sequence of T floats
    k : sequence of K ints
    pass_at : float, shape [T, K]
        Measured, in [0, 1].
    fit : CoScaling, optional
        As `bonaware.estimators.fit_coscaling` gives; drawn as lines up to 4 times the
        largest k. Without it the points are joined.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        pass_at has another shape.

    Notes
    -----
    **Source:** Chow et al., arXiv:2412.15287, section 2: pass@N(T) ~ exp(a(T) N^b(T)).
    """
    measured = np.asarray(pass_at, np.float64)
    wanted = (len(temperatures), len(k))
    if measured.shape != wanted:
        raise ValueError(f"need pass_at [temperatures, k] = {wanted}, got {measured.shape}")
    ax = _axes(ax)
    colours = _plt().get_cmap("viridis")(np.linspace(0, 0.85, len(temperatures)))
    ks = np.asarray(k)
    fine = np.geomspace(ks.min(), 4 * ks.max(), 100)
    for place, (temperature, row) in enumerate(zip(temperatures, measured, strict=True)):
        colour, marker = colours[place], MARKERS[place % len(MARKERS)]
        joined = "none" if fit is not None else "-"
        ax.plot(ks, row, marker=marker, markersize=5, linestyle=joined, color=colour,
                label=f"T = {temperature:g}")  # fmt: skip
        if fit is not None:
            ax.plot(fine, fit.predict(fine, temperature), color=colour, linewidth=1)
    _k_axis(ax, ks if fit is None else np.append(ks, [2 * ks.max(), 4 * ks.max()]), "k, samples")
    ax.set_ylabel("pass@k")
    if fit is not None:
        ax.set_title("points: measured; lines: exp(a $k^b$), fitted", fontsize="medium")
    ax.legend(frameon=False)
    return ax


def samples_per_prompt(begun: ArrayLike, rewards: ArrayLike, n: int, ax: Any = None) -> Any:
    """Draw how many prompts took how many samples, and what came of them.

    Parameters
    ----------
    begun : int, shape [P]
        Samples that a policy had drawn for each prompt.
    rewards : float, shape [P]
        Of the sample that it took, in [0, 1].
    n : int
        Most samples of a prompt.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    counts = np.bincount(np.asarray(begun), minlength=n + 1)
    right = np.bincount(np.asarray(begun), np.asarray(rewards, float), minlength=n + 1)
    k = np.arange(n + 1)
    ax.bar(k, right, color=COLOURS[0], label="reward of the sample taken")
    ax.bar(k, counts - right, bottom=right, color=COLOURS[1], alpha=0.5, label="missing to 1")
    ax.set_xlim(0, n + 1)
    ax.set_xlabel(f"samples that a prompt took, {np.mean(begun):.2f} on average")
    ax.set_ylabel("prompts")
    ax.legend(frameon=False)
    return ax


def policies(rows: Sequence[tuple[str, float, float, float, float]], ax: Any = None, *,
             cost: str = "samples per prompt") -> Any:
    """Draw what policies reach against what they cost.

    Parameters
    ----------
    rows : sequence of (name, cost, accuracy, low, high)
        Cost > 0. Rows of the same name are one policy at several settings, and joined by a
        line. low and high bound the interval of the accuracy; NaN: none is drawn.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.
    cost : str
        What is counted, with its unit: the label of the axis.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        There are no rows, or a cost is not > 0.

    Notes
    -----
    The axis of the cost is logarithmic where the largest is four times the smallest.
    """
    costs = [row[1] for row in rows]
    if not costs or not min(costs) > 0:
        raise ValueError(f"need rows with a cost > 0, got {costs}")
    ax = _axes(ax)
    for place, name in enumerate(dict.fromkeys(row[0] for row in rows)):
        points = np.array(sorted(row[1:] for row in rows if row[0] == name), np.float64)
        spent, accuracy, low, high = points.T
        colour, marker = _style(place)
        ax.errorbar(spent, accuracy, (accuracy - low, high - accuracy), color=colour,
                    marker=marker, markersize=5, linewidth=1, capsize=2, label=name)
    _x_axis(ax, cost, max(costs) >= 4 * min(costs))  # a narrower one would have no mark left
    ax.set_ylabel("accuracy (mean reward of what is taken)")
    ax.legend(frameon=False)
    return ax


def reliability(calibration: "Calibration", ax: Any = None) -> Any:
    """Draw mean label over mean score of each bin, beside the line on which both are equal.

    Parameters
    ----------
    calibration : Calibration
        As `bonaware.selfeval.calibration` gives; its parts, where it has any, each as a line.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.

    Returns
    -------
    matplotlib Axes

    Notes
    -----
    The larger a point, the more samples are in its bin. **Source:** Guo et al. 2017,
    arXiv:1706.04599, figure 1.
    """
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for place, part in enumerate(calibration.parts or (calibration,)):
        colour, marker = _style(place)
        some = part.counts > 0
        ax.plot(part.scores[some], part.labels[some], color=colour, linewidth=1)
        ax.scatter(part.scores[some], part.labels[some], color=colour, marker=marker,
                   s=10 + 90 * part.counts[some] / part.counts.max(),
                   label=f"{part.name}: ECE {part.ece:.3f}, {part.count} samples")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="score, mean of the bin",
           ylabel="as good as another sample (share)")
    _plain(ax)
    ax.legend(frameon=False, title="generated")
    return ax


def auroc_by_fraction(calibration: "Calibration", ax: Any = None) -> Any:
    """Draw how well scores tell samples apart over how much of them was generated.

    Parameters
    ----------
    calibration : Calibration
        As `bonaware.selfeval.calibration` gives with `fractions`.
    ax : matplotlib Axes, optional
        Default: new Axes in a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        The calibration has no parts.
    """
    if not calibration.parts:
        raise ValueError("need a calibration by fractions, got one of all samples: give "
                         "calibration(..., fractions=...)")
    ax = _axes(ax)
    known = [part for part in calibration.parts if part.auroc is not None]
    colour, marker = _style(0)
    middles = [(part.after + part.upto) / 2 for part in known]
    ax.plot(middles, [part.auroc for part in known], color=colour, marker=marker, markersize=5)
    ax.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
    ax.set_xticks(middles, [part.name for part in known])
    ax.set(xlim=(-0.02, 1.05), xlabel="generated", ylabel="AUROC")
    _plain(ax)
    return ax


def _plt() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'bonaware[plot]'") from None
    return matplotlib.pyplot


def _axes(ax: Any) -> Any:
    return _plt().subplots(figsize=(6.4, 4.2), layout="constrained")[1] if ax is None else ax


def _style(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _k_axis(ax: Any, k: ArrayLike, label: str) -> None:
    """A logarithmic axis to base 2 that shows each k as it is written."""
    _x_axis(ax, label, True)
    ax.set_xticks(np.asarray(k), [str(value) for value in np.asarray(k)])


def _x_axis(ax: Any, label: str, logarithmic: bool) -> None:
    """An axis with plain numbers and a grid, logarithmic to base 2 where that is wanted."""
    if logarithmic:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.set_xlabel(label)
    _plain(ax)


def _plain(ax: Any) -> None:
    """Light lines behind the figures, and no box around them."""
    ax.grid(True, color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
