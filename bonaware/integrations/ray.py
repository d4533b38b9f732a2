"""ray: a model whose work is done by the workers of a Ray cluster - drawing, reading, learning.

    with Cluster(bon.LM.load("models/Qwen3-0.6B"), workers=4) as cluster:
        run = bon.evaluate(cluster, "gsm8k", n=32, store="run.sqlite")

A `Cluster` is an LM. This process asks, keeps what comes and makes the steps of training; workers
hold copies of the weights and do what takes long, in turns: a run of prompts, a few samples of
one prompt, a share of a gradient. Whoever is free gets the next turn. What a turn has answered is
taken; the rest of a lost worker's turn is done again by another. Sample i of a prompt is a
function of (seed, prompt, i), so it does not matter who draws it. docs/cluster.md has an example.
"""

import dataclasses
import functools
import math
import os
import pickle
import tempfile
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bonaware
from bonaware._batch import Batch
from bonaware._checks import count
from bonaware._copy import Copy
from bonaware._drawing import Drawing
from bonaware._learner import Learner, attach
from bonaware._scheduling import Scheduled
from bonaware.config import engine
from bonaware.lm import LM
from bonaware.lora import Adapter
from bonaware.samples import Sample, Stats

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ImportError("ray is not installed: pip install 'bonaware[ray]'; the import said: "
                      f"{error}") from error

__all__ = ["Cluster"]

Key = tuple[int, ...]  # of a unit of work: (prompt, sample), (prompt,) or (share,)
Sent = tuple[str, list[Any]]  # an object in the store: what it is called, and its reference
# Seconds after which a worker hands over what it has: a store is to lag by less than a second.
SLICE = 0.5
# A worker is given one part in so many of its share of what is left: large turns first, small
# ones last (guided self-scheduling: Polychronopoulos and Kuck 1987, IEEE Trans. Comput. C-36).
TURNS = 2
# Workers that may be lost at the same work, one behind the other, with nothing done in between.
TRIES = 3
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "stop_strings", "seed")


