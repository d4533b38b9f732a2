"""Gemma 3, text: Gemma 2 with a norm of q and k, no soft cap of scores, and two rotary tables.

Layers with a window turn by the local table, the others (one in six) by the global one.

`Gemma3ForConditionalGeneration` adds an image encoder. A text without images goes through its
text part alone, which is the same model: its fields stand in `text_config`, its tensors are
found by `text_name`, and those of the image part are left out.

Source: transformers 5.23 `models/gemma3`; Gemma team, arXiv 2503.19786, section 2.
"""

from typing import Any

from . import Arch
from ._common import (
    FULL,
    MAX_LAYERS,
    NAMES_WITH_POST_NORMS,
    SLIDING,
    gelu_tanh,
    layer_types,
    sizes,
    sliding_window,
    windows,
)
from ._fields import Fields
from ._rope import Table, table, with_theta
from .gemma2 import softcap

__all__ = [
    "ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch", "text_config", "text_name",
]

WITH_IMAGES = "Gemma3ForConditionalGeneration"
ARCHITECTURES = ("Gemma3ForCausalLM", WITH_IMAGES, "Gemma3TextForSequenceClassification")
MODEL_TYPES = ("gemma3_text", "gemma3")
PAD_TOKEN_ID = 0
NAMES = NAMES_WITH_POST_NORMS

# Of Gemma3TextConfig: multimodal files leave out of text_config what has these values.
DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8,
}
THETA_GLOBAL, THETA_LOCAL = 1_000_000.0, 10_000.0

_IMAGE_FIELDS = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
                 "image_token_index")
# Stand beside text_config or inside.
_OF_BOTH = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
_IMAGE_TENSORS = ("vision_tower.", "multi_modal_projector.",
                  "model.vision_tower.", "model.multi_modal_projector.")
_TEXT_TENSORS = {"language_model.model.": "model.", "model.language_model.": "model.",
                 "language_model.lm_head.": "lm_head."}


def text_name(name: str) -> str | None:
    """The tensor's name in a text model; None for a tensor of the image part.

    Examples
    --------
    >>> text_name("language_model.model.norm.weight"), text_name("vision_tower.x")
    ('model.norm.weight', None)
    """
    if name.startswith(_IMAGE_TENSORS):
        return None
    for prefix, plain in _TEXT_TENSORS.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the text part alone; of a text model, the same."""
    if config["architectures"][0] != WITH_IMAGES:
        return dict(config)
    inherited = {name: config[name] for name in _OF_BOTH if name in config}
    return {**inherited, **config["text_config"], "architectures": [ARCHITECTURES[0]],
            "model_type": MODEL_TYPES[0]}


def _text_fields(fields: Fields) -> Fields:
    """The fields of the text part: all of them in a text model."""
    if fields.values["architectures"][0] != WITH_IMAGES:
        return fields
    text = fields.part("text_config")
    if text is None:
        raise fields.refuse("text_config", "an object with the fields of the text part")
    for name in _IMAGE_FIELDS:
        fields.raw(name)
    if fields.flag("tie_word_embeddings", True) != text.flag("tie_word_embeddings", True):
        raise fields.refuse("tie_word_embeddings", "the same as in text_config")
    return text


def _tables(fields: Fields, head_dim: int, max_positions: int) -> tuple[Table, Table]:
    """Global and local table.

    transformers 5 has a dict for each in `rope_parameters`; 4 has `rope_theta` and
    `rope_scaling` for the global one and `rope_local_base_freq` for the other.
    """
    local_theta = fields.number("rope_local_base_freq", THETA_LOCAL)
    theta = fields.number("rope_theta", THETA_GLOBAL)
    both = fields.part("rope_parameters")
    if both is None:
        scaling = fields.part("rope_scaling") or Fields({}, fields.where)
        full, local = with_theta(scaling, theta), with_theta(Fields({}, fields.where), local_theta)
    else:
        if fields.raw("rope_scaling") is not None:
            raise fields.refuse("rope_scaling", "absent where there are rope_parameters")
        full, local = (both.part(kind) or Fields({}, both.where) for kind in (FULL, SLIDING))
        both.finish()
        full, local = with_theta(full, theta), with_theta(local, local_theta)
    return table(full, head_dim, max_positions), table(local, head_dim, max_positions)


def _windows(fields: Fields, layers: int) -> tuple[int, ...]:
    pattern = fields.size("sliding_window_pattern", 6, limit=MAX_LAYERS)
    fields.raw("_sliding_window_pattern")  # written beside layer_types, never read
    default = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    return windows(fields, layer_types(fields, layers, default), sliding_window(fields))


def arch(fields: Fields) -> Arch:
    text = _text_fields(fields)
    common = sizes(text, kv_heads=4, head_dim=256, max_positions=131072, tied=True,
                   defaults=DEFAULTS)
    full, local = _tables(text, common["head_dim"], common["max_positions"])
    window = _windows(text, common["layers"])
    bias = text.flag("attention_bias", False)
    if text.raw("attn_logit_softcapping") is not None:
        raise text.refuse("attn_logit_softcapping", "null: Gemma 3 does not cap scores")
    result = Arch(
        **common,
        activation=gelu_tanh(text),
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        qkv_bias=bias,
        o_bias=bias,
        embed_scale=common["hidden"] ** 0.5,
        attn_scale=text.number("query_pre_attn_scalar", 256) ** -0.5,
        final_softcap=softcap(text, "final_logit_softcapping", None),
        window=window,
        rope=tuple(int(w > 0) for w in window),
        rope_freq=(full[0], local[0]),
        rope_scale=(full[1], local[1]),
    )
    text.finish()
    return result
