"""Opens a Hugging Face folder: config.json, generation_config.json and safetensors.

A checkpoint is checked whole before a byte of weights is used: every tensor the architecture
needs must be there with its shape, and none may be left over. Weights stay in the mapped files;
nothing is copied here. Knows no engine and no tokenizer.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._export import INDEX, SINGLE, fingerprint
from .models import Arch, arch_of, family_of
from .models._fields import show

if TYPE_CHECKING:
    from ._engine import Weights

__all__ = ["SELF_EVALUATION", "Checkpoint", "end_tokens", "read_json", "side_files"]

MAX_JSON = 100_000_000  # bytes; published indexes and tokenizers are below 40 MB
MAX_FILE_NAME = 255  # bytes in every file system of Linux
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What may belong to a model beside its weights and config.json.
SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates",
)
# What the model was trained to be asked behind a sample, see `bonaware._question.Question`.
SELF_EVALUATION = "self_evaluation.json"
LISTED = 5  # names shown when many tensors are left over


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not UTF-8, not JSON (with the line), not an object, too large or too deep, or has
        a key twice or a number that is not finite.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON:
            raise ValueError(f"{path}: must have at most {MAX_JSON} bytes, found {size}")
        data = file.read(size)
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8, but byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: must be JSON, but line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: must be JSON that is less deeply nested") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, found {show(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"must have no key twice in an object, found {show(name)}")
            seen.add(name)
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"must have finite numbers, found {text}")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _no_constant(show(text))


def side_files(folder: Path) -> list[Path]:
    """What a folder has beside the weights and config.json: tokenizer, generation settings."""
    return [folder / name for name in SIDE_FILES if (folder / name).exists()]


def end_tokens(config: dict[str, Any], arch: Arch, where: Path | str) -> tuple[int, ...]:
    """The ids in `eos_token_id`, an id or a list of ids; may be none.

    Raises
    ------
    ValueError
        They are something else, or outside the vocabulary.
    """
    value = config.get("eos_token_id")
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if any(type(i) is not int or not 0 <= i < arch.vocab for i in ids):
        raise ValueError(f"{where}: eos_token_id must be an id or a list of ids in "
                         f"[0, {arch.vocab}), found {show(value)}")
    return tuple(dict.fromkeys(ids))


class Checkpoint:
    """A folder with a model.

    Parameters
    ----------
    path : str or path-like
        A folder with config.json and model.safetensors, or several safetensors files and
        model.safetensors.index.json.

    Attributes
    ----------
    path : Path
    name : str, of the folder.
    config : dict, the content of config.json.
    arch : Arch, what it means (see `bonaware.models`).
    eos_token_ids : tuple of int, from generation_config.json, else config.json; may be empty.
    names : list of str, the tensors' names, sorted.
    dtype : "float32", "float16" or "bfloat16": what config.json says, else what the weights
        have; "float32" where they differ among themselves.
    self_evaluation : dict or None, the content of self_evaluation.json.
    side_files : list of Path, what else there is beside weights and config.json.
    routes : None, as which kernels are best is measured when it is loaded.

    Raises
    ------
    OSError
        The folder or a file that it needs is missing or cannot be read.
    ValueError
        A file's content is wrong; the message has its name, what is required and what is found.
    """

    routes = None

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_dir():
            kind = NotADirectoryError if self.path.exists() else FileNotFoundError
            raise kind(f"need a folder with config.json and *.safetensors, found no folder {path}")
        self.name = self.path.name
        self.side_files = side_files(self.path)
        where = self._file("config.json")
        self.config = read_json(where)
        self.arch: Arch = arch_of(self.config, str(where))
        self._family = family_of(self.config, str(where))
        self.eos_token_ids = self._eos_token_ids()
        self.self_evaluation = self._self_evaluation()
        self._files: dict[str, Weights] = self._open()
        self.names = sorted(self._files)
        self._plain = self._plain_names()
        self.dtype = self._dtype()

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {len(self.names)} tensors, {self.dtype}>"

    # -- files -------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        """A file that must be there."""
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"need {name} in the folder {self.path}, found no such file")
        return path

    def _open(self) -> "dict[str, Weights]":
        """Tensor name -> the file that holds it."""
        from ._engine import Weights

        if (self.path / SINGLE).is_file():
            weights = Weights(str(self.path / SINGLE))
            return dict.fromkeys(weights.names(), weights)
        if not (self.path / INDEX).is_file():
            raise FileNotFoundError(f"need {SINGLE} or {INDEX} in the folder {self.path}, found "
                                    f"{self._other_weights()}")
        shards: dict[str, Weights] = {}
        held: dict[str, frozenset[str]] = {}
        result = {}
        for name, shard in self._weight_map().items():
            if shard not in shards:
                shards[shard] = Weights(str(self._file(shard)))
                held[shard] = frozenset(shards[shard].names())
            if name not in held[shard]:
                raise ValueError(f"{self.path / INDEX}: says that {shard} holds tensor "
                                 f"{show(name)}, but it does not")
            result[name] = shards[shard]
        return result

    def _weight_map(self) -> dict[str, str]:
        path = self.path / INDEX
        table = read_json(path).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ValueError(f"{path}: weight_map must be an object that says for each tensor "
                             f"which file holds it, found {show(table)}")
        for name, shard in table.items():
            # A plain name: what lies outside the folder is none of the checkpoint's business.
            if not isinstance(shard, str) or not shard.endswith(".safetensors") or (
                len(shard) > MAX_FILE_NAME or any(c in shard for c in "/\\\0")
            ):
                raise ValueError(f"{path}: the file of tensor {show(name)} must be the name of a "
                                 f".safetensors file in the same folder, found {show(shard)}")
        return table

    def _other_weights(self) -> str:
        """What the folder has instead, in words."""
        endings = (".bin", ".pt", ".pth", ".gguf", ".safetensors")
        others = sorted(path.name for path in self.path.iterdir() if path.suffix in endings)
        if not others:
            return "no weights"
        return f"{others[0]} (convert it with transformers: save_pretrained writes safetensors)"

    # -- settings ----------------------------------------------------------------------------

    def _eos_token_ids(self) -> tuple[int, ...]:
        path = self.path / "generation_config.json"
        settings = read_json(path) if path.is_file() else {}
        if settings.get("eos_token_id") is None:
            path = self.path / "config.json"
            settings = {**(self.config.get("text_config") or {}), **self.config}
        return end_tokens(settings, self.arch, path)

    def _self_evaluation(self) -> dict[str, Any] | None:
        path = self.path / SELF_EVALUATION
        if not path.is_file():
            return None
        settings = read_json(path)
        kinds = {"question": list, "target": int, "other": int, "ends": list}
        if {name: type(value) for name, value in settings.items()} != kinds:
            raise ValueError(f"{path}: must hold question and ends (lists of ids), target and "
                             f"other (ids), found {show(settings)}")
        ids = [*settings["question"], *settings["ends"], settings["target"], settings["other"]]
        if any(type(i) is not int or not 0 <= i < self.arch.vocab for i in ids):
            raise ValueError(f"{path}: must hold ids in [0, {self.arch.vocab}), found "
                             f"{show(settings)}")
        if not settings["question"] or settings["target"] == settings["other"]:
            raise ValueError(f"{path}: must hold a question of at least one token, and a target "
                             f"that is not other, found {show(settings)}")
        return settings

    def _dtype(self) -> str:
        given = self.config.get("dtype") or self.config.get("torch_dtype")
        if given is None:
            found = {self.info(name)[0] for name in self.slot_names().values()
                     if name in self._files}
            return FLOATS.get(found.pop(), "float32") if len(found) == 1 else "float32"
        if given not in FLOATS.values():
            raise ValueError(f"{self.path / 'config.json'}: dtype must be one of "
                             f"{', '.join(FLOATS.values())}, found {show(given)}")
        return str(given)

    # -- tensors -----------------------------------------------------------------------------

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Stored type ("F32", "BF16", ...) and shape of a tensor."""
        return self._weights(name).info(name)

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor as a read-only view of the mapped file; bfloat16 as its bits, uint16."""
        return self._weights(name).array(name)

    def _weights(self, name: str) -> "Weights":
        try:
            return self._files[name]
        except KeyError:
            raise KeyError(f"no tensor {show(name)} in {self.path}") from None

    def _plain_names(self) -> dict[str, str]:
        """Name in a text model -> name in the file; tensors of other parts left out."""
        text_name = getattr(self._family, "text_name", None)
        if text_name is None:
            return dict(zip(self.names, self.names, strict=True))
        plain: dict[str, str] = {}
        for name in self.names:
            short = text_name(name)
            if short in plain:
                raise ValueError(f"{self.path}: must have one tensor {short}, found "
                                 f"{plain[short]} and {name}")
            if short is not None:
                plain[short] = name
        return plain

    def slot_names(self) -> dict[str, str]:
        """Where each tensor that the model needs is found.

        Returns
        -------
        dict
            "embed", "head", "final_norm" and "layers.{i}.{slot}" -> name in the file. A name
            that the checkpoint lacks is given as the family spells it.
        """
        names = self._family.NAMES
        result = {}
        for slot, layer, _ in self.arch.slots():
            name = names[slot].format(i=layer)
            key = slot if layer is None else f"layers.{layer}.{slot}"
            result[key] = self._plain.get(name, name)
        return result

    def tensors(self) -> "dict[str, tuple[Weights, str]]":
        """Checks every tensor and says where it is.

        Returns
        -------
        dict
            Slot (as in `slot_names`) -> file and name in the file.

        Raises
        ------
        ValueError
            A tensor is missing, has another shape or is not float; one is left over that the
            architecture does not know; or `lm_head` differs from the embedding in a checkpoint
            that says they are one.
        """
        slots, result = self.slot_names(), {}
        for (key, name), (_, _, words) in zip(slots.items(), self.arch.slots(), strict=True):
            self._check(name, words)
            result[key] = self._files[name], name
        self._check_left_over(set(slots.values()))
        return result

    def weights(self) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Slot, layer (0: of the model) and array of every tensor, once all are checked.

        Raises
        ------
        ValueError
            As `tensors`.
        """
        for key, (weights, name) in self.tensors().items():
            *layer, slot = key.removeprefix("layers.").split(".")
            yield slot, int(layer[0]) if layer else 0, weights.array(name)
            weights.release(name)

    def _check(self, name: str, words: Sequence[str]) -> None:
        must = self.arch.shape(tuple(words))
        sentence = f"tensor {name} must have shape {list(must)} ({', '.join(words)})"
        if name not in self._files:
            raise ValueError(f"{sentence}, found no such tensor in {self.path}")
        dtype, shape = self.info(name)
        if shape != must:
            raise ValueError(f"{sentence}, found {list(shape)} in {self._where(name)}")
        if dtype not in FLOATS:
            raise ValueError(f"tensor {name} must be one of {', '.join(FLOATS)}, found {dtype} "
                             f"in {self._where(name)}")

    def _check_left_over(self, used: set[str]) -> None:
        left = [name for name in self._plain.values()
                if name not in used and not name.endswith("rotary_emb.inv_freq")]
        if self.arch.tied:
            left = [name for name in left if not self._is_tied_head(name)]
        if left:
            more = f" and {len(left) - LISTED} more" if len(left) > LISTED else ""
            raise ValueError(
                f"every tensor must be known to {self.config['architectures'][0]}, but "
                f"{self._where(left[0])} has {', '.join(map(show, left[:LISTED]))}{more}"
            )

    def _is_tied_head(self, name: str) -> bool:
        """Whether it is the vocabulary projection, which must then equal the embedding."""
        if name != self._plain.get(self._family.NAMES["head"]):
            return False
        embed = self._plain[self._family.NAMES["embed"]]
        if self.info(name) != self.info(embed) or not np.array_equal(
            _bits(self.tensor(name)), _bits(self.tensor(embed))
        ):
            raise ValueError(f"tensor {name} must equal {embed}, as tie_word_embeddings is true, "
                             f"but differs from it in {self._where(name)}")
        return True

    def _where(self, name: str) -> str:
        return self._files[name].path

    # -- identity ----------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """sha256 of the configuration and of all tensors; see `bonaware._export.fingerprint`.
        Not of times or paths."""
        return fingerprint(self.config, (
            (name, *self.info(name), _bits(self.tensor(name))) for name in self.names))


def _bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)
