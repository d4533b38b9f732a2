"""A model that is in no folder yet: a configuration, random weights, perhaps a tokenizer.

Stands in for a `Checkpoint` where a model is made from scratch. Weights begin as transformers
begins them: normal with standard deviation `initializer_range`, norms that change nothing,
biases zero, and a zero row for the padding token.

Source: `PreTrainedModel._init_weights` of transformers 5.23, and Gemma's variants of it.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import end_tokens, read_json, side_files
from .models import Arch, arch_of, config_of_text, pad_token_id
from .models._fields import show
from .samples import seed_of

__all__ = ["Fresh"]

INITIALIZER_RANGE = 0.02  # where the configuration has none


class Fresh:
    """What `LM` needs to know of a model that is made from scratch.

    Parameters
    ----------
    config : dict, or path of a config.json
    rng : None, int, SeedSequence or Generator
        The weights are a function of it and of the configuration.
    tokenizer : path of a tokenizer.json or of its folder, optional
    dtype : str
        Goes into the configuration.

    Attributes
    ----------
    config, arch, name, eos_token_ids, side_files
        As of `Checkpoint`; the name is that of the architecture.
    fingerprint, self_evaluation, routes : None
        The weights are not known before they are drawn; nothing was trained, nothing measured.

    Raises
    ------
    OSError
        config or tokenizer is a path where no such file is.
    TypeError, ValueError
        config is no configuration that bonaware knows.
    """

    fingerprint = self_evaluation = routes = None

    def __init__(self, config: Mapping[str, Any] | str | os.PathLike[str], rng: Any,
                 tokenizer: str | os.PathLike[str] | None, dtype: str) -> None:
        where = "config"
        if isinstance(config, str | os.PathLike):
            where = os.fspath(config)
            config = read_json(Path(config))
        arch_of(dict(config) if isinstance(config, Mapping) else config, where)
        self.config = copy.deepcopy(config_of_text(dict(config))) | {"dtype": dtype}
        self.config.pop("torch_dtype", None)
        self.arch: Arch = arch_of(self.config, where)
        self.name: str = self.config["architectures"][0]
        self.eos_token_ids = end_tokens(self.config, self.arch, where)
        self.side_files = [] if tokenizer is None else _tokenizer_files(Path(tokenizer))
        self._scale = self._initializer_range(where)
        self._padding = self._padding_row(where)
        self._seed = seed_of(rng)

    def _initializer_range(self, where: str) -> np.float32:
        value = self.config.get("initializer_range", INITIALIZER_RANGE)
        if type(value) not in (int, float) or not 0 < value <= 1e3:
            raise ValueError(f"{where}: initializer_range must be a number in (0, 1000], found "
                             f"{show(value)}")
        return np.float32(value)

    def _padding_row(self, where: str) -> int | None:
        row = pad_token_id(self.config)
        if row is not None and (type(row) is not int or not -1 <= row < self.arch.vocab):
            raise ValueError(f"{where}: pad_token_id must be an id in [0, {self.arch.vocab}), -1 "
                             f"or null, found {show(row)}")
        return row

    def weights(self) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
        """Slot, layer (0: of the model) and values of every tensor."""
        rng = np.random.default_rng(self._seed)
        for slot, layer, words in self.arch.slots():
            shape = self.arch.shape(words)
            if slot.endswith("norm"):
                values = np.full(shape, 1 - self.arch.norm_offset, np.float32)
            elif slot.endswith("bias"):
                values = np.zeros(shape, np.float32)
            else:
                values = rng.standard_normal(shape, np.float32) * self._scale
            if slot == "embed" and self._padding is not None:
                values[self._padding] = 0
            yield slot, layer or 0, values


def _tokenizer_files(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    if (not path.is_dir() and path.name != "tokenizer.json") or not (
        folder / "tokenizer.json"
    ).is_file():
        raise FileNotFoundError(
            f"tokenizer must be the path of a tokenizer.json or of its folder, found {path}")
    return [file for file in side_files(folder) if file.name != "generation_config.json"]
