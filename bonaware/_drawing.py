"""Drawing: samples under way in a session of the engine, yielded as they end.

It decides how much memory and how many slots a run gets, and makes `Sample`s of what the engine
drew.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._checks import as_ids, count, floats, megabytes
from bonaware.config import engine
from bonaware.samples import Request, Sample, Stats
from bonaware.tokenizer import StopStrings

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["Drawing"]

# Live samples at most: more rows than this no longer make a matrix product more efficient.
MAX_SLOTS = 256
# Decode steps between two looks at the clock, where nothing else happens.
STEPS = 64


@dataclass(frozen=True)
class Room:
    """What a drawing needs beside slots and cache for one sample at least."""

    together: int = 1  # samples of a prompt that must live at once
    words: str = "one sample"
    hold_ends: bool = False
    ask_blocks: int = 0
    behind: int = 0  # tokens of the context that stay free behind a sample, to ask about it


class Drawing(Iterator[Sample]):
    """Samples under way; made by `LM.stream`."""

    _room = Room()

    def __init__(self, lm: "LM", requests: Sequence[Request], *, temperature: float | ArrayLike,
                 top_k: int | None, top_p: float | None, min_p: float | None,
                 max_new_tokens: int, stop_strings: Sequence[str], seed: int) -> None:
        lm._need_logits("drawing")
        self.lm = lm
        self.requests = list(requests)
        self.settings = {
            "temperature": np.asarray(temperature, float).tolist(), "top_k": top_k,
            "top_p": top_p, "min_p": min_p,
            "max_new_tokens": count("max_new_tokens", max_new_tokens),
            "stop_strings": _strings("stop_strings", stop_strings),
            "seed": seed, "eos_token_ids": list(lm.eos_token_ids),
        }
        _check_truncation(top_k, top_p, min_p)
        self._temperatures = [_temperatures(temperature, request) for request in self.requests]
        self._stops = None
        if self.settings["stop_strings"]:
            self._stops = StopStrings(lm._need_tokenizer("stop_strings"),
                                      self.settings["stop_strings"])
        self._started = time.monotonic()
        self._seconds = 0.0
        self._session = self._open()
        self._samples: dict[int, tuple[Request, int, float]] = {}  # by the engine's number
        self._begin()
        self._iterator = self._run()

    def __next__(self) -> Sample:
        return next(self._iterator)

    @property
    def stats(self) -> Stats:
        """Tokens and seconds so far."""
        counted = self._session.stats()
        return Stats(counted["prompt_tokens"], counted["new_tokens"],
                     counted["prefill_seconds"], counted["decode_seconds"], self._seconds)

    def _open(self) -> Any:
        """A session with slots and cache for these requests, within the memory budget."""
        lm, model, room = self.lm, self.lm._model, self._room
        need = [self._blocks(request) for request in self.requests]
        context = max((sum(blocks) for blocks in need), default=1) * engine().BLOCK_TOKENS
        slots = max(1, min(sum(len(r.indices) for r in self.requests), MAX_SLOTS), room.together)
        while slots > room.together and model.scratch_bytes(slots, context) > lm.memory / 4:
            slots = max(slots // 2, room.together)
        scratch = model.scratch_bytes(slots, context)
        budget = (lm.memory - scratch) // model.block_bytes - room.ask_blocks
        for (prompt, sample), request in zip(need, self.requests, strict=True):
            least = prompt + sample * room.together
            if least > budget:
                needed = scratch + (least + room.ask_blocks) * model.block_bytes
                raise MemoryError(
                    f"{room.words} of prompt {request.prompt} needs {megabytes(needed)} of cache "
                    f"and scratch, but memory={lm.memory} allows {megabytes(lm.memory)}: give "
                    "more memory or lower max_new_tokens"
                )
        together = (slots + 1) * max((sum(blocks) for blocks in need), default=0)
        wanted = min(together, sum(
            p + s * len(r.indices) for (p, s), r in zip(need, self.requests, strict=True)))
        watch = self._stops.watch(lm.arch.vocab) if self._stops else None
        return engine().Session(
            model, slots, max(1, min(budget, wanted)) + room.ask_blocks,
            np.array(lm.eos_token_ids, np.int32), watch, room.hold_ends, room.ask_blocks)

    def _blocks(self, request: Request) -> tuple[int, int]:
        """Cache blocks of a prompt and of one of its samples."""
        length, behind, most = len(request.tokens), self._room.behind, self.lm.context
        words = "the model's context"
        if behind:
            most, words = most - behind - 1, f"{words} less a sample, its question and the answer"
        if not 1 <= length <= most:
            raise ValueError(f"a prompt needs 1 to {most} tokens ({words}), but prompt "
                             f"{request.prompt} has {length}")
        block = engine().BLOCK_TOKENS
        return -(-length // block), -(-self._new_tokens(request) // block)

    def _new_tokens(self, request: Request) -> int:
        """Most tokens of a sample."""
        return min(self.settings["max_new_tokens"],
                   self.lm.context - len(request.tokens) - self._room.behind)

    def _begin(self) -> None:
        """Queue every sample."""
        for request, temperatures in zip(self.requests, self._temperatures, strict=True):
            self._add(request, self._add_prompt(request), request.indices, temperatures)

    def _add_prompt(self, request: Request) -> int:
        """The engine's number of a prompt."""
        try:
            return self._session.add_prompt(as_ids(request.tokens, "the prompt"))
        except ValueError as error:
            raise ValueError(f"prompt {request.prompt}: {error}") from None

    def _add(self, request: Request, prompt: int, indices: Sequence[int],
             temperatures: NDArray[np.float64], hold_at: int = 0) -> list[int]:
        """Queue samples of a prompt; the engine's numbers."""
        s = self.settings
        numbers = self._session.add_samples(
            prompt, np.array(indices, np.uint64), temperatures.astype(np.float32),
            min(s["top_k"] or 0, self.lm.arch.vocab), 1.0 if s["top_p"] is None else s["top_p"],
            s["min_p"] or 0.0, max(1, self._new_tokens(request)), s["seed"], request.repeat,
            hold_at)
        for number, index, t in zip(numbers, indices, temperatures, strict=True):
            self._samples[number] = request, int(index), float(t)
        return numbers

    def _run(self) -> Iterator[Sample]:
        session = self._session
        try:
            while session.pending:
                events = session.run(STEPS)
                self._seconds = time.monotonic() - self._started
                for number, state in events:
                    if number not in self._samples:
                        continue  # ended by a stop string: finished when that was seen
                    if self._rests(number, state):
                        yield self._finish(number)
        except KeyboardInterrupt:
            yield from self._rest()
            raise

    def abort(self) -> list[Sample]:
        """End the live samples; they, and those that had ended and were not yielded."""
        return list(self._rest())

    def _rest(self) -> Iterator[Sample]:
        self._seconds = time.monotonic() - self._started
        for number in list(self._samples):
            state = self._session.view(number)[0]
            if state == "waiting":
                return  # samples enter in the order of their numbers
            if state in ("live", "held"):
                self._session.end(number, "aborted")
            yield self._finish(number)

    def _rests(self, number: int, state: str) -> bool:
        """Whether a sample of which there is news draws no more; a stop string ends it here."""
        if state in ("live", "held") and self._stops is not None and self._stops.hit(
                self._session.tail(number, self._stops.window)):
            self._session.end(number, "stop")
            return True
        return state != "live"

    def _finish(self, number: int) -> Sample:
        sample = self._sample(number)
        self._drop(number)
        return sample

    def _drop(self, number: int) -> None:
        """Forget an ended sample; a Ctrl-C before this leaves it to abort()."""
        del self._samples[number]
        self._session.forget(number)

    def _sample(self, number: int) -> Sample:
        """A sample as it is now."""
        request, index, temperature = self._samples[number]
        reason, tokens, logp, sampled_logp, certainty = self._session.view(number)
        text, reason = self._text(request, tokens, reason)
        return Sample(request.prompt, index, tokens, logp, sampled_logp, certainty, text, reason,
                      temperature)

    def _text(self, request: Request, tokens: NDArray[np.int32],
              reason: str) -> tuple[str | None, str]:
        """Text without end token and stop string, and the finish reason."""
        if self.lm.tokenizer is None or reason in ("held", "pruned"):
            return None, reason
        kept = tokens[:-1] if reason == "eos" else tokens
        if self._stops is None:
            return self.lm.tokenizer.decode_completion(request.tokens, kept), reason
        text, found = self._stops.cut(request.tokens, kept)
        return text, "stop" if found else reason


