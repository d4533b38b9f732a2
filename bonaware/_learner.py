"""A model's learner: gradients of texts, steps of AdamW, and its state in a file.

Turns prompts, completions and weights into the batches of the C engine (csrc/learner.h), and the
engine's tensors into named ones. Knows no losses and no rewards: those are weights here.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonaware import _batch
from bonaware._arguments import place
from bonaware._checks import count, number
from bonaware._export import Tensor, write_safetensors
from bonaware.config import engine
from bonaware.models import family_of
from bonaware.models._fields import show

if TYPE_CHECKING:
    from bonaware.lm import LM
    from bonaware.lora import Adapter

__all__ = ["AdamW", "Learner", "attach", "leave_adapters"]

Ids = NDArray[np.int32]
PerToken = list[list[NDArray[np.float32]]]
Schedule = Literal["constant", "linear", "cosine"]
MOMENTS = ("moment_1", "moment_2")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW with warm-up, a schedule and clipping.

    Parameters
    ----------
    lr : float
        Learning rate at its highest, >= 0.
    betas : two floats in [0, 1)
    eps : float > 0
        1.2e-38 at least: float32 holds it.
    weight_decay : float >= 0
        Of matrices and embeddings; norms and biases have none.
    warmup : int >= 0
        Steps during which the learning rate rises from lr / warmup to lr.
    schedule : {"constant", "linear", "cosine"}
        What it does behind the warm-up: stay, or fall step by step, to 0 behind the last one.
    max_norm : float > 0
        Longer gradients are scaled to this length; infinity leaves them alone.

    Raises
    ------
    TypeError, ValueError
        An option is of another kind, or out of its range as float32.

    Notes
    -----
    **Source:** Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, in the order of operations of
    `torch.optim.AdamW`.

    Examples
    --------
    >>> optimizer = AdamW(lr=1.0, warmup=2, schedule="linear")
    >>> [optimizer.lr_at(step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Schedule = "constant"
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= number("lr", self.lr) <= LARGEST:
            raise ValueError(f"need a finite lr >= 0, got {self.lr}")
        if not isinstance(self.betas, Sequence | np.ndarray):
            raise TypeError(f"betas must be two numbers, got {self.betas!r}")
        if len(self.betas) != 2 or not all(0 <= number("beta", beta) < 1 for beta in self.betas):
            raise ValueError(f"need two betas in [0, 1), got {self.betas}")
        if not float(np.finfo(np.float32).tiny) <= number("eps", self.eps) <= LARGEST:
            raise ValueError(f"need a finite eps > 0, 1.2e-38 at least, got {self.eps}")
        if not 0 <= number("weight_decay", self.weight_decay) <= LARGEST:
            raise ValueError(f"need a finite weight_decay >= 0, got {self.weight_decay}")
        count("warmup", self.warmup, least=0)
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError("schedule must be 'constant', 'linear' or 'cosine', got "
                             f"{self.schedule!r}")
        if not number("max_norm", self.max_norm) > 0:
            raise ValueError(f"need max_norm > 0, got {self.max_norm}")

    def lr_at(self, step: int, steps: int | None = None) -> float:
        """Learning rate of step 0 <= step < steps; without `steps` it does not fall."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant" or steps is None or steps <= self.warmup:
            return self.lr
        left = max(0.0, (steps - step) / (steps - self.warmup))
        return self.lr * (left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


class Learner:
    """Trains the weights of a model in place.

    Parameters
    ----------
    lm : LM
        Not to be used by other threads while a step runs.
    memory : int, optional
        Bytes of scratch for a backward pass; default: the model's `memory`.
    start : Adapter, optional
        Train low-rank adapters only, and a score head, from here on. The model computes with
        them from now on; its own weights stay as they are. See `bonaware.lora.fresh`.
    """

    def __init__(self, lm: "LM", memory: int | None = None,
                 start: "Adapter | None" = None) -> None:
        self.lm = lm
        self._start = start
        if lm.dtype == "int8":
            raise ValueError(f"{lm.name} is held in int8, in which nothing can learn: load it in "
                             "float32 or bfloat16")
        if start is not None:
            attach(lm, start)
        try:
            self._engine = engine().Learner(
                lm._model, lm.memory if memory is None else memory, start is not None)
        except BaseException:
            lm._model.remove_adapters()
            raise
        if start is not None:
            lm._merged = self.weight

    # -- gradients -----------------------------------------------------------

    def accumulate(self, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
                   weights: Sequence[Sequence[float]] | NDArray[np.floating],
                   temperature: float = 1.0) -> PerToken:
        """Add the gradient of sum w[p][i] log pi(completions[p][i] | prompts[p]).

        Parameters
        ----------
        prompts : P arrays of ids
        completions : P sequences of arrays of at least one id
        weights : P sequences of one number per completion
        temperature : float > 0

        Returns
        -------
        list [P] of lists of float32 arrays [length]
            Log-probabilities of the completions' tokens, in nats, at `temperature`.
        """
        return self._accumulate(prompts, completions, weights, temperature)[0]

    def accumulate_kl(self, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
                      weights: Sequence[Sequence[float]] | NDArray[np.floating],
                      kl_weights: Sequence[Sequence[float]] | NDArray[np.floating],
                      temperature: float = 1.0) -> tuple[PerToken, PerToken]:
        """As `accumulate`, and the gradient of sum kl_weights[p][i] sum_t KL(pi || reference).

        The divergence is exact at every token of a completion: a sum over the vocabulary, not an
        estimate from the token that was drawn. Needs `set_reference`.

        Returns
        -------
        logp, kl : lists [P] of lists of float32 arrays [length]
        """
        return self._accumulate(prompts, completions, weights, temperature, kl_weights)

    def set_reference(self, lm: "LM") -> None:
        """Say which model `accumulate_kl` compares with: one of the same vocabulary."""
        self._engine.set_reference(lm._model)

    def _accumulate(self, prompts, completions, weights, temperature,
                    kl_weights=None) -> tuple[PerToken, PerToken]:
        batch = _batch.predictions(prompts, completions,
                                   _per_token("weights", weights, completions))
        divergence = None
        if kl_weights is not None:
            flat = np.concatenate([
                np.empty(0), *_per_token("kl_weights", kl_weights, completions)])
            divergence = np.ascontiguousarray(flat[batch.source], np.float32)
        values = self._backward(batch, temperature, None, divergence)
        lengths = [len(text) for texts in completions for text in texts]
        return tuple(
            [] if value is None else _by_prompt(_cut(batch.in_order(value), lengths), completions)
            for value in values
        )

    def accumulate_scores(self, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
                          weights: Sequence[Sequence[float]] | NDArray[np.floating],
                          probabilities: Sequence[Sequence[float]] | None = None,
                          label: int = 0) -> list[NDArray[np.float32]]:
        """Add the gradient of sum w[p][i] score(completions[p][i]) of a model with a score head.

        With `probabilities` t in [0, 1], of - sum w[p][i] CE(t[p][i], sigmoid(score)) instead,
        where CE is the cross-entropy in nats: weights below 0 then lower it.

        Returns
        -------
        list [P] of float32 arrays
            The scores.
        """
        batch = _batch.scores(prompts, completions, _one_each("weights", weights, completions),
                              label)
        targets = None
        if probabilities is not None:
            given = np.concatenate([
                np.empty(0), *_one_each("probabilities", probabilities, completions)])
            targets = np.ascontiguousarray(given[batch.source], np.float32)
        flat = batch.in_order(self._backward(batch, 1.0, targets)[0])
        return _cut(flat, [len(texts) for texts in completions])

    def accumulate_answers(self, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
                           named: Sequence[int], weights: Sequence[NDArray[np.floating]],
                           own: Sequence[Sequence[int]] | None = None, kl_weight: float = 0.0,
                           ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Add the gradient of sum w[p][i, a] log p(named[a] | prompts[p] + completions[p][i]).

        With `own`, of + kl_weight * sum KL(pi || reference) too, over the first own[p][i] tokens of
        each completion, exact at every token. Needs `set_reference`.

        Parameters
        ----------
        prompts : P arrays of ids
        completions : P sequences of arrays of at least one id
        named : A ids
        weights : P arrays [count, A]
        own : P sequences of one number per completion
        kl_weight : float

        Returns
        -------
        logp : float32 [completions, A]
            Of the named tokens, nats.
        kl : float32 [own tokens]
            One completion behind the other; of none without `own`.
        """
        named_ids = np.asarray(named, np.int32)
        shapes = [(len(texts), len(named_ids)) for texts in completions]
        weights = [np.asarray(row, np.float32) for row in weights]
        if [row.shape for row in weights] != shapes:
            raise ValueError(f"weights must have the shapes [completions, named], {shapes} for "
                             f"these prompts, got {[row.shape for row in weights]}")
        counts = [np.zeros(len(texts), np.intp) for texts in completions] if own is None else [
            np.asarray(row, np.intp) for row in own]
        batch = _batch.answers(prompts, completions, named_ids, weights, counts)
        asked = sum(rows for rows, _ in shapes) * len(named_ids)
        divergence = None
        if own is not None:
            divergence = np.where(batch.source < asked, 0.0, kl_weight).astype(np.float32)
        logp, kl = self._backward(batch, 1.0, None, divergence)
        found = np.empty(0, np.float32) if kl is None else batch.in_order(kl)[asked:]
        return batch.in_order(logp)[:asked].reshape(-1, len(named_ids)), found

    def _backward(self, batch: _batch.Batch, temperature: float,
                  probabilities: NDArray[np.float32] | None = None,
                  kl_weights: NDArray[np.float32] | None = None,
                  ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Add the gradient of a batch; values, and with kl_weights divergences, of its targets."""
        return self._engine.accumulate(*batch.arrays(), temperature, probabilities, kl_weights)

    def zero(self) -> None:
        """Forget the gradient."""
        self._engine.zero()

    def norm(self) -> float:
        """Euclidean norm of the gradient."""
        return self._engine.norm()

    # -- steps ---------------------------------------------------------------

    def step(self, optimizer: AdamW, lr: float) -> dict[str, float]:
        """Clip, take one step at this learning rate, and forget the gradient.

        Returns
        -------
        dict
            "grad_norm" before clipping, and "lr".

        Raises
        ------
        ValueError
            The gradient is not finite; the weights are as they were.
        """
        norm = self.norm()
        if not math.isfinite(norm):
            self.zero()
            raise ValueError(f"the gradient's norm is {norm}: the step was not made; a smaller "
                             "learning rate or smaller weights may help")
        scale = min(1.0, optimizer.max_norm / norm) if norm > 0 else 1.0
        self._engine.step(lr, *optimizer.betas, optimizer.eps, optimizer.weight_decay, scale)
        self.lm.weights_changed()
        return {"grad_norm": norm, "lr": lr}

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self._engine.steps

    # -- tensors -------------------------------------------------------------

    def weight(self, slot: str, layer: int) -> NDArray[np.float32]:
        """A weight in float32, adapters merged: what `LM.save(weights=...)` takes."""
        if self._start is None or slot == "score":
            return self._engine.get("weight", slot, layer)
        weight: NDArray[np.float32] = self.lm._model.get(slot, layer)
        if (slot, layer) in self._start.pairs:
            one = replace(self._start, pairs={(slot, layer): self._pair(slot, layer)})
            weight = weight + one.change(slot, layer)
        return weight

    def _pair(self, slot: str, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A and B of one adapter as they are now."""
        return (self._engine.get("weight", f"{slot}_a", layer),
                self._engine.get("weight", f"{slot}_b", layer))

    def adapter(self) -> "Adapter":
        """The adapters as they are now, for `bonaware.lora.write`."""
        if self._start is None:
            raise ValueError("this learner trains all weights: there are no adapters")
        pairs = {key: self._pair(*key) for key in self._start.pairs}
        trained = {("score", 0): self.weight("score", 0)} if self.lm.labels else {}
        return replace(self._start, pairs=pairs, full={**self._start.full, **trained})

    def gradients(self) -> dict[str, NDArray[np.float32]]:
        """The gradient by the names and in the shapes of torch's `named_parameters()`."""
        return dict(self._named("gradient"))

    def _named(self, kind: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for name, _, read in self._tensors(kind):
            yield name, read()

    def _tensors(self, kind: str) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Any]]]:
        """Name, shape and reader of every tensor that is trained."""
        for slot, layer, name, shape in self._trained():

            def read(slot: str = slot, layer: int = layer,
                     shape: tuple[int, ...] = shape) -> NDArray[np.float32]:
                return self._engine.get(kind, slot, layer).reshape(shape)

            yield name, shape, read

    def _trained(self) -> Iterator[tuple[str, int, str, tuple[int, ...]]]:
        """Slot, layer, name and shape of every tensor that is trained."""
        arch, names = self.lm.arch, family_of(self.lm.config).NAMES
        pairs = {} if self._start is None else self._start.pairs
        for slot, index, words in arch.slots():
            layer, name = index or 0, names[slot].format(i=index)
            if self._start is None or slot == "score":
                yield slot, layer, name, arch.shape(words)
            elif (slot, layer) in pairs:
                for half, values in zip("ab", pairs[slot, layer], strict=True):
                    module = name.removesuffix(".weight")
                    yield (f"{slot}_{half}", layer, f"{module}.lora_{half.upper()}.weight",
                           values.shape)

    def save(self, path: Path) -> None:
        """Write float32 masters and moments to a safetensors file.

        Raises
        ------
        ValueError
            One of them is not finite.
        """
        tensors = [
            Tensor(f"{kind}.{name}", "F32", shape, _finite(f"{path}: {kind}.{name}", read))
            for kind in ("weight", *MOMENTS)
            for name, shape, read in self._tensors(kind)
        ]
        write_safetensors(path, tensors, {"steps": str(self.steps)})

    def load(self, path: Path) -> None:
        """Put what `save` wrote in place: the next step is bit for bit the one it would have been.

        Raises
        ------
        ValueError
            The file is broken or belongs to another model; nothing is changed.
        """
        from safetensors import SafetensorError, safe_open

        places = {f"{kind}.{stem}": (kind, slot, layer, shape)
                  for slot, layer, stem, shape in self._trained()
                  for kind in ("weight", *MOMENTS)}
        try:
            with safe_open(path, "numpy") as file:
                shapes = {name: shape for name, (*_, shape) in places.items()}
                steps = _checked_state(path, file, shapes)
                for name, (kind, slot, layer, _) in places.items():
                    self._engine.set(kind, slot, layer, np.ascontiguousarray(file.get_tensor(name)))
        except SafetensorError as error:
            raise ValueError(f"{path}: must be a whole safetensors file ({error})") from None
        self._engine.steps = steps
        self.zero()
        self.lm.weights_changed()


def _checked_state(path: Path, file: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The steps that a state file tells of, once all its tensors are known to be right."""
    names = set(file.keys())
    if others := names - shapes.keys():
        raise ValueError(f"{path}: must hold what is trained and nothing else, found {min(others)}")
    for name, shape in shapes.items():
        part = file.get_slice(name) if name in names else None
        needed = f"F32 of shape {shape}"
        found = None if part is None else f"{part.get_dtype()} of shape {tuple(part.get_shape())}"
        if found != needed:
            raise ValueError(f"{path}: must hold {name} as {needed}, found {found}")
        _finite(f"{path}: {name}", functools.partial(file.get_tensor, name))()
    steps = (file.metadata() or {}).get("steps", "")
    if not re.fullmatch(r"[0-9]{1,18}", steps):
        raise ValueError(f"{path}: must say how many steps were made, found {show(steps)}")
    return int(steps)


def _finite(name: str, read: Callable[[], NDArray[np.float32]]) -> Callable[[], Any]:
    """The same reader, which refuses what is NaN or infinite."""

    def checked() -> NDArray[np.float32]:
        values = read()
        bad = ~np.isfinite(values)
        if bad.any():
            raise ValueError(f"{name} must be finite, but {place(bad)} is {values[bad][0]}")
        return values

    return checked


def attach(lm: "LM", adapter: "Adapter") -> None:
    """The model computes with these adapters from now on, in place of any it had."""
    slots = dict.fromkeys(slot for slot, _ in adapter.pairs)
    for slot in slots:
        missing = [i for i in range(lm.arch.layers) if (slot, i) not in adapter.pairs]
        if missing:
            raise ValueError(f"an adapter must be in every layer or in none to be trained, but "
                             f"{slot} has none in layer {missing[0]}")
    lm._model.remove_adapters()
    for slot in slots:
        lm._model.add_adapter(slot, adapter.rank, adapter.scaling)
    for (slot, layer), (a, b) in adapter.pairs.items():
        lm._model.set(f"{slot}_a", layer, np.ascontiguousarray(a, np.float32))
        lm._model.set(f"{slot}_b", layer, np.ascontiguousarray(b, np.float32))
    for (slot, layer), values in adapter.full.items():
        lm._model.set(slot, layer, np.ascontiguousarray(values, np.float32))
    lm.weights_changed()


def leave_adapters(lm: "LM") -> None:
    """Removes adapters that a learner put into the model, if they have learnt nothing yet.

    Raises
    ------
    ValueError
        They have: they would be lost.
    """
    owner: Learner | None = getattr(lm._merged, "__self__", None)
    if owner is None:
        return
    if any(b.any() for _, b in owner.adapter().pairs.values()):
        raise ValueError(f"{lm.name} has low-rank adapters that another trainer taught: save it, "
                         "which merges them, and train what LM.load gives")
    lm._model.remove_adapters()
    lm._merged = None
    lm.weights_changed()


def _one_each(name: str, numbers: Any,
              completions: Sequence[Sequence[Ids]]) -> list[NDArray[np.float32]]:
    """For each prompt one number per completion."""
    with np.errstate(over="ignore"):  # the engine refuses what is infinite as float32
        rows = [np.asarray(row, np.float32) for row in numbers]
    if [row.shape for row in rows] != [(len(texts),) for texts in completions]:
        raise ValueError(f"{name} must have one number per completion, "
                         f"{[len(texts) for texts in completions]} for these prompts, got the "
                         f"shapes {[row.shape for row in rows]}")
    return rows


def _per_token(name: str, numbers: Any,
               completions: Sequence[Sequence[Ids]]) -> list[NDArray[np.float32]]:
    """The same, each repeated for every token of its completion."""
    return [np.repeat(row, [len(text) for text in texts])
            for row, texts in zip(_one_each(name, numbers, completions), completions, strict=True)]


def _by_prompt(pieces: list[NDArray[np.float32]], completions: Sequence[Sequence[Ids]]) -> PerToken:
    """One piece per completion, in a list per prompt."""
    rest = iter(pieces)
    return [[next(rest) for _ in texts] for texts in completions]


def _cut(flat: NDArray[np.float32], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
    """The array in pieces of these lengths."""
    return np.split(flat, np.cumsum(lengths[:-1])) if len(lengths) else []
