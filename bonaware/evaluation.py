"""Evaluation: draw n samples per prompt, reward, score, and estimate what k tries give.

The main job. It knows the order of the steps and nothing else: the model draws
(`lm.stream`), the task rewards, verifiers score, the store keeps, the estimators estimate.
"""

import html
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bonaware
from bonaware import _lookup, policies, select, tasks
from bonaware._progress import Bar, Progress
from bonaware.curves import Curves, curves, which_k
from bonaware.policies import WHOLE, Policy
from bonaware.samples import Request, Sample, Samples, seed_of
from bonaware.store import Store
from bonaware.verifiers import get as get_verifier

__all__ = ["Run", "evaluate"]

# Options of a verifier that say how its model computes: its fingerprint says what.
ENGINE = ("dtype", "threads", "memory")


@dataclass(eq=False, repr=False)
class Run:
    """What `evaluate` returns: samples, their rewards and scores, and the curves.

    Parameters
    ----------
    problems : list of Problem, length P
    samples : Samples or None
        None for recorded rewards without samples.
    rewards : float64, shape [P, n]
        NaN where there is no sample.
    scores : dict of name -> float64, shape [P, n]
        NaN where there is no sample, or one without a score: it is chosen last.
    answers : nested list [P][n] of str or None, or None
        What the samples vote for; None where the task has no answers.
    settings : dict
        Everything the samples depend on.
    k : sequence of int, optional
        At which curves are estimated; default 1, 2, 4, ... n.
    store : Path or None
        The file that holds the run.
    complete : bool
        False after an interruption; figures then come from the prompts that have all n.
    texts : nested list [P][n] of str or None, or None
        Of recorded samples without tokens, to be shown; None where `samples` has them.
    """

    problems: list[Any]
    samples: Samples | None
    rewards: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    answers: list[list[str | None]] | None
    settings: dict[str, Any] = field(default_factory=dict)
    k: Sequence[int] | None = None
    store: Path | None = None
    complete: bool = True
    texts: list[list[str | None]] | None = None

    @property
    def n(self) -> int:
        """Samples per prompt."""
        return self.rewards.shape[1]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which prompts `[P]` the figures come from.

        In an interrupted run those with all n samples: what had finished elsewhere is short
        rather than typical.
        """
        drawn = ~np.isnan(self.rewards)
        return np.asarray(drawn.any(axis=1) if self.complete else drawn.all(axis=1))

    def curves(self, level: float = 0.95) -> Curves:
        """Estimates for each k, with intervals of that level; see `bonaware.curves.curves`."""
        rewards, scores, answers = self._of(self.counted)
        if not len(rewards):
            raise ValueError(
                f"need a prompt with all n={self.n} samples, but of {len(self.rewards)} prompts "
                f"none has, after {int((~np.isnan(self.rewards)).sum())} samples"
            )
        return curves(rewards, scores, answers, k=self.k, level=level)

    def chosen(self) -> dict[str, NDArray[np.int64]]:
        """Which sample `[P]` each selector picks from all a prompt has; -1 where it has none.

        Equal scores and votes: the sample with the lowest index.
        """
        mask = ~np.isnan(self.rewards)
        rows = np.asarray(mask.any(axis=1))
        _, scores, answers = self._of(rows)
        picks = {name: select.best_of_n(score, mask=mask[rows]) for name, score in scores.items()}
        if answers is not None:
            picks["majority"] = select.majority(answers, mask=mask[rows])
        chosen = {name: np.full(len(mask), -1) for name in picks}
        for name, pick in picks.items():
            chosen[name][rows] = pick
        return chosen

    def selected(self) -> dict[str, float]:
        """Mean reward of the samples that each selector picks; see `chosen`."""
        rows = np.flatnonzero(self.counted)
        return {name: float(self.rewards[rows, pick[rows]].mean())
                for name, pick in self.chosen().items()}

    def plot(self, ax=None, level: float = 0.95):
        """Draw the curves with their intervals; returns the matplotlib Axes."""
        from bonaware import plot

        ax = plot.curves(self.curves(level), ax=ax)
        ax.set_title(f"{self.title}\n{ax.get_title()}")
        return ax

    def report(self, path: str | os.PathLike[str], level: float = 0.95,
               beside: Sequence["Run"] = ()) -> Path:
        """Write one HTML page: curves, compute, calibration, prompts and samples to look through.

        Parameters
        ----------
        path : str or path
            Is replaced.
        level : float
            Of the intervals, in (0, 1).
        beside : sequence of Run
            Of the same problems, to compare with: what a policy saves, or other temperatures.

        Returns
        -------
        Path
            Where it lies.

        Raises
        ------
        OSError
            The file cannot be written.
        ValueError
            A run beside is of other problems.

        Notes
        -----
        The page loads nothing and needs no server; what models wrote is shown as text. How
        much of a large run it shows is bounded and said there; see `bonaware.report`.
        """
        from bonaware import report

        return report.write(self, path, level, beside)

    def summary(self, width: int | None = None) -> str:
        """The curves as a table, what each selector picks, and what it cost.

        Parameters
        ----------
        width : int, optional
            Columns of the terminal: a wider table goes on below.
        """
        lines = [self.head, ""]
        if self.counted.any():
            lines += self._figures_text(width)
        else:
            lines.append(self.without_figures)
        if self.samples is not None and self.samples.stats is not None:
            lines.append(f"drawn by this call: {self.samples.stats!r}")
        return "\n".join(lines)

    def _figures_text(self, width: int | None) -> list[str]:
        lines = [self.curves().to_text(width), *self.without_score()]
        if picks := self.selected():
            chosen = ", ".join(f"{name} {reward:.3f}" for name, reward in picks.items())
            lines.append(f"chosen from all samples (ties: lowest index): {chosen}")
        return lines

    def chart(self, columns: int, encoding: str) -> str:
        """The curves as text, for a terminal of so many columns."""
        from bonaware import _charts

        return _charts.text(self.curves(), columns, encoding)

    def to_dict(self) -> dict[str, Any]:
        """The figures, as JSON has them; empty where there are none yet."""
        if not self.counted.any():
            return {}
        return self.curves().to_dict() | {"selected": self.selected()}

    def figures_html(self, level: float = 0.95) -> str:
        """Heading, chart and tables of the report."""
        from bonaware import report

        return report.curves_html(self, level)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        table = self.curves()._repr_html_() if self.counted.any() else ""
        return f"<p><b>{html.escape(self.head)}</b></p>{table}"

    @property
    def without_figures(self) -> str:
        """Why there are none, where no prompt counts."""
        return f"no prompt has all n={self.n} samples yet, so there are no figures"

    def without_score(self) -> list[str]:
        """A sentence for each verifier that left samples without a score."""
        drawn = ~np.isnan(self.rewards[self.counted])
        missing = {name: int((np.isnan(score[self.counted]) & drawn).sum())
                   for name, score in self.scores.items()}
        return [f"{count} of {int(drawn.sum())} samples have no score by {name} and are chosen last"
                for name, count in missing.items() if count]

    def _of(self, rows: NDArray[np.bool_]) -> tuple[Any, dict[str, Any], Any]:
        """Rewards, scores and answers of some prompts, as selectors take them."""
        answers = self.answers and [
            row for row, used in zip(self.answers, rows, strict=True) if used
        ]
        scores = {name: _unscored_last(score[rows]) for name, score in self.scores.items()}
        return self.rewards[rows], scores, answers

    @property
    def title(self) -> str:
        """Model and task, or what else the samples are from."""
        words = [self.settings.get(name) for name in ("model", "task", "recorded")]
        return " on ".join(str(word) for word in words if word) or "samples"

    @property
    def head(self) -> str:
        """One line: what was drawn, and whether all of it."""
        drawn = int((~np.isnan(self.rewards)).sum())
        text = f"{self.title}: {len(self.rewards)} prompts, n={self.n}, {drawn} samples"
        if self.complete:
            return text
        wanted = self.rewards.size
        return f"{text} of {wanted}: interrupted, {int(self.counted.sum())} prompts have all n"


def evaluate(
    lm: Any,
    task: Any,
    n: int | None = None,
    *,
    policy: Policy | None = None,
    k: Sequence[int] | None = None,
    verifiers: Sequence[Any] | Mapping[str, Any] = ("likelihood",),
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    max_new_tokens: int | None = None,
    stop_strings: Sequence[str] | None = None,
    limit: int | None = None,
    split: str = "test",
    rng: int | np.random.SeedSequence | np.random.Generator | None = 0,
    store: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Run:
    """Draw n samples for each problem of a task and measure what k of them give.

    Parameters
    ----------
    lm : LM
    task : str or task
        A name of `bonaware.tasks.available()`, or an object like those.
    n : int, optional
        Samples per problem, >= 1; default 32, or what the policy has. A store can be extended
        later: 8, then 32.
    policy : Policy, optional
        Decides how many samples of a problem are drawn, which are dropped early and when to
        stop, guided by the first of the verifiers where it needs scores; see
        `bonaware.policies`. None: n of each.
    k : sequence of int, optional
        Each ``1 <= k <= n``. Default: 1, 2, 4, ... n. Not with a policy, which gives no curves.
    verifiers : sequence of str or verifier, or a mapping of names to them
        Each gives a score per sample to select by. A verifier without a name here is called
        by its own, or as its `repr` says.
    temperature : float or sequence of n floats
        A float for all, or one per sample index. At most one sample at temperature 0.
    top_k, top_p, min_p : optional
        Truncation of the distribution, as in `LM.generate`.
    max_new_tokens, stop_strings : optional
        Default: those of the task.
    limit : int, optional
        Use the first problems only.
    split : str
        Of the task's data.
    rng : int, SeedSequence, Generator or None
        None: the seed of the store, else fresh entropy.
    store : path, optional
        SQLite file that keeps every finished sample at once. If it exists, only what is
        missing is drawn. None: kept in memory only.
    progress : bool or callable, optional
        True or False shows or hides a bar that counts samples; None shows it in terminals
        and notebooks. A callable gets every finished `Sample`.

    Returns
    -------
    Run
        After Ctrl-C while drawing: what had finished, with ``complete=False``. With a policy a
        `bonaware.policy_run.PolicyRun`.

    Raises
    ------
    ValueError
        A setting is out of range, or the store was begun with other settings; the message
        names each difference.
    RuntimeError
        Another process draws into this store, or the task cannot judge on this machine.
    StoreError
        The store cannot be written; samples finished before are safe.

    Notes
    -----
    Sample i of a prompt depends on the seed, the prompt and i only, so a run that was
    stopped and continued has the samples of one that was not.

    Examples
    --------
    >>> import bonaware as bon
    >>> lm = bon.LM.load("models/stories")  # doctest: +SKIP
    >>> run = bon.evaluate(lm, "keywords", n=32, store="run.sqlite")  # doctest: +SKIP
    >>> run.curves().mean["pass@k"][-1]  # doctest: +SKIP
    1.0
    """
    from bonaware.policy_run import PolicyRun, no_curves  # which builds on Run

    if isinstance(lm, str | os.PathLike):
        raise TypeError(f"lm must be a model, such as LM.load({os.fspath(lm)!r}), got its path")
    if isinstance(stop_strings, str):
        stop_strings = [stop_strings]
    n, temperature = policies.of_policy(policy, n, temperature)
    n, schedule = _check_sampling(n, temperature)
    if policy is not None and k is not None:
        raise no_curves(policy)
    which_k(k, n)
    task = tasks.get(task) if isinstance(task, str) else task
    judging = task.settings()  # said now, and not after drawing, where it cannot judge
    judges = _verifiers(verifiers, task, lm)
    problems = task.load(split=split, limit=limit)
    if not problems:
        raise ValueError(f"need at least one problem, but task {task.name} has none in split "
                         f"{split!r} with limit={limit}")
    prompts = [task.prompt(problem) for problem in problems]
    tokens = [lm.encode(prompt) for prompt in prompts]
    sampling = {
        "temperature": schedule,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "max_new_tokens": task.max_new_tokens if max_new_tokens is None else max_new_tokens,
        "stop_strings": list(task.stop_strings if stop_strings is None else stop_strings),
    }
    by_policy = None if policy is None else _ByPolicy(policy, judges, task, problems)
    with nullcontext() if store is None else Store(store) as db:
        settings = {
            "model": lm.name,
            "fingerprint": lm.fingerprint,
            "eos_token_ids": list(lm.eos_token_ids),
            "task": task.name,
            "split": split,
            **sampling,
            "seed": _seed(rng, db),
        }
        if by_policy is not None:
            settings |= by_policy.settings
        if db is not None:
            db.begin(settings, _rows(problems, prompts, tokens), _session(lm) | judging)
        kept = [] if db is None else list(db.samples(len(problems), n))
        if by_policy is None:
            requests = _requests(tokens, kept, n)
            drawing = lm.stream(requests, **sampling, rng=settings["seed"]) if requests else None
        else:
            kept = by_policy.resume(db, kept)
            drawing = by_policy.drawing(lm, prompts, _requests(tokens, [], n), kept,
                                        sampling | {"rng": settings["seed"]})
        complete = _draw(drawing, kept, len(problems) * n, db, progress, by_policy)
        samples = Samples.from_list(
            prompts, kept, n, stats=drawing and drawing.stats, settings=settings
        )
        whole = samples.whole()
        rewards = task.rewards(problems, whole.text)
        answers = answers_to(task, problems, whole.text)
        known = {} if by_policy is None else by_policy.scores
        scores = {name: known[name] if name in known else judge.score(problems, whole)
                  for name, judge in judges.items()}
        if db is not None:
            db.put_rewards(rewards, answers)
            for name, score in scores.items():
                if name not in known:  # else each came with its sample
                    db.put_scores(name, score)
    made = {
        "problems": problems, "samples": samples, "rewards": rewards, "scores": scores,
        "answers": answers, "settings": settings, "k": k,
        "store": None if store is None else Path(store), "complete": complete,
    }  # fmt: skip
    if by_policy is None:
        return Run(**made)
    return PolicyRun(**made, policy=by_policy.policy, done=by_policy.done)


class _ByPolicy:
    """What a policy does in a run: what it had done before, and what is kept of it now."""

    def __init__(self, policy: Policy, judges: Mapping[str, Any], task: Any,
                 problems: Sequence[Any]) -> None:
        from bonaware._scheduling import Guide

        def answer(prompt: int, text: str) -> str | None:
            return task.answer(problems[prompt], text)

        self.policy = policy
        self.name: str | None = next(iter(judges), None) if policy.judged else None
        judge = None if self.name is None else judges[self.name]
        self.guide = Guide(policy, judge, problems, answer)
        guided = None if judge is None else {"name": self.name} | _identity(judge)
        self.settings = {"policy": policies.describe(policy), "guide": guided}
        self.done: dict[int, int] = {}
        self.found = np.full((len(problems), policy.n), np.nan)  # scores by the guide
        self._db: Store | None = None
        self._stored: set[tuple[int, int]] = set()
        self._drawing: Any = None

    def resume(self, db: Store | None, stored: Sequence[Sample]) -> list[Sample]:
        """Take up what a store has of it; the samples that need not be drawn again."""
        if db is None:
            return []
        self._db = db
        self._stored = {(sample.prompt, sample.index) for sample in stored}
        self.done = {p: i for p, i in db.done().items() if p < len(self.found)}
        self.found = db.scores(self.found.shape).get(str(self.name), self.found)
        # What was drawn for a prompt that is not done serves again, but for its checkpoints.
        return [s for s in stored if s.prompt in self.done or not self.policy.checkpoints]

    def drawing(self, lm: Any, prompts: Sequence[Any], requests: Sequence[Request],
                kept: Sequence[Sample], sampling: Mapping[str, Any]) -> Any:
        """The samples that are missing, of what is requested: all of each prompt."""
        wanted = [request for request in requests if request.prompt not in self.done]
        served = {(s.prompt, s.index): (s, float(self.found[s.prompt, s.index]))
                  for s in kept if s.prompt not in self.done}
        self._drawing = lm.scheduled(wanted, prompts, self.policy, self.guide, served, **sampling)
        return self._drawing

    def keep(self, sample: Sample) -> None:
        """Put a finished sample into the store with its score, and the prompts that are done."""
        place = sample.prompt, sample.index
        self.found[place] = score = self._drawing.scores.get(place, np.nan)
        if self._db is not None and place not in self._stored:
            self._db.add(sample, {str(self.name): score})
        self.settle()

    def unread(self, sample: Sample) -> bool:
        """Whether Ctrl-C came before the verifier could read it; then it is drawn again."""
        return (self.name is not None and sample.finish_reason in WHOLE
                and (sample.prompt, sample.index) not in self._drawing.scores)

    def settle(self) -> None:
        """Note the prompts that are done since it was last called."""
        new = {p: i for p, i in self._drawing.chosen.items() if p not in self.done}
        self.done |= new
        if self._db is not None and new:
            self._db.put_done(new)

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """By the verifier that guided the policy."""
        return {} if self.name is None else {self.name: self.found}


def _check_sampling(n: int, temperature: Any) -> tuple[int, float | list[float]]:
    """n and temperature as JSON has them, or an error."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"need n >= 1 samples per prompt, got n={n}")
    schedule = np.asarray(temperature, np.float64)
    if schedule.ndim and schedule.shape != (n,):
        raise ValueError(
            f"temperature must be a float or one per sample: need n={n} values, "
            f"got shape {schedule.shape}"
        )
    if not (np.isfinite(schedule) & (schedule >= 0)).all():
        raise ValueError(f"need a finite temperature >= 0, got {temperature}")
    cold = int((np.broadcast_to(schedule, n) == 0).sum())
    if cold > 1:
        raise ValueError(
            f"at temperature 0 every sample of a prompt is the same: need at most one, got {cold}"
        )
    return int(n), schedule.tolist()


