"""Gemma: Llama with a tanh GELU, norms by 1 + weight, and scaled embeddings.

Source: transformers 5.23 `models/gemma`; Gemma team, arXiv 2403.08295, section 2.
"""

from . import Arch
from ._common import NAMES, gelu_tanh, sizes
from ._fields import Fields
from ._rope import parameters, table

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch"]

ARCHITECTURES = ("GemmaForCausalLM", "GemmaForSequenceClassification")
MODEL_TYPES = ("gemma",)
PAD_TOKEN_ID = 0


def arch(fields: Fields) -> Arch:
    common = sizes(fields, head_dim=256, max_positions=8192, tied=True)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    bias = fields.flag("attention_bias", False)
    return Arch(
        **common,
        activation=gelu_tanh(fields),
        norm_offset=1.0,
        qkv_bias=bias,
        o_bias=bias,
        embed_scale=common["hidden"] ** 0.5,
        attn_scale=common["head_dim"] ** -0.5,
        window=(0,) * common["layers"],
        rope=(0,) * common["layers"],
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
