"""Samples: the table of what was drawn, `[prompts, n]`, and its views.

Arrays go to selectors and estimators, nested lists to people, a long table (one row per
sample) to pandas, polars and DuckDB. This file knows no model and no file format.
"""

import html
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Request", "Sample", "Samples", "Stats", "seed_of"]

FINISH_REASONS = ("eos", "stop", "length", "pruned", "aborted")
NO_TOKENS = np.empty(0, np.int32)
NO_LOGP = np.empty(0, np.float32)

# What a notebook shows before it says how much more there is.
SHOWN_PROMPTS, SHOWN_SAMPLES, SHOWN_CHARACTERS = 5, 4, 240


@dataclass(slots=True, eq=False)
class Sample:
    """One completion as drawn.

    Parameters
    ----------
    prompt, index : int
        Position of the prompt in the call, and number of the sample within its prompt.
    tokens : int32, shape [length]
        With the end token where one was drawn, and every token of a stop string.
    logp, sampled_logp : float32, shape [length]
        Natural log-probability of each token under the model (temperature 1, nothing
        truncated), and under the distribution it was drawn from. Nats.
    certainty : float32, shape [length]
        KL divergence from the uniform distribution to the model's, per token. Nats.
    text : str or None
        Without end token and stop string. None: the model has no tokenizer.
    finish_reason : str
        "eos", "stop", "length", "pruned" or "aborted".
    temperature : float
        At which it was drawn.
    """

    prompt: int
    index: int
    tokens: NDArray[np.int32]
    logp: NDArray[np.float32]
    sampled_logp: NDArray[np.float32]
    certainty: NDArray[np.float32]
    text: str | None
    finish_reason: str
    temperature: float


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be drawn for one prompt.

    Parameters
    ----------
    prompt : int
        Position of the prompt in the call.
    tokens : int32, shape [T]
        The prompt's tokens.
    indices : sequence of int
        Numbers of the samples to draw.
    repeat : int
        How many prompts with equal tokens came before in the call: equal prompts then
        get different random numbers.
    """

    prompt: int
    tokens: NDArray[np.int32]
    indices: Sequence[int]
    repeat: int = 0


@dataclass(frozen=True, repr=False)
class Stats:
    """What a call of generate cost: tokens, and wall-clock seconds of each phase.

    Examples
    --------
    >>> Stats(prompt_tokens=20, new_tokens=3000, prefill_seconds=0.5,
    ...       decode_seconds=2.0, seconds=2.6)
    3000 new tokens in 2.6 s: prefill 20 tokens in 0.5 s, decode 1500 tokens/s
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    seconds: float
    question_tokens: int = 0
    ask_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of decoding; NaN when nothing was decoded."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds > 0 else np.nan

    def __repr__(self) -> str:
        return (
            f"{self.new_tokens} new tokens in {self.seconds:.3g} s: "
            f"prefill {self.prompt_tokens} tokens in {self.prefill_seconds:.3g} s, "
            f"decode {self.tokens_per_second:.4g} tokens/s{self._asked}"
        )

    @property
    def _asked(self) -> str:
        if not self.question_tokens:
            return ""
        return f", questions {self.question_tokens} tokens in {self.ask_seconds:.3g} s"


