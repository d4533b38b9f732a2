"""Text to tokens and back, as the folder's own files say.

`tokenizer.json` is the truth about ids (read by the tokenizers library), tokenizer_config.json
and special_tokens_map.json name the special tokens, and the chat template is a program in
`chat_template.jinja` or a field of tokenizer_config.json (run by `bonaware._chat`).
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["StopStrings", "Tokenizer"]

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "chat_template.jinja")
TEMPLATES = "additional_chat_templates"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
           "mask_token")
# Tokens of the prompt that a completion is decoded behind: one gives the decoder its
# "not at the start of the text"; a character split over tokens spans at most four.
CONTEXT = 8
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoders write for a part of a character


class Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Made by `Tokenizer.load`. Needs `tokenizer.json`; the other files are optional.

    Attributes
    ----------
    folder : Path
        Where it came from.
    special_tokens : dict of str to str
        bos_token, eos_token, ... as far as the folder names them.
    chat_templates : dict of str to str
        Jinja sources by name; "default" is the usual one. Empty: no chat.

    Examples
    --------
    >>> tokenizer = Tokenizer.load("model")                                # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello"))                        # doctest: +SKIP
    'Hello'
    """

    def __init__(self, backend: Any, folder: Path, special_tokens: Mapping[str, str],
                 chat_templates: Mapping[str, str]) -> None:
        self.folder = folder
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read the tokenizer of a folder.

        Raises
        ------
        FileNotFoundError
            The folder has no tokenizer.json.
        ValueError
            A file cannot be understood; the message names it.
        """
        from tokenizers import Tokenizer as Backend

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer: {path} is missing")
        with _sentence(f"{path} is not a tokenizer"):
            backend = Backend.from_file(str(path))
        config = _read_json(folder / "tokenizer_config.json")
        special = {**_read_json(folder / "special_tokens_map.json"), **config}
        names = {name: _content(special[name]) for name in SPECIAL if special.get(name)}
        return cls(backend, folder, names, _templates(folder, config.get("chat_template")))

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files into another folder.

        Raises
        ------
        OSError
            A file cannot be read or written.
        """
        folder = Path(folder)
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if (self.folder / TEMPLATES).is_dir():
            shutil.copytree(self.folder / TEMPLATES, folder / TEMPLATES, dirs_exist_ok=True)

    def __repr__(self) -> str:
        chat = ", ".join(self.chat_templates) or "none"
        return f"Tokenizer({self.folder.name!r}, {self.vocab_size} tokens, chat templates: {chat})"

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included. A model's logits may be wider."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` skips."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    @cached_property
    def pieces(self) -> list[str]:
        """Text of every id inside a text; BROKEN marks parts of characters."""
        bound = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        rows = [[*self.anchor, id] for id in range(bound)]
        with _sentence("the vocabulary cannot be decoded"):
            texts = self._backend.decode_batch(rows, skip_special_tokens=False)
        return [text[self.anchored:] for text in texts]

    @cached_property
    def anchor(self) -> list[int]:
        """Ids to decode in front: decoders drop a blank at the very start of a text."""
        return self.encode("a", add_special_tokens=False).tolist()

    @cached_property
    def anchored(self) -> int:
        """Characters that the anchor's text takes."""
        return len(self._decode(self.anchor, False))

    # -- text ----------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """Ids of a text.

        Parameters
        ----------
        text : str
        add_special_tokens : bool
            Whether to add what the tokenizer adds around a text, usually the BOS token.

        Returns
        -------
        int32, shape [T]

        Raises
        ------
        TypeError
            text is not a str.
        ValueError
            text has no UTF-8 form (a lone surrogate).
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        with _sentence("the text cannot be tokenized"):
            text.encode()
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return np.array(ids, np.int32)

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """Text of ids.

        Parameters
        ----------
        ids : int, shape [T]
            An id that the tokenizer does not know decodes to nothing.
        skip_special_tokens : bool
            Whether special tokens (BOS, end of turn, ...) are left out.

        Returns
        -------
        str
            Bytes that are not UTF-8 become U+FFFD. Decoders of the SentencePiece kind drop
            one blank at the start: use `decode_completion` for what follows a prompt.

        Raises
        ------
        TypeError, ValueError
            ids are not integers, not one row, or negative.
        """
        return self._decode(_as_ids(ids), skip_special_tokens)

    def decode_completion(self, prompt_ids: ArrayLike, ids: ArrayLike) -> str:
        """Text that ids add to a prompt: text of the prompt + this = text of both.

        Parameters
        ----------
        prompt_ids : int, shape [T]
        ids : int, shape [length]
            What the model drew. Special tokens are left out.
        """
        context = [id for id in _as_ids(prompt_ids) if id not in self.special_ids][-CONTEXT:]
        before = self._decode(context, True)
        after = self._decode(context + _as_ids(ids), True)
        if not after.startswith(before):  # the prompt ends inside a character
            before = before.rstrip(BROKEN)
        return after[len(before):]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with _sentence("the ids cannot be decoded"):
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    # -- chat ----------------------------------------------------------------

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True,
             **variables: Any) -> NDArray[np.int32]:
        """Ids of a chat, rendered by the model's template.

        Special tokens are those the template writes; none is added.

        Parameters
        ----------
        messages, add_generation_prompt, **variables
            As in `render_chat`.

        Returns
        -------
        int32, shape [T]
        """
        text = self.render_chat(messages, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]],
                    add_generation_prompt: bool = True, chat_template: str = "default",
                    **variables: Any) -> str:
        """Text of a chat, rendered by the model's template.

        Parameters
        ----------
        messages : sequence of dict
            Each with "role" and "content"; plain data only.
        add_generation_prompt : bool
            Whether the text ends where the assistant begins to speak.
        chat_template : str
            Name of one of `chat_templates`.
        **variables
            What else the template may read: tools, documents, enable_thinking, ...

        Raises
        ------
        TypeError
            A message is not a dict of plain data.
        ValueError
            There is no such template, or it is broken, refuses the chat, or wants more time
            or memory than a template may have.
        """
        from bonaware import _chat

        if chat_template not in self.chat_templates:
            raise ValueError(
                f"chat messages need a chat template named {chat_template!r}, but "
                f"{self.folder} has {', '.join(self.chat_templates) or 'none'}"
            )
        return _chat.render(
            self.chat_templates[chat_template], messages,
            **{**self.special_tokens, "add_generation_prompt": add_generation_prompt, **variables},
        )


