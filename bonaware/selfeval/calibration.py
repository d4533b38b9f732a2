"""Calibration: whether samples that are given 70 % are at least as good as 70 % of the others.

Arrays in, figures out; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_floats, as_probability, need_same_shape
from bonaware.selfeval.building import FRACTIONS, check_fractions
from bonaware.train import auroc

__all__ = ["Calibration", "calibration"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """How scores and labels agree.

    Parameters
    ----------
    count : int
        Samples.
    score, label : float
        Means over all samples.
    ece : float
        Expected calibration error: mean over samples of ``|mean score - mean label|`` of their bin.
    brier : float
        Mean of (score - label)².
    auroc : float or None
        Chance that a sample with outcome 1 scores above one with outcome 0, where labels are the
        chances of outcome 1; None where all outcomes are the same.
    low, high : float64, shape [bins]
        Bins of the scores: low <= score < high, the last one with its end.
    counts : int64, shape [bins]
        Samples of each bin.
    scores, labels : float64, shape [bins]
        Means over the samples of each bin; NaN where there is none.
    after, upto : float
        Which samples these are: after < fraction generated <= upto. 0 and 1: all; 1 and 1: whole
        samples.
    parts : tuple of Calibration
        The same for each part of the fractions, and for whole samples; of those that have any.
    """

    count: int
    score: float
    label: float
    ece: float
    brier: float
    auroc: float | None
    low: Floats
    high: Floats
    counts: NDArray[np.int64]
    scores: Floats
    labels: Floats
    after: float = 0.0
    upto: float = 1.0
    parts: tuple["Calibration", ...] = ()

    @property
    def name(self) -> str:
        """Which samples these are."""
        if self.after == self.upto:
            return "whole"
        if self.parts or (self.after, self.upto) == (0.0, 1.0):
            return "all"
        return f"{100 * self.after:g}-{100 * self.upto:g} %"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        bins = [
            {"low": float(low), "high": float(high), "count": int(count),
             "score": float(score) if count else None, "label": float(label) if count else None}
            for low, high, count, score, label in zip(
                self.low, self.high, self.counts, self.scores, self.labels, strict=True)
        ]
        return {
            "samples": self.name, "count": self.count, "score": self.score, "label": self.label,
            "ece": self.ece, "brier": self.brier, "auroc": self.auroc, "bins": bins,
            "parts": [part.to_dict() for part in self.parts],
        }  # fmt: skip

    def to_text(self) -> str:
        """The figures by fraction generated, and the bins of all samples, as tables."""
        lines = [f"{'generated':<10} {'count':>8} {'score':>7} {'label':>7} {'ECE':>7} "
                 f"{'Brier':>7} {'AUROC':>7}"]
        for part in (*self.parts, self):
            rank = "-" if part.auroc is None else f"{part.auroc:.4f}"
            lines.append(f"{part.name:<10} {part.count:>8} {part.score:>7.4f} {part.label:>7.4f} "
                         f"{part.ece:>7.4f} {part.brier:>7.4f} {rank:>7}")
        lines += ["", f"{'score in':<10} {'count':>8} {'score':>7} {'label':>7}"]
        for low, high, count, score, label in zip(self.low, self.high, self.counts, self.scores,
                                                  self.labels, strict=True):
            means = f"{score:>7.4f} {label:>7.4f}" if count else f"{'-':>7} {'-':>7}"
            lines.append(f"{f'{low:.2f}-{high:.2f}':<10} {count:>8} {means}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.to_text()


def calibration(scores: ArrayLike, labels: ArrayLike, bins: int = 10, *,
                fractions: ArrayLike | None = None,
                edges: Sequence[float] = FRACTIONS) -> Calibration:
    """Reliability of probabilities, by how much of the sample was generated.

    Parameters
    ----------
    scores : float, shape [N]
        In [0, 1], N >= 1.
    labels : float, shape [N]
        In [0, 1]: outcomes, or their probabilities such as soft labels.
    bins : int >= 1
        Equally wide bins of the scores.
    fractions : float, shape [N], optional
        In (0, 1]: share of its sample that each is; see `Row.fraction`. Default: figures for all
        samples only.
    edges : sequence of float
        Rising, in (0, 1]: parts of the fractions; whole samples are a part of their own.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        Shapes differ, there is no sample, or a number is out of its range.

    Notes
    -----
    O(N log N). **Source:** Guo et al. 2017, arXiv:1706.04599, eq. 3 (ECE); Brier 1950, Monthly
    Weather Review 78:1; Mann and Whitney 1947 (AUROC).

    Examples
    --------
    >>> found = calibration([0.1, 0.3, 0.8, 0.9], [0, 1, 1, 1], bins=2)
    >>> found.counts, found.scores, found.labels
    (array([2, 2]), array([0.2 , 0.85]), array([0.5, 1. ]))
    >>> round(found.ece, 3), round(found.brier, 4), found.auroc
    (0.225, 0.1375, 1.0)
    """
    score, label = as_probability(scores, "scores"), as_probability(labels, "labels")
    need_same_shape(score, "scores", label, "labels")
    if score.ndim != 1 or not len(score):
        raise ValueError(f"need scores [N] of at least one sample, got shape {score.shape}")
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"need bins >= 1, got {bins!r}")
    if fractions is None:
        return Calibration(**_figures(score, label, int(bins)))
    share, ends = as_floats(fractions, "fractions"), check_fractions(edges)
    need_same_shape(score, "scores", share, "fractions")
    if not ((share > 0) & (share <= 1)).all():
        raise ValueError("fractions must be in (0, 1]")
    bounds = [*zip([0.0, *ends[:-1].tolist()], ends.tolist(), strict=True), (1.0, 1.0)]
    parts = []
    for after, upto in bounds:
        own = share == 1 if after == upto else (after < share) & (share <= upto) & (share < 1)
        if own.any():
            figures = _figures(score[own], label[own], int(bins))
            parts.append(Calibration(**figures, after=after, upto=upto))
    return Calibration(**_figures(score, label, int(bins)), parts=tuple(parts))


def _figures(score: Floats, label: Floats, bins: int) -> dict[str, Any]:
    """All fields of a Calibration but which samples they are of."""
    edges = np.arange(bins + 1) / bins
    at = np.minimum(np.searchsorted(edges, score, side="right") - 1, bins - 1)
    counts = np.bincount(at, minlength=bins)
    sums = [np.bincount(at, values, bins) for values in (score, label)]
    means = [np.divide(total, counts, out=np.full(bins, np.nan), where=counts > 0)
             for total in sums]
    return {
        "count": len(score), "score": float(score.mean()), "label": float(label.mean()),
        "ece": float(np.abs(sums[0] - sums[1]).sum() / len(score)),
        "brier": float(((score - label) ** 2).mean()), "auroc": auroc(score, label),
        "low": edges[:-1], "high": edges[1:], "counts": counts, "scores": means[0],
        "labels": means[1],
    }  # fmt: skip
