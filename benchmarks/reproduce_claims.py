"""The paper's claims, each with its figure there, the figures here, and a verdict by the numbers.

A difference counts as above 0 if its 95 % interval is and if it is so in every seed. A claim is a
list of ways in which it could hold; each way is a list of parts that must all hold.

Source: Chow et al. 2024, arXiv:2412.15287.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from reproduce_figures import BEST, Change, Point, Runs, change_of

from bonaware import estimators

__all__ = ["Part", "claims", "coscaling"]

POINTS = 0.04  # by how much pass@k must rise in the second claim
MISS = 0.02  # how far the fitted law may be from what was measured
COLD, WARM = 0.1, 1.5  # temperatures besides 1 that the paper shows


@dataclass(frozen=True)
class Part:
    """One comparison: what, its numbers, and whether it came out as claimed."""

    text: str
    holds: bool
    change: Change | None = None

    def to_dict(self) -> dict[str, Any]:
        numbers = {} if self.change is None else asdict(self.change)
        return {"text": self.text, "holds": self.holds, **numbers}


Ways = list[list[Part]]


def claims(runs: Runs) -> list[dict[str, Any]]:
    """All claims whose arms have been run.

    Returns
    -------
    list of dict
        "claim", "paper", "ways" (lists of parts with "text", "holds", and of a difference
        "mean", "low", "high", "seeds"), "holds".
    """
    made = []
    for arms, claim, paper, judge in CLAIMS:
        if set(arms) <= set(runs.found):
            ways = judge(runs)
            made.append({
                "claim": claim, "paper": paper, "holds": any(all(p.holds for p in way)
                                                             for way in ways),
                "ways": [[part.to_dict() for part in way] for way in ways],
            })  # fmt: skip
    return made


# -- comparisons ---------------------------------------------------------------


def above(runs: Runs, arm: str, other: str, selector: str, k: int, *, least: float = 0.0,
          **place: Any) -> Part:
    """An arm's figure is above that of another arm, by at least so much."""
    found = _between(runs, arm, other, selector, k, place)
    more = f" by {100 * least:g}" if least else ""
    text = f"{arm} above {other}{more}, {_name(selector, k)}{_place(place)}"
    return Part(text, found.above and found.mean >= least, found)


def below(runs: Runs, arm: str, other: str, selector: str, k: int, **place: Any) -> Part:
    found = _between(runs, arm, other, selector, k, place)
    return Part(f"{arm} below {other}, {_name(selector, k)}{_place(place)}", found.below, found)


def not_above(runs: Runs, arm: str, other: str, selector: str, k: int) -> Part:
    found = _between(runs, arm, other, selector, k, {})
    return Part(f"{arm} at or below {other}, {_name(selector, k)}", found.low <= 0, found)


def _between(runs: Runs, arm: str, other: str, selector: str, k: int, place: Any) -> Change:
    return runs.change(Point(arm, selector, k, **place), Point(other, selector, k, **place))


def _name(selector: str, k: int) -> str:
    return f"pass@{k}" if selector == "pass" else f"best of {k} by {selector}"


def _place(place: dict[str, Any]) -> str:
    words = []
    if "temperature" in place:
        at = place["temperature"]
        words.append("each at its best T" if at == BEST else f"T = {at:g}")
    if place.get("where") == "heldout":
        words.append("held-out kind")
    return f" ({', '.join(words)})" if words else ""


# -- claims --------------------------------------------------------------------


def verified(runs: Runs) -> Ways:
    verifier, likelihood = (Point("base", name, runs.n) for name in ("verifier", "likelihood"))
    found = runs.change(verifier, likelihood)
    clear = Part(f"base, best of {runs.n}: by verifier above by likelihood", found.above, found)
    return [[clear, *(above(runs, arm, other, "verifier", runs.n) for other in ("base", "rl"))]
            for arm in ("bon_rl_v", "bon_v")]