class Cluster(LM):
    """A copy of a model whose work is done by workers of a Ray cluster.

    Takes the place of an LM: `generate`, `logp` and `scores`, `bonaware.evaluate` with and
    without a policy, `Trainer`. To be closed, or used as a context.

    Parameters
    ----------
    lm : LM
        In float32 or bfloat16. It stays as it is: what a trainer of the cluster changes is the
        cluster.
    workers : int
        How many processes, >= 1.
    threads : int, optional
        Of each worker, and the CPUs that Ray reserves for it. Default: those of `lm`, divided by
        the number of workers where Ray is started on this machine. Results do not depend on it.
    memory : int, optional
        Bytes that cache and scratch of a worker may take. Default: those of `lm`, divided by the
        number of workers, as if all of them were on this machine.
    shares : int, optional
        Into how many parts the gradient of a step is divided, >= 1; default: one for each worker.
        The last bits of a step depend on it, and not on who computes what.

    Attributes
    ----------
    workers, shares : int

    Raises
    ------
    ImportError
        Ray is not installed.
    ValueError
        The model is in int8 or has adapters that are being trained, or Ray has not as many CPUs
        beside those of the other clusters of this process.
    RuntimeError
        Workers do not start.

    Warns
    -----
    UserWarning
        A worker has other kernels than this process, so that samples may differ in the last bits.

    Notes
    -----
    Joins the cluster that `ray.init` or RAY_ADDRESS names, else starts Ray on this machine with as
    many CPUs as the workers want; for two clusters side by side there, call
    `ray.init(num_cpus=...)` before. bonaware must be installed on every node.

    A lost worker is replaced, and what it had not handed over is done again. After three of them
    at the same work, with nothing done in between, a RuntimeError names it. On Ctrl-C samples
    under way are dropped.

    Examples
    --------
    >>> import bonaware as bon
    >>> with Cluster(bon.LM.load("countdown", threads=1), workers=2) as cluster:  # doctest: +SKIP
    ...     samples = cluster.generate("make 46 from 7 8 11 13 :", n=8, max_new_tokens=32)
    """

    def __init__(self, lm: LM, workers: int, *, threads: int | None = None,
                 memory: int | None = None, shares: int | None = None) -> None:
        _check_copied(lm)
        self.workers = count("workers", workers)
        self.shares = self.workers if shares is None else count("shares", shares)
        threads = (_threads(lm.threads, self.workers) if threads is None
                   else count("threads", threads))
        memory = lm.memory // self.workers if memory is None else count("memory", memory)
        super().__init__(Copy(lm, lm._side_files), dtype=lm.dtype, threads=lm.threads,
                         memory=lm.memory)
        self._base: Sent | None = None
        self._state: list[Sent | None] | None = None  # the weights as the workers should have them
        self._run: object = None  # the newest call of _spread
        self._hands: list[_Hand] = []
        _join(self.workers, threads)
        _open[self] = self.workers * threads
        try:
            remote = ray.remote(_actor()).options(num_cpus=threads, scheduling_strategy="SPREAD")
            folder = str(Path(bonaware.__file__).parents[1])
            make = functools.partial(remote.remote, folder, threads, memory)  # holds no model
            self._hands = [_Hand(make) for _ in range(self.workers)]
            for hand in self._hands:
                while hand.starting:
                    self._answers(hand, _Queue([], 1, ""), None)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Cluster({super().__repr__()}, {self.workers} workers)"

    def __reduce__(self) -> Any:
        if _receiver is not self:
            raise TypeError("a cluster can be sent to its own workers only, in the verifier that "
                            "guides a policy")
        return _model_of_worker, ()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray too behind the last cluster where the first one started it."""
        for hand in self._hands if ray.is_initialized() else ():
            ray.kill(hand.actor)
        self._hands = []
        self._base = self._state = None
        if _open.pop(self, None) is not None:
            _leave()

    # -- what an LM does -------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What identifies the model and how it is computed; stored with every run."""
        return super().settings() | {"workers": self.workers}

    def logp(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]],
             temperature: float = 1.0) -> list[list[NDArray[np.float32]]]:
        """As `LM.logp`, prompts shared among the workers."""
        self._need_logits("logp")
        return self._read("logp", prompts, completions, temperature=temperature)

    def scores(self, prompts: Sequence[Any],
               completions: Sequence[Sequence[Any]]) -> list[NDArray[np.float32]]:
        """As `LM.scores`, prompts shared among the workers."""
        return self._read("scores", prompts, completions)

    def _read(self, method: str, prompts: Any, completions: Any, **options: Any) -> list[Any]:
        pairs = [(self.encode(prompt), [self._completion(text) for text in texts])
                 for prompt, texts in self._pairs(prompts, completions)]

        def units(keys: list[Key]) -> Any:
            return [(p, *pairs[p]) for p, in keys]

        found = dict(self._spread("read", [[(p,)] for p in range(len(pairs))], units,
                                  method=method, options=options))
        return [found[p,] for p in range(len(pairs))]

    def learner(self, memory: int | None = None, start: Adapter | None = None) -> "SpreadLearner":
        """What has the workers add up gradients, and makes the steps here."""
        return SpreadLearner(self, memory, start)

    def weights_changed(self) -> None:
        """To be called by who changed weights inside the engine: workers get them anew."""
        super().weights_changed()
        self._state = None

    def _weights(self) -> list[Sent | None]:
        """The weights and the adapters in the object store; what has not changed stays there."""
        if self._state is None:
            now, adapter = Copy(self, self._side_files), None
            if self._base is None or not now.equals(ray.get(self._base[1][0])):
                self._base = _put(now)
            if self._merged is not None:
                adapter = _put(self._merged.__self__.adapter())  # type: ignore[attr-defined]
            self._state = [self._base, adapter]
        return self._state

    # -- turns -----------------------------------------------------------------

    def _spread(self, kind: str, groups: Sequence[list[Key]], units: Callable[[list[Key]], Any],
                done: Callable[[Any], None] | None = None,
                **options: Any) -> Iterator[tuple[Key, Any]]:
        """Have units of work done by whoever is free; yields (key, answer), each once.

        Parameters
        ----------
        kind : str
            What the worker does: a method of `Worker`.
        groups : sequence of lists of keys
            Units that are one worker's.
        units : callable
            What is sent for some keys.
        done : callable, optional
            Is told what the worker returned at the end of a turn.
        **options
            Of the worker's method.
        """
        if not self._hands:
            raise RuntimeError("the cluster is closed, so it has no workers")
        run = self._run = object()
        for hand in self._hands:
            if hand.turn is not None and not hand.starting:
                hand.start()  # still at work for a call that nobody waits for any more
        queue = _Queue(groups, self.workers, "share" if kind == "learn" else "prompt")
        state = [*self._weights(), self.self_evaluation]
        try:
            while True:
                for hand in self._hands:
                    if hand.turn is None and (turn := queue.next()):
                        hand.begin(turn, state, kind, units(list(turn.left)), options)
                if all(hand.turn is None or hand.starting for hand in self._hands) and (
                        queue.empty):
                    return
                busy = {hand.ref: hand for hand in self._hands if hand.turn is not None}
                (ref,), _ = ray.wait(list(busy), num_returns=1)
                for key, answer in self._answers(busy[ref], queue, done):
                    yield key, answer
                    if self._run is not run:
                        raise RuntimeError("another call has taken the workers of this cluster "
                                           "since: one call at a time")
        finally:
            if self._run is run:
                for hand in self._hands:
                    if hand.turn is not None and not hand.starting:
                        hand.start()  # what it is at is not wanted: Ctrl-C, or an error

    def _answers(self, hand: "_Hand", queue: "_Queue",
                 done: Callable[[Any], None] | None) -> list[tuple[Key, Any]]:
        """What a worker hands over; it goes on, or is free, or another takes its place."""
        turn = hand.turn
        assert turn is not None
        try:
            answers, finished, value = ray.get(hand.ref)
        except RayTaskError as error:
            hand.turn = None
            raise error.cause from error  # with the traceback of the worker
        except RayError as error:
            turn.tries = 0 if turn.answered else turn.tries + 1
            if turn.tries == TRIES:
                turn.tries = 0  # the next call tries again
                raise RuntimeError(
                    f"a worker was lost {TRIES} times in a row {turn.words}, with nothing done in "
                    f"between; Ray says: {' '.join(str(error).split())}") from error
            if hand.starting:
                hand.start(turn.tries)
            else:
                turn.answered = False
                queue.again(turn)
                hand.start()
            return []
        if hand.starting:
            self._check_kernels(value)
            hand.starting, hand.turn = False, None
            return []
        for key, _ in answers:
            del turn.left[key]  # an answer that nobody asked for is an error
            turn.answered = True
        if not finished:
            hand.go_on()
            return answers
        hand.turn = None
        if done is not None:
            done(value)
        return answers

    def _check_kernels(self, facts: dict[str, Any]) -> None:
        """Say so where a worker does not compute as this process does."""
        here = _kernels()
        for name, there in facts["kernels"].items():
            if there != (mine := here.get(name)):
                warnings.warn(
                    f"a worker on {facts['node']} computes with {name} {there}, this process with "
                    f"{mine}: samples and gradients are right, but their last bits depend on who "
                    "computes them", stacklevel=4)


