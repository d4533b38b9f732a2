"""Sources of batches: rollouts of a task, texts to imitate, labelled completions.

Each is a callable that makes one step of a trainer. Which problems or rows a step takes is a
keyed shuffle: one permutation per epoch, a function of the seed and the epoch; what is drawn is
a function of the seed and the step. Nothing is remembered from step to step.
"""

import functools
import inspect
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import _lookup, estimators, tasks
from bonaware._checks import count
from bonaware.curves import which_k
from bonaware.samples import Request, Sample, Samples
from bonaware.tasks import Problem, Task, read_jsonl, require

__all__ = ["Labels", "Rollouts", "Texts", "judge", "load_problems"]

ORDER, DRAWS = 0, 1  # what a key with this number is for


class Rollouts:
    """Draws samples for problems of a task, rewards and scores them, and makes one step.

    Parameters
    ----------
    task : Task or str
    n : int
        Samples per problem, >= 1; or 0 for a step on experts alone.
    prompts : int
        Problems per step.
    temperature : float
        > 0.
    verifier : verifier or str, optional
        Its scores are what the loss ranks by. Default: the rewards.
    split : str
        Of the task's data.
    limit : int, optional
        Only the first problems of the split.
    expert : str, optional
        Field of the problems that holds a demonstration; it joins the samples of its problem as
        one more, marked for losses that take `expert`.
    max_new_tokens : int, optional
        Default: the task's.
    seed : int
        >= 0; of the order of the problems and of what is drawn.

    Raises
    ------
    ValueError
        A number is out of its range, the split is empty, or a problem lacks the expert's field.

    Notes
    -----
    Adds to the metrics of `Trainer.step`: "pass@k" for k = 1, 2, 4, ... n ("max@k" where rewards
    are not all 0 or 1) and, with a verifier, "best-of-k", of the rollouts; "new_tokens",
    "rollout_seconds", "reward_seconds" and "tokens_per_second": new tokens over all seconds.
    """

    def __init__(self, task: Task | str, n: int = 32, prompts: int = 32, *,
                 temperature: float = 1.0, verifier: Any = None, split: str = "train",
                 limit: int | None = None, expert: str | None = None,
                 max_new_tokens: int | None = None, seed: int = 0) -> None:
        self.n = count("n", n, least=0 if expert else 1)
        self.prompts, self.seed = _checked(prompts, seed)
        if not temperature > 0:
            raise ValueError(f"need temperature > 0 to learn from samples, got {temperature}")
        self.task = tasks.get(task) if isinstance(task, str) else task
        self.temperature = float(temperature)
        self.verifier = judge(verifier, self.task) if isinstance(verifier, str) else verifier
        self.expert = expert
        self.max_new_tokens = self.task.max_new_tokens
        if max_new_tokens is not None:
            self.max_new_tokens = count("max_new_tokens", max_new_tokens)
        self.problems = load_problems(self.task, split, limit)
        if expert is not None:
            for problem in self.problems:
                _demonstration(problem, expert)

    @property
    def width(self) -> int:
        """Samples of every prompt that a step learns from, the demonstration among them."""
        return self.n + (self.expert is not None)

    def draw(self, trainer: Any) -> tuple[list[Problem], Samples]:
        """The problems of a trainer's next step, and samples of them."""
        if trainer.lm.tokenizer is None:
            raise ValueError(f"a task rewards texts, but {trainer.lm.name} has no tokenizer.json")
        chosen = shuffled(len(self.problems), self.prompts, self.seed, trainer.steps)
        problems = [self.problems[i] for i in chosen]
        prompts = [self.task.prompt(problem) for problem in problems]
        return problems, self._draw(trainer.lm, prompts, trainer.steps)

    def __call__(self, trainer: Any) -> dict[str, Any]:
        began = time.perf_counter()
        problems, samples = self.draw(trainer)
        drawn = time.perf_counter()
        expert = None
        if self.expert is not None:
            samples = self._with_experts(trainer.lm, samples, problems)
            expert = np.arange(samples.n) == self.n
            expert = np.broadcast_to(expert, samples.valid.shape)
        rewards = self.task.rewards(problems, samples.text)
        scores = self.verifier and self.verifier.score(problems, samples)
        judged = time.perf_counter()
        metrics = trainer.step(samples.prompts, samples, rewards, scores, expert=expert)
        tokens = int(samples.lengths[:, : self.n].sum())
        return metrics | self._chances(rewards, scores) | {
            "new_tokens": tokens,
            "rollout_seconds": drawn - began, "reward_seconds": judged - drawn,
            "tokens_per_second": tokens / (time.perf_counter() - began),
        }  # fmt: skip

    def _draw(self, lm: Any, prompts: Sequence[Any], step: int) -> Samples:
        """As `LM.generate` draws, but Ctrl-C comes through."""
        seen: Counter[bytes] = Counter()
        requests = []
        for p, prompt in enumerate(prompts):
            ids = lm.encode(prompt)
            requests.append(Request(p, ids, range(self.n), seen[ids.tobytes()]))
            seen[ids.tobytes()] += 1
        drawing = lm.stream(
            requests, temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            stop_strings=self.task.stop_strings,
            rng=np.random.SeedSequence([self.seed, DRAWS, step]),
        )
        return Samples.from_list(prompts, drawing, self.n,
                                 settings={"fingerprint": lm.fingerprint})

    def _with_experts(self, lm: Any, samples: Samples, problems: Sequence[Problem]) -> Samples:
        """The samples with a column more, which holds the demonstrations."""
        texts = [_demonstration(problem, str(self.expert)) for problem in problems]
        ids = [[completion_ids(lm, text)] for text in texts]
        logp = tempered = lm.logp(samples.prompts, ids)
        if self.temperature != 1:
            tempered = lm.logp(samples.prompts, ids, self.temperature)
        experts = [
            Sample(p, self.n, ids[p][0], logp[p][0], tempered[p][0],
                   np.full(len(ids[p][0]), np.nan, np.float32), text, "eos", self.temperature)
            for p, text in enumerate(texts)
        ]
        return Samples.from_list(samples.prompts, [*samples, *experts], self.n + 1,
                                 settings=samples.settings)

    def _chances(self, rewards: NDArray[np.float64], scores: Any) -> dict[str, float]:
        """What k of the samples drawn give, mean over prompts."""
        if not self.n:
            return {}
        ks, own = which_k(None, self.n), rewards[:, : self.n]
        best = "pass" if np.isin(own, (0.0, 1.0)).all() else "max"
        means = estimators.best_of_k(own, ks).mean(axis=0).tolist()
        chances = {f"{best}@{k}": mean for k, mean in zip(ks, means, strict=True)}
        if scores is None:
            return chances
        means = estimators.best_of_k(own, ks, scores[:, : self.n]).mean(axis=0).tolist()
        return chances | {f"best-of-{k}": mean for k, mean in zip(ks, means, strict=True)}