def passed(runs: Runs) -> Ways:
    rl = not_above(runs, "rl", "base", "pass", runs.n)
    return [[above(runs, arm, "base", "pass", runs.n, least=POINTS), rl]
            for arm in ("bon_rl_s", "bon")]


def binary(runs: Runs) -> Ways:
    k = runs.n // 2
    return [[above(runs, "bon_rlb_p", "base", "pass", k), above(runs, "bon_rlb_p", "rl", "pass", k),
             below(runs, "rl", "base", "pass", k)]]


def single(runs: Runs) -> Ways:
    return [[above(runs, "bon_rl_v", "base", "pass", 1)]]


def mismatch(runs: Runs) -> Ways:
    """Trained to be selected by the truth, selected by the verifier; and the other way round."""
    way = [below(runs, one, other, "verifier", runs.n)
           for one, other in (("bon", "bon_v"), ("bon_rl_s", "bon_rl_v"))]
    for selector in runs.selectors[1:]:
        if selector != "verifier":
            way.append(_other_judge(runs, "bon_v", selector))
    return [way]


def _other_judge(runs: Runs, arm: str, selector: str) -> Part:
    """The gain by the verifier that was trained for, less the gain by another selector."""
    ours, base, theirs, base_theirs = (
        runs.values(Point(one, name, runs.n)) for name in ("verifier", selector)
        for one in (arm, "base"))
    found = change_of((ours - base) - (theirs - base_theirs))
    return Part(f"{arm} gains more with verifier than with {selector}, best of {runs.n}",
                found.above, found)


def imitation(runs: Runs) -> Ways:
    return [[below(runs, "sft", "base", selector, runs.n) for selector in ("pass", "verifier")]]


