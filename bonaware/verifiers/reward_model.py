"""reward_model: what a model with a score head thinks of prompt and sample."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware.lm import LM
from bonaware.samples import Samples
from bonaware.tasks import Problem
from bonaware.verifiers import check_prompts
from bonaware.verifiers._loading import loaded

__all__ = ["VERIFIER", "RewardModel", "means"]


@dataclass(frozen=True, repr=False)
class RewardModel:
    """Scores with a `...ForSequenceClassification` of one label.

    Parameters
    ----------
    model : LM, str or path
        The model, or what `LM.load` takes.
    probabilities : bool
        False: scores are what the head gives. True: its sigmoid, in [0, 1], which is the
        probability that a sample is right where the head was trained for that, as
        `Trainer.step_scores` does. The order of samples is the same.
    dtype, threads, memory
        As of `LM.load`, for a model that is loaded here.

    Raises
    ------
    ValueError
        The model has no score head, or one of several labels; or it is an LM, which has its own
        dtype, threads and memory, and another one is given.
    OSError
        model is a path, and no such model can be read.

    Notes
    -----
    The prompt is encoded by this model: text with its special tokens, chats by its template.
    Behind it stand the sample's tokens as they were drawn, with the end token and all of a stop
    string, wherever they mean the sample's text to this model's tokenizer too, as they do when
    policy and reward model have the same one. A sample whose tokens mean something else here is
    encoded anew from its text; if it ended with an end token, this model's first one is added.
    Where policy or reward model has no tokenizer, tokens are taken as drawn.

    A sample's score does not depend on the samples around it; equal ones are scored once.

    Examples
    --------
    >>> verifier = RewardModel("models/reward")  # doctest: +SKIP
    >>> verifier.score(problems, samples).shape  # doctest: +SKIP
    (100, 32)
    """

    model: Any
    probabilities: bool = False
    dtype: InitVar[str] = "auto"
    threads: InitVar[int | None] = None
    memory: InitVar[int | None] = None

    def __post_init__(self, dtype: str, threads: int | None, memory: int | None) -> None:
        model = loaded(self.model, dtype, threads, memory)
        object.__setattr__(self, "model", model)
        if self.model.labels != 1:
            found = f"{self.model.labels} labels" if self.model.labels else "none"
            raise ValueError(f"verifier reward_model needs a model with a score head of 1 label, "
                             f"but {self.model.name} has {found}")

    def __repr__(self) -> str:
        more = ", probabilities=True" if self.probabilities else ""
        return f"RewardModel({self.model.name!r}{more})"

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Scores, shape [P, n]; NaN where there is no sample.

        Raises
        ------
        ValueError
            There is not one prompt per problem, a text is longer than the model's context, or
            a prompt is given as ids of another tokenizer.
        """
        check_prompts(problems, samples)
        scores = np.full(samples.valid.shape, np.nan)
        for p, prompt in enumerate(samples.prompts):
            groups, ids = _equal(samples, p), self.model.encode(prompt)
            texts = [self._tokens(samples, p, places[0], ids) for places in groups]
            (found,) = self.model.scores([ids], [texts])
            if self.probabilities:
                found = np.exp(-np.logaddexp(0.0, -found.astype(np.float64)))
            for places, score in zip(groups, found, strict=True):
                scores[p, places] = score
        return scores

    def _tokens(self, samples: Samples, p: int, i: int,
                prompt: NDArray[np.int32]) -> NDArray[np.int32]:
        """Tokens of a sample for this model."""
        text, tokens = samples.text[p][i], samples.tokens[p][i]
        reason = str(samples.finish_reason[p, i])
        tokenizer = self.model.tokenizer
        if text is None or tokenizer is None or means(self.model, text, tokens, reason, prompt):
            return tokens
        if _is_ids(samples.prompts[p]):
            raise ValueError(
                f"the tokens of sample {samples.start + i} of prompt {p} do not mean its text to "
                f"the tokenizer of {self.model.name}: give prompts as text, not as ids of another "
                "tokenizer")
        end = self.model.eos_token_ids[:1] if reason == "eos" else ()
        encoded = tokenizer.encode(text, add_special_tokens=False)
        return np.concatenate([encoded, np.array(end, np.int32)])


def means(lm: LM, text: str, tokens: NDArray[np.int32], reason: str,
          prompt: NDArray[np.int32]) -> bool:
    """Whether the tokens are this text, ended like this, to the model's tokenizer."""
    tokenizer: Any = lm.tokenizer
    if (tokens >= lm.arch.vocab).any():
        return False
    if reason == "eos":
        if tokens[-1] not in {*lm.eos_token_ids, *tokenizer.special_ids}:
            return False
        tokens = tokens[:-1]
    found = tokenizer.decode_completion(prompt, tokens)
    return found.startswith(text) if reason == "stop" else found == text


def _equal(samples: Samples, p: int) -> list[list[int]]:
    """Places of the samples of a prompt, those of equal ones together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in np.flatnonzero(samples.valid[p]).tolist():
        key = samples.tokens[p][i].tobytes(), samples.text[p][i], samples.finish_reason[p, i]
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _is_ids(prompt: Any) -> bool:
    return len(prompt) > 0 and isinstance(prompt[0], int | np.integer)


VERIFIER = RewardModel