class Samples:
    """The samples of P prompts, at most n for each: arrays `[P, n]` and nested lists.

    Made by `LM.generate` and `Samples.from_list`. Prompts may have drawn different
    numbers of samples: `valid` is the mask `[P, n]` of those that exist. A sample that
    does not exist has text None, empty token arrays and NaN in float arrays.

    Parameters
    ----------
    prompts : sequence, length P
        As given to generate: each a str, a list of ids or a list of chat messages.
    rows : sequence of P sequences of n Sample or None
        Column j holds sample ``start + j``.
    start : int
        Index of the first sample.
    stats : Stats, optional
        What the call cost.
    settings : dict, optional
        The effective settings the samples were drawn with.

    Attributes
    ----------
    scores : float64, shape [P, n], or None
        Of whole samples, by the verifier that guided a policy; None without a policy.
    chosen : int64, shape [P], or None
        Sample that the policy took, -1 where it is not done; None without a policy.

    Examples
    --------
    >>> one = Sample(prompt=0, index=0, tokens=np.array([5, 2], np.int32),
    ...              logp=np.array([-0.5, -0.25], np.float32),
    ...              sampled_logp=np.array([-0.5, -0.25], np.float32),
    ...              certainty=np.array([1.0, 3.0], np.float32),
    ...              text="four", finish_reason="eos", temperature=1.0)
    >>> samples = Samples.from_list(["2 + 2 ="], [one], n=2)
    >>> samples.text
    [['four', None]]
    >>> samples.lengths, samples.sum_logp, samples.valid
    (array([[2, 0]]), array([[-0.75,   nan]]), array([[ True, False]]))
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        rows: Sequence[Sequence[Sample | None]],
        *,
        start: int = 0,
        stats: Stats | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.prompts = list(prompts)
        self.start = start
        self.stats = stats
        self.settings = dict(settings or {})
        self.scores: NDArray[np.float64] | None = None
        self.chosen: NDArray[np.int64] | None = None
        self._rows = [list(row) for row in rows]
        if len(self._rows) != len(self.prompts):
            raise ValueError(
                f"need one row per prompt, got {len(self._rows)} rows for "
                f"{len(self.prompts)} prompts"
            )
        widths = {len(row) for row in self._rows}
        if len(widths) > 1:
            raise ValueError(f"rows must be equally long, got lengths {sorted(widths)}")
        self.n = widths.pop() if widths else 0

    @classmethod
    def from_list(
        cls,
        prompts: Sequence[Any],
        samples: Iterable[Sample],
        n: int,
        start: int = 0,
        stats: Stats | None = None,
        settings: dict[str, Any] | None = None,
    ) -> "Samples":
        """Put samples, in any order and perhaps not all, into their places.

        Parameters
        ----------
        prompts : sequence, length P
        samples : iterable of Sample
            With ``0 <= prompt < P`` and ``start <= index < start + n``, each place once.
        n : int
            Columns, >= 0.
        start, stats, settings
            As in the class.

        Raises
        ------
        ValueError
            A sample lies outside, or a place is taken twice; or its per-token arrays
            differ in length, or its finish_reason is unknown.
        """
        rows: list[list[Sample | None]] = [[None] * n for _ in prompts]
        for sample in samples:
            _check(sample)
            p, column = sample.prompt, sample.index - start
            if not (0 <= p < len(rows) and 0 <= column < n):
                raise ValueError(
                    f"need 0 <= prompt < {len(rows)} and {start} <= index < {start + n}, "
                    f"but a sample has prompt={p}, index={sample.index}"
                )
            if rows[p][column] is not None:
                raise ValueError(f"sample {sample.index} of prompt {p} is given twice")
            rows[p][column] = sample
        return cls(prompts, rows, start=start, stats=stats, settings=settings)

    # -- nested lists [P][n] -------------------------------------------------

    @cached_property
    def text(self) -> list[list[str | None]]:
        """Text of each sample; None where there is none."""
        return self._nested(lambda s: s.text, None)

    @cached_property
    def tokens(self) -> list[list[NDArray[np.int32]]]:
        """Tokens of each sample, int32 [length]."""
        return self._nested(lambda s: s.tokens, NO_TOKENS)

    @cached_property
    def logp(self) -> list[list[NDArray[np.float32]]]:
        """Log-probability of each token under the model at temperature 1, nats."""
        return self._nested(lambda s: s.logp, NO_LOGP)

    @cached_property
    def sampled_logp(self) -> list[list[NDArray[np.float32]]]:
        """Log-probability of each token as it was drawn, nats."""
        return self._nested(lambda s: s.sampled_logp, NO_LOGP)

    # -- arrays [P, n] -------------------------------------------------------

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Which samples exist."""
        return self._array([[s is not None for s in row] for row in self._rows], bool)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample; 0 where there is none."""
        return self._array(self._nested(lambda s: len(s.tokens), 0), np.int64)

    @cached_property
    def sum_logp(self) -> NDArray[np.float64]:
        """log π(sample | prompt) at temperature 1, nats."""
        return self._floats(lambda s: s.logp.sum(dtype=np.float64))

    @cached_property
    def sum_sampled_logp(self) -> NDArray[np.float64]:
        """Log-probability of each sample as it was drawn, nats."""
        return self._floats(lambda s: s.sampled_logp.sum(dtype=np.float64))

    @cached_property
    def certainty(self) -> NDArray[np.float64]:
        """Mean certainty per token, nats; NaN for a sample without tokens."""
        return self._floats(
            lambda s: s.certainty.mean(dtype=np.float64) if len(s.certainty) else np.nan
        )

    @cached_property
    def temperature(self) -> NDArray[np.float64]:
        """Temperature each sample was drawn at."""
        return self._floats(lambda s: s.temperature)

    @cached_property
    def finish_reason(self) -> NDArray[np.str_]:
        """Why each sample ended: one of FINISH_REASONS; "" where there is none."""
        return self._array(self._nested(lambda s: s.finish_reason, ""), np.dtype("U7"))

    def _nested(self, value, missing) -> list[list[Any]]:
        return [[missing if s is None else value(s) for s in row] for row in self._rows]

    def _array(self, nested, dtype) -> NDArray[Any]:
        return np.array(nested, dtype).reshape(len(self._rows), self.n)

    def _floats(self, value) -> NDArray[np.float64]:
        return self._array(self._nested(value, np.nan), np.float64)

    # -- as a sequence -------------------------------------------------------

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Sample]:
        """Every sample that exists, prompt by prompt."""
        return (s for row in self._rows for s in row if s is not None)

    def __getitem__(self, key: int | slice) -> "Samples":
        """The Samples of one prompt or of a slice of prompts, counted from 0 again."""
        if isinstance(key, slice):
            chosen = list(range(len(self))[key])
        else:
            try:
                chosen = [range(len(self))[operator.index(key)]]
            except IndexError:
                raise IndexError(f"prompt {key} of {len(self)}") from None
        rows = [
            [None if s is None else replace(s, prompt=row) for s in self._rows[p]]
            for row, p in enumerate(chosen)
        ]
        prompts = [self.prompts[p] for p in chosen]
        return Samples(prompts, rows, start=self.start, settings=self.settings)

    def whole(self) -> "Samples":
        """The Samples without those that were pruned: the others are answers."""
        if not (self.finish_reason == "pruned").any():
            return self
        rows = [[None if s is None or s.finish_reason == "pruned" else s for s in row]
                for row in self._rows]
        return Samples(self.prompts, rows, start=self.start, stats=self.stats,
                       settings=self.settings)

    # -- as a table ----------------------------------------------------------

    def to_pandas(self):
        """A pandas.DataFrame with one row per sample that exists.

        Columns: prompt, sample, text, tokens, length, sum_logp, sum_sampled_logp,
        certainty, finish_reason, temperature.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "to_pandas needs pandas: pip install 'bonaware[pandas]'"
            ) from None
        return pandas.DataFrame(self._columns())

    def to_arrow(self):
        """A pyarrow.Table with the rows and columns of `to_pandas`; tokens is list<int32>."""
        try:
            import pyarrow as pa
        except ImportError:
            raise ImportError(
                "to_arrow, and reading Samples from polars or DuckDB, need pyarrow: "
                "pip install 'bonaware[arrow]'"
            ) from None
        kinds = {"text": pa.string(), "tokens": pa.list_(pa.int32()), "finish_reason": pa.string()}
        return pa.table(
            {name: pa.array(values, kinds.get(name)) for name, values in self._columns().items()}
        )

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The table for whoever speaks the Arrow PyCapsule protocol: polars, DuckDB, pandas."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def _columns(self) -> dict[str, Any]:
        """The long table: name -> array or list, one entry per sample that exists."""
        p, column = np.nonzero(self.valid)
        present = list(self)
        return {
            "prompt": p,
            "sample": column + self.start,
            "text": [s.text for s in present],
            "tokens": [s.tokens for s in present],
            "length": self.lengths[p, column],
            "sum_logp": self.sum_logp[p, column],
            "sum_sampled_logp": self.sum_sampled_logp[p, column],
            "certainty": self.certainty[p, column],
            "finish_reason": [s.finish_reason for s in present],
            "temperature": self.temperature[p, column],
        }

    # -- for people ----------------------------------------------------------

    def __repr__(self) -> str:
        drawn = int(self.valid.sum())
        count = Counter(s.finish_reason for s in self)
        reasons = ", ".join(f"{r} {count[r]}" for r in FINISH_REASONS if count[r])
        tokens = int(self.lengths.sum())
        text = f"Samples: {len(self)} prompts x n={self.n}, {drawn} drawn, {tokens} tokens"
        text += f"\n  ended by: {reasons or 'none'}"
        return text if self.stats is None else f"{text}\n  {self.stats!r}"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{h}</th>" for h in ("", "text", "ended by", "tokens", "log p"))
        body = "".join(self._prompt_html(p) for p in range(min(len(self), SHOWN_PROMPTS)))
        rest = len(self) - SHOWN_PROMPTS
        more = f"<p>and {rest} more prompts</p>" if rest > 0 else ""
        # currentColor and inherit follow the notebook's theme, light or dark.
        return (
            '<div style="color:inherit;background:transparent">'
            f"<pre>{html.escape(repr(self))}</pre>"
            '<table style="border-collapse:collapse;text-align:left">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
        )

    def _prompt_html(self, p: int) -> str:
        row = [s for s in self._rows[p] if s is not None]
        title = f"{p}: {_cut(_prompt_text(self.prompts[p]))} ({len(row)} samples)"
        style = "text-align:left;border-top:1px solid currentColor"
        title = f"<bdi>{html.escape(title)}</bdi>"
        lines = [f'<tr><th colspan="5" style="{style}">{title}</th></tr>']
        for s in row[:SHOWN_SAMPLES]:
            text = "(no text)" if s.text is None else _cut(s.text)
            lines.append(
                f"<tr><td>{s.index}</td>"
                f'<td style="text-align:left;white-space:pre-wrap"><bdi>{html.escape(text)}'
                f"</bdi></td><td>{html.escape(s.finish_reason)}</td>"
                f"<td>{len(s.tokens)}</td><td>{s.logp.sum(dtype=np.float64):.2f}</td></tr>"
            )
        return "".join(lines)


