"""Mistral: Llama whose layers all see a sliding window, or none.

Source: transformers 5.23 `models/mistral`; Jiang et al., arXiv 2310.06825, section 2. An absent
`sliding_window` means 4096 tokens, null means none.
"""

from . import Arch
from ._common import NAMES, silu, sizes, sliding_window
from ._fields import Fields
from ._rope import parameters, table

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "NAMES", "PAD_TOKEN_ID", "arch"]

ARCHITECTURES = ("MistralForCausalLM", "MistralForSequenceClassification")
MODEL_TYPES = ("mistral",)
PAD_TOKEN_ID = None


def arch(fields: Fields) -> Arch:
    common = sizes(fields, max_positions=4096 * 32, tied=False)
    freq, scale = table(parameters(fields), common["head_dim"], common["max_positions"])
    return Arch(
        **common,
        activation=silu(fields),
        attn_scale=common["head_dim"] ** -0.5,
        window=(sliding_window(fields) or 0,) * common["layers"],
        rope=(0,) * common["layers"],
        rope_freq=(freq,),
        rope_scale=(scale,),
    )
