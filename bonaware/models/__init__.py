"""Architectures as data: config.json -> Arch, and the names of the tensors.

One file is one family of architectures. It reads the fields of its configuration, says what
each means for the forward pass, and lists its tensors' names; it computes nothing but the
rotary frequencies. The engine sees an `Arch` and does not know the names of models.

To add an architecture, add `bonaware/models/NAME.py` with

    ARCHITECTURES   what it answers to in "architectures", e.g. ("NameForCausalLM",)
    MODEL_TYPES     the "model_type" of such a config.json
    NAMES           slot -> name of the tensor, with {i} for the layer
    PAD_TOKEN_ID    what an absent "pad_token_id" means
    arch(fields)    Fields -> Arch

where NAME is the architecture without "ForCausalLM", in lower case. Nothing is guessed: a field
that is neither read by the family nor known to leave the mathematics alone is an error.

`NameForSequenceClassification` is the same decoder with a score head in place of the vocabulary
projection: Arch.labels numbers per text, behind its last token. Reward models are such.
"""

import importlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._lookup import available
from ._fields import Fields, show

__all__ = ["Arch", "arch_of", "config_of_text", "family_of", "pad_token_id"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arch:
    """What the forward pass depends on; csrc/arch.h has the same fields with the same meaning.

    `window` and `rope` have one entry per layer: window 0 sees all earlier tokens, w the last w
    with the token itself; rope is which of the tables in `rope_freq` (float32 [head_dim/2],
    radians per token) the layer turns by.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    max_positions: int
    labels: int = 0

    activation: Literal["silu", "gelu_tanh"]
    norm_eps: float
    norm_offset: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool

    embed_scale: float = 1.0
    attn_scale: float
    attn_softcap: float = 0.0
    final_softcap: float = 0.0

    window: tuple[int, ...]
    rope: tuple[int, ...]
    rope_freq: tuple[NDArray[np.float32], ...]
    rope_scale: tuple[float, ...]

    @property
    def ropes(self) -> int:
        """Number of rotary tables, 1 or 2."""
        return len(self.rope_freq)

    def slots(self) -> Iterator[tuple[str, int | None, tuple[str, ...]]]:
        """Every tensor the model needs: slot, layer (None: of the model), shape in words.

        Examples
        --------
        >>> arch = arch_of({"architectures": ["LlamaForCausalLM"], "vocab_size": 32,
        ...                 "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        ...                 "num_attention_heads": 2})
        >>> list(arch.slots())[3]
        ('q', 0, ('heads*head_dim', 'hidden'))
        >>> arch.shape(('heads*head_dim', 'hidden'))
        (8, 8)
        """
        absent = "head" if self.tied or self.labels else None, None if self.labels else "score"
        for slot, words in _MODEL_SLOTS.items():
            if slot not in absent:
                yield slot, None, words
        for layer in range(self.layers):
            for condition, slots in _LAYER_SLOTS:
                if condition is None or getattr(self, condition):
                    for slot, words in slots.items():
                        yield slot, layer, words

    def shape(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """The numbers behind a shape in words."""
        return tuple(math.prod(getattr(self, name) for name in word.split("*")) for word in words)


_QUERY, _KEY = "heads*head_dim", "kv_heads*head_dim"
_MODEL_SLOTS = {
    "embed": ("vocab", "hidden"), "head": ("vocab", "hidden"), "score": ("labels", "hidden"),
    "final_norm": ("hidden",),
}
# Which field of Arch a group depends on; None: every layer has it.
_LAYER_SLOTS: tuple[tuple[str | None, dict[str, tuple[str, ...]]], ...] = (
    (None, {
        "q": (_QUERY, "hidden"), "k": (_KEY, "hidden"), "v": (_KEY, "hidden"),
        "o": ("hidden", _QUERY), "gate": ("intermediate", "hidden"),
        "up": ("intermediate", "hidden"), "down": ("hidden", "intermediate"),
        "attn_norm": ("hidden",), "mlp_norm": ("hidden",),
    }),
    ("qkv_bias", {"q_bias": (_QUERY,), "k_bias": (_KEY,), "v_bias": (_KEY,)}),
    ("o_bias", {"o_bias": ("hidden",)}),
    ("mlp_bias", {
        "gate_bias": ("intermediate",), "up_bias": ("intermediate",), "down_bias": ("hidden",),
    }),
    ("qk_norm", {"q_norm": ("head_dim",), "k_norm": ("head_dim",)}),
    ("post_norms", {"attn_post_norm": ("hidden",), "mlp_post_norm": ("hidden",)}),
)


def _architecture(config: dict[str, Any], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(
            f"{where}: architectures must be a list with the name of an architecture, "
            f"found {show(names)}"
        )
    return names[0]


def _families() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{name}") for name in available(__name__)]


def family_of(config: dict[str, Any], where: str = "config.json") -> ModuleType:
    """The module of this package that knows the first of the config's `architectures`.

    Raises
    ------
    ValueError
        There is none, or `model_type` contradicts it; the message lists those there are.
    """
    name = _architecture(config, where)
    stem = re.sub(r"(Text)?For(CausalLM|ConditionalGeneration|SequenceClassification)$", "",
                  name).lower()
    family = importlib.import_module(f"{__name__}.{stem}") if stem in available(__name__) else None
    if family is None or name not in family.ARCHITECTURES:
        known = ", ".join(name for module in _families() for name in module.ARCHITECTURES)
        raise ValueError(f"{where}: the architecture must be one of {known}, found {show(name)}")
    if (kind := config.get("model_type")) is not None and kind not in family.MODEL_TYPES:
        raise ValueError(
            f"{where}: model_type must be {' or '.join(family.MODEL_TYPES)} for {name}, "
            f"found {show(kind)}"
        )
    return family


def arch_of(config: dict[str, Any], where: str = "config.json") -> Arch:
    """The architecture that a Hugging Face configuration describes.

    Parameters
    ----------
    config : the content of config.json, as written by transformers 4 or 5.
    where : how messages call it.

    Raises
    ------
    TypeError
        config is not a dict.
    ValueError
        An unknown architecture, an unknown field, or a field with a value that the engine does
        not support; the message names the field, what it must be and what was found.

    Notes
    -----
    Absent fields have the defaults of the transformers 5.23 configuration classes. Sizes have
    none (but for Gemma 3, whose multimodal files leave them out): they must be given.
    """
    if not isinstance(config, dict):
        raise TypeError(f"config must be a dict, got {type(config).__name__}")
    family = family_of(config, where)
    fields = Fields(config, where)
    arch: Arch = family.arch(fields)
    fields.finish()
    return arch


def config_of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text model inside: of Gemma 3 with images, else the same.

    With `model_type`, which transformers wants to see.
    """
    family = family_of(config)
    inside = getattr(family, "text_config", dict)(config)
    return {**inside, "model_type": inside.get("model_type", family.MODEL_TYPES[0])}


def pad_token_id(config: dict[str, Any]) -> int | None:
    """The id that fills up a batch in transformers; None: there is none."""
    return config.get("pad_token_id", family_of(config).PAD_TOKEN_ID)
