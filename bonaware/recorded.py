"""Recorded samples: rewards, scores and answers that someone else has written down.

Takes rows in two forms, one per problem (lists of n) or one per sample, as `bonaware.logs` reads
them, and the stores of earlier runs. Texts without rewards are judged by a task. What it reads is
data and is never executed here; a task whose samples are programs runs them in its sandbox.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonaware import logs, policies, tasks
from bonaware.evaluation import Run, answers_to
from bonaware.policies import Policy
from bonaware.policy_run import PolicyRun, no_curves
from bonaware.samples import Samples
from bonaware.store import Store
from bonaware.tasks import Problem, Task

__all__ = ["evaluate_recorded"]

# Where to look when no field is named, best first; then the first that begins with reward_ or
# answer_, and all that begin with score_.
REWARDS = ("rewards", "reward", "correct", "is_correct", "passed", "score")
SCORES = ("scores", "pred_score", "rm_score", "score")
ANSWERS = ("answers", "pred", "preds", "predictions", "extracted_answer", "all_answers")
GOLD = ("gold", "gold_answer", "target")
TEXTS = ("texts", "text", "completions", "completion", "samples", "sample", "responses",
         "response", "generations", "generation", "solutions", "solution", "outputs", "output")
PROBLEM = ("problem", "problem_id", "question_id", "task_id", "idx", "id", "prompt", "question")
PROMPTS = ("prompt", "question", "problem", "instruction", "input", "query")
SQLITE_MAGIC = b"SQLite format 3\0"


class _Fields(NamedTuple):
    """Which field of a row holds what; `wide`: a row is a problem, with lists of samples."""

    wide: bool
    rewards: str | None
    scores: tuple[str, ...]
    answers: str | None
    gold: str | None
    problem: str | None
    texts: str | None
    prompt: str | None


def evaluate_recorded(
    path: str | os.PathLike[str],
    task: str | Task | None = None,
    *,
    split: str = "test",
    texts: str | None = None,
    rewards: str | None = None,
    scores: Sequence[str] | None = None,
    answers: str | None = None,
    gold: str | None = None,
    problem: str | None = None,
    k: Sequence[int] | None = None,
) -> Run:
    """Measure recorded samples, without any model.

    Parameters
    ----------
    path : str or path
        Rows in JSONL, JSON or Parquet: one per problem, whose fields are lists with one entry
        per sample, or one per sample. Or a log: of lm-eval, samples_*.jsonl, whose repeats are
        samples; of inspect_ai, .eval or .json, whose epochs are samples; annotations.json of
        AlpacaEval, whose preferences are rewards. Or the store of an earlier run.
    task : str or task, optional
        Judges recorded texts: a name of `bonaware.tasks.available()`, or an object like those.
        Each row then names its problem by the id or the prompt it has in the task.
    split : str
        Of the task's data.
    texts : str, optional
        Field with the texts that the task judges, or else that a report shows. Default: the
        first of texts, text,
        completions, completion, samples, sample, responses, response, generations,
        generation, solutions, solution, outputs, output.
    rewards : str, optional
        Field with the truth: numbers, or true and false. Default: the first that is there of
        rewards, reward, correct, is_correct, passed, score, or that begins with `reward_`.
    scores : sequence of str, optional
        Fields to select by. Default: the first of scores, pred_score, rm_score, score that
        holds no rewards, and every field that begins with `score_`.
    answers : str, optional
        Field with the answers that vote; null and "" do not vote. Default: the first of
        answers, pred, preds, predictions, extracted_answer, all_answers, or that begins with
        `answer_`.
    gold : str, optional
        Field with a problem's right answer: then the reward is 1 where the answer equals it,
        else 0. Default, where no field holds rewards: the first of gold, gold_answer, target.
    problem : str, optional
        One row per sample: the field that names the problem. Default: the first of problem,
        problem_id, question_id, task_id, idx, id, prompt, question.
    k : sequence of int, optional
        At which curves are estimated; default 1, 2, 4, ... n.

    Returns
    -------
    Run
        Of a file without samples, and with their texts where it has some; `run.settings` says
        which field was taken for what. Of the store of a policy's run a
        `bonaware.policy_run.PolicyRun`, which has no curves.

    Raises
    ------
    ValueError
        A field is missing, or a row does not fit; the message names file, line and field. Or
        k is given and a policy decided how much was drawn, or a task and something else that
        gives the rewards.
    ImportError
        A package is missing that reads the file; the message names it.
    RuntimeError
        The task cannot judge on this machine.

    Notes
    -----
    An entry that is itself a list counts by its first element, as reward models write
    ``[[0.3], [1.2]]`` and some logs ``[["42", tokens], ...]``. A score of null says that the
    sample has none: a selector takes it last, and the run says how many there are.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "rows.jsonl")
    >>> _ = path.write_text('{"correct": [1, 0], "rm": [0.2, 0.9], "pred": ["4", "5"]}')
    >>> run = evaluate_recorded(path, scores=["rm"])
    >>> run.curves().mean["pass@k"], run.selected()
    (array([0.5, 1. ]), {'rm': 0.0, 'majority': 1.0})
    >>> folder.cleanup()
    """
    if task is not None and (rewards or gold):
        raise ValueError("rewards are in a field, or come from a task that judges texts: give "
                         "rewards or gold without a task")
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            if task is not None:
                raise ValueError(f"{path}: a store has rewards; a task judges texts in JSONL")
            return _from_store(path, k)
    log = logs.read(path)
    first = next(log.rows)
    named = {"rewards": rewards, "answers": answers, "gold": gold, "problem": problem,
             "texts": texts}
    task = tasks.get(task) if isinstance(task, str) else task
    table = _Table(_choose(*first, named, scores, judged=task is not None),
                   None if task is None else _by_name(task.load(split)))
    for where, row in itertools.chain([first], log.rows):
        try:
            table.add(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return table.run({"recorded": path.name, **log.settings}, k, task)


def _by_name(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Problems by id, and by prompt where no other has the same."""
    prompts = Counter(one.prompt for one in problems if isinstance(one.prompt, str))
    named = {one.prompt: one for one in problems if prompts[one.prompt] == 1}
    return named | {one.id: one for one in problems}


