"""Figures of the reproduction: what was kept per problem, and differences with intervals.

A figure is a selector and a k: ("pass", 32) is the chance that at least one of 32 samples is
right, ("verifier", 32) that the one of 32 which the verifier ranks first is. Differences are
paired: both sides had the same problems and, per seed, the same random numbers. Problems are the
clusters of all intervals; per problem a figure is the mean over seeds.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import estimators
from bonaware.curves import which_k

__all__ = ["BEST", "ORDER", "Change", "Point", "Runs", "mean_of", "packed", "unpacked", "value_of"]

BEST = "best"  # a temperature: the one of each arm that is best on validation problems
HARD = 0.25
ORDER = ("base", "sft", "rl", "grpo", "bon_sft", "bon_rl_v", "bon_rl_s", "bon_rlb", "bon_rlb_p",
         "bon", "bon_v")  # of arms in tables
Floats = NDArray[np.float64]


# -- per problem ---------------------------------------------------------------


def packed(rewards: Floats, scores: Floats) -> str:
    """Rewards 0 and 1 of [P, n] samples, highest score first, as bits in hexadecimal digits.

    All selectors of all k <= n can be computed from them. Equal scores stay in the order drawn,
    which is a fair draw; equal samples, which are most of them, have equal rewards.
    """
    if rewards.shape[1] % 8 or not np.isin(rewards, (0.0, 1.0)).all():
        raise ValueError("need rewards 0 and 1 and a multiple of 8 samples, got shape "
                         f"{rewards.shape} with {np.unique(rewards)[:4]}")
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.packbits(np.take_along_axis(rewards, order, 1) == 1).tobytes().hex()


def unpacked(text: str, n: int) -> Floats:
    """Rewards [P, n] as `packed` was given them, highest score first."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).reshape(-1, n).astype(float)


def value_of(point: dict[str, Any], n: int, selector: str, ks: Any) -> Floats:
    """A figure of each problem, [P], or [P, K] for a sequence of k."""
    ranked = point["by"]["likelihood" if selector == "pass" else selector]
    rewards = unpacked(ranked, n)
    if selector == "pass":
        return estimators.best_of_k(rewards, ks)
    falling = np.broadcast_to(-np.arange(float(n)), rewards.shape)
    return estimators.best_of_k(rewards, ks, falling)


def mean_of(point: dict[str, Any], n: int, selector: str, k: int) -> float:
    """A figure, mean over problems."""
    return float(value_of(point, n, selector, k).mean())


# -- all runs ------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What is compared: an arm's figure on a set at a temperature."""

    arm: str
    selector: str = "pass"
    k: int = 1
    where: str = "test"
    temperature: float | str = 1.0


@dataclass(frozen=True)
class Change:
    """A difference of two figures, its 95 % interval, and the difference in each seed."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def above(self) -> bool:
        """Above 0: with its interval, and in every seed."""
        return self.low > 0 and min(self.seeds) > 0

    @property
    def below(self) -> bool:
        return self.high < 0 and max(self.seeds) < 0

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else 0.0


class Runs:
    """The runs of one folder: those arms that have all seeds.

    Parameters
    ----------
    out : path
        Of reproduce_bon.py.

    Raises
    ------
    ValueError
        The arm "base" has not been run.
    """

    def __init__(self, out: Path) -> None:
        self.settings = json.loads((out / "settings.json").read_text())
        files = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
        found: dict[str, dict[int, Any]] = {}
        for each in files:
            found.setdefault(each["arm"], {})[each["seed"]] = each
        if "base" not in found:
            raise ValueError(f"need runs of the arm base to compare with, but {out} has "
                             f"{', '.join(found) or 'none'}")
        self.seeds = sorted(set().union(*found.values()))
        self.found = {arm: found[arm] for arm in ORDER if sorted(found.get(arm, ())) == self.seeds}
        self.missing = sorted(set(found) - set(self.found))
        self.n: int = self.settings["draws"]
        self.ks = which_k(None, self.n)
        self.temperatures: list[float] = self.settings["temperatures"]

    @cached_property
    def selectors(self) -> list[str]:
        """Names of selectors, a perfect one first."""
        point = self._point("base", self.seeds[0], "test", 1.0)
        return ["pass", *sorted(point["by"], reverse=True)]

    def _point(self, arm: str, seed: int, where: str, temperature: float) -> dict[str, Any]:
        return self.found[arm][seed]["measured"][where][str(temperature)]

    @cache  # noqa: B019 - lives as long as the program
    def per_seed(self, arm: str, selector: str, where: str, temperature: float) -> Floats:
        """Figures [S, P, K] of an arm."""
        return np.stack([
            value_of(self._point(arm, seed, where, temperature), self.n, selector, self.ks)
            for seed in self.seeds
        ])  # fmt: skip

    def best(self, arm: str, selector: str, k: int) -> float:
        """The temperature at which an arm's figure is highest on validation problems."""
        place = self.ks.index(k)
        means = [self.per_seed(arm, selector, "validation", temperature)[..., place].mean()
                 for temperature in self.temperatures]
        return self.temperatures[int(np.argmax(means))]

    def values(self, point: Point) -> Floats:
        """A figure [S, P] per seed and problem."""
        at = point.temperature
        if at == BEST:
            at = self.best(point.arm, point.selector, point.k)
        every = self.per_seed(point.arm, point.selector, point.where, float(at))
        return every[..., self.ks.index(point.k)]

    def change(self, one: Point, other: Point) -> Change:
        """One minus the other; of the same set, so that problems are paired."""
        return change_of(self.values(one) - self.values(other))

    def entropy(self, arm: str, where: str, temperature: float) -> float:
        """Nats per sample, mean over seeds."""
        return float(np.mean([self._point(arm, seed, where, temperature)["entropy"]
                              for seed in self.seeds]))

    @cached_property
    def hard(self) -> NDArray[np.bool_]:
        """Which test problems, [P], base solves with less than a quarter of its samples at T = 1.

        By the samples of the first seed, so that those of the others are not chosen by it.
        """
        passes = self.per_seed("base", "pass", "test", 1.0)
        return np.asarray(passes[0, :, self.ks.index(1)] < HARD)


def change_of(gaps: Floats) -> Change:
    """From differences [S, P] per seed and problem."""
    low, high = estimators.interval(gaps.mean(axis=0))
    return Change(float(gaps.mean()), float(low), float(high), tuple(gaps.mean(axis=1).tolist()))
