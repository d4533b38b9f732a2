"""What a report shows beside the curves, as numbers: temperatures, judges, and what was spent.

Runs in, arrays out; it draws nothing and knows no page.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bonaware import estimators
from bonaware._arguments import Floats
from bonaware.curves import Curves, curves, which_k

if TYPE_CHECKING:
    from bonaware.selfeval import Calibration

__all__ = ["Judged", "Spent", "Temperatures", "judged", "need_same_problems", "spent",
           "temperatures"]


def need_same_problems(run: Any, beside: Sequence[Any]) -> None:
    """Refuse runs of other problems: their figures cannot be compared.

    Ids are often numbers, which other tasks have too: where both runs know a problem's answer,
    it is compared as well.

    Raises
    ------
    ValueError
        Names the first difference.
    """
    ids = [problem.id for problem in run.problems]
    for other in beside:
        theirs = [problem.id for problem in other.problems]
        if theirs != ids:
            pairs = enumerate(itertools.zip_longest(ids, theirs, fillvalue="missing"))
            at, here, there = next((p, *pair) for p, pair in pairs if pair[0] != pair[1])
            raise ValueError(f"runs beside one another must be of the same problems, but problem "
                             f"{at} is {here} in {run.title} and {there} in {other.title}")
        for own, its in zip(run.problems, other.problems, strict=True):
            if None not in (own.answer, its.answer) and _json(own.answer) != _json(its.answer):
                raise ValueError(f"runs beside one another must be of the same problems, but the "
                                 f"answer to {own.id} is {own.answer!r:.80} in {run.title} and "
                                 f"{its.answer!r:.80} in {other.title}")


def _json(answer: Any) -> str:
    """As a store has it, so that a run and what was read from its store are alike."""
    return json.dumps(answer, sort_keys=True,
                      default=lambda it: it.tolist() if hasattr(it, "tolist") else str(it))


# -- temperatures ------------------------------------------------------------------

# Settings that runs share of which only the temperature may differ.
SAME = ("fingerprint", "task", "top_k", "top_p", "min_p", "max_new_tokens", "stop_strings")


@dataclass(frozen=True, eq=False)
class Temperatures:
    """pass@k by temperature.

    Parameters
    ----------
    curves : dict of temperature -> Curves
        Rising, at the same k.
    fit : CoScaling or None
    without_fit : str
        Why there is none.
    """

    curves: dict[float, Curves]
    fit: Any
    without_fit: str = ""


def temperatures(runs: Sequence[Any], level: float) -> Temperatures | None:
    """pass@k at each temperature at which runs of the same problems drew.

    Parameters
    ----------
    runs : sequence of Run
        Those of another model than the first or drawn otherwise (SAME), and those that a policy
        had drawn, are left out.
        Samples of one temperature are of the first run that has it: two runs may hold the same.
    level : float
        Of the intervals.

    Returns
    -------
    Temperatures or None
        None where there are not two temperatures with two samples of each prompt, or rewards
        other than 0 and 1.
    """
    runs = [run for run in runs if run.samples is not None and not hasattr(run, "policy")
            and all(run.settings.get(name) == runs[0].settings.get(name) for name in SAME)]
    if not runs:
        return None
    rows = np.logical_and.reduce([run.counted for run in runs])
    at: dict[float, Floats] = {}
    for run in runs if rows.any() else ():
        drawn_at = run.samples.temperature[rows]
        for t in np.unique(drawn_at[~np.isnan(drawn_at)]).tolist():
            at.setdefault(t, np.where(drawn_at == t, run.rewards[rows], np.nan))
    fewest = {t: int((~np.isnan(part)).sum(axis=1).min()) for t, part in at.items()}
    at = {t: at[t] for t in sorted(at) if fewest[t] >= 2}
    if not all(np.isin(part[~np.isnan(part)], (0.0, 1.0)).all() for part in at.values()):
        return None
    if len(at) < 2:
        return None
    ks = which_k(None, min(fewest[t] for t in at))
    made = {t: curves(part, {}, k=ks, level=level) for t, part in at.items()}
    try:
        fit = estimators.fit_coscaling(list(made), ks, [c.mean["pass@k"] for c in made.values()])
    except ValueError as error:
        return Temperatures(made, None, str(error))
    return Temperatures(made, fit)


# -- judges ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """How well the scores of a verifier tell right samples from wrong ones.

    Parameters
    ----------
    name : str
    auroc : float or None
        Chance that a right sample scores above a wrong one, of all samples.
    within : float or None
        The same among the samples of one prompt, which is what selecting needs: the mean over
        prompts that have both.
    prompts : int
        How many have both.
    calibration : Calibration or None
        Where all scores are in [0, 1]: as probabilities that a sample is right.
    """

    name: str
    auroc: float | None
    within: float | None
    prompts: int
    calibration: "Calibration | None"


def judged(run: Any) -> list[Judged]:
    """Figures of each verifier of a run; none where rewards are not all in [0, 1]."""
    from bonaware.selfeval import calibration
    from bonaware.train import auroc

    made = []
    rewards = run.rewards[run.counted]
    right = rewards[~np.isnan(rewards)]
    for name, score in run.scores.items() if ((right >= 0) & (right <= 1)).all() else ():
        score = score[run.counted]
        known = ~np.isnan(score) & ~np.isnan(rewards)
        if not known.any():
            continue
        each = [auroc(score[p, on], rewards[p, on]) for p, on in enumerate(known)]
        both = [chance for chance in each if chance is not None]
        found, truth = score[known], rewards[known]
        probable = ((found >= 0) & (found <= 1)).all()
        made.append(Judged(name, auroc(found, truth), float(np.mean(both)) if both else None,
                           len(both), calibration(found, truth) if probable else None))
    return made


# -- what was spent ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spent:
    """What a way of drawing and selecting reaches for what it draws.

    Parameters
    ----------
    name : str
    cost : float64, shape [K]
        Per prompt, rising; tokens, or samples.
    mean, low, high : float64, shape [K]
        Mean reward of what is taken, and the interval over prompts; NaN: there is none.
    """

    name: str
    cost: Floats
    mean: Floats
    low: Floats
    high: Floats


def spent(runs: Sequence[Any], level: float, tokens: bool) -> list[Spent]:
    """What runs of the same problems reach: selectors at each k, policies at what they drew.

    Parameters
    ----------
    runs : sequence of Run
        Those without figures are left out.
    level : float
        Of the intervals.
    tokens : bool
        Count tokens of samples, of dropped ones too; else samples that were begun.
    """
    numbered = [(number, run) for number, run in enumerate(runs, 1) if run.counted.any()]
    several = sum(not hasattr(run, "policy") for _, run in numbered) > 1
    made: list[tuple[int, Spent]] = []
    for number, run in numbered:
        if hasattr(run, "policy"):
            cost = run.tokens_per_prompt if tokens else run.samples_per_prompt
            point = (np.array([value]) for value in (cost.mean(), *run.accuracy(level)))
            made.append((number, Spent(repr(run.policy), *point)))
            continue
        found, each = run.curves(level), _tokens_per_sample(run) if tokens else 1.0
        of = f", {run.store.name if run.store else run.title}" if several else ""
        made += [(number, Spent(f"{name}{of}", found.k * each, mean, found.low[name],
                                found.high[name])) for name, mean in found.mean.items()]
    names = Counter(one.name for _, one in made)
    return [one if names[one.name] == 1 else replace(one, name=f"{one.name}, run {number}")
            for number, one in made]  # fmt: skip


def _tokens_per_sample(run: Any) -> float:
    """Mean over prompts of the mean length of their samples."""
    there = run.samples.valid[run.counted]
    return float((run.samples.lengths[run.counted].sum(axis=1) / there.sum(axis=1)).mean())
