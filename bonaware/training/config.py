"""TrainConfig: everything a run depends on, in one readable file.

A dataclass whose fields are the keys of a TOML file and the flags of `bonaware train`. Field
names are the words of Trainer, Rollouts, AdamW, LoRA and Evaluation, which check their values;
this file checks names and kinds, and puts the parts together.
"""

import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bonaware import _lookup, tasks
from bonaware._checks import count
from bonaware.lm import LM
from bonaware.train import TARGETS, AdamW, LoRA, Trainer
from bonaware.training.evaluation import Evaluation
from bonaware.training.folder import CONFIG, Record, holds_run
from bonaware.training.sources import Labels, Rollouts, Texts, judge, load_problems
from bonaware.verifiers._loading import with_engine

__all__ = ["CONFIG", "TrainConfig", "kind_of", "train"]

WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false",
         dict: "a table"}

OF_A_LOSS = ("loss", "loss_options", "k", "kl", "reference", "verifier", "expert")


def _of(group: str, text: str, default: Any = MISSING) -> Any:
    """A field with its group and its help."""
    return field(default=default, metadata={"group": group, "help": text})


def _table(group: str, text: str) -> Any:
    return field(default_factory=dict, metadata={"group": group, "help": text})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of training; `bonaware train --help` lists the fields with their meaning.

    `model`, `out` and one of `task`, `texts` and `labels` are needed. Paths are relative to the
    current folder.

    Raises
    ------
    ValueError
        Fields contradict one another.

    Examples
    --------
    >>> config = TrainConfig.of({"model": "m", "out": "runs/x", "task": "countdown", "k": [1, 16]})
    >>> config.k, config.lr
    ((1, 16), 1e-05)
    >>> TrainConfig.of({"model": "m", "out": "runs/x", "stepz": 3})
    Traceback (most recent call last):
    ValueError: unknown: stepz; known are model, tokenizer, dtype, threads, memory, task, ...
    """

    model: str = _of("model", "a Hugging Face folder, an embedded model, or a config.json to begin "
                     "with random weights")  # fmt: skip
    tokenizer: str | None = _of("model", "folder of the tokenizer, for a config.json", None)
    dtype: str = _of("model", "auto, float32 or bfloat16", "auto")
    threads: int | None = _of("model", "default: all this process may use", None)
    memory: int | None = _of("model", "bytes of cache and scratch", None)

    task: str | None = _of("data", "draw samples for this task", None)
    task_options: dict[str, Any] = _table("data", "of the task")  # noqa: RUF009
    split: str = _of("data", "of the task", "train")
    limit: int | None = _of("data", "only the first problems", None)
    expert: str | None = _of("data", "field of the problems with a demonstration", None)
    texts: str | None = _of("data", "imitate this JSONL file: prompt, completion", None)
    labels: str | None = _of("data", "train a score head on this JSONL file: prompt, completion, "
                             "label", None)  # fmt: skip

    loss: str | None = _of("loss", "name; default: bon; sft for texts and for n = 0", None)
    loss_options: dict[str, Any] = _table("loss", "of the loss")  # noqa: RUF009
    k: tuple[int, ...] = _of("loss", "of the loss; two: at the first and at the last step", ())
    kl: float = _of("loss", "strength of the KL term", 0.0)
    reference: str | None = _of("loss", "folder of the reference; default: the model at its start",
                                None)  # fmt: skip
    verifier: str | None = _of("loss", "its scores are what the loss ranks by; default: rewards",
                               None)  # fmt: skip
    verifier_options: dict[str, Any] = _table("loss", "of the verifier")  # noqa: RUF009

    prompts: int = _of("batch", "prompts per step", 32)
    n: int = _of("batch", "samples per prompt; 0: demonstrations alone", 32)
    temperature: float = _of("batch", "of the samples", 1.0)
    max_new_tokens: int | None = _of("batch", "default: the task's", None)

    lr: float = _of("optimizer", "learning rate at its highest", 1e-5)
    betas: tuple[float, ...] = _of("optimizer", "of AdamW", (0.9, 0.999))
    eps: float = _of("optimizer", "of AdamW", 1e-8)
    weight_decay: float = _of("optimizer", "of matrices", 0.0)
    warmup: int = _of("optimizer", "steps during which the learning rate rises", 0)
    schedule: str = _of("optimizer", "constant, linear or cosine", "constant")
    max_norm: float = _of("optimizer", "longer gradients are scaled down to this", 1.0)
    lora_rank: int = _of("optimizer", "of low-rank adapters; 0: all weights are trained", 0)
    lora_alpha: float = _of("optimizer", "scale of the adapters, over their rank", 16.0)
    lora_targets: tuple[str, ...] = _of("optimizer", "matrices that get one", TARGETS)

    out: str = _of("run", "folder of the run")
    steps: int = _of("run", "of the whole run", 100)
    seed: int = _of("run", "of the samples, their order, and random weights", 0)
    save_every: int = _of("run", "a checkpoint after so many steps; 0: at the end only", 0)
    keep: int = _of("run", "how many of the newest checkpoints stay", 2)
    eval_every: int = _of("run", "measure on held-out problems after so many steps; 0: never", 0)
    eval_split: str = _of("run", "of the task", "validation")
    eval_limit: int = _of("run", "how many problems, at most", 200)
    eval_n: int = _of("run", "samples per problem", 32)

    def __post_init__(self) -> None:
        if self.texts and self.labels:
            raise ValueError("give texts or labels, not both")
        if not (self.task or self.texts or self.labels):
            raise ValueError("need something to learn from: task, texts or labels; tasks are "
                             f"{', '.join(tasks.available())}")
        if self.eval_every and (self.labels or not self.task):
            raise ValueError("eval_every draws samples: it needs a task, and a model without a "
                             "score head")
        if self.verifier_options and not self.verifier:
            raise ValueError("verifier_options are of a verifier, but none is given")
        if self.tokenizer and not self.model.endswith(".json"):
            raise ValueError("a tokenizer is for the config.json of a new model, but "
                             f"{self.model} is none: it has its own")
        if self.labels and (unused := [name for name in OF_A_LOSS if getattr(self, name)]):
            raise ValueError(f"labels are learned by cross-entropy: need no {unused[0]}")
        if len(self.k) > 2:
            raise ValueError(f"need one k, or two for annealing, got {list(self.k)}")

    # -- in and out ----------------------------------------------------------

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """From names and values as a TOML file holds them.

        Raises
        ------
        ValueError
            A name is unknown, a value is of the wrong kind, or something is missing.
        """
        known = {one.name: one for one in fields(cls)}
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        missing = [name for name, one in known.items() if name not in values and _is_needed(one)]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        return cls(**{name: _converted(name, value) for name, value in values.items()})

    @classmethod
    def read(cls, path: str | os.PathLike[str], **changes: Any) -> "TrainConfig":
        """From a TOML file, with some values changed.

        Raises
        ------
        OSError
            The file can not be read.
        ValueError
            It is not TOML, or as for `of`; the message names the file.
        """
        path = Path(path)
        try:
            return cls.of(tomllib.loads(path.read_text(encoding="utf-8")) | changes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_toml(self) -> str:
        """What `read` reads; None has no word in TOML and is left out."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        plain = [f"{name} = {_toml(value)}" for name, value in given.items()]
        return "\n".join(plain) + "\n"

    # -- the parts -----------------------------------------------------------

    def trainer(self) -> Trainer:
        """The model with its loss and optimiser."""
        lm = self._load(self.model)
        reference = None
        if self.reference is not None:
            reference = LM.load(self.reference, threads=self.threads, memory=self.memory)
        return Trainer(lm, self._loss(), self._optimizer(), self._lora(), self.kl, reference)

    def _load(self, path: str) -> LM:
        if not path.endswith(".json"):
            return LM.load(path, self.dtype, self.threads, self.memory)
        dtype = "float32" if self.dtype == "auto" else self.dtype
        return LM.from_config(path, self.seed, tokenizer=self.tokenizer, dtype=dtype,
                              threads=self.threads, memory=self.memory)

    def _loss(self) -> Any:
        if self.labels:
            return None
        name = self.loss or ("sft" if self.texts or not self.n else "bon")
        options = self.loss_options | ({"k": self.k[0]} if self.k else {})
        return _lookup.make("bonaware.losses", name, "LOSS", options)

    def _optimizer(self) -> AdamW:
        schedule: Any = self.schedule
        betas: Any = self.betas
        return AdamW(lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay,
                     warmup=self.warmup, schedule=schedule, max_norm=self.max_norm)

    def _lora(self) -> LoRA | None:
        if not self.lora_rank:
            return None
        return LoRA(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets)

    def source(self) -> Rollouts | Texts | Labels:
        """What the run learns from."""
        if self.labels:
            return Labels(self.labels, self.prompts, seed=self.seed)
        if self.texts:
            return Texts(self.texts, self.prompts, seed=self.seed)
        task = self._task()
        if self.expert and not self.n:
            return Texts.of_task(task, self.expert, self.prompts, split=self.split,
                                 limit=self.limit, seed=self.seed)
        return Rollouts(task, self.n, self.prompts, temperature=self.temperature,
                        verifier=self._verifier(task), split=self.split, limit=self.limit,
                        expert=self.expert, max_new_tokens=self.max_new_tokens, seed=self.seed)

    def evaluation(self) -> Evaluation | None:
        """What `eval_every` measures: also best-of-k by the verifier, if there is one."""
        if not self.eval_every:
            return None
        task = self._task()
        count("eval_n", self.eval_n)
        load_problems(task, self.eval_split, self.eval_limit)  # which may not be there
        verifier = self._verifier(task) if self.verifier_options else self.verifier
        return Evaluation(task=task, n=self.eval_n, verifiers=(verifier,) if verifier else (),
                          temperature=self.temperature, max_new_tokens=self.max_new_tokens,
                          split=self.eval_split, limit=self.eval_limit, seed=self.seed)

    def _task(self) -> tasks.Task:
        assert self.task is not None  # __post_init__
        return tasks.get(self.task, **self.task_options)

    def _verifier(self, task: tasks.Task) -> Any:
        if self.verifier is None:
            return None
        options = with_engine(self.verifier, self.verifier_options, threads=self.threads,
                              memory=self.memory)
        return judge(self.verifier, task, options)


