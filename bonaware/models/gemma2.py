"""Gemma 2: Gemma with norms behind attention and MLP, soft caps, and every other layer windowed.

Source: transformers 5.23 `models/gemma2`; Gemma team, arXiv 2408.00118, section 2.
"""

from . import Arch
from ._common import (
    FULL,
    NAMES_WITH_POST_NORMS,
    SLIDING,
    gelu_tanh,
    layer_types,
    sizes,
    sliding_window,
    windows,
)
from ._fields import Fields
from ._rope import parameters, table

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch", "softcap"]

ARCHITECTURES = ("Gemma2ForCausalLM", "Gemma2ForSequenceClassification")
MODEL_TYPES = ("gemma2",)
PAD_TOKEN_ID = 0
NAMES = NAMES_WITH_POST_NORMS


def softcap(fields: Fields, name: str, default: float | None) -> float:
    """The cap in nats; 0 for none, which a file says as null."""
    return 0.0 if fields.raw(name, default) is None else fields.number(name, default)


def _window(fields: Fields) -> int | None:
    """`sliding_window_size`, in the first files, repeats `sliding_window`."""
    window = sliding_window(fields)
    if fields.raw("sliding_window_size", window) not in (None, window):
        raise fields.refuse("sliding_window_size", f"the same as sliding_window ({window})")
    return window


def arch(fields: Fields) -> Arch:
    common = sizes(fields, head_dim=256, max_positions=8192, tied=True)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    bias = fields.flag("attention_bias", False)
    layers = common["layers"]
    types = layer_types(fields, layers, [FULL if i % 2 else SLIDING for i in range(layers)])
    return Arch(
        **common,
        activation=gelu_tanh(fields),
        norm_offset=1.0,
        post_norms=True,
        qkv_bias=bias,
        o_bias=bias,
        embed_scale=common["hidden"] ** 0.5,
        attn_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=softcap(fields, "attn_logit_softcapping", 50.0),
        final_softcap=softcap(fields, "final_logit_softcapping", 30.0),
        window=windows(fields, types, _window(fields)),
        rope=(0,) * layers,
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