def _choose(
    where: str, row: dict[str, Any], named: dict[str, str | None], scores: Sequence[str] | None,
    judged: bool,
) -> _Fields:
    """Which field holds what, from the names given and the first row."""
    for name in filter(None, (*named.values(), *(scores or ()))):
        if name not in row:
            raise ValueError(f"{where}: need the field {name!r}, found {', '.join(row)}")
    gold, answers, texts = named["gold"], named["answers"], named["texts"]
    rewards = named["rewards"]
    if not (rewards or gold or judged):
        rewards = _first(row, REWARDS) or _begins(row, "reward_")
    if judged:
        texts = texts or _first(row, TEXTS)
        if texts is None:
            raise ValueError(f"{where}: need a field with texts; name it, or call it "
                             f"{', '.join(TEXTS)}; found {', '.join(row)}")
    elif rewards is None:
        gold = gold or _first(row, GOLD)
        answers = answers or _first(row, ANSWERS) or _begins(row, "answer_")
        if gold is None or answers is None:
            raise ValueError(
                f"{where}: need a field with rewards, or one with answers and one with the right "
                f"answer; name them, or call them {', '.join(REWARDS)}; found {', '.join(row)}"
            )
    main = row[(texts if judged else rewards or answers) or ""]
    wide = isinstance(main, list)

    def fits(name: str) -> bool:
        return name != rewards and (isinstance(row[name], list) or not wide)

    def shows(name: str) -> bool:
        entries = row[name] if isinstance(row[name], list) == wide else None
        return (all(isinstance(entry, str) for entry in entries) and len(entries) == len(main)
                if isinstance(entries, list) else isinstance(entries, str))

    if scores is None:
        first = _first(row, filter(fits, filter(row.__contains__, SCORES)))
        more = [name for name in row if name.startswith("score_") and fits(name)]
        scores = ([first] if first else []) + more
    problem = named["problem"] or _first(row, PROBLEM)
    if problem is None and (judged or not wide):
        what = "a task" if judged else "one row per sample"
        raise ValueError(
            f"{where}: {what} needs a field that names the problem; name it, or call "
            f"it {', '.join(PROBLEM)}; found {', '.join(row)}"
        )
    votes = [*filter(row.__contains__, ANSWERS)]
    if not judged:  # the task reads answers by itself
        votes += [name for name in row if name.startswith("answer_")]
    answers = answers or next(filter(fits, votes), None)
    texts = texts or next(filter(shows, filter(row.__contains__, TEXTS)), None)
    shown = () if judged else PROMPTS  # a task has its own
    prompt = next((name for name in shown if _prompt(row, name)), None)
    return _Fields(wide, rewards, tuple(scores), answers, gold, problem, texts, prompt)