class Texts:
    """Prompts with completions to imitate; for the loss `sft`.

    Parameters
    ----------
    rows : path, or sequence of (prompt, completion)
        A JSONL file with the fields prompt (str or chat messages) and completion (str); or rows,
        where both may be ids too.
    prompts : int
        Rows per step.
    end : bool
        A completion that is a str is followed by the model's end token, where it has one.
    seed : int
        >= 0; of the order of the rows.

    Raises
    ------
    ValueError
        There is no row, or a line of the file lacks a field; the message names it.

    Notes
    -----
    The metrics are those of `Trainer.step` that mean something here; "nats_per_token" is the mean
    of -logp over all tokens.
    """

    def __init__(self, rows: str | os.PathLike[str] | Sequence[Any], prompts: int = 32, *,
                 end: bool = True, seed: int = 0) -> None:
        fields = {"prompt": (str, list), "completion": str}
        self.rows = _rows(rows, fields)
        self.prompts, self.seed = _checked(prompts, seed)
        self.end = end

    @classmethod
    def of_task(cls, task: Task | str, expert: str, prompts: int = 32, *, split: str = "train",
                limit: int | None = None, seed: int = 0) -> "Texts":
        """The demonstrations of a task's problems: `expert` is the field that holds them."""
        task = tasks.get(task) if isinstance(task, str) else task
        problems = load_problems(task, split, limit)
        return cls([(task.prompt(problem), _demonstration(problem, expert))
                    for problem in problems], prompts, seed=seed)

    def __call__(self, trainer: Any) -> dict[str, Any]:
        chosen = shuffled(len(self.rows), self.prompts, self.seed, trainer.steps)
        prompts, texts = zip(*(self.rows[i] for i in chosen), strict=True)
        completions = [[completion_ids(trainer.lm, text, self.end)] for text in texts]
        metrics = trainer.step(prompts, completions, np.ones((len(texts), 1)))
        metrics["nats_per_token"] = metrics["entropy"]
        names = ("loss", "nats_per_token", "kl", "trained_samples", "trained_tokens", "grad_norm",
                 "lr", "step_seconds")
        return {name: metrics[name] for name in names if name in metrics}


