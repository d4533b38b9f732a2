"""inspect_ai: bonaware as a model provider, reducers of epochs, and epochs that stop early.

    inspect eval task.py --model bonaware/models/Qwen3-0.6B --epochs 16 -M ahead=16

Every epoch asks by itself. What is asked at about the same time is drawn together, and epochs of
one sample share their prompt. inspect begins epoch 2 when epoch 1 of every sample has begun, so
siblings rarely meet: `ahead` draws those of later epochs with the first. Sample i of a prompt is
a function of (seed, prompt, i), so neither changes what is drawn. `lighteval eval` runs on
inspect_ai and is served too. docs/harnesses.md has examples.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonaware import estimators, select
from bonaware.integrations._harness import sampling, text_of
from bonaware.lm import LM
from bonaware.policies import Policy, Seen
from bonaware.samples import Request, Sample

try:
    import anyio
    import anyio.from_thread
    import anyio.lowlevel
    import yaml
    from inspect_ai.log._samples import sample_active  # which epoch asks; there is no public way
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )
    from inspect_ai.scorer import (
        Score,
        Scorer,
        ScoreReducer,
        Target,
        accuracy,
        score_reducer,
        scorer,
        stderr,
        value_to_float,
    )
    from inspect_ai.solver import TaskState
    from inspect_ai.tool import ToolChoice, ToolInfo
    from inspect_ai.util import EarlyStop
except ImportError as error:
    raise ImportError("inspect_ai is not installed: pip install 'bonaware[inspect]'; the import "
                      f"said: {error}") from error

__all__ = ["AdaptiveEpochs", "BonawareAPI", "best_of", "majority", "weighted_majority",
           "with_likelihood"]

# Seconds without a further request until what is waiting is drawn: siblings come together.
QUIET = 0.1
# New tokens where a task does not say how many, as inspect's own local models.
MAX_TOKENS = 2048
# What inspect can ask for, in its own words; it is None where it was not asked.
SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "stop_seqs", "seed", "best_of",
            "frequency_penalty", "presence_penalty", "logit_bias", "response_schema",
            "prompt_logprobs")
STOP_REASONS = {"eos": "stop", "stop": "stop", "length": "max_tokens"}


@dataclass(frozen=True)
class _Prompt:
    """What is drawn from: equal ones share their computation."""

    tokens: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]
    repeat: int


_Wanted = dict[int, Future[Sample]]  # by the sample's index


class _Drawer:
    """A thread that collects requests and draws them together."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self._waiting: queue.Queue[tuple[_Prompt, _Wanted]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, prompt: _Prompt, wanted: _Wanted) -> None:
        """Have samples of a prompt drawn; each future is done when its sample is."""
        self._waiting.put((prompt, wanted))

    def _work(self) -> None:
        while True:
            by_settings: dict[Any, dict[_Prompt, _Wanted]] = defaultdict(lambda: defaultdict(dict))
            for prompt, wanted in self._collected():
                running = {i: f for i, f in wanted.items() if f.set_running_or_notify_cancel()}
                by_settings[prompt.settings][prompt] |= running
            for settings, prompts in by_settings.items():
                futures = list(itertools.chain.from_iterable(w.values() for w in prompts.values()))
                try:
                    self._draw(prompts, dict(settings))
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)

    def _collected(self) -> list[tuple[_Prompt, _Wanted]]:
        """What is waiting, once nothing more has come for a moment."""
        collected = [self._waiting.get()]
        while True:
            try:
                collected.append(self._waiting.get(timeout=QUIET))
            except queue.Empty:
                return collected

    def _draw(self, prompts: dict[_Prompt, _Wanted], settings: dict[str, Any]) -> None:
        wanted = list(prompts.values())
        requests = [
            Request(p, np.array(prompt.tokens, np.int32), sorted(prompts[prompt]), prompt.repeat)
            for p, prompt in enumerate(prompts)
        ]
        for sample in self.lm.stream(requests, **settings):
            wanted[sample.prompt][sample.index].set_result(sample)