class _Turn:
    """Work that a worker was given."""

    def __init__(self, keys: Sequence[Key], unit: str, tries: int = 0) -> None:
        self.left: dict[Key, None] = dict.fromkeys(keys)  # in order
        self.unit = unit
        self.tries = tries  # workers that were lost at it, with nothing done
        self.answered = False

    @property
    def words(self) -> str:
        """What a worker does that has it."""
        if not self.left:
            return "while it started"
        first, last = next(iter(self.left))[0], next(reversed(self.left))[0]
        return f"at work on {self.unit} {first}" if first == last else (
            f"at work on {self.unit}s {first} to {last}")


class _Queue:
    """What is still to be given out."""

    def __init__(self, groups: Sequence[list[Key]], workers: int, unit: str) -> None:
        self._groups, self._workers, self._unit = deque(groups), workers, unit
        self._left = sum(map(len, groups))
        self._again: list[_Turn] = []

    @property
    def empty(self) -> bool:
        return not (self._groups or self._again)

    def again(self, turn: _Turn) -> None:
        """Take back what a lost worker had not done."""
        if turn.left:
            self._again.append(turn)

    def next(self) -> _Turn | None:
        """The next turn; None where nothing is left."""
        if self._again:
            return self._again.pop()
        fair, keys = self._left / (TURNS * self._workers), []
        while self._groups and (not keys or len(keys) + len(self._groups[0]) <= fair):
            keys += self._groups.popleft()
        self._left -= len(keys)
        return _Turn(keys, self._unit) if keys else None