def train(config: TrainConfig, *, resume: bool = False,
          progress: bool | Callable[[Record], None] | None = None) -> Trainer:
    """Run what a configuration says.

    Parameters
    ----------
    config : TrainConfig
        It is written into the folder of the run as config.toml.
    resume : bool
        Go on with the run in this folder.
    progress : bool or callable, optional
        As for `Trainer.fit`.

    Returns
    -------
    Trainer
        After Ctrl-C: one that may not be `complete`.

    Raises
    ------
    FileExistsError
        The folder holds a run, and resume is False.
    FileNotFoundError
        It holds none, and resume is True.
    RuntimeError
        Another process trains in it; nothing there is changed.
    """
    out = Path(config.out)
    if holds_run(out) and not resume:
        raise FileExistsError(f"{out} holds a run: go on with bonaware train --resume {out}, or "
                              "write to another folder")
    source, evaluation = config.source(), config.evaluation()  # missing data are said first
    trainer = config.trainer()
    if resume:
        trainer.resume(out)
    k: Any = config.k if len(config.k) == 2 else None
    trainer.fit(source, config.steps, k=k, out=out, save_every=config.save_every,
                keep=config.keep, evaluation=evaluation, eval_every=config.eval_every,
                progress=progress, config=config.to_toml())
    return trainer


# -- kinds ---------------------------------------------------------------------


def kind_of(name: str) -> tuple[type, type | None, bool]:
    """Kind of a field, that of its elements where it is a tuple, and whether None is one.

    Examples
    --------
    >>> kind_of("threads"), kind_of("betas")
    ((<class 'int'>, None, True), (<class 'tuple'>, <class 'float'>, False))
    """
    hint = typing.get_type_hints(TrainConfig)[name]
    optional = isinstance(hint, types.UnionType)
    hint = typing.get_args(hint)[0] if optional else hint
    kind = typing.get_origin(hint) or hint
    return kind, typing.get_args(hint)[0] if kind is tuple else None, optional


def _is_needed(one: Field) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _converted(name: str, value: Any) -> Any:
    """The value as a field of this name wants it, or an error."""
    kind, element, optional = kind_of(name)
    if element is None:
        return None if optional and value is None else _one(name, value, kind)
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_one(name, each, element) for each in values)


def _one(name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {WORDS[kind]}, got {value!r}")
    return value


def _toml(value: Any) -> str:
    """A value as TOML writes it; JSON's texts are TOML's but for the character DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        items = (f"{_toml(str(name))} = {_toml(each)}" for name, each in value.items()
                 if each is not None)
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)