def _verifiers(given: Sequence[Any] | Mapping[str, Any], task: Any, lm: Any) -> dict[str, Any]:
    """Name -> verifier; those that want the task or the model get it."""
    if isinstance(given, str):
        raise TypeError(f"verifiers must be a sequence of names or verifiers, got {given!r}")
    pairs = list(given.items()) if isinstance(given, Mapping) else [
        (_verifier_name(one), one) for one in given
    ]
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"two verifiers are called {twice[0]!r}: name them, as in "
                         "verifiers={'one': ..., 'other': ...}")
    return {name: _verifier(one, {"task": task, "lm": lm}) for name, one in pairs}


def _verifier_name(one: Any) -> str:
    if isinstance(one, str):
        return one
    return repr(one) if is_dataclass(one) else type(one).__name__


def _verifier(one: Any, given: Mapping[str, Any]) -> Any:
    if not isinstance(one, str):
        # One that asks the model that drew is told which that is.
        return replace(one, lm=given["lm"]) if getattr(one, "lm", given) is None else one
    kind = _lookup.load("bonaware.verifiers", one, "VERIFIER")
    wanted = signature(kind).parameters
    return get_verifier(one, **{name: value for name, value in given.items() if name in wanted})


def _identity(judge: Any) -> dict[str, Any]:
    """What the scores of a verifier depend on, as JSON has it."""
    options = {one.name: getattr(judge, one.name) for one in fields(judge)
               if one.init and one.name not in ENGINE} if is_dataclass(judge) else {}
    return {"kind": type(judge).__name__} | json.loads(json.dumps(options, default=_known_by))