class BonawareAPI(ModelAPI):
    """A model on bonaware's engine for inspect_ai; `-M` gives the arguments.

    Parameters
    ----------
    model_name : str
        What `LM.load` takes.
    base_url, api_key
        As inspect passes them; not used.
    config : GenerateConfig
    dtype, threads, memory
        As of `LM.load`.
    ahead : int
        Samples of a prompt that are drawn with its first one, for later epochs: give it the
        number of epochs. 1: none.
    chat : bool, optional
        Whether messages go through the model's chat template; default: where it has one.
        Otherwise a prompt is the text of the messages, one below the other, to be continued.
    min_p : float, optional
        As of `LM.generate`, which inspect has no word for.
    lm : LM, optional
        A model that is loaded already.

    Notes
    -----
    Epoch e asks for sample e - 1 of its prompt, so epochs that are run later, after an
    interruption for instance, are none of those that were run. Outside an evaluation equal
    requests are answered one sample after the other. `metadata` of an output has `sum_logp`
    (nats, temperature 1), `length` and `index`.
    """

    def __init__(self, model_name: str, base_url: str | None = None, api_key: str | None = None,
                 config: GenerateConfig = GenerateConfig(), *,  # noqa: B008 - as inspect does
                 dtype: str = "auto", threads: int | None = None, memory: int | None = None,
                 ahead: int = 1, chat: bool | None = None, min_p: float | None = None,
                 lm: LM | None = None) -> None:
        threads, memory, ahead, chat, min_p = map(_value, (threads, memory, ahead, chat, min_p))
        if not isinstance(ahead, int) or ahead < 1:
            raise ValueError(f"need ahead, a whole number >= 1, got {ahead!r}")
        self.lm = lm or LM.load(model_name, dtype=dtype, threads=threads, memory=memory)
        self.ahead = ahead
        self.min_p = min_p
        self._text = self.lm._need_tokenizer("inspect_ai")
        self.chat = bool(self._text.chat_templates) if chat is None else chat
        # inspect's cache, which lighteval always uses, tells models apart by name and URL: what
        # else decides a sample stands in the URL.
        url = f"{self.lm.fingerprint}?chat={self.chat}&min_p={min_p}"
        super().__init__(model_name, url, api_key, [], config)
        self._drawer = _Drawer(self.lm)
        self._asked: Counter[Any] = Counter()
        self._samples: dict[_Prompt, _Wanted] = defaultdict(dict)  # drawn ahead, or under way

    async def generate(self, input: list[ChatMessage], tools: list[ToolInfo],
                       tool_choice: ToolChoice, config: GenerateConfig) -> ModelOutput:
        """One answer, or `num_choices` of them."""
        if tools:
            raise ValueError(f"bonaware's models do not call tools, but {len(tools)} are given")
        if config.top_logprobs:
            raise ValueError("bonaware gives log-probabilities of the drawn tokens only: need "
                             f"top_logprobs=0, got {config.top_logprobs}")
        start = time.monotonic()
        tokens, settings = self._tokens(input), self._settings(config)
        samples = [await _result(future)
                   for future in self._futures(tokens, settings, config.num_choices or 1)]
        count = sum(len(sample.tokens) for sample in samples)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(sample, settings, config) for sample in samples],
            usage=ModelUsage(input_tokens=len(tokens), output_tokens=count,
                             total_tokens=len(tokens) + count),
            time=time.monotonic() - start,
            metadata=_facts(samples[0]),
        )

    def _futures(self, tokens: tuple[int, ...], settings: dict[str, Any],
                 n: int) -> list[Future[Sample]]:
        """The n samples of the epoch that asks, under way or drawn ahead."""
        key = tokens, tuple(settings.items())
        if settings["temperature"] == 0:  # every sample is the same one
            return [self._future(_Prompt(*key, 0), 0, 1)] * n
        active = sample_active()
        first = (active.epoch - 1) * n if active else 0
        repeat = self._asked[key, first]
        self._asked[key, first] += 1
        prompt = _Prompt(*key, repeat)
        futures = [self._future(prompt, i, self.ahead * n) for i in range(first, first + n)]
        for i in range(first, first + n):
            del self._samples[prompt][i]  # asked for once
        if not self._samples[prompt]:
            del self._samples[prompt]
        return futures

    def _future(self, prompt: _Prompt, index: int, block: int) -> Future[Sample]:
        """Of one sample; where it is not under way, its whole block is drawn."""
        known = self._samples[prompt]
        if index not in known:
            end = (index // block + 1) * block
            wanted: _Wanted = {i: Future() for i in range(index, end) if i not in known}
            known |= wanted
            self._drawer.add(prompt, wanted)
        return known[index]

    def _settings(self, config: GenerateConfig) -> dict[str, Any]:
        given = {name: getattr(config, name) for name in SETTINGS} | {"min_p": self.min_p}
        most = min(MAX_TOKENS, self.lm.context)
        return {"rng": 0} | sampling(given, temperature=1.0, max_new_tokens=most)

    def _tokens(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        for message in messages:
            if not isinstance(message.content, str) and any(
                    part.type not in ("text", "reasoning") for part in message.content):
                raise ValueError("bonaware reads text only, but a message holds other content")
        if self.chat:
            plain = [{"role": message.role, "content": message.text} for message in messages]
            return tuple(self._text.chat(plain).tolist())
        text = "\n".join(message.text for message in messages)
        return tuple(self._text.encode(text).tolist())

    def _choice(self, sample: Sample, settings: dict[str, Any],
                config: GenerateConfig) -> ChatCompletionChoice:
        reason = STOP_REASONS[sample.finish_reason]
        if sample.finish_reason == "length" and len(sample.tokens) < settings["max_new_tokens"]:
            reason = "model_length"
        message = ChatMessageAssistant(content=text_of(sample, self._text),
                                       model=self.model_name, source="generate")
        logprobs = self._logprobs(sample) if config.logprobs else None
        return ChatCompletionChoice(message=message, stop_reason=reason, logprobs=logprobs)

    def _logprobs(self, sample: Sample) -> Logprobs:
        """Of the tokens as drawn, under the model at temperature 1."""
        pieces = [self._text.decode([token], skip_special_tokens=False) for token in sample.tokens]
        return Logprobs(content=[
            Logprob(token=piece, logprob=float(logp), bytes=list(piece.encode()))
            for piece, logp in zip(pieces, sample.logp, strict=True)])

    def max_tokens(self) -> int:
        return min(MAX_TOKENS, self.lm.context)

    def connection_key(self) -> str:
        return self.model_name

    async def tokenize(self, text: str) -> list[int]:
        return self._text.encode(text).tolist()

    async def count_text_tokens(self, text: str) -> int:
        return len(self._text.encode(text, add_special_tokens=False))


@modelapi(name="bonaware")
def bonaware() -> type[ModelAPI]:
    """The provider: `--model bonaware/FOLDER`."""
    return BonawareAPI


def _value(given: Any) -> Any:
    """An argument that is text, as lighteval passes all of them on, as inspect's -M reads it."""
    return yaml.safe_load(given) if isinstance(given, str) else given


async def _result(future: Future[Sample]) -> Sample:
    """What a future of another thread gives, without holding up the event loop."""
    event, token = anyio.Event(), anyio.lowlevel.current_token()
    loop = threading.get_ident()

    def wake(_: Any) -> None:
        if threading.get_ident() == loop:  # it was done already, or is cancelled
            event.set()
        else:
            anyio.from_thread.run_sync(event.set, token=token)

    future.add_done_callback(wake)
    await event.wait()
    return future.result()


def _facts(sample: Sample) -> dict[str, Any]:
    return {"sum_logp": float(sample.logp.sum(dtype=np.float64)), "length": len(sample.tokens),
            "index": sample.index}


# -- scores of epochs ----------------------------------------------------------


@scorer(metrics=[accuracy(), stderr()])
def with_likelihood(base: Scorer) -> Scorer:
    """A scorer whose scores carry what bonaware knows of the sample, for the reducers below.

    Parameters
    ----------
    base : Scorer
        Such as `match()`; its value, answer and explanation stay.
    """

    async def score(state: TaskState, target: Target) -> Score | None:
        found = await base(state, target)
        if found is not None:
            found.metadata = {**(found.metadata or {}), **(state.output.metadata or {})}
        return found

    return score


def _likelihoods(scores: Sequence[Score], normalize: str | None) -> np.ndarray:
    """Score of each epoch, float64 [1, n]: log-probabilities, nats."""
    try:
        facts = [(s.metadata["sum_logp"], s.metadata["length"]) for s in scores]
    except (KeyError, TypeError):
        raise ValueError("this reducer needs scores with a likelihood: give the task "
                         "scorer=with_likelihood(...) and a model of bonaware") from None
    return np.array([[total / max(length, 1) if normalize else total for total, length in facts]])


@score_reducer
def best_of(k: int, normalize: str | None = None, perfect: bool = False) -> ScoreReducer:
    """Mean value of the best of k of the epochs, exactly; ties are shared evenly.

    Parameters
    ----------
    k : int
        >= 1. Where fewer epochs have a score, as while an evaluation runs, the value is NaN, as
        inspect's own `pass_at` has it.
    normalize : str, optional
        None: the best has the highest log-probability; "length": the highest per token.
    perfect : bool
        The best has the highest value: that is pass@k, for values of any kind.

    Notes
    -----
    **Source:** `bonaware.estimators.best_of_k`.
    """
    as_number = value_to_float()

    def reduce(scores: list[Score]) -> Score:
        scores = [score for score in scores if score.value == score.value]  # NaN: not scored
        if len(scores) < k:
            return Score(value=math.nan)
        values = [[as_number(score.value) for score in scores]]
        seen = None if perfect else _likelihoods(scores, normalize)
        return Score(value=float(estimators.best_of_k(values, k, scores=seen)[0]))

    return reduce


def _voted(choose: Callable[[list[list[str | None]], Sequence[Score]], Any]) -> ScoreReducer:
    def reduce(scores: list[Score]) -> Score:
        return scores[int(choose([[score.answer for score in scores]], scores)[0])].model_copy()

    return reduce


@score_reducer
def majority() -> ScoreReducer:
    """The score of the most frequent answer (self-consistency); inspect's own votes on values."""
    return _voted(lambda answers, _: select.majority(answers))


@score_reducer
def weighted_majority(normalize: str | None = None) -> ScoreReducer:
    """The score of the answer with the largest sum of exp(log-probability).

    Parameters
    ----------
    normalize : str, optional
        As in `best_of`.
    """

    def choose(answers: list[list[str | None]], scores: Sequence[Score]) -> Any:
        logp = _likelihoods(scores, normalize)
        return select.weighted_majority(answers, np.exp(logp - logp.max()))

    return _voted(choose)


# -- epochs that stop early ----------------------------------------------------


class AdaptiveEpochs:
    """Skips epochs of a sample when a policy has seen enough, `Task(early_stopping=...)`.

    Parameters
    ----------
    policy : Policy
        One that looks at answers, such as `bonaware.policies.get("adaptive_consistency")`.

    Notes
    -----
    Asked before each epoch about those that are complete; one that is under way does not count,
    so with many connections more epochs may run than the policy alone would draw. Figures of
    samples whose number depends on themselves are biased.
    """

    def __init__(self, policy: Policy) -> None:
        if policy.judged or policy.checkpoints:
            raise ValueError("epochs are stopped by their answers: need a policy such as "
                             f"adaptive_consistency, got {policy!r}")
        self.policy = policy
        self._answers: dict[str | int, list[str | None]] = defaultdict(list)
        self._skipped = 0

    async def start_task(self, task: Any, samples: Any, epochs: int) -> str:
        self._answers.clear()
        self._skipped = 0
        return f"bonaware {type(self.policy).__name__}"

    async def schedule_sample(self, id: str | int, epoch: int) -> EarlyStop | None:
        """Stops the epoch where the policy draws no more."""
        answers = self._answers[id]
        seen = Seen(prompt=0, finish_reason=["eos"] * len(answers), answers=answers)
        if self.policy.decide(seen).draw:
            return None
        self._skipped += 1
        return EarlyStop(id=id, epoch=epoch, reason=f"{self.policy!r} after {len(answers)} epochs")

    async def complete_sample(self, id: str | int, epoch: int, scores: dict[str, Any]) -> None:
        """Keeps the answer that the first scorer found."""
        first = next(iter(scores.values()), None)
        self._answers[id].append(first.score.answer if first else None)

    async def complete_task(self) -> dict[str, Any]:
        """How many epochs were skipped."""
        return {"skipped": self._skipped}
