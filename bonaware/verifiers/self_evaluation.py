"""self_evaluation: whether the model itself thinks that starting over would do better."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._question import Question
from bonaware.lm import LM
from bonaware.samples import Samples
from bonaware.tasks import Problem
from bonaware.verifiers import check_prompts
from bonaware.verifiers._live import score_live
from bonaware.verifiers._loading import loaded
from bonaware.verifiers.reward_model import means

__all__ = ["VERIFIER", "SelfEvaluation"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, repr=False)
class SelfEvaluation:
    """Scores with the probability of one token behind sample and question.

    Parameters
    ----------
    model : LM, str or path, optional
        Who is asked: a model, or what `LM.load` takes. Default: the model that drew.
    question : str, sequence of int, or sequence of chat messages, optional
        Text and ids stand behind the sample as they are, such as a special token; messages go
        through the chat template. Default: what the model was trained with, see
        `LM.self_evaluation`, else the paper's question as a user's message.
    target, other : int or str, optional
        The tokens for "would not do better" and "would". Default: what the model was trained
        with, else "No" and "Yes" as the first token of an assistant's answer.
    renormalise : bool
        False: P(target) over the whole vocabulary. True: P(target) / (P(target) + P(other)).
    lm : LM, optional
        The model that drew, which `score` asks where `model` is not given. `bonaware.evaluate`
        sets it.
    dtype, threads, memory
        As of `LM.load`, for a model that is loaded here.

    Raises
    ------
    ValueError
        The model has a score head, or cannot be asked like this, see
        `bonaware.selfeval.Question.of`; or dtype, threads or memory is given and nothing loaded.
    OSError
        model is a path, and no such model can be read.

    Notes
    -----
    Behind all tokens of the sample as drawn, with its end token, stands the question. One that is
    a user's message needs the end of the assistant's turn: a sample without an end token, which
    was cut or is under way, gets the one that the chat template writes. All of it is read at
    temperature 1.

    `read` asks on the sample's cache in the engine: it costs the question's tokens, and the sample
    goes on as if nothing had happened. `score` and `prefix_scores` run prompt, sample and question
    through the model; a prompt is read once for all of its samples, and equal samples once.

    **Source:** Manvi, Singh, Ermon 2024, arXiv:2410.02725, section 4.

    Examples
    --------
    >>> lm = LM.from_config({
    ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    ... }, rng=0, threads=1)
    >>> verifier = SelfEvaluation(lm, question=[7], target=3, other=4)
    >>> samples = lm.generate([[1, 2]], n=3, max_new_tokens=5, rng=0)
    >>> verifier.score([None], samples).round(2)
    array([[0.03, 0.03, 0.03]])
    """

    model: Any = None
    question: Any = None
    target: int | str | None = None
    other: int | str | None = None
    renormalise: bool = False
    lm: Any = None
    dtype: InitVar[str] = "auto"
    threads: InitVar[int | None] = None
    memory: InitVar[int | None] = None
    _asked: list[tuple[Any, Question]] = field(default_factory=list, init=False, compare=False)

    def __post_init__(self, dtype: str, threads: int | None, memory: int | None) -> None:
        model = loaded(self.model, dtype, threads, memory)
        object.__setattr__(self, "model", model)
        if (reader := self.model or self.lm) is not None:
            self._question(reader)  # what cannot be asked is said here

    def __repr__(self) -> str:
        given = [] if self.model is None else [repr(self.model.name)]
        given += [f"{name}={getattr(self, name)!r}" for name in ("question", "target", "other")
                  if getattr(self, name) is not None]
        given += ["renormalise=True"] * self.renormalise
        return f"SelfEvaluation({', '.join(given)})"

    # -- anew ----------------------------------------------------------------

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Scores of the samples as they are, in [0, 1], shape [P, n]; NaN where there is none.

        Raises
        ------
        ValueError
            There is not one prompt per problem; prompt, sample and question are longer than the
            model's context; it is not known who is asked; or the tokens of a sample do not mean
            its text to the tokenizer of `model`.
        """
        check_prompts(problems, samples)
        lengths = np.where(samples.valid, samples.lengths, -1)
        return self._scores(samples, lengths[..., None])[..., 0]

    def prefix_scores(self, problems: Sequence[Problem], samples: Samples,
                      checkpoints: int | Sequence[int]) -> NDArray[np.float64]:
        """Scores of the first tokens of the samples, in [0, 1].

        Parameters
        ----------
        problems : sequence of P Problem
        samples : Samples
        checkpoints : int >= 1, or a sequence of C rising ones
            How many tokens.

        Returns
        -------
        float64, shape [P, n, C]
            NaN where a sample has no more tokens than that, or is not there.

        Raises
        ------
        ValueError
            As for `score`; or the checkpoints do not rise from 1 on.
        """
        check_prompts(problems, samples)
        at = np.atleast_1d(np.asarray(checkpoints, np.int64))
        if at.ndim != 1 or (np.diff(at, prepend=0) <= 0).any():
            raise ValueError(f"need rising checkpoints >= 1, got {checkpoints}")
        return self._scores(samples, np.where(samples.lengths[..., None] > at, at, -1))

    def _scores(self, samples: Samples, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of the first lengths [P, n, C] tokens; NaN where that is -1."""
        lm = self.model or self.lm
        if lm is None:
            raise ValueError("verifier self_evaluation needs a model to ask: give model, or lm, "
                             "the model that drew the samples")
        scores = np.full(lengths.shape, np.nan)
        for p, prompt in enumerate(samples.prompts):
            ids, groups = lm.encode(prompt), _equal(samples.tokens[p], lengths[p])
            self._check_tokens(lm, samples, p, ids)
            found = self.ask_anew(lm, ids, [tokens for tokens, _ in groups])
            for (_, places), score in zip(groups, found, strict=True):
                scores[p][places] = score
        return scores

    def _check_tokens(self, lm: LM, samples: Samples, p: int, prompt: Ids) -> None:
        """Refuse samples of another tokenizer."""
        if self.model is None or self.model is self.lm or lm.tokenizer is None:
            return
        for i in np.flatnonzero(samples.valid[p]).tolist():
            text, tokens = samples.text[p][i], samples.tokens[p][i]
            if text is not None and not means(lm, text, tokens, samples.finish_reason[p, i],
                                              prompt):
                raise ValueError(
                    f"the tokens of sample {samples.start + i} of prompt {p} do not mean its text "
                    f"to the tokenizer of {lm.name}: verifier self_evaluation needs a model with "
                    "the tokenizer of the one that drew")

    def ask_anew(self, lm: LM, prompt: Ids, texts: Sequence[Ids]) -> NDArray[np.float64]:
        """Scores of texts behind a prompt, all of them ids, by a forward pass over all of it."""
        question = self._question(lm)
        named = self._named(question)
        asked = [np.concatenate([text, question.behind(text)]) for text in texts]
        longest = len(prompt) + max(map(len, asked), default=0) + 1
        if longest > lm.context:
            raise ValueError(f"prompt, sample, question and answer have {longest} tokens, but "
                             f"{lm.name} reads at most {lm.context}: draw shorter samples")
        rows = [np.append(text, token) for text in asked for token in named]
        (found,) = lm.logp([prompt.tolist()], [rows])
        logp = np.array([row[-1] for row in found], np.float32).reshape(-1, len(named))
        return self._score(logp)

    # -- in the engine -------------------------------------------------------

    def question_tokens(self, lm: LM) -> int:
        """Most tokens that `read` asks with in the engine, behind a sample of this model."""
        if not self._asks(lm):
            return 0
        return len(self._question(lm).after(False))

    def read(self, live: Any) -> NDArray[np.float64]:
        """Scores [m] of samples that are under way or have just ended, in [0, 1].

        Parameters
        ----------
        live : bonaware._scheduling.Live
            Samples, their prompts and the model that draws them; it asks on their cache. Another
            `model` than that one reads all tokens anew.

        Raises
        ------
        ValueError
            The context has no room for the question; or as for `score`, where another model reads.
        """
        if not self._asks(live.lm):
            return score_live(self, live)
        scores = np.empty(len(live.samples))
        question = self._question(live.lm)
        ended = np.array([question.has_ended(sample.tokens) for sample in live.samples], bool)
        for kind in (False, True):
            which = np.flatnonzero(ended == kind)
            if len(which):
                logp = live.ask(question.after(kind), self._named(question), which)
                scores[which] = self._score(logp)
        return scores

    def _asks(self, lm: LM) -> bool:
        """Whether the model that draws is the one that is asked."""
        return self.model is None or self.model is lm

    # -- the answer ----------------------------------------------------------

    def _question(self, lm: LM) -> Question:
        """What is asked; a chat template is rendered once."""
        if self.question is None and lm.self_evaluation is not None:
            return Question.of(lm, None, self.target, self.other)  # training may change it
        if not self._asked or self._asked[0][0] is not lm:
            question = Question.of(lm, self.question, self.target, self.other)
            self._asked[:] = [(lm, question)]
        return self._asked[0][1]

    def _named(self, question: Question) -> Ids:
        both = (question.target, question.other)
        return np.array(both if self.renormalise else both[:1], np.int32)

    def _score(self, logp: ArrayLike) -> NDArray[np.float64]:
        """From log-probabilities [m, named]."""
        logs = np.asarray(logp, np.float64)
        return np.exp(logs[:, 0] - (np.logaddexp.reduce(logs, axis=1) if self.renormalise else 0))


def _equal(tokens: Sequence[Ids], lengths: NDArray[np.int64]) -> list[tuple[Ids, Any]]:
    """The different beginnings of these lengths [n, C], and their places; none for -1."""
    groups: dict[bytes, tuple[Ids, list[tuple[int, int]]]] = {}
    for i, c in np.argwhere(lengths >= 0).tolist():
        beginning = tokens[i][: lengths[i, c]]
        groups.setdefault(beginning.tobytes(), (beginning, []))[1].append((i, c))
    return [(beginning, tuple(np.transpose(places))) for beginning, places in groups.values()]


VERIFIER = SelfEvaluation
