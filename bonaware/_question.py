"""Question: what a model is asked behind a sample, and the two tokens that answer it.

A question is token ids that stand behind all tokens of a sample. One asked as a turn of a chat
stands behind the end of the assistant's turn: `Question.of` finds its ids by rendering a chat with
the model's template, and a sample that has not ended gets the end token first. Knows no scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["NO", "WORDS", "YES", "Question"]

# Manvi, Singh, Ermon 2024, arXiv:2410.02725, section 4.1: "No." says that starting over would
# not do better.
WORDS = 'Would you do better if you started over? ("Yes." or "No.")'
NO, YES = "No", "Yes"
# What stands for prompt and sample while a template is rendered.
PROMPT, SAMPLE = "a prompt of bonaware", "a sample of bonaware"

Ids = NDArray[np.int32]
Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked behind a sample.

    Parameters
    ----------
    ids : sequence of int
        At least one; behind all tokens of the sample.
    target : int
        The token for "No, I would not do better by starting over": its probability is the score.
    other : int
        The token for "Yes".
    ends : sequence of int
        Tokens that end a sample. One that ends with none of them gets the first in front of the
        question. None of them: the question stands behind every sample as it is.

    Raises
    ------
    ValueError
        There are no ids, one is negative, or target and other are the same.

    Examples
    --------
    >>> question = Question(ids=(7, 8), target=3, other=4, ends=(2,))
    >>> question.behind([5, 6]), question.behind([5, 2])
    (array([2, 7, 8], dtype=int32), array([7, 8], dtype=int32))
    """

    ids: tuple[int, ...]
    target: int
    other: int
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("ids", "ends"):
            object.__setattr__(self, name, tuple(int(token) for token in getattr(self, name)))
        if not self.ids:
            raise ValueError("a question needs at least one token, got none")
        if (least := min(*self.ids, *self.ends, self.target, self.other)) < 0:
            raise ValueError(f"token ids of a question must be >= 0, got {least}")
        if self.target == self.other:
            raise ValueError("target and other must be different tokens, but both are "
                             f"{self.target}: the answers begin with the same token")

    @classmethod
    def of(cls, lm: "LM", question: Any = None, target: int | str | None = None,
           other: int | str | None = None) -> "Question":
        """A question to a model.

        Parameters
        ----------
        lm : LM
            One that predicts tokens.
        question : Question, sequence of int, str, or sequence of chat messages, optional
            Ids and text stand behind a sample as they are, text encoded without special tokens.
            Messages, the last of them a user's, go through the chat template. Default: what the
            model was trained with (`lm.self_evaluation`), else `WORDS` as a user's message.
        target, other : int or str, optional
            A text is its first token: of an assistant's answer to messages; encoded alone where
            the question is ids or text. Default: what the model was trained with, where the
            question is that too; "No" and "Yes" for messages.

        Raises
        ------
        ValueError
            The model has neither a question nor a chat template; an answer is missing; both begin
            with the same token; an id is outside the vocabulary; or the template does not let a
            user speak behind an assistant.
        """
        lm._need_logits("self-evaluation")
        if isinstance(question, Question):
            made = question
        elif question is None and lm.self_evaluation is not None:
            made = cls.from_settings(lm.self_evaluation)
            made = cls(made.ids, _one(lm, made.target if target is None else target),
                       _one(lm, made.other if other is None else other), made.ends)
        else:
            made = _asked(lm, question, target, other)
        largest = max(*made.ids, *made.ends, made.target, made.other)
        if largest >= lm.arch.vocab:
            raise ValueError(f"token ids of a question must be below {lm.arch.vocab}, the "
                             f"vocabulary of {lm.name}, got {largest}")
        return made

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Question":
        """From what `settings` gives."""
        return cls(settings["question"], settings["target"], settings["other"], settings["ends"])

    def settings(self) -> dict[str, Any]:
        """As it is kept in `LM.self_evaluation` and in a model's self_evaluation.json."""
        return {"question": list(self.ids), "target": self.target, "other": self.other,
                "ends": list(self.ends)}

    def has_ended(self, tokens: Sequence[int] | Ids) -> bool:
        """Whether the question's ids stand right behind these tokens."""
        return not self.ends or (len(tokens) > 0 and int(tokens[-1]) in self.ends)

    def behind(self, tokens: Sequence[int] | Ids) -> Ids:
        """What stands behind the tokens of a sample."""
        return self.after(self.has_ended(tokens))

    def after(self, ended: bool) -> Ids:
        """What stands behind a sample that has ended or has not."""
        return np.array(self.ids if ended else (*self.ends[:1], *self.ids), np.int32)


