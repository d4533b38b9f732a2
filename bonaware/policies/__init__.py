"""Policies: how many samples of a prompt are drawn, which are dropped early, when to stop.

One file = one policy, found by its name: `get("adaptive", threshold=0.9)`. A policy file has an
attribute `POLICY`, a frozen dataclass derived from `Policy`, whose `decide` looks at the samples
of one prompt while all of them are at rest: each has ended, was dropped, or waits at a
checkpoint. It sees nothing of the engine and nothing of time, so `replay` makes of stored samples
what the policy would have drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _lookup
from bonaware.costs import Cost, CostModel, cost, gain
from bonaware.policies._base import WHOLE, Decision, Policy, Seen
from bonaware.policies._course import Course
from bonaware.policies._fit import Sweep, fit_threshold, sweep
from bonaware.samples import Sample, Samples

__all__ = ["Cost", "CostModel", "Decision", "Policy", "Replay", "Seen", "Sweep", "available",
           "cost", "describe", "fit_threshold", "gain", "get", "replay", "sweep"]


def available() -> tuple[str, ...]:
    """Names that `get` knows.

    Examples
    --------
    >>> "best_of_n" in available()
    True
    """
    return _lookup.available(__name__)


def get(name: str, **options: Any) -> Policy:
    """A policy by name.

    Parameters
    ----------
    name : str
        One of `available()`; see the docstring of each class for what it does.
    **options
        Of that policy.

    Raises
    ------
    ValueError
        There is no such policy; the message lists those there are. Or an option is out of
        its range.
    TypeError
        The policy has no such option, or needs one that is missing.

    Examples
    --------
    >>> get("best_of_n", n=8)
    BestOfN(n=8)
    """
    return _lookup.make(__name__, name, "POLICY", options)


def describe(policy: Policy) -> dict[str, Any]:
    """Name and options of a policy, as JSON has them.

    Examples
    --------
    >>> describe(get("best_of_n", n=8))
    {'name': 'best_of_n', 'n': 8}
    """
    options = {one.name: np.asarray(getattr(policy, one.name)).tolist()
               for one in fields(policy) if one.init}  # type: ignore[arg-type]
    return {"name": type(policy).__module__.rpartition(".")[2], **options}


def of_policy(policy: Policy | None, n: int | None, temperature: Any) -> tuple[int, Any]:
    """n and temperatures as a policy has them, where there is one; for those who draw."""
    if policy is None:
        return 32 if n is None else n, temperature
    if not isinstance(policy, Policy):
        raise TypeError("policy must be one such as bonaware.policies.get('best_of_n', n=8), got "
                        f"{policy!r}")
    if n is not None and n != policy.n:
        raise ValueError(f"policy {policy!r} draws at most {policy.n} samples, got n={n}: leave n "
                         "out or give the policy another")
    if _anneals(policy):
        if np.ndim(temperature):
            raise ValueError(f"policy {policy!r} decides how the temperature changes from sample "
                             f"to sample: give it one, got {temperature}")
        return policy.n, policy.temperatures(temperature)
    return policy.n, temperature


def _anneals(policy: Policy) -> bool:
    """Whether the temperatures of the samples are the policy's; else they are the caller's."""
    return bool((policy.temperatures(1.0) != 1).any())


@dataclass(frozen=True, eq=False)
class Replay:
    """What a policy makes of stored samples.

    Parameters
    ----------
    samples : Samples
        Those it would have drawn; a pruned one ends at its checkpoint and has no text.
    scores : float64, shape [P, n]
        Of those that ended by themselves; NaN elsewhere.
    chosen : int64, shape [P]
        Index of the sample that it takes; -1 where none has ended.
    """

    samples: Samples
    scores: NDArray[np.float64]
    chosen: NDArray[np.int64]


def replay(policy: Policy, samples: Samples, scores: ArrayLike | None = None,
           prefix_scores: ArrayLike | None = None,
           answers: Sequence[Sequence[str | None]] | None = None) -> Replay:
    """What a policy would have drawn, from samples that were drawn whole.

    Parameters
    ----------
    policy : Policy
    samples : Samples
        At least `policy.n` whole samples of each prompt from index 0 on, as far as the policy
        wants them, drawn at `policy.temperatures(...)` where that varies.
    scores : float, shape [P, n]
        Of the whole samples.
    prefix_scores : float, shape [P, n, checkpoints]
        Of their beginnings, as `prefix_scores` of a verifier gives them.
    answers : nested list [P][n] of str or None
        What each sample votes for.

    Returns
    -------
    Replay
        Sample for sample what drawing with this policy gives, where samples and scores are the
        same.

    Raises
    ------
    ValueError
        Something that the policy needs is missing or has another shape; the policy varies the
        temperature and the samples were drawn otherwise; or it asks for a sample that is not
        there, or was not drawn whole.

    Examples
    --------
    >>> rows = [[Sample(0, i, np.arange(4, dtype=np.int32), *[np.zeros(4, np.float32)] * 3,
    ...                 text=None, finish_reason="eos", temperature=1.0) for i in range(3)]]
    >>> policy = get("adaptive", n=3, threshold=0.9, anneal="constant")
    >>> found = replay(policy, Samples(["?"], rows), scores=[[0.2, 0.95, 0.5]])
    >>> found.samples.valid, found.chosen
    (array([[ True,  True, False]]), array([1]))
    """
    stored = _Stored(policy, samples, scores, prefix_scores, answers)
    rows: list[list[Sample | None]] = []
    kept = np.full(samples.valid.shape, np.nan)
    chosen = np.full(len(samples), -1)
    for p in range(len(samples)):
        course = Course(policy, p)
        drawn = dict(_play(course, stored))
        rows.append([drawn.get(i) for i in range(samples.n)])
        whole = [i for i, sample in drawn.items() if sample.finish_reason in WHOLE]
        kept[p, whole] = stored.scores[p, whole]
        chosen[p] = course.choose()
    return Replay(Samples(samples.prompts, rows, settings=samples.settings), kept, chosen)


class _Stored:
    """Samples and what was read of them, checked."""

    def __init__(self, policy: Policy, samples: Samples, scores: Any, prefix_scores: Any,
                 answers: Any) -> None:
        if samples.start:
            raise ValueError(f"replay needs samples from index 0 on, got start={samples.start}")
        shape, places = samples.valid.shape, len(policy.checkpoints)
        given = {"scores": scores, "prefix_scores": prefix_scores, "answers": answers}
        missing = sorted(name for name in policy.needs if given[name] is None)
        if missing:
            raise ValueError(f"policy {policy!r} needs {' and '.join(missing)}")
        _check_temperatures(policy, samples)
        self.rows: list[dict[int, Sample]] = [{} for _ in range(len(samples))]
        for sample in samples[:]:  # numbered by their place
            self.rows[sample.prompt][sample.index] = sample
        self.scores = _floats("scores", scores, shape)
        self.prefix_scores = _floats("prefix_scores", prefix_scores, (*shape, places))
        self.answers = answers if answers is not None else [[None] * shape[1]] * shape[0]
        if [len(row) for row in self.answers] != [shape[1]] * shape[0]:
            raise ValueError(f"answers must be {shape[0]} lists of {shape[1]}, one per sample")

    def sample(self, p: int, i: int) -> Sample:
        sample = self.rows[p].get(i)
        if sample is None or sample.finish_reason not in WHOLE:
            found = "it is not there" if sample is None else f"that is {sample.finish_reason!r}"
            raise ValueError(f"the policy asks for sample {i} of prompt {p}, but {found}: draw all "
                             "samples whole to replay them")
        return sample


def _check_temperatures(policy: Policy, samples: Samples) -> None:
    """Refuse samples that were not drawn by the schedule of a policy that has one.

    Policies without one leave the temperatures to the caller.
    """
    if not _anneals(policy):
        return
    factors = policy.temperatures(1.0)[:samples.n]
    drawn = samples.temperature[:, :len(factors)]  # NaN where no sample is, or nobody knows
    found = (drawn[:, factors > 0] / factors[factors > 0]).ravel()
    base = next(iter(found[~np.isnan(found)]), 0.0)
    wrong = ~(np.isnan(drawn) | np.isclose(drawn, base * factors))
    if wrong.any():
        p, i = np.argwhere(wrong)[0]
        raise ValueError(f"policy {policy!r} draws at temperatures in the proportions {factors}, "
                         f"so sample {i} of prompt {p} at {base * factors[i]:g}, but it was drawn "
                         f"at {drawn[p, i]:g}: replay the schedule that the samples were drawn by")


def _floats(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if values is None:
        return np.full(shape, np.nan)
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    return array


def _play(course: Course, stored: _Stored) -> Iterator[tuple[int, Sample]]:
    """Samples of one prompt by index, as each comes to its end."""
    p = course.prompt
    while not (step := course.next()).nothing:
        lengths = course.seen().lengths if step.drop else ()
        for i in step.drop:
            yield i, _cut(stored.sample(p, i), int(lengths[i]))
        for i in (*step.begin, *step.go_on):
            sample, rest = stored.sample(p, i), course.checkpoint(i)
            if rest and len(sample.tokens) > rest:
                course.held(i, float(stored.prefix_scores[p, i, _place(course, rest)]))
                continue
            course.ended(i, sample.finish_reason, len(sample.tokens),
                         float(stored.scores[p, i]), stored.answers[p][i])
            yield i, sample


def _place(course: Course, checkpoint: int) -> int:
    return course.policy.checkpoints.index(checkpoint)


def _cut(sample: Sample, length: int) -> Sample:
    """A pruned sample: its first tokens, and no text."""
    return replace(sample, tokens=sample.tokens[:length], logp=sample.logp[:length],
                   sampled_logp=sample.sampled_logp[:length], certainty=sample.certainty[:length],
                   text=None, finish_reason="pruned")
