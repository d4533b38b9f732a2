"""Qwen2 and 2.5: Llama with biases on q, k and v, and windows in the upper layers if asked for.

Source: transformers 5.23 `models/qwen2`; Yang et al., arXiv 2407.10671. `sliding_window` counts
only with `use_sliding_window`; then layers from `max_window_layers` on have it, unless
`layer_types` says otherwise.
"""

from . import Arch
from ._common import (
    FULL,
    MAX_LAYERS,
    NAMES,
    SLIDING,
    layer_types,
    silu,
    sizes,
    sliding_window,
    windows,
)
from ._fields import Fields
from ._rope import parameters, table

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch", "qwen_windows"]

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification")
MODEL_TYPES = ("qwen2",)
PAD_TOKEN_ID = None


def qwen_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """The windows of Qwen2 and Qwen3."""
    window = sliding_window(fields)
    if not fields.flag("use_sliding_window", False):
        window = None
    first = fields.size("max_window_layers", 28, limit=MAX_LAYERS, lowest=0)
    default = [SLIDING if window is not None and i >= first else FULL for i in range(layers)]
    return windows(fields, layer_types(fields, layers, default), window)


def arch(fields: Fields) -> Arch:
    common = sizes(fields, max_positions=32768, tied=False)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    return Arch(
        **common,
        activation=silu(fields),
        qkv_bias=True,
        attn_scale=common["head_dim"] ** -0.5,
        window=qwen_windows(fields, common["layers"]),
        rope=(0,) * common["layers"],
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