def _known_by(value: Any) -> Any:
    """What JSON cannot hold: a model by its weights and its question, all else by its name."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if hasattr(value, "fingerprint"):
        return [value.fingerprint, getattr(value, "self_evaluation", None)]
    return getattr(value, "name", type(value).__name__)


def _unscored_last(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that selectors can rank: a sample without one comes after all the others."""
    least = np.nanmin(scores, initial=0.0)
    last = least - max(1.0, abs(least))  # a step that no rounding swallows
    return np.where(np.isnan(scores), last, scores)


def _seed(rng: Any, db: Store | None) -> int:
    """The seed as an int that gives the same run again when it is passed as rng."""
    if rng is None and db is not None and "seed" in (stored := db.settings):
        return stored["seed"]
    return int(rng) if isinstance(rng, int | np.integer) else seed_of(rng)


def _rows(problems, prompts, tokens) -> list[dict[str, Any]]:
    return [
        {
            "id": problem.id,
            "prompt": prompt,
            "tokens": ids,
            "answer": problem.answer,
            "fields": problem.fields,
        }
        for problem, prompt, ids in zip(problems, prompts, tokens, strict=True)
    ]


def _requests(tokens: Sequence[NDArray[np.int32]], kept: Sequence[Sample], n: int) -> list[Request]:
    """What is missing; prompts with equal tokens are numbered, so that they differ."""
    have = {(sample.prompt, sample.index) for sample in kept}
    seen: Counter[bytes] = Counter()
    requests = []
    for p, ids in enumerate(tokens):
        key = ids.tobytes()
        missing = [i for i in range(n) if (p, i) not in have]
        if missing:
            requests.append(Request(p, ids, missing, seen[key]))
        seen[key] += 1
    return requests