def carried(runs: Runs) -> Ways:
    way = [above(runs, "bon", "base", "pass", k) for k in runs.ks if k >= runs.n // 4]
    way += [above(runs, "bon", "base", "pass", runs.n, temperature=t) for t in (COLD, WARM)
            if t in runs.temperatures]
    return [[*way, above(runs, "bon", "base", "pass", runs.n, where="heldout")]]


def controlled(runs: Runs) -> Ways:
    return [[above(runs, arm, "base", "pass", runs.n, temperature=BEST)]
            for arm in ("bon", "bon_rl_s", "bon_rlb", "bon_rlb_p") if arm in runs.found]


def controlled_verified(runs: Runs) -> Ways:
    return [[above(runs, arm, other, "verifier", runs.n, temperature=BEST)
             for other in ("base", "rl")] for arm in ("bon_rl_v", "bon_v")]


# -- co-scaling ----------------------------------------------------------------


def coscaling(runs: Runs, arm: str) -> dict[str, Any]:
    """pass@N(T) = exp(a N**b) fitted to an arm's test problems, and how well it does.

    Returns
    -------
    dict
        "temperatures"; "pass": measured [T, K]; "a", "b", "residual" of log pass@N; "miss":
        largest difference of the fit from what was measured; "ahead": measured less predicted
        pass@n at the largest n, by a fit to k <= n / 4; "best": the temperature with the highest
        pass@k for each k; "best_easy", "best_hard": the same for these problems, by all seeds but
        the first. Temperatures where fewer than two pass@k lie between 0 and 1 are left out.
    """
    passes = {t: runs.per_seed(arm, "pass", "test", t) for t in runs.temperatures}
    means = {t: each.mean(axis=(0, 1)) for t, each in passes.items()}
    few = [k for k in runs.ks if k <= max(runs.n // 4, 2)]
    kept = [t for t, each in means.items() if (each[: len(few)] % 1 > 0).sum() >= 2]
    found: dict[str, Any] = {"temperatures": kept, "best": _best(means)}
    others = slice(1, None) if len(runs.seeds) > 1 else slice(None)
    for name, some in (("best_easy", ~runs.hard), ("best_hard", runs.hard)):
        if some.any():
            found[name] = _best({t: each[others, some].mean(axis=(0, 1))
                                 for t, each in passes.items()})
    if not kept:
        return found
    measured = np.array([means[t] for t in kept])
    fit = estimators.fit_coscaling(kept, runs.ks, measured)
    early = estimators.fit_coscaling(kept, few, measured[:, : len(few)])
    ahead = measured[:, -1] - early.predict(runs.n, kept)
    fitted = fit.predict(runs.ks, np.array(kept)[:, None])
    rows = {"pass": measured, "a": fit.a, "b": fit.b, "residual": fit.residual, "ahead": ahead,
            "miss": np.abs(measured - fitted).max(axis=1)}
    return found | {name: np.round(values, 4).tolist() for name, values in rows.items()}


def _best(means: dict[float, Any]) -> list[float]:
    """The temperature with the highest of the values [K], for each of them."""
    return [list(means)[int(place)] for place in np.array(list(means.values())).argmax(axis=0)]


def lawful(runs: Runs) -> Ways:
    return _within(runs, "miss", "base: the fit misses pass@N")


def foreseen(runs: Runs) -> Ways:
    return _within(runs, "ahead", f"base: fitted to N <= {max(runs.n // 4, 2)}, it misses "
                                  f"pass@{runs.n}")  # fmt: skip


def _within(runs: Runs, name: str, text: str) -> Ways:
    found = coscaling(runs, "base")
    if not found["temperatures"]:
        return [[Part("pass@N lies between 0 and 1", False)]]
    worst = max(map(abs, found[name]))
    return [[Part(f"{text} by at most {100 * worst:.1f} points at {len(found[name])} temperatures, "
                  f"asked {100 * MISS:g}", worst <= MISS)]]


def warmer(runs: Runs) -> Ways:
    found = coscaling(runs, "base")
    best = found["best"]
    rises = best[-1] > best[0] and all(x <= y for x, y in pairwise(best))
    parts = [Part(f"base, best T for N = {_list(runs.ks)}: {_list(best)}", rises)]
    if "best_easy" in found and "best_hard" in found:
        easy, hard = found["best_easy"], found["best_hard"]
        warmer = [x - y for x, y in zip(hard, easy, strict=True)]
        parts.append(Part(f"for hard problems {_list(hard)}, for easy ones {_list(easy)}",
                          min(warmer) >= 0 and max(warmer) > 0))
    return [parts]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


CLAIMS: list[tuple[tuple[str, ...], str, str, Callable[[Runs], Ways]]] = [
    (("rl", "bon_rl_v", "bon_v"), "training for the verifier raises best-of-N by the verifier, "
     "above base and above RL with N' = 1", "26.8 to 30.8 % (BoN-RL-V, Gemma 2B, MATH, N = 32)",
     verified),
    (("rl", "bon_rl_s", "bon"), "training for best-of-N raises pass@N, RL with N' = 1 does not",
     "60.0 to 67.0 % (BoN-RL-S, N = 32)", passed),
    (("rl", "bon_rlb_p"), "so does the positive-only binary form, where RL lowers it",
     "61.6 to 67.1 %, RL 59.8 % (BoN-RLB(P), HumanEval, N = 16)", binary),
    (("bon_rl_v",), "pass@1 rises too", "22 to 26 % (BoN-RL-V)", single),
    (("bon", "bon_v", "bon_rl_s", "bon_rl_v"), "another verifier in training than in the test "
     "costs accuracy", "shown", mismatch),
    (("sft",), "SFT with N' = 1 lowers best-of-N", "shown", imitation),
    (("bon",), "gains carry to other temperatures, other N and held-out kinds of problems",
     "shown for T = 0.1, 1.0, 1.5 and N up to 32", carried),
    (("base",), "pass@N(T) follows exp(a N^b)", "fitted", lawful),
    (("base",), "and foretells more samples: four times as many", "used so", foreseen),
    (("base",), "the best temperature grows with N and with difficulty", "shown", warmer),
    (("bon",), "control: pass@N is above base also with each model at its own best temperature",
     "not shown", controlled),
    (("rl", "bon_rl_v", "bon_v"), "control: so is best-of-N by the verifier", "not shown",
     controlled_verified),
]  # fmt: skip
