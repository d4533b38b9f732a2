"""transformers: `model.generate(..., custom_generate=by_policy)`, the policies on any HF model.

transformers draws, on any device; a policy of `bonaware.policies` decides how many samples of a
prompt are drawn and which one is taken, through the same rules as the engine and `replay`.
Written for transformers 5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import ModelOutput

from bonaware import verifiers
from bonaware._scheduling import Guide
from bonaware.policies import Policy, get, of_policy
from bonaware.policies._course import Course
from bonaware.samples import Sample, Samples

__all__ = ["PolicyOutput", "by_policy"]

#: Verifiers that read what was drawn and ask no engine.
READ = ("likelihood", "self_certainty")
#: What stands behind the temperature among the processors of logits.
BEHIND = (TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper, TypicalLogitsWarper,
          EpsilonLogitsWarper, EtaLogitsWarper, LogitNormalization)
#: Outputs of single steps, which samples of different waves have no common table for.
OF_STEPS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class PolicyOutput(ModelOutput):
    """What `by_policy` gives with return_dict_in_generate=True.

    Parameters
    ----------
    sequences : int tensor, shape [P, T]
        Each prompt with the sample that the policy takes.
    samples : bonaware.samples.Samples
        All that were drawn, with `scores` and `chosen`.
    """

    sequences: Tensor | None = None
    samples: Samples | None = None


@torch.no_grad()
def by_policy(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList,
              stopping_criteria: StoppingCriteriaList, generation_config: Any,
              policy: Policy | None = None, verifier: Any = "likelihood",
              decode: Callable[[list[int]], str] | None = None,
              answer: Callable[[int, str], str | None] | None = None,
              batch_size: int | None = None, **model_kwargs: Any) -> Tensor | PolicyOutput:
    """Draw samples as a policy wants them, and return the one it takes.

    transformers calls it: ``model.generate(**inputs, do_sample=True, custom_generate=by_policy,
    policy=..., verifier=...)``.

    Parameters
    ----------
    model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
        As `generate` prepares them.
    policy : Policy
        One of `bonaware.policies` without checkpoints; default ``best_of_n`` with n = 16.
    verifier : "likelihood", "self_certainty", verifier, or callable
        What scores a sample. A callable is given m prompts and m `bonaware.samples.Sample` that
        have ended, and returns m numbers, higher is better; for a policy that compares them with
        a probability they must be one.
    decode : callable, optional
        Ids -> text, such as ``tokenizer.decode``. With it samples have a text (without the end
        token), and a callable verifier gets the prompts as texts instead of ids.
    answer : callable, optional
        (prompt's position, text) -> what a sample votes for, or None; for policies that count
        votes. Needs decode.
    batch_size : int, optional
        Most samples drawn at once. Default: a whole wave of all prompts.

    Returns
    -------
    tensor [P, T], or PolicyOutput where return_dict_in_generate is set

    Raises
    ------
    ValueError
        The policy needs what nobody gives, or samples that wait at checkpoints, which only
        `LM.generate` offers; do_sample is not set; or an option of generate would be without
        effect.

    Notes
    -----
    A policy that varies the temperature from sample to sample does so here, beginning from that
    of the call. Randomness is torch's (``torch.manual_seed``), so samples do depend on the batch.
    The prompt is computed once for every sample. transformers keeps the tokenizer from functions
    like this one: stop at strings by ``stopping_criteria=[StopStringCriteria(tokenizer, ...)]``.
    """
    policy = get("best_of_n") if policy is None else policy
    _check(generation_config, policy, model_kwargs, len(input_ids))
    guide = Guide(policy, _as_verifier(verifier), answer=answer)
    drawing = _Drawing(model, input_ids, logits_processor, stopping_criteria, generation_config,
                       policy, decode, model_kwargs)
    courses = [Course(policy, p) for p in range(len(input_ids))]
    samples: list[Sample] = []
    scores = np.full((len(input_ids), policy.n), np.nan)
    while wave := [(course.prompt, i) for course in courses for i in course.next().begin]:
        step = batch_size or len(wave)
        drawn = [sample for at in range(0, len(wave), step)
                 for sample in drawing.draw(wave[at:at + step])]
        live = _Live(drawn, [drawing.prompts[sample.prompt] for sample in drawn])
        for sample, score in zip(drawn, guide.scores(live).tolist(), strict=True):
            courses[sample.prompt].ended(sample.index, sample.finish_reason, len(sample.tokens),
                                         score, guide.answer(sample))
            scores[sample.prompt, sample.index] = score
        samples += drawn
    table = Samples.from_list(drawing.prompts, samples, policy.n)
    table.scores, table.chosen = scores, np.array([course.choose() for course in courses])
    sequences = drawing.sequences([table.tokens[p][i] for p, i in enumerate(table.chosen)])
    if generation_config.return_dict_in_generate:
        return PolicyOutput(sequences=sequences, samples=table)
    return sequences


class _Drawing:
    """One call: draws any samples of its prompts, by `GenerationMixin._sample`."""

    def __init__(self, model: Any, input_ids: Tensor, processors: LogitsProcessorList,
                 criteria: StoppingCriteriaList, config: Any, policy: Policy,
                 decode: Callable[[list[int]], str] | None, kwargs: dict[str, Any]) -> None:
        self.model, self.input_ids, self.kwargs = model, input_ids, dict(kwargs)
        self.processors, self.criteria = processors, criteria
        self.config = copy.copy(config)
        self.config.return_dict_in_generate = False
        base = 1.0 if config.temperature is None else config.temperature
        n, temperature = of_policy(policy, None, base)
        self.temperatures = np.broadcast_to(np.asarray(temperature, np.float64), (n,))
        eos = config._eos_token_tensor
        self.eos = set() if eos is None else set(eos.flatten().tolist())
        self.decode = decode
        mask = kwargs.get("attention_mask")
        self.ids = [(row if mask is None else row[mask[p].bool()]).tolist()
                    for p, row in enumerate(input_ids)]
        self.prompts: list[Any] = self.ids if decode is None else [decode(i) for i in self.ids]

    def draw(self, wave: Sequence[tuple[int, int]]) -> list[Sample]:
        """Samples (prompt, index), all at once."""
        rows = torch.tensor([p for p, _ in wave], device=self.input_ids.device)
        temperatures = self.temperatures[[i for _, i in wave]]
        start = self.input_ids.shape[1]
        plain, drawn_from = _Certainty(), _LogP()
        processors = LogitsProcessorList(
            [plain, *_at_temperatures(self.processors, temperatures), drawn_from])
        ends = _Ends(self.criteria, len(wave), start, self.input_ids.device)
        sequences = self.model._sample(
            self.input_ids[rows], logits_processor=processors, stopping_criteria=ends,
            generation_config=self.config, **{name: self._pick(x, rows) for name, x in
                                              self.kwargs.items()})
        new = sequences[:, start:]
        tables = [x.cpu().numpy() for x in (new.int(), plain.of(new), drawn_from.of(new),
                                            plain.certainty(new))]
        limit = self.criteria.max_length
        samples = []
        for row, ((p, i), length) in enumerate(zip(wave, ends.lengths.tolist(), strict=True)):
            tokens, logp, sampled_logp, certainty = (x[row, :length] for x in tables)
            reason = ("eos" if tokens[-1] in self.eos else
                      "length" if start + length == limit else "stop")
            samples.append(Sample(p, i, tokens, logp, sampled_logp, certainty,
                                  self._text(tokens, reason), reason, float(temperatures[row])))
        return samples

    def _pick(self, x: Any, rows: Tensor) -> Any:
        """An argument of the model for these rows; every draw begins with its own empty cache."""
        return x[rows.to(x.device)] if isinstance(x, Tensor) and x.ndim else copy.deepcopy(x)

    def _text(self, tokens: NDArray[np.int32], reason: str) -> str | None:
        if self.decode is None:
            return None
        return self.decode(tokens[:len(tokens) - (reason == "eos")].tolist())

    def sequences(self, taken: Sequence[NDArray[np.int32]]) -> Tensor:
        """The prompts with one sample each, padded at the end."""
        ids = self.input_ids
        longest = max(map(len, taken))
        pad = self.config._pad_token_tensor
        found = torch.full((len(ids), longest), 0 if pad is None else int(pad), dtype=ids.dtype)
        for row, tokens in zip(found, taken, strict=True):
            row[:len(tokens)] = torch.from_numpy(tokens)
        return torch.cat([ids, found.to(ids.device)], 1)


# -- what is read and changed while transformers draws ---------------------------


class _LogP(LogitsProcessor):
    """Reads the log-probability of each token that is drawn; changes nothing."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._logp: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._read(input_ids[:, -1:])
        self._last = torch.log_softmax(scores.float(), -1)
        return scores

    def _read(self, tokens: Tensor) -> None:
        """The tokens that the last distribution led to."""
        assert self._last is not None
        self._logp.append(self._last.gather(1, tokens))

    def of(self, new: Tensor) -> Tensor:
        """Of all tokens [B, T] that were drawn."""
        if len(self._logp) < new.shape[1]:
            self._read(new[:, -1:])
        return torch.cat(self._logp[:new.shape[1]], 1)


class _Certainty(_LogP):
    """Reads how far from uniform each distribution is, too; as csrc/sample.h defines it."""

    def __init__(self) -> None:
        super().__init__()
        self._certainty: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        super().__call__(input_ids, scores)
        assert self._last is not None
        there = self._last > -torch.inf
        count = there.sum(1)
        total = torch.where(there, self._last, 0.0).sum(1)
        self._certainty.append(-total / count - count.log())
        return scores

    def certainty(self, new: Tensor) -> Tensor:
        return torch.stack(self._certainty[:new.shape[1]], 1)


class _Temperatures(LogitsProcessor):
    """Each row has its own temperature; at 0 the most likely token is taken."""

    def __init__(self, temperatures: NDArray[np.float64]) -> None:
        self.temperatures = torch.tensor(temperatures)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        t = self.temperatures.to(scores)[:, None]
        best = torch.full_like(scores, -torch.inf).scatter(1, scores.argmax(1, keepdim=True), 0.0)
        return torch.where(t == 0, best, scores / torch.where(t == 0, 1.0, t))


def _at_temperatures(processors: Sequence[Any], temperatures: NDArray[np.float64]) -> list[Any]:
    """The processors with these temperatures in place of the one of the call.

    At temperature 1 transformers has no processor for it; its place is before the truncation.
    """
    others = [one for one in processors if not isinstance(one, TemperatureLogitsWarper)]
    at = next((i for i, one in enumerate(others) if isinstance(one, BEHIND)), len(others))
    return [*others[:at], _Temperatures(temperatures), *others[at:]]


class _Ends(StoppingCriteriaList):
    """The criteria of the call; keeps how many tokens each row has when they end it."""

    def __init__(self, criteria: StoppingCriteriaList, rows: int, start: int,
                 device: torch.device) -> None:
        super().__init__(criteria)
        self.start = start
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        done = super().__call__(input_ids, scores, **options)
        new = done & (self.lengths == 0)
        self.lengths = self.lengths.masked_fill(new, input_ids.shape[1] - self.start)
        return done


# -- verifiers -------------------------------------------------------------------


@dataclass
class _Live:
    """Samples that have ended, as the `read` of a verifier looks at them."""

    samples: list[Sample]
    prompts: list[Any]
    lm: None = None

    @property
    def problems(self) -> list[None]:
        return [None] * len(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, which: NDArray[np.intp]) -> _Live:
        return _Live([self.samples[i] for i in which], [self.prompts[i] for i in which])


class _Called:
    """A function of prompts and samples as a verifier."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def read(self, live: _Live) -> NDArray[np.float64]:
        scores = np.asarray(self.function(live.prompts, live.samples), np.float64)
        if scores.shape != (len(live),):
            raise ValueError(f"the verifier must give one number per sample, {len(live)}, got "
                             f"shape {list(scores.shape)}")
        return scores


def _as_verifier(verifier: Any) -> Any:
    if isinstance(verifier, str) and verifier in READ:
        return verifiers.get(verifier)
    if isinstance(verifier, str) or hasattr(verifier, "question_tokens"):
        raise ValueError(f"verifier must be {' or '.join(map(repr, READ))}, or a callable of "
                         f"prompts and samples, got {verifier!r}: others ask bonaware's engine")
    return verifier if hasattr(verifier, "score") else _Called(verifier)


def _check(config: Any, policy: Policy, kwargs: dict[str, Any], prompts: int) -> None:
    if policy.checkpoints:
        raise ValueError(f"policy {policy!r} drops samples that are under way, which "
                         "bonaware.LM.generate can do and transformers can not")
    if not config.do_sample:
        raise ValueError("samples of one prompt would all be the same: need do_sample=True")
    for name in ("num_beams", "num_return_sequences"):
        if (getattr(config, name) or 1) != 1:
            raise ValueError(f"{name}={getattr(config, name)} would be without effect: the policy "
                             "says how many samples are drawn")
    for name in OF_STEPS:
        if getattr(config, name):
            raise ValueError(f"{name}=True would be without effect: all that is known of samples "
                             "stands in `samples`, with return_dict_in_generate=True")
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise ValueError("every sample begins with an empty cache, so past_key_values would be "
                         "without effect: leave it out")
    for name, x in kwargs.items():
        if name.endswith(("inputs_embeds", "encoder_outputs")) or (
                isinstance(x, Tensor) and x.ndim and len(x) != prompts):
            raise ValueError(f"by_policy draws from models of text that read input_ids, found "
                             f"{name}")
