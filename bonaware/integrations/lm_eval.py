"""lm-evaluation-harness: bonaware as a model, and filters that select among repeats.

    bonaware lm-eval run --model bonaware --model_args pretrained=models/Qwen3-0.6B --tasks gsm8k

The repeats of a request become one call that computes the prompt once. Log-likelihoods of all
choices of a question share it too. Greedy texts and log-likelihoods are those of the harness's
own `hf` model. docs/harnesses.md has examples.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bonaware import select, verifiers
from bonaware._progress import Bar
from bonaware.integrations._harness import (
    end_strings,
    finished,
    likelihood,
    likelihoods,
    runs,
    sampling,
    text_of,
)
from bonaware.lm import LM
from bonaware.samples import Sample, Samples
from bonaware.tasks import Problem

try:
    import lm_eval.models  # noqa: F401 - its own models: it looks for them only while it knows none
    from lm_eval.api.filter import Filter
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_filter, register_model
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ImportError("the lm-evaluation-harness is not installed: pip install "
                      f"'bonaware[lm-eval]'; the import said: {error}") from error

__all__ = ["BestOfN", "BonawareLM", "WeightedMajority"]

log = logging.getLogger(__name__)

# What the harness's regex filter makes of a response without an answer.
NO_ANSWER = "[invalid]"
# What the newest call of generate_until drew, by the identity of the document, which the
# filters get too: (document, context, one Sample per repeat).
_drawn: dict[int, tuple[dict[str, Any], str, list[Sample]]] = {}


@register_model("bonaware")
class BonawareLM(TemplateLM):
    """A model on bonaware's engine for the lm-evaluation-harness.

    Parameters
    ----------
    pretrained : str, path or LM
        What `LM.load` takes, or a model that is loaded.
    dtype, threads, memory
        As of `LM.load`.
    seed : int
        Sample i of a prompt depends on (seed, prompt, i). A model that the harness makes from
        its arguments takes the harness's own `--seed`; otherwise 0. A request's generation
        setting `seed` wins.
    max_length : int, optional
        Tokens of context and continuation together; default: the model's context.
    batch_size, max_batch_size, device
        The harness passes them to every model ("cuda:0" where nothing is said). Not used: the
        engine batches by memory, on the CPU, and no result depends on it.

    Raises
    ------
    ValueError
        An argument is out of its range, or the model has no tokenizer.
    TypeError, OSError, ImportError
        As `LM.load`.
    """

    def __init__(self, pretrained: str | os.PathLike[str] | LM, *, dtype: str = "auto",
                 threads: int | None = None, memory: int | None = None, seed: int = 0,
                 max_length: int | None = None, batch_size: int | str | None = None,
                 max_batch_size: int | None = None, device: str | None = None) -> None:
        super().__init__()
        if isinstance(pretrained, LM):
            self.lm = pretrained
        else:
            self.lm = LM.load(pretrained, dtype=dtype, threads=threads, memory=memory)
        self._text = self.lm._need_tokenizer("the harness")
        self._seed = seed
        self._max_length = self.lm.context if max_length is None else max_length
        if not 1 <= self._max_length <= self.lm.context:
            raise ValueError(f"need 1 <= max_length <= {self.lm.context}, the model's context, got "
                             f"{max_length}")
        self._template = "default"
        self._end = end_strings(self.lm)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any],
                            additional_config: dict[str, Any] | None = None) -> "BonawareLM":
        """As the harness makes models: with its seed."""
        return super().create_from_arg_obj({"seed": _seed_of_harness(), **arg_dict},
                                           additional_config)

    @classmethod
    def create_from_arg_string(cls, arg_string: str,
                               additional_config: dict[str, Any] | None = None) -> "BonawareLM":
        """As the harness makes models: with its seed."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # -- tokens ----------------------------------------------------------------

    def _special(self, name: str) -> int | None:
        text = self._text.special_tokens.get(name)
        return None if text is None else int(self._text.encode(text, add_special_tokens=False)[0])

    @property
    def eot_token_id(self) -> int:
        """The end token, as the tokenizer says, else as the model does."""
        end = self._special("eos_token")
        if end is None and not self.lm.eos_token_ids:
            raise ValueError(f"{self.lm.name} has no end token: name one as eos_token in its "
                             "tokenizer_config.json")
        return self.lm.eos_token_ids[0] if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """What a text without context stands behind."""
        begin = self._special("bos_token")
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None,
                   **_: Any) -> list[int]:
        """Ids; a text that begins with the BOS token gets no second one."""
        if add_special_tokens is None:
            begin = self._text.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (begin and string.startswith(begin))
        return self._text.encode(string, add_special_tokens).tolist()

    # -- chat ------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return str(self._text.folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the template that is used from now on; None where it is switched off."""
        if chat_template is False or chat_template is None:
            return None
        self._template = "default" if chat_template is True else chat_template
        return self._text.chat_templates.get(self._template)

    def apply_chat_template(self, chat_history: list[dict[str, str]],
                            add_generation_prompt: bool = True) -> str:
        """Text of a chat; without generation prompt its last message stays open."""
        text = self._text.render_chat(chat_history, add_generation_prompt,
                                      chat_template=self._template)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        last = last if last in text else last.strip()
        return text[: text.rindex(last) + len(last)]

    # -- log-likelihoods -------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]],
                              disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        answers: list[Any] = [None] * len(requests)
        pairs = [(context, text) for _, context, text in requests]
        found = likelihoods(self.lm, pairs, self.max_length + 1)  # the last token is not read
        for at, *answer in tqdm(found, total=len(requests), disable=disable_tqdm, unit="request"):
            answers[at] = tuple(answer)
            if requests[at][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[at][0], answers[at])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any],
                              disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context where they are longer."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, unit="text"):
            total = likelihood(self.lm, self.tok_encode(request.args[0]), self.prefix_token_id,
                               self.max_length)
            totals.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # -- drawing ---------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts; consecutive repeats of one request are samples of one prompt."""
        _drawn.clear()
        texts: list[Any] = [None] * len(requests)
        calls = self._calls(requests)
        total = sum(len(repeats) * n for (n, _), repeats in calls.items())
        with Bar(total, not disable_tqdm) as bar:
            for (n, settings), repeats in calls.items():
                samples = self._draw([request for request, _ in repeats], n, dict(settings), bar)
                for p, (request, places) in enumerate(repeats):
                    row = list(samples[p]) * (len(places) // n)
                    _drawn[id(request.doc)] = request.doc, request.args[0], row
                    for at, sample in zip(places, row, strict=True):
                        texts[at] = text_of(sample, self._text)
                    if dict(settings)["temperature"] == 0:
                        self.cache_hook.add_partial("generate_until", request.args,
                                                    texts[places[0]])
        return texts

    def _calls(self, requests: Sequence[Any]) -> dict[tuple[int, Any], list[tuple[Any, list[int]]]]:
        """(n, settings) -> requests with their positions: what one call of the engine draws."""
        calls = defaultdict(list)
        for request, places in runs(requests):
            settings = sampling(request.args[1], temperature=0.0,
                                max_new_tokens=self.max_gen_toks)
            settings["stop_strings"] += self._end
            cold = settings["temperature"] == 0
            if cold and len(places) > 1:
                log.warning("%d repeats at temperature 0 are one sample, given %d times",
                            len(places), len(places))
            calls[1 if cold else len(places), tuple(settings.items())].append((request, places))
        return calls

    def _draw(self, requests: Sequence[Any], n: int, settings: dict[str, Any],
              bar: Bar) -> Samples:
        room = self.max_length - settings["max_new_tokens"]
        if room < 1:
            raise ValueError(f"max_gen_toks={settings['max_new_tokens']} leaves no room for a "
                             f"prompt in max_length={self.max_length}: give fewer")
        prompts = [self.tok_encode(request.args[0])[-room:] or [self.prefix_token_id]
                   for request in requests]
        samples = self.lm.generate(prompts, n, progress=bar, **{"rng": self._seed, **settings})
        if not finished(samples).all():
            raise KeyboardInterrupt
        return samples

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {"model_num_parameters": self.lm.num_parameters, "model_dtype": self.lm.dtype,
                "model_sha": self.lm.fingerprint, "sampling_seed": self._seed}


def _seed_of_harness() -> int:
    """A function of the harness's --seed, with which it seeds NumPy before it makes a model.

    NumPy's generator is not advanced: tasks that use it see what they see with other models.
    """
    copied = np.random.RandomState()
    copied.set_state(np.random.get_state())  # noqa: NPY002
    return int(copied.randint(2**31))


# -- filters -------------------------------------------------------------------


class _Selection(Filter):
    """Takes one of the responses to each document, by the scores of a verifier.

    Parameters
    ----------
    verifier : str
        One of `bonaware.verifiers.available()` that needs no task.
    **options
        Of that verifier.
    """

    def __init__(self, verifier: str = "likelihood", **options: Any) -> None:
        self.verifier = verifiers.get(verifier, **options)

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]],
              ) -> list[list[str]]:
        responses = [list(row) for row in resps]
        if not responses:
            return []
        chosen = self.choose(responses, self._scores(responses, docs))
        return [[row[i]] for row, i in zip(responses, chosen, strict=True)]

    def choose(self, responses: list[list[str]],
               scores: NDArray[np.float64]) -> NDArray[np.int64]:
        raise NotImplementedError

    def _scores(self, responses: list[list[str]],
                docs: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
        """[documents, repeats], of the samples as they were drawn."""
        problems, rows = [], []
        for p, (row, doc) in enumerate(zip(responses, docs, strict=True)):
            _, context, samples = _drawn.get(id(doc), (None, "", []))
            if len(samples) != len(row):
                raise ValueError(
                    f"filters of bonaware need the samples of its model, but document {p} has "
                    f"{len(row)} responses and {len(samples)} samples: use --model bonaware")
            problems.append(Problem(str(p), context, None, doc))
            rows.append([replace(sample, prompt=p) for sample in samples])
        prompts = [problem.prompt for problem in problems]
        return self.verifier.score(problems, Samples(prompts, rows))


@register_filter("bonaware_best_of_n")
class BestOfN(_Selection):
    """Keeps the response with the highest score.

    In a task: `{function: bonaware_best_of_n, verifier: likelihood, normalize: length}`, before
    or behind filters that keep one answer per response; `take_first` follows.
    """

    def choose(self, responses: list[list[str]],
               scores: NDArray[np.float64]) -> NDArray[np.int64]:
        return select.best_of_n(scores)


@register_filter("bonaware_weighted_majority")
class WeightedMajority(_Selection):
    """Keeps the answer with the largest sum of scores.

    Stands behind the filter that extracts answers; "[invalid]" does not vote. Scores that are no
    probabilities are made weights by exp(score - highest score of the document).
    """

    def choose(self, responses: list[list[str]],
               scores: NDArray[np.float64]) -> NDArray[np.int64]:
        if not getattr(self.verifier, "probabilities", True):
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        answers = [[None if answer == NO_ANSWER else answer for answer in row]
                   for row in responses]
        return select.weighted_majority(answers, scores)