class Labels:
    """Labelled completions; for a model with a score head.

    Parameters
    ----------
    rows : path, or sequence of (prompt, completion, label)
        A JSONL file with the fields prompt (str or chat messages), completion (str) and label
        (a number in [0, 1], or a bool); or rows, where the first two may be ids too.
    prompts, end, seed
        As for `Texts`.

    Raises
    ------
    ValueError
        There is no row, or a line of the file lacks a field; the message names it.

    Notes
    -----
    For more rows than fit into memory, or samples that are drawn afresh for every step, any
    function will do: ``trainer.fit(lambda trainer: trainer.step_scores(*batch(trainer.steps)),
    steps)``. Completions of the same prompt in one call share the prompt's work.
    """

    def __init__(self, rows: str | os.PathLike[str] | Sequence[Any], prompts: int = 32, *,
                 end: bool = True, seed: int = 0) -> None:
        fields = {"prompt": (str, list), "completion": str, "label": (float, int)}
        self.rows = _rows(rows, fields)
        self.prompts, self.seed = _checked(prompts, seed)
        self.end = end

    def __call__(self, trainer: Any) -> dict[str, Any]:
        chosen = shuffled(len(self.rows), self.prompts, self.seed, trainer.steps)
        prompts, texts, labels = zip(*(self.rows[i] for i in chosen), strict=True)
        completions = [[completion_ids(trainer.lm, text, self.end)] for text in texts]
        return trainer.step_scores(prompts, completions, [[label] for label in labels])


def shuffled(total: int, count: int, seed: int, step: int) -> list[int]:
    """What a step takes of `total` things, `count` per step, epoch after epoch.

    Examples
    --------
    >>> epoch = shuffled(5, 2, seed=0, step=0) + shuffled(5, 2, 0, 1) + shuffled(5, 2, 0, 2)[:1]
    >>> sorted(epoch)
    [0, 1, 2, 3, 4]
    """
    places = [divmod(place, total) for place in range(step * count, (step + 1) * count)]
    return [int(_epoch(total, seed, epoch)[place]) for epoch, place in places]


@functools.lru_cache(maxsize=4)
def _epoch(total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(total)


def completion_ids(lm: Any, completion: Any, end: bool = True) -> NDArray[np.int32]:
    """Ids of a completion to learn from: text with the end token behind it, or ids as they are."""
    ids = lm._completion(completion)
    if not (isinstance(completion, str) and end and lm.eos_token_ids):
        return ids
    return np.append(ids, np.int32(lm.eos_token_ids[0]))


def judge(name: str, task: Task, options: Mapping[str, Any] | None = None) -> Any:
    """A verifier by name; one that wants the task gets it."""
    kind = _lookup.load("bonaware.verifiers", name, "VERIFIER")
    given = {"task": task} if "task" in inspect.signature(kind).parameters else {}
    return _lookup.make("bonaware.verifiers", name, "VERIFIER", given | dict(options or {}))


def _checked(prompts: int, seed: int) -> tuple[int, int]:
    """Prompts per step, and the seed of their order."""
    return count("prompts", prompts), count("seed", seed, least=0)


def load_problems(task: Task, split: str, limit: int | None) -> list[Problem]:
    """The problems of a task, at least one."""
    problems = task.load(split=split, limit=limit)
    if not problems:
        raise ValueError(f"need at least one problem, but task {task.name} has none in split "
                         f"{split!r} with limit={limit}")
    return problems


def _demonstration(problem: Problem, name: str) -> str:
    text = problem.fields.get(name)
    if not isinstance(text, str):
        raise ValueError(f"problem {problem.id} needs a field {name!r} with a demonstration (str); "
                         f"there are {', '.join(problem.fields) or 'none'}")
    return text


def _rows(rows: Any, fields: dict[str, Any]) -> Sequence[Any]:
    """Rows as tuples of these fields."""
    if isinstance(rows, str | os.PathLike):
        path = Path(rows)
        rows = [tuple(require(record, name, kind, path, number) for name, kind in fields.items())
                for number, record in read_jsonl(path)]
        if not rows:
            raise ValueError(f"need at least one row, but {path} has none")
    for number, row in enumerate(rows):
        if len(row) != len(fields):
            raise ValueError(f"need rows of {', '.join(fields)}, but row {number} has {len(row)} "
                             "entries")
    if not len(rows):
        raise ValueError(f"need at least one row of {', '.join(fields)}, got none")
    return rows
