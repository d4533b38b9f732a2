"""Training: sources of labelled samples for `Trainer.step_answers`, and what was learned.

A source makes one step of a trainer, like those of `bonaware.training`; what it takes depends on
its seed and the number of the step only. Which question is asked is the model's
`self_evaluation`, which `train` sets.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware._progress import Bar
from bonaware._question import Question
from bonaware.checkpoint import Checkpoint
from bonaware.lm import LM
from bonaware.selfeval.building import FRACTIONS, build
from bonaware.selfeval.calibration import calibration
from bonaware.selfeval.rows import Row, read_rows
from bonaware.tasks import Task
from bonaware.train import AdamW, LoRA, Trainer
from bonaware.training.folder import Record, holds_run, newest
from bonaware.training.sources import Rollouts, shuffled
from bonaware.verifiers.self_evaluation import SelfEvaluation

__all__ = ["Answers", "HeldOut", "OnPolicy", "score_rows", "train"]

PICKS, CUTS = 2, 3  # what a key with this number is for; sources.py has 0 and 1


def score_rows(lm: LM, rows: Sequence[Row], *,
               progress: bool | Callable[[Row], None] | None = None,
               **options: Any) -> NDArray[np.float64]:
    """What a model gives labelled samples.

    Parameters
    ----------
    lm : LM
    rows : sequence of N Row
    progress : bool or callable, optional
        True or False shows or hides a bar that counts rows; None shows it in terminals and
        notebooks. A callable gets every `Row`.
    **options
        `question`, `target`, `other` and `renormalise` of the verifier self_evaluation.

    Returns
    -------
    float64, shape [N]
        In [0, 1].

    Raises
    ------
    ValueError
        As for the verifier.
    """
    verifier = SelfEvaluation(lm, **options)
    scores = np.empty(len(rows))
    tell: Any = progress  # the bar counts whatever has tokens
    with Bar(len(rows), tell) as bar:
        for places in _by_prompt(rows):
            prompt = lm.encode(rows[places[0]].prompt)
            scores[places] = verifier.ask_anew(lm, prompt, [rows[i].tokens for i in places])
            row: Any
            for row in (rows[i] for i in places):
                bar(row)
    return scores


class Answers:
    """Labelled samples to learn from, in an order of their own for each epoch.

    Parameters
    ----------
    rows : path, or sequence of Row
        What `build` yields, or a file of `write_rows`.
    prompts : int
        Prompts per step, >= 1.
    per_prompt : int, optional
        At most so many rows of each, >= 1, chosen at random in every step. Default: all.
    seed : int
        >= 0; of the order.

    Raises
    ------
    ValueError
        There is no row, or a number is out of its range.
    """

    def __init__(self, rows: str | os.PathLike[str] | Sequence[Row], prompts: int = 16, *,
                 per_prompt: int | None = None, seed: int = 0) -> None:
        self.rows = read_rows(rows) if isinstance(rows, str | os.PathLike) else list(rows)
        if not self.rows:
            raise ValueError("need at least one row, got none")
        if prompts < 1 or (per_prompt is not None and per_prompt < 1) or seed < 0:
            raise ValueError("need prompts >= 1, per_prompt >= 1 and seed >= 0, got "
                             f"prompts={prompts}, per_prompt={per_prompt}, seed={seed}")
        self.prompts, self.per_prompt, self.seed = prompts, per_prompt, seed
        self._groups = _by_prompt(self.rows)

    def __call__(self, trainer: Trainer) -> Record:
        step = trainer.steps
        chosen = shuffled(len(self._groups), self.prompts, self.seed, step)
        rng = np.random.default_rng([self.seed, PICKS, step])
        picked = [self._pick(self._groups[g], rng) for g in chosen]
        return _step(trainer, [[self.rows[i] for i in places] for places in picked])

    def _pick(self, places: list[int], rng: np.random.Generator) -> list[int]:
        if self.per_prompt is None or len(places) <= self.per_prompt:
            return places
        return np.sort(rng.choice(places, self.per_prompt, replace=False)).tolist()


class OnPolicy(Rollouts):
    """Draws samples afresh for every step, labels them, and makes the step.

    For tasks whose rewards cost little: no row is seen twice.

    Parameters
    ----------
    task, n, prompts, **options
        As for `bonaware.training.Rollouts`; n >= 2 samples per problem, and no `expert`. With a
        `verifier` its scores make the labels.
    labels, eps, fractions, per_sample
        As for `build`.

    Notes
    -----
    Metrics are those of `Trainer.step_answers`, "reward" (its mean), "new_tokens" and
    "rollout_seconds".
    """

    width = None  # a loss of the trainer sees none of these samples

    def __init__(self, task: Task | str, n: int = 16, prompts: int = 16, *, labels: str = "soft",
                 eps: float = 0.0, fractions: Sequence[float] = FRACTIONS,
                 per_sample: int | None = None, **options: Any) -> None:
        if n < 2 or options.get("expert") is not None:
            raise ValueError(f"need n >= 2 samples to compare, and no expert, got n={n}, "
                             f"expert={options.get('expert')!r}")
        super().__init__(task, n, prompts, **options)
        self.build = partial(build, labels=labels, eps=eps, fractions=fractions,
                             per_sample=per_sample)

    def __call__(self, trainer: Trainer) -> Record:
        began = time.perf_counter()
        problems, samples = self.draw(trainer)
        drawn = time.perf_counter()
        rewards = self.task.rewards(problems, samples.text)
        scores = self.verifier.score(problems, samples) if self.verifier else rewards
        rng = np.random.SeedSequence([self.seed, CUTS, trainer.steps])
        rows = list(self.build(samples, scores, rng=rng))
        metrics = _step(trainer, [[rows[i] for i in places] for places in _by_prompt(rows)])
        return metrics | {"reward": float(np.nanmean(rewards)),
                          "new_tokens": int(samples.lengths.sum()),
                          "rollout_seconds": drawn - began}


class HeldOut:
    """Calibration on rows that are not learned from; for `evaluation=` of `train`.

    Parameters
    ----------
    rows : path, or sequence of Row
    bins : int
        As for `calibration`.
    """

    def __init__(self, rows: str | os.PathLike[str] | Sequence[Row], bins: int = 10) -> None:
        self.rows = read_rows(rows) if isinstance(rows, str | os.PathLike) else list(rows)
        self.bins = bins

    def __call__(self, lm: LM) -> dict[str, float | None]:
        """"ece", "brier" and "auroc" of all rows, and "auroc whole" and its like by part."""
        scores = score_rows(lm, self.rows, progress=False)
        found = calibration(scores, [row.label for row in self.rows], self.bins,
                            fractions=[row.fraction for row in self.rows])
        parts = {f"auroc {part.name}": part.auroc for part in found.parts}
        return {"ece": found.ece, "brier": found.brier, "auroc": found.auroc, **parts}


def train(lm: LM, source: str | os.PathLike[str] | Sequence[Row] | Callable[[Trainer], Record],
          steps: int, *, question: Any = None, target: int | str | None = None,
          other: int | str | None = None, optimizer: AdamW | None = None,
          lora: LoRA | None = None, kl: float = 0.0, prompts: int = 16,
          per_prompt: int | None = None, seed: int = 0,
          out: str | os.PathLike[str] | None = None, resume: bool = False,
          **options: Any) -> Trainer:
    """Teach a model to say whether starting over would do better.

    Parameters
    ----------
    lm : LM
        Trained in place.
    source : path, sequence of Row, or callable
        Rows, as for `Answers`; or a source, such as `OnPolicy("countdown")`.
    steps : int
        Of the whole run.
    question, target, other : optional
        What is asked and which tokens answer, as for `Question.of`; kept with the model.
    optimizer : AdamW, optional
    lora : LoRA, optional
        Train low-rank adapters only.
    kl : float
        Strength of the divergence from the model as it was, mean per token of the samples, nats:
        it keeps what the model can say while it learns to judge.
    prompts, per_prompt, seed
        Of `Answers`, where source is rows.
    out : path, optional
        Folder of the run, as for `Trainer.fit`.
    resume : bool
        Go on with the run in `out`, if there is one.
    **options
        More of `Trainer.fit`: `save_every`, `keep`, `evaluation` (such as `HeldOut`),
        `eval_every`, `progress`.

    Returns
    -------
    Trainer
        After Ctrl-C: with fewer steps; what is done is kept.

    Raises
    ------
    FileExistsError
        `out` holds a run, and resume is False.
    ValueError
        The model cannot be asked; an option is out of its range, or of rows where source is
        callable; or the run in `out` learns to answer another question.

    Examples
    --------
    >>> import bonaware as bon
    >>> config = {
    ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> lm = bon.LM.from_config(config, rng=0, threads=1)
    >>> samples = lm.generate([[1, 2], [3]], n=8, max_new_tokens=6, rng=0)
    >>> even = [[1 - row[0] % 2 for row in rows] for rows in samples.tokens]
    >>> rows = list(bon.selfeval.build(samples, even))
    >>> def measure():
    ...     scores = bon.selfeval.score_rows(lm, rows, question=[7], target=8, other=9)
    ...     return bon.selfeval.calibration(scores, [row.label for row in rows])
    >>> before = measure()
    >>> trainer = bon.selfeval.train(lm, rows, 40, question=[7], target=8, other=9,
    ...                              optimizer=bon.AdamW(lr=0.02), progress=False)
    >>> after = measure()
    >>> after.auroc > before.auroc, after.ece < 0.5 * before.ece, lm.self_evaluation["target"]
    (True, True, 8)
    """
    asked = Question.of(lm, question, target, other).settings()
    if not callable(source):
        source = Answers(source, prompts, per_prompt=per_prompt, seed=seed)
    elif (prompts, per_prompt, seed) != (16, None, 0):
        raise ValueError("prompts, per_prompt and seed are for rows, but the source is "
                         f"{source!r}, which has its own: leave them out")
    trainer = Trainer(lm, None, optimizer, lora, kl)
    if resume and out is not None and holds_run(out):
        _check_asked(out, asked)
        trainer.resume(out)
    before, lm.self_evaluation = lm.self_evaluation, asked
    try:
        trainer.fit(source, steps, out=out, **options)
    finally:
        if trainer.steps == 0:  # it has learned nothing
            lm.self_evaluation = before
    return trainer


def _check_asked(out: str | os.PathLike[str], asked: dict[str, Any]) -> None:
    """Refuse to go on with a run that learns to answer something else."""
    folder = newest(Path(out))
    found = asked if folder is None else Checkpoint(folder).self_evaluation
    if found != asked:
        raise ValueError(f"{folder} was trained to be asked {found}, but here it is {asked}: go on "
                         "with the question, target and other that the run began with")


def _step(trainer: Trainer, groups: Sequence[Sequence[Row]]) -> Record:
    """One step on rows, those of a prompt together."""
    return trainer.step_answers([group[0].prompt for group in groups],
                                [[row.tokens for row in group] for group in groups],
                                [[row.label for row in group] for group in groups])


def _by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows of each prompt, in order of appearance."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.problem, str(row.prompt)), []).append(i)
    return list(groups.values())