# -- what is asked of settings ----------------------------------------------------


def _temperatures(temperature: float | ArrayLike, request: Request) -> NDArray[np.float64]:
    """One temperature per requested sample, checked."""
    array = floats("temperature", temperature)
    indices = np.asarray(request.indices, np.int64)
    if array.ndim > 1:
        raise ValueError(f"temperature must be a number or one per sample, got shape {array.shape}")
    if indices.size and indices.min() < 0:
        raise ValueError(f"sample indices must be >= 0, but {indices.min()} of prompt "
                         f"{request.prompt} is requested")
    if array.ndim == 1 and indices.size and indices.max() >= array.size:
        raise ValueError(f"temperature has {array.size} entries, but sample {indices.max()} of "
                         f"prompt {request.prompt} is requested")
    values = np.ascontiguousarray(np.broadcast_to(array, indices.shape) if array.ndim == 0
                                  else array[indices])
    with np.errstate(over="ignore"):
        used = values.astype(np.float32)  # what the engine computes with
    bad = np.flatnonzero(~(np.isfinite(used) & (used >= 0)))
    if bad.size:
        raise ValueError(f"need a finite temperature >= 0, got {values[bad[0]]}")
    if (used == 0).sum() > 1:
        raise ValueError(
            f"at temperature 0 every sample of a prompt is the same: need at most one such "
            f"sample per prompt, but prompt {request.prompt} has {(used == 0).sum()}; "
            "use n=1 or a temperature above 0"
        )
    return values


def _strings(name: str, value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(s, str) for s in strings):
        raise TypeError(f"{name} must be a string or a sequence of strings, got {value!r}")
    return list(strings)


def _check_truncation(top_k: int | None, top_p: float | None, min_p: float | None) -> None:
    if top_k is not None:
        count("top_k", top_k)
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None and floats(name, value).ndim:
            raise TypeError(f"{name} must be a number, got {value!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"need 0 < top_p <= 1 (or None), got {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"need 0 <= min_p <= 1 (or None), got {min_p}")