def _asked(lm: "LM", question: Any, target: Any, other: Any) -> Question:
    """The question from what somebody wrote."""
    if question is None:
        if lm.tokenizer is None or not lm.tokenizer.chat_templates:
            raise ValueError(f"{lm.name} was not trained for self-evaluation and has no chat "
                             "template to ask it with: give question, target and other")
        question = [{"role": "user", "content": WORDS}]
    if not isinstance(question, str) and len(question) and isinstance(question[0], Mapping):
        return _of_turns(lm, question, NO if target is None else target,
                         YES if other is None else other)
    if target is None or other is None:
        raise ValueError("a question of text or ids needs target and other, the tokens that "
                         f"answer it, got target={target!r}, other={other!r}")
    ids = tuple(lm._completion(question).tolist())
    return Question(ids, _one(lm, target), _one(lm, other))


def _one(lm: "LM", answer: int | str) -> int:
    """A token, or the first one of a text."""
    if not isinstance(answer, str):
        return int(answer)
    ids = lm._completion(answer)
    if not len(ids):
        raise ValueError(f"an answer needs at least one token, but {answer!r} has none")
    return int(ids[0])


# -- chats ---------------------------------------------------------------------


def _of_turns(lm: "LM", turns: Turns, target: int | str, other: int | str) -> Question:
    """The question as messages behind an assistant's turn."""
    ids, end = _behind(lm, turns, generate=True)
    named = [_answer(lm, turns, ids, answer) if isinstance(answer, str) else int(answer)
             for answer in (target, other)]
    rest = [token for token in lm.eos_token_ids if token != end]
    return Question(ids, named[0], named[1], (end, *rest))


def _answer(lm: "LM", turns: Turns, ids: tuple[int, ...], answer: str) -> int:
    """First token of an assistant's answer to a question of these ids."""
    answered, _ = _behind(lm, [*turns, {"role": "assistant", "content": answer}], generate=False)
    if answered[: len(ids)] != ids or len(answered) == len(ids):
        raise ValueError(f"the chat template of {lm.name} does not write an answer such as "
                         f"{answer!r} where the assistant begins to speak: give target and other "
                         "as token ids")
    return answered[len(ids)]


def _behind(lm: "LM", turns: Turns, generate: bool) -> tuple[tuple[int, ...], int]:
    """Ids of messages behind a sample's end token, and that token."""
    tokenizer = lm._need_tokenizer("a question of chat messages")
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": SAMPLE}, *turns]
    # One token is read: a template that lets the assistant think first is asked not to.
    text = tokenizer.render_chat(chat, generate, enable_thinking=False)
    _, found, behind = text.rpartition(SAMPLE)
    if not found:
        raise ValueError(f"the chat template of {lm.name} leaves out what the assistant said: "
                         "give the question as token ids")
    behind = behind.lstrip()
    # Encoded with the end token in front, as text at the very start may be encoded otherwise.
    first, *rest = tokenizer.encode(behind, add_special_tokens=False).tolist() or [-1]
    if first not in lm.eos_token_ids:
        raise ValueError(f"the chat template of {lm.name} writes {behind[:20]!r} behind an "
                         "assistant's message, which is no end token of the model "
                         f"({list(lm.eos_token_ids)}): give the question as token ids")
    return tuple(rest), first
