"""Qwen3 (dense): Qwen2 without biases, with a norm of q and k.

Source: transformers 5.23 `models/qwen3`; Yang et al., arXiv 2505.09388.
"""

from . import Arch
from ._common import NAMES, silu, sizes
from ._fields import Fields
from ._rope import parameters, table
from .qwen2 import qwen_windows

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch"]

ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification")
MODEL_TYPES = ("qwen3",)
PAD_TOKEN_ID = None


def arch(fields: Fields) -> Arch:
    common = sizes(fields, head_dim=128, max_positions=32768, tied=False)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    bias = fields.flag("attention_bias", False)
    return Arch(
        **common,
        activation=silu(fields),
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        attn_scale=common["head_dim"] ** -0.5,
        window=qwen_windows(fields, common["layers"]),
        rope=(0,) * common["layers"],
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