class StopStrings:
    """Finds stop strings in what a model draws, across the borders of tokens.

    Per token: look the drawn id up in `watch`; only if it is marked ask `hit`; when that is
    true the sample has ended, and `cut` gives its text.

    Parameters
    ----------
    tokenizer : Tokenizer
    stops : sequence of str, or one str
        None empty. A special token's text may be one.

    Raises
    ------
    TypeError, ValueError
        A stop string is not a str, or empty.

    Examples
    --------
    >>> stops = StopStrings(tokenizer, ["Question:"])                      # doctest: +SKIP
    >>> stops.cut(prompt_ids, tokens)                                      # doctest: +SKIP
    (' 4', True)
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str):
                raise TypeError(f"stop_strings must be str, got {type(stop).__name__}")
            if not stop:
                raise ValueError("stop_strings must not be empty, got ''")
        self._tokenizer = tokenizer
        # A token that adds text adds a byte at least, and a character begun outside the
        # window may break up to three bytes of it.
        self.window = max((len(stop.encode()) for stop in self.stops), default=0) + 3

    def watch(self, vocab: int) -> NDArray[np.uint8]:
        """Marks of the ids that can complete a stop string.

        Parameters
        ----------
        vocab : int
            Width of the model's logits.

        Returns
        -------
        uint8, shape [vocab]
            1 where the token's text has the last character of a stop string, or is part of
            a character; 0 elsewhere.
        """
        ends = {stop[-1] for stop in self.stops}
        if ends:
            ends.add(BROKEN)
        marks = np.zeros(vocab, np.uint8)
        for id, piece in enumerate(self._tokenizer.pieces[:vocab]):
            marks[id] = not ends.isdisjoint(piece)
        return marks

    def hit(self, tokens: Sequence[int] | NDArray[np.int32]) -> bool:
        """Whether the last of the tokens completes a stop string.

        Parameters
        ----------
        tokens : int, shape [length]
            What was drawn so far; only the end is looked at.
        """
        return self._before(_as_ids(tokens[-self.window:])) is not None

    def cut(self, prompt_ids: ArrayLike, tokens: ArrayLike) -> tuple[str, bool]:
        """The text before the first stop string, and whether there is one.

        Parameters
        ----------
        prompt_ids : int, shape [T]
        tokens : int, shape [length]
            Everything drawn for the sample.
        """
        ids = _as_ids(tokens)
        text = self._tokenizer.decode_completion(prompt_ids, ids)
        before = self._before(ids)
        if before is None:
            return text, False
        # Counted from the end: at the start the prompt may have taken a blank or a byte.
        after = len(self._inside(ids, True)) - len(before)
        return text[: max(0, len(text) - after)], True

    def _before(self, ids: list[int]) -> str | None:
        """Text before the first stop string, without special tokens; None if there is none."""
        text = self._inside(ids, False)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if not places:
            return None
        before = text[: min(places)]
        for id in self._tokenizer.special_ids.intersection(ids):
            before = before.replace(self._tokenizer.pieces[id], "")
        return before

    def _inside(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of ids as it is inside a text."""
        anchored = [*self._tokenizer.anchor, *ids]
        return self._tokenizer.decode(anchored, skip_special_tokens)[self._tokenizer.anchored:]


@contextlib.contextmanager
def _sentence(what: str) -> Iterator[None]:
    """Errors and panics of the tokenizers library as one ValueError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise ValueError(f"{what}: {error}") from error


def _as_ids(ids: ArrayLike) -> list[int]:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"token ids must be one row of integers, got shape {array.shape} of {array.dtype}"
        )
    if array.size and array.min() < 0:
        raise ValueError(f"token ids must be >= 0, got {array.min()}")
    return array.tolist()


def _read_json(path: Path) -> dict[str, Any]:
    """A file's object; nothing if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _content(token: Any) -> str:
    """A special token is written as its text, or as an object with a field content."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _templates(folder: Path, field: Any) -> dict[str, str]:
    """Chat templates by name; files win over the field of tokenizer_config.json."""
    if isinstance(field, str):
        templates = {"default": field}
    elif isinstance(field, list):  # [{"name": ..., "template": ...}]
        templates = {str(e["name"]): str(e["template"]) for e in field
                     if isinstance(e, dict) and {"name", "template"} <= e.keys()}
    elif isinstance(field, dict):
        templates = {str(name): str(template) for name, template in field.items()}
    else:
        templates = {}
    files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    for name, path in files.items():
        templates[name] = path.read_text(encoding="utf-8")
    return templates