def seed_of(rng: int | np.random.SeedSequence | np.random.Generator | None) -> int:
    """The 64-bit seed of a run.

    Parameters
    ----------
    rng : None, int >= 0, SeedSequence or Generator
        None draws fresh entropy. A Generator is advanced by one draw, so using it again
        gives another seed; an int or a SeedSequence gives the same one every time.

    Returns
    -------
    int in [0, 2**64)

    Raises
    ------
    TypeError
        rng is of another kind.
    ValueError
        rng is a negative int.

    Notes
    -----
    Source: SPEC 7, scientific-python.org/specs/spec-0007; an int is spread by
    `numpy.random.SeedSequence`, so neighbouring ints give unrelated seeds.

    Examples
    --------
    >>> seed_of(0)
    15793235383387715774
    >>> seed_of(np.random.SeedSequence(0)) == seed_of(0)
    True
    """
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**64, dtype=np.uint64))
    if isinstance(rng, np.random.SeedSequence):
        return int(rng.generate_state(1, np.uint64)[0])
    if isinstance(rng, bool) or not (rng is None or hasattr(rng, "__index__")):
        raise TypeError(
            "rng must be None, an int, a numpy SeedSequence or a numpy Generator, "
            f"got {type(rng).__name__}"
        )
    if rng is not None and operator.index(rng) < 0:
        raise ValueError(f"rng must be >= 0, got {rng}")
    return seed_of(np.random.SeedSequence(None if rng is None else operator.index(rng)))


def _check(sample: Sample) -> None:
    arrays = ("tokens", "logp", "sampled_logp", "certainty")
    lengths = {name: len(getattr(sample, name)) for name in arrays}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"per-token arrays of a sample must be equally long, but sample {sample.index} "
            f"of prompt {sample.prompt} has {lengths}"
        )
    if sample.finish_reason not in FINISH_REASONS:
        raise ValueError(
            f"finish_reason must be one of {', '.join(FINISH_REASONS)}, but sample "
            f"{sample.index} of prompt {sample.prompt} has {sample.finish_reason!r}"
        )


def _prompt_text(prompt: Any) -> str:
    """A prompt as a line for people: text, the last chat message, or ids."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content", ""))
    return str([int(token) for token in prompt])


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