def _draw(
    drawing: Iterator[Sample] | None,
    kept: list[Sample],
    total: int,
    db: Store | None,
    progress: Progress,
    by_policy: _ByPolicy | None = None,
) -> bool:
    """Put every finished sample into the store and into kept; False after Ctrl-C."""
    try:
        with Bar(None if by_policy else total, progress, done=len(kept)) as bar:
            for sample in drawing or ():
                if sample.finish_reason == "aborted" or (by_policy and by_policy.unread(sample)):
                    continue
                if by_policy is not None:
                    by_policy.keep(sample)
                elif db is not None:
                    db.add(sample)
                kept.append(sample)
                bar(sample)
    except KeyboardInterrupt:
        kept_in = "in memory" if db is None else f"in {db.path}; the same call goes on from there"
        of = "" if by_policy else f" of {total}"
        warnings.warn(
            f"interrupted: {len(kept)}{of} samples are finished and kept {kept_in}",
            stacklevel=3,
        )
        return False
    finally:
        if by_policy is not None:
            by_policy.settle()
    return True


def answers_to(task, problems, texts) -> list[list[str | None]] | None:
    """What each sample votes for; None where no sample votes."""
    answers = [
        _answers_of(task, problem, row) for problem, row in zip(problems, texts, strict=True)
    ]
    return answers if any(map(any, answers)) else None


def _answers_of(task, problem, texts) -> list[str | None]:
    """The answers of a problem's samples; equal texts are read once."""
    known = {text: None if text is None else task.answer(problem, text) for text in {*texts}}
    return [known[text] for text in texts]


def _session(lm: Any) -> dict[str, Any]:
    return {"bonaware": bonaware.__version__, **lm.settings()}
