"""lighteval: bonaware as a custom model.

    echo "from bonaware.integrations.lighteval import BonawareModel" > bonaware_model.py
    lighteval custom models/Qwen3-0.6B bonaware_model.py "gsm8k|0"

The samples of a document become one call that computes the prompt once; log-likelihoods of all
choices of a question share it too. Prompts, greedy texts and log-likelihoods are those of
lighteval's own transformers model; docs/harnesses.md names the few cases where they are not, and
has examples. `lighteval eval` needs none of this: it runs on inspect_ai, see
`bonaware.integrations.inspect_ai`.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bonaware._progress import Bar
from bonaware.integrations._harness import (
    end_strings,
    finished,
    likelihood,
    likelihoods,
    sampling,
    text_of,
)
from bonaware.lm import LM

try:
    from lighteval.models.abstract_model import LightevalModel, ModelConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.models.utils import uses_chat_template
    from lighteval.tasks.prompt_manager import PromptManager
    from lighteval.tasks.requests import Doc
    from transformers import AutoTokenizer, PreTrainedTokenizerBase
except ImportError as error:
    raise ImportError("lighteval is not installed: pip install 'bonaware[lighteval]'; the import "
                      f"said: {error}") from error

__all__ = ["BonawareConfig", "BonawareModel"]


class BonawareConfig(ModelConfig):
    """Settings of a model, in lighteval's words.

    Parameters
    ----------
    model_name : str
        What `LM.load` takes.
    dtype, threads, memory
        As of `LM.load`.
    add_special_tokens : bool
        Whether the tokenizer adds its own, such as BOS, to a prompt. lighteval's models do,
        also where a chat template has written them already.
    override_chat_template : bool, optional
        Whether prompts go through the chat template; default: where there is one.
    generation_parameters, system_prompt
        As of every model of lighteval. The seed is 0 where none is given.
    cache_dir
        Not used: lighteval's cache does not notice that weights have changed.
    """

    model_name: str
    dtype: str = "auto"
    threads: int | None = None
    memory: int | None = None
    add_special_tokens: bool = True
    override_chat_template: bool | None = None

    @classmethod
    def read(cls, name: str) -> "BonawareConfig":
        """Settings from what a command has as the model's name.

        Parameters
        ----------
        name : str
            A folder; or `model_name=folder,threads=2,generation_parameters={temperature:1.0}`;
            or a YAML file with these as `model_parameters`: as `lighteval accelerate` has them.
        """
        if name.endswith((".yaml", ".yml")):
            return cls.from_path(name)
        if "=" in name and not Path(name).is_dir():
            return cls.from_args(name)
        return cls(model_name=name)


class BonawareModel(LightevalModel):
    """A model on bonaware's engine for lighteval.

    Parameters
    ----------
    config : ModelConfig
        A `BonawareConfig`, or that of `lighteval custom`, whose model's name has the settings.
    lm : LM, optional
        A model that is loaded already.

    Raises
    ------
    ValueError
        A setting is unknown, or the model has no tokenizer.
    TypeError, OSError, ImportError
        As `LM.load`.

    Notes
    -----
    Sample i of a prompt depends on (seed, prompt, i). `logprobs` of a response have, beside drawn
    texts, the log-probability of each (nats, temperature 1), for metrics that select.
    """

    def __init__(self, config: ModelConfig, lm: LM | None = None) -> None:
        if not isinstance(config, BonawareConfig):
            config = BonawareConfig.read(config.model_name)
        self.config = config
        self.lm = lm or LM.load(config.model_name, dtype=config.dtype, threads=config.threads,
                                memory=config.memory)
        self._text = self.lm._need_tokenizer("lighteval")
        self._tokenizer = AutoTokenizer.from_pretrained(self._text.folder, truncation_side="left")
        self._chat = uses_chat_template(tokenizer=self._tokenizer,
                                        override_chat_template=config.override_chat_template)
        self._prompts = PromptManager(self._chat, self._tokenizer, config.system_prompt)
        self._end = end_strings(self.lm)
        self._cache = _NoCache()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return self.config.add_special_tokens

    @property
    def max_length(self) -> int:
        return self.lm.context

    def _prompt(self, doc: Doc) -> str:
        if doc.images:
            raise ValueError(f"bonaware reads text only, but a document of {doc.task_name} has "
                             "images")
        return self._prompts.prepare_prompt(doc)

    # -- drawing ---------------------------------------------------------------

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Texts, `num_samples` of each document: greedy at temperature 0, else drawn.

        A prompt is cut at its left to the context. One that fills it gets no text.
        """
        responses: list[Any] = [None] * len(docs)
        calls = defaultdict(list)
        for at, doc in enumerate(docs):
            calls[doc.num_samples, self._settings(doc)].append(at)
        with Bar(sum(doc.num_samples for doc in docs), not self.disable_tqdm) as bar:
            for (n, settings), places in calls.items():
                texts = [self._prompt(docs[at]) for at in places]
                prompts = self._tokenizer(texts, truncation=True, max_length=self.max_length,
                                          add_special_tokens=self.add_special_tokens)["input_ids"]
                samples = self.lm.generate(prompts, n, progress=bar, **dict(settings))
                if not finished(samples).all():
                    raise KeyboardInterrupt
                for p, at in enumerate(places):
                    responses[at] = ModelResponse(
                        input=texts[p], input_tokens=prompts[p],
                        text=[text_of(sample, self._text) for sample in samples[p]],
                        output_tokens=[sample.tokens.tolist() for sample in samples[p]],
                        logprobs=samples.sum_logp[p].tolist())
        return responses

    def _settings(self, doc: Doc) -> tuple[tuple[str, Any], ...]:
        """Of the model, and of the document where the model leaves them open."""
        given = self.config.generation_parameters.model_dump()
        stops = given.pop("stop_tokens") or []
        if not self._chat:  # a chat ends by itself, as lighteval's models have it
            own = doc.stop_sequences or ()
            stops = [*([own] if isinstance(own, str) else own), *stops]
        size = doc.generation_size or -1  # which some tasks write for no limit
        settings = {"rng": 0} | sampling(given | {"until": stops}, temperature=0.0,
                                         max_new_tokens=size if size > 0 else self.max_length)
        settings["stop_strings"] += self._end
        if settings["temperature"] == 0 and doc.num_samples > 1:
            raise ValueError(
                f"{doc.task_name} asks for {doc.num_samples} samples of a document, which at "
                "temperature 0 are one: give the model "
                "generation_parameters={temperature:1.0}")
        return tuple(settings.items())

    # -- log-likelihoods -------------------------------------------------------

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihoods of each document's choices, and whether greedy decoding gives them."""
        responses, pairs, owners = [], [], []
        for doc in docs:
            if not doc.choices:
                raise ValueError(f"log-likelihoods need choices, but document {doc.id} of "
                                 f"{doc.task_name} has choices={doc.choices!r}")
            prompt = self._prompt(doc)
            contexts, choices = self.tok_encode_pair(prompt, doc.choices, pairwise=True)
            responses.append(ModelResponse(
                input=prompt, input_tokens=contexts[0], output_tokens=choices,
                logprobs=[0.0] * len(choices), argmax_logits_eq_gold=[False] * len(choices)))
            pairs += zip(contexts, choices, strict=True)
            owners += [(responses[-1], i) for i in range(len(choices))]
        found = likelihoods(self.lm, pairs, self.max_length)
        for at, logp, greedy in tqdm(found, total=len(pairs), disable=self.disable_tqdm,
                                     unit="choice"):
            response, i = owners[at]
            response.logprobs[i], response.argmax_logits_eq_gold[i] = logp, greedy
        return responses

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihoods of the documents' texts, in windows of the context where they are longer.

        A text stands behind the BOS token, or the end token where there is none.
        """
        tokenizer = self._tokenizer
        begins = (tokenizer.bos_token_id, tokenizer.eos_token_id, *self.lm.eos_token_ids)
        prefix = next((token for token in begins if token is not None), None)
        if prefix is None:
            raise ValueError(f"{self.lm.name} has neither a BOS nor an end token for texts to "
                             "stand behind: name one in its tokenizer_config.json")
        responses = []
        for doc in tqdm(docs, disable=self.disable_tqdm, unit="text"):
            tokens = tokenizer.encode(doc.query, add_special_tokens=False)
            responses.append(ModelResponse(
                input=doc.query, input_tokens=[prefix], output_tokens=[tokens],
                logprobs=[likelihood(self.lm, tokens, prefix, self.max_length)]))
        return responses


class _NoCache:
    """In place of lighteval's cache of responses, to which a Pipeline tells its tasks.

    That one tells models apart by their settings alone, so that it answers with what other
    weights have said, and loses rolling log-likelihoods.
    """

    def _init_registry(self, registry: Any) -> None:
        pass