class _Hand:
    """A worker as this process sees it; `start` puts another one in its place.

    Attributes
    ----------
    ref
        What it is asked for: an answer is (keys with answers, whether that is all, more).
    turn : _Turn or None
        What it is at; None: it is free.
    starting : bool
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.actor: Any = None
        self.start()

    def start(self, tries: int = 0) -> None:
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self._make()
        self.turn: _Turn | None = _Turn([], "", tries)
        self.starting = True
        self.ref = self.actor.facts.remote()

    def begin(self, turn: _Turn, *work: Any) -> None:
        self.turn, self.starting = turn, False
        self.ref = self.actor.begin.remote(*work)

    def go_on(self) -> None:
        self.ref = self.actor.go_on.remote()


# -- drawing ---------------------------------------------------------------------


class _Spread:
    """What the two kinds of drawing have in common where workers draw."""

    lm: Any
    requests: list[Any]
    settings: dict[str, Any]

    def _open(self) -> None:
        """No session here; but what does not fit into the context is said at once."""
        for request in self.requests:
            self._blocks(request)  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._counted: list[Stats] = []
        self._of = {request.prompt: request for request in self.requests}

    def _answers(self, kind: str, groups: Sequence[list[Key]], units: Callable[[list[Key]], Any],
                 **options: Any) -> Iterator[tuple[Key, Any]]:
        sampling = {name: self.settings[name] for name in SAMPLING}
        for answer in self.lm._spread(kind, groups, units, self._counted.append,
                                      sampling=sampling, **options):
            self._seconds = time.monotonic() - self._started  # type: ignore[attr-defined]
            yield answer

    @property
    def stats(self) -> Stats:
        """Tokens of all turns that are done; seconds of a phase: mean over workers."""
        total = {field.name: sum(getattr(one, field.name) for one in self._counted)
                 for field in dataclasses.fields(Stats)}
        for name in ("prefill_seconds", "decode_seconds", "ask_seconds"):
            total[name] /= self.lm.workers
        return Stats(**total | {"seconds": self._seconds})

    def abort(self) -> list[Sample]:
        """Samples under way are dropped: there are none to hand over."""
        self._iterator.close()  # type: ignore[attr-defined]
        return []


class SpreadDrawing(_Spread, Drawing):
    """Samples under way in workers; made by `Cluster.stream`."""

    def _run(self) -> Iterator[Sample]:
        total = sum(len(request.indices) for request in self.requests)
        most = max(1, math.ceil(total / (TURNS * self.lm.workers)))  # of a prompt in one turn
        groups = [[(request.prompt, int(i)) for i in request.indices[at:at + most]]
                  for request in self.requests for at in range(0, len(request.indices), most)]

        def units(keys: list[Key]) -> Any:
            wanted: dict[int, list[int]] = {}
            for p, i in keys:
                wanted.setdefault(p, []).append(i)
            return [dataclasses.replace(self._of[p], indices=some) for p, some in wanted.items()]

        for _, sample in self._answers("draw", groups, units):
            yield _apart(sample)


class SpreadScheduled(_Spread, Scheduled):
    """Samples under way in workers as a policy wants them; made by `Cluster.scheduled`.

    The samples of a prompt come when the policy is done with it: what a policy decides, and what
    a lost worker leaves behind, is whole prompts.
    """

    def _run(self) -> Iterator[Sample]:
        try:
            guided = _put(_dumps((self.guide, self.prompts), self.lm))
        except (TypeError, pickle.PicklingError) as error:
            raise TypeError(f"a policy on a cluster needs a verifier that can be sent to its "
                            f"workers, but {self.guide.verifier!r} cannot: {error}") from error

        def units(keys: list[Key]) -> Any:
            kept = {place: value for place, value in self._kept.items() if (place[0],) in keys}
            return [self._of[p] for p, in keys], kept

        groups: list[list[Key]] = [[(request.prompt,)] for request in self.requests]
        for (p,), (samples, scores, chosen) in self._answers("schedule", groups, units,
                                                             guided=guided):
            self.scores |= scores
            yield from map(_apart, samples)
            self.chosen[p] = chosen


def _apart(sample: Sample) -> Sample:
    """The sample with arrays of its own: what it came with would stay in the object store."""
    arrays = ("tokens", "logp", "sampled_logp", "certainty")
    return dataclasses.replace(sample, **{name: getattr(sample, name).copy() for name in arrays})


Cluster._drawing, Cluster._scheduling = SpreadDrawing, SpreadScheduled


# -- learning --------------------------------------------------------------------


class SpreadLearner(Learner):
    """A learner whose gradients come from workers, share by share.

    Shares are summed in their order, in float32. So a step is the same, bit for bit, whoever
    computed what; how many shares there are shows in its last bits.
    """

    _reference: Sent | None = None

    def set_reference(self, lm: LM) -> None:
        """Say which model `accumulate_kl` compares with: one of the same vocabulary."""
        _check_copied(lm)
        super().set_reference(lm)
        self._reference = _put(Copy(lm))

    def _backward(self, batch: Batch, temperature: float,
                  probabilities: NDArray[np.float32] | None = None,
                  kl_weights: NDArray[np.float32] | None = None,
                  ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        shares = batch.shares(self.lm.shares)
        places = [(slot, layer) for slot, layer, *_ in self._trained()]

        def units(keys: list[Key]) -> Any:
            return [(s, shares[s][0], *(more if more is None else more[shares[s][1]]
                                        for more in (probabilities, kl_weights))) for s, in keys]

        found: dict[Key, Any] = {}
        values: list[NDArray[np.float32]] = []
        kl: list[NDArray[np.float32]] = []
        total = [self._engine.get("gradient", *place) for place in places]
        for key, answer in self.lm._spread(
                "learn", [[(s,)] for s in range(len(shares))], units, temperature=temperature,
                places=places, adapters=self._start is not None,
                reference=None if kl_weights is None else self._reference):
            found[key] = answer
            while (len(values),) in found:  # in order, whatever came first
                logp, divergence, gradients = found.pop((len(values),))
                values.append(logp)
                kl += [] if divergence is None else [divergence]
                for whole, part in zip(total, gradients, strict=True):
                    whole += part
        for place, whole in zip(places, total, strict=True):
            self._engine.set("gradient", *place, whole)
        none = np.empty(0, np.float32)
        return (np.concatenate([none, *values]),
                None if kl_weights is None else np.concatenate([none, *kl]))


# -- in a worker -----------------------------------------------------------------


def _actor() -> type:
    """An actor of Ray that holds a Worker of the bonaware that this process has.

    Ray puts the current directory in front of what workers import from, where a clone may lie
    that is not built. This class is sent whole, and imports nothing before it knows where from.
    """

    class Actor:
        def __init__(self, folder: str, *options: Any) -> None:
            import importlib
            import sys

            sys.path.insert(0, folder)
            try:
                self._worker = importlib.import_module("bonaware.integrations.ray").Worker(*options)
            finally:
                sys.path.remove(folder)

        def facts(self) -> Any:
            return self._worker.facts()

        def begin(self, *work: Any) -> Any:
            return self._worker.begin(*work)

        def go_on(self) -> Any:
            return self._worker.go_on()

    return Actor


class Worker:
    """A copy of the model, and the turn that it is at."""

    def __init__(self, threads: int, memory: int) -> None:
        self._engine_options = {"threads": threads, "memory": memory}
        self.lm: Any = None
        self._have: dict[str, tuple[str | None, Any]] = {}  # what was fetched, by what it is for
        self._turn: Generator[tuple[Key, Any], None, Any] = _nothing()

    def facts(self) -> tuple[list[Any], bool, dict[str, Any]]:
        """Who this is and how it computes."""
        return [], True, {"pid": os.getpid(), "node": ray.util.get_node_ip_address(),
                          "kernels": _kernels()}

    def begin(self, state: list[Any], kind: str, units: Any,
              options: dict[str, Any]) -> tuple[list[Any], bool, Any]:
        """Take a turn, with the model in this state; the first answers."""
        self._take(*state)
        self._turn = getattr(self, f"_{kind}")(units, **options)
        return self.go_on()

    def go_on(self) -> tuple[list[tuple[Key, Any]], bool, Any]:
        """What has been done since: (key, answer)s, whether that is all, and what was returned."""
        answers, end = [], time.monotonic() + SLICE
        while time.monotonic() < end or not answers:
            try:
                answers.append(next(self._turn))
            except StopIteration as stop:
                return answers, True, stop.value
        return answers, False, None

    def _fetch(self, what: str, sent: Sent | None, make: Callable[[Any], Any]) -> Any:
        """make(object) of what was sent, kept until something else is sent."""
        name, (ref,) = sent or (None, [None])
        if self._have.get(what, ("", None))[0] != name:
            self._have[what] = name, make(None if ref is None else ray.get(ref))
        return self._have[what][1]

    def _take(self, base: Sent | None, adapter: Sent | None,
              self_evaluation: dict[str, Any] | None) -> None:
        global _model
        self._fetch("base", base, self._set_weights)
        self._fetch("adapter", adapter, self._set_adapter)
        self.lm.self_evaluation = self_evaluation  # training may change it
        _model = self.lm

    def _set_weights(self, copy: Copy) -> None:
        if self.lm is None:
            self.lm = self._load(copy)
            return
        for slot, layer, values in copy.weights():
            self.lm._model.set(slot, layer, values)

    def _set_adapter(self, adapter: Adapter | None) -> None:
        if adapter is None:
            self.lm._model.remove_adapters()
        else:
            attach(self.lm, adapter)

    def _load(self, copy: Copy) -> LM:
        with tempfile.TemporaryDirectory() as folder:
            copy.unpack(Path(folder))
            return LM(copy, dtype=copy.dtype, **self._engine_options)

    # -- turns: generators of (key, answer) ------------------------------------

    def _draw(self, requests: Any, sampling: dict[str, Any]) -> Generator[Any, None, Stats]:
        drawing = Drawing(self.lm, requests, **sampling)
        for sample in drawing:
            yield (sample.prompt, sample.index), sample
        return drawing.stats

    def _schedule(self, units: Any, guided: Sent,
                  sampling: dict[str, Any]) -> Generator[Any, None, Stats]:
        requests, kept = units
        guide, prompts = self._fetch("guided", guided, ray.cloudpickle.loads)
        drawing = Scheduled(self.lm, requests, prompts, guide.policy, guide, kept, **sampling)
        held: dict[int, list[Sample]] = {request.prompt: [] for request in requests}

        def over() -> Iterator[Any]:
            for p in [p for p in held if p in drawing.chosen]:
                places = [(p, i) for i in range(guide.policy.n) if (p, i) in drawing.scores]
                scores = {place: drawing.scores[place] for place in places}
                yield (p,), (held.pop(p), scores, drawing.chosen[p])

        for sample in drawing:
            yield from over()
            held[sample.prompt].append(sample)
        yield from over()
        return drawing.stats

    def _read(self, units: Any, method: str, options: dict[str, Any]) -> Generator[Any, None, None]:
        for p, prompt, texts in units:
            yield (p,), getattr(self.lm, method)([prompt], [texts], **options)[0]

    def _learn(self, shares: Any, temperature: float, places: list[tuple[str, int]],
               adapters: bool, reference: Sent | None) -> Generator[Any, None, None]:
        learner = engine().Learner(self.lm._model, self.lm.memory, adapters)
        compared = self._fetch("reference", reference, lambda copy: copy and self._load(copy))
        if compared is not None:
            learner.set_reference(compared._model)
        for s, arrays, probabilities, kl_weights in shares:
            learner.zero()
            values, kl = learner.accumulate(*arrays, temperature, probabilities, kl_weights)
            yield (s,), (values, kl, [learner.get("gradient", *place) for place in places])


_model: Any = None  # in a worker: the copy that it holds
_receiver: Any = None  # here: the cluster for whose workers something is being pickled


def _model_of_worker() -> Any:
    """What a cluster is in its workers."""
    return _model


def _dumps(value: Any, cluster: Cluster) -> bytes:
    """The value pickled for the workers of a cluster, which itself is their model there."""
    global _receiver
    _receiver = cluster
    try:
        return ray.cloudpickle.dumps(value)
    finally:
        _receiver = None


def _check_copied(lm: LM) -> None:
    """Refuse a model of which the workers would have another one."""
    if lm.dtype == "int8":
        raise ValueError(f"{lm.name} is held in int8, in which its weights are rounded: load "
                         "it in float32 or bfloat16 for a cluster")
    if lm._merged is not None:
        raise ValueError(f"{lm.name} has low-rank adapters that a trainer taught: save it, "
                         "which merges them, and give a cluster what LM.load gives")


def _nothing() -> Generator[Any, None, None]:
    yield from ()


def _kernels() -> dict[str, Any]:
    """What the bits of a result depend on, beside the routes, which are sent."""
    return {"bonaware": bonaware.__version__, **engine().config()}


def _put(value: Any) -> Sent:
    ref = ray.put(value)
    return ref.hex(), [ref]  # within a list it is sent as a reference


# The clusters of this process that are not closed, and the CPUs of their workers.
_open: "weakref.WeakKeyDictionary[Cluster, int]" = weakref.WeakKeyDictionary()
_joined = False  # whether the first of them started Ray or connected to it: the last one leaves


def _alone() -> bool:
    """Whether there is no Ray to be in, so that one is started on this machine."""
    return not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))


def _threads(here: int, workers: int) -> int:
    """Of each worker: all of this machine divided, or as many on every node."""
    return max(1, here // workers) if _alone() else here


def _join(workers: int, threads: int) -> None:
    """Be in a Ray that has room for the workers beside those of the other clusters."""
    global _joined
    cpus = workers * threads
    if not ray.is_initialized():
        _open.clear()  # somebody else has ended Ray, and their workers with it
        if _alone():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
            ray.init(address="local", num_cpus=cpus, include_dashboard=False)
        else:
            ray.init()
        _joined = True
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    taken, found = sum(_open.values()), sum(nodes)
    # Ray would have them wait, for ever, for what is not there.
    if cpus > found - taken:
        _leave()
        others = f", and {taken} of them are other clusters' of this process" if taken else ""
        raise ValueError(f"the workers need {cpus} CPUs together, but Ray has {found:g}{others}: "
                         "give fewer workers, fewer threads to each, or more CPUs to ray.init")
    if workers > (places := sum(int(node // threads) for node in nodes)):
        _leave()
        raise ValueError(f"{workers} workers need {threads} CPUs each, but the nodes of Ray have "
                         f"such room for {places}: give fewer workers, or fewer threads to each")


def _leave() -> None:
    """End or leave Ray, where a cluster of this process brought it and none is open any more."""
    global _joined
    if _joined and not _open:
        _joined = False
        ray.shutdown()
