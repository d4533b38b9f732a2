"""Llama 2 and 3: the plain decoder, from which the other families differ by a few fields.

Source: transformers 5.23 `models/llama`; Touvron et al., arXiv 2307.09288; Llama 3,
arXiv 2407.21783.
"""

from . import Arch
from ._common import NAMES, silu, sizes
from ._fields import Fields
from ._rope import parameters, table

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch"]

ARCHITECTURES = ("LlamaForCausalLM", "LlamaForSequenceClassification")
MODEL_TYPES = ("llama",)
PAD_TOKEN_ID = None


def arch(fields: Fields) -> Arch:
    common = sizes(fields, kv_heads=None, max_positions=2048, tied=False)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    bias = fields.flag("attention_bias", False)
    return Arch(
        **common,
        activation=silu(fields),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        attn_scale=common["head_dim"] ** -0.5,
        window=(0,) * common["layers"],
        rope=(0,) * common["layers"],
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