def _first(row: dict[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _begins(row: dict[str, Any], start: str) -> str | None:
    return next((name for name in row if name.startswith(start)), None)


def _prompt(row: dict[str, Any], name: str) -> Any:
    """A text or the messages of a chat; "" where there is no such thing."""
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return value or ""
    return value if isinstance(value, str) else ""


class _Table:
    """Problems in order of appearance, each with lists of rewards, scores, answers and texts."""

    def __init__(self, fields: _Fields, known: dict[str, Problem] | None) -> None:
        self.fields = fields
        self.known = known  # problems of the task that judges, by id
        self.ids: list[str] = []
        self.place: dict[str, int] = {}  # one row per sample: id -> problem
        self.rewards: list[list[float]] = []
        self.scores: list[list[list[float]]] = []  # [problem][sample][field]
        self.answers: list[list[str | None]] = []
        self.texts: list[list[str | None]] = []
        self.prompts: list[Any] = []

    def add(self, row: dict[str, Any]) -> None:
        fields = self.fields
        named = filter(None, (fields.rewards, fields.answers, fields.texts, *fields.scores))
        columns = {name: self._entries(row, name) for name in named}
        lengths = {name: len(entries) for name, entries in columns.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ValueError(f"need fields with equally many samples, and at least one: {lengths}")
        count = next(iter(lengths.values()))
        votes = columns[fields.answers] if fields.answers else [None] * count
        answers = [_text(vote, fields.answers) for vote in votes]
        texts = [_text(text, fields.texts) for text in columns.get(fields.texts or "", ())]
        if self.known is not None:
            rewards = [np.nan] * count
        elif fields.rewards is None:
            gold = _text(self._value(row, fields.gold or ""), fields.gold)
            rewards = [float(answer is not None and answer == gold) for answer in answers]
        else:
            rewards = [_number(entry, fields.rewards) for entry in columns[fields.rewards]]
        scores = [[_score(columns[f][i], f) for f in fields.scores] for i in range(count)]
        p = self._problem(row)
        self.rewards[p] += rewards
        self.answers[p] += answers
        self.texts[p] += texts
        self.scores[p] += scores

    def _value(self, row: dict[str, Any], name: str) -> Any:
        if name not in row:
            raise ValueError(f"need the field {name!r}, found {', '.join(row)}")
        return row[name]

    def _entries(self, row: dict[str, Any], name: str) -> list[Any]:
        value = self._value(row, name)
        if not self.fields.wide:
            return [value]
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, one entry per sample, found {value!r:.80}")
        return value

    def _problem(self, row: dict[str, Any]) -> int:
        """Position of the row's problem; in the wide form every row is one."""
        name, p = self.fields.problem, len(self.ids)
        key = str(self._value(row, name)) if name else str(p)
        if self.known is not None:
            if key not in self.known:
                known = next((one.id for one in self.known.values()), None)
                raise ValueError(f"{name} must be the id or the prompt of a problem of the task, "
                                 f"such as {known!r}, found {key!r:.80}")
            key = self.known[key].id
        if not self.fields.wide:
            p = self.place.setdefault(key, p)
        if p == len(self.ids):
            self.ids.append(key)
            self.prompts.append(_prompt(row, self.fields.prompt or ""))
            for column in (self.rewards, self.scores, self.answers, self.texts):
                column.append([])
        return p

    def run(self, settings: dict[str, Any], k: Sequence[int] | None, task: Task | None) -> Run:
        n = max(map(len, self.rewards))
        scores = {
            name: _pad([[sample[j] for sample in row] for row in self.scores], n)
            for j, name in enumerate(self.fields.scores)
        }
        answers: Any = [row + [None] * (n - len(row)) for row in self.answers]
        answers = answers if any(map(any, answers)) else None
        texts = [row + [None] * (n - len(row)) for row in self.texts] if self.fields.texts else None
        settings |= self.fields._asdict()
        if task is None or self.known is None or texts is None:
            problems = [Problem(name, prompt, None, {})
                        for name, prompt in zip(self.ids, self.prompts, strict=True)]
            rewards = _pad(self.rewards, n)
        else:
            settings |= {"task": task.name, **task.settings()}
            problems = [self.known[name] for name in self.ids]
            rewards = task.rewards(problems, texts)
            answers = answers or answers_to(task, problems, texts)
        return Run(
            problems=problems,
            samples=None,
            rewards=rewards,
            scores=scores,
            answers=answers,
            settings=settings,
            k=k,
            texts=texts,
        )


def _from_store(path: Path, k: Sequence[int] | None) -> Run:
    """The run that a store holds, with the rewards and scores written there."""
    with Store(path, readonly=True) as store:
        settings = store.settings
        policy = _policy(path, settings)
        if policy is not None and k is not None:
            raise no_curves(policy)
        rewards, answers = store.rewards(store.shape())
        rewarded = ~np.isnan(rewards)
        if not rewarded.any():
            raise ValueError(
                f"{path}: the store has no rewards yet; the command that draws into it adds them"
            )
        n = int(np.nonzero(rewarded)[1].max()) + 1 if policy is None else policy.n
        shape = (len(rewards), n)
        rewards, answers = store.rewards(shape)
        rows = store.problems()
        prompts = [row["prompt"] for row in rows]
        made: dict[str, Any] = {
            "problems": [
                Problem(row["id"], row["prompt"], row["answer"], row["fields"]) for row in rows
            ],
            "samples": Samples.from_list(prompts, store.samples(*shape), n, settings=settings),
            "rewards": rewards, "scores": store.scores(shape),
            "answers": answers if any(map(any, answers)) else None,
            "settings": settings, "k": k, "store": path,
        }  # fmt: skip
        if policy is None:
            return Run(**made, complete=not np.isnan(rewards).any())
        # Of prompts that a killed call was done with there may be no rewards yet.
        done = {p: i for p, i in store.done().items() if i < 0 or not np.isnan(rewards[p, i])}
        return PolicyRun(**made, complete=len(done) == len(rows), policy=policy, done=done)


def _policy(path: Path, settings: dict[str, Any]) -> Policy | None:
    """Which policy decided how much was drawn, as the settings of a store tell."""
    told = settings.get("policy")
    if told is None:
        return None
    try:
        return policies.get(**told)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: need a policy of bonaware to read what one has drawn, but "
                         f"{error}") from None


def _pad(rows: list[list[float]], n: int) -> NDArray[np.float64]:
    return np.array([row + [np.nan] * (n - len(row)) for row in rows], np.float64)


def _inner(entry: Any) -> Any:
    return entry[0] if isinstance(entry, list) and entry else entry


def _number(entry: Any, name: str) -> float:
    value = _inner(entry)
    if not isinstance(value, bool | int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be finite numbers, or true and false, found {entry!r:.80}")
    return float(value)


def _score(entry: Any, name: str) -> float:
    """A number; NaN for null."""
    return np.nan if _inner(entry) is None else _number(entry, name)


def _text(entry: Any, name: str | None) -> str | None:
    value = _inner(entry)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{name} must be text, found {entry!r:.80}")
    return str(value)
