"""What the families share: sizes, layer types, and the names of a Llama-like checkpoint."""

from typing import Any

from ._fields import REQUIRED, Fields
from ._rope import MAX_POSITIONS

__all__ = [
    "FULL", "MAX_LAYERS", "NAMES", "NAMES_WITH_POST_NORMS", "SLIDING",
    "gelu_tanh", "layer_types", "silu", "sizes", "sliding_window", "windows",
]

NAMES = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "score": "score.weight",
    "final_norm": "model.norm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "o_bias": "model.layers.{i}.self_attn.o_proj.bias",
    "gate_bias": "model.layers.{i}.mlp.gate_proj.bias",
    "up_bias": "model.layers.{i}.mlp.up_proj.bias",
    "down_bias": "model.layers.{i}.mlp.down_proj.bias",
    "q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{i}.self_attn.k_norm.weight",
}
# Gemma 2 and 3 have a norm before and one behind attention and MLP.
NAMES_WITH_POST_NORMS = NAMES | {
    "attn_post_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm.weight",
}

# Bounds far above any model, so that nothing is allocated for a number that is a mistake.
MAX_LAYERS = 4096
MAX_HEADS = 65536
MAX_WIDTH = 2**24
MAX_LABELS = 65536

FULL, SLIDING = "full_attention", "sliding_attention"


def sizes(fields: Fields, *, kv_heads: Any = REQUIRED, head_dim: Any = None,
          max_positions: int, tied: bool, defaults: dict[str, int] | None = None) -> dict[str, Any]:
    """The sizes of a decoder as keywords of Arch; parameters are what absent fields mean.

    `kv_heads` None: as many as heads; `head_dim` None: hidden / heads.
    """
    given = defaults or {}

    def size(name: str, limit: int) -> int:
        return fields.size(name, given.get(name, REQUIRED), limit=limit)

    hidden, heads = size("hidden_size", MAX_WIDTH), size("num_attention_heads", MAX_HEADS)
    kv_heads = fields.size("num_key_value_heads", kv_heads, limit=MAX_HEADS) or heads
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.size("head_dim", head_dim, limit=MAX_WIDTH)
    if head_dim is None:
        if hidden % heads:
            raise fields.refuse("hidden_size", f"a multiple of num_attention_heads ({heads})")
        head_dim = hidden // heads
    if head_dim % 2:
        raise fields.refuse("head_dim", f"even (it is {head_dim})")
    return {
        "vocab": size("vocab_size", MAX_WIDTH),
        "hidden": hidden,
        "layers": size("num_hidden_layers", MAX_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": size("intermediate_size", MAX_WIDTH),
        "max_positions": fields.size("max_position_embeddings", max_positions,
                                     limit=MAX_POSITIONS),
        "labels": _labels(fields),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied": fields.flag("tie_word_embeddings", tied),
    }


def _labels(fields: Fields) -> int:
    """Outputs of the score head; 0 for a model that predicts tokens.

    As many as `id2label` has entries, else `num_labels`, else 2, as in transformers.
    """
    names = fields.values.get("architectures")
    if not names or not names[0].endswith("ForSequenceClassification"):
        return 0
    given: int | None = fields.size("num_labels", None, limit=MAX_LABELS)
    named = fields.part("id2label")
    if named is None:
        return given or 2
    count = len(named.values)
    if not 1 <= count <= MAX_LABELS:
        raise fields.refuse("id2label", f"an object with 1 to {MAX_LABELS} entries")
    if given not in (None, count):
        raise fields.refuse("num_labels", f"the number of entries of id2label ({count})")
    return count


def silu(fields: Fields) -> str:
    fields.word("hidden_act", "silu", ["silu"])
    return "silu"


def gelu_tanh(fields: Fields) -> str:
    """Gemma's activation. Early files say "gelu" in hidden_act and mean the same."""
    both = ["gelu_pytorch_tanh", "gelu"]
    fields.word("hidden_act", "gelu_pytorch_tanh", both)
    if fields.raw("hidden_activation") is not None:
        fields.word("hidden_activation", REQUIRED, both[:1])
    return "gelu_tanh"


def layer_types(fields: Fields, layers: int, default: list[str]) -> list[str]:
    """Per layer "full_attention" or "sliding_attention"."""
    types = fields.raw("layer_types")
    if types is None:
        return default
    if not isinstance(types, list) or len(types) != layers or any(
        kind not in (FULL, SLIDING) for kind in types
    ):
        raise fields.refuse("layer_types", f"a list of {layers} times {FULL} or {SLIDING}")
    return types


def sliding_window(fields: Fields) -> int | None:
    """The window in tokens: 4096 where the field is absent, none where it is null."""
    if fields.raw("sliding_window", 4096) is None:
        return None
    size: int = fields.size("sliding_window", 4096, limit=MAX_POSITIONS)
    return size


def windows(fields: Fields, types: list[str], window: int | None) -> tuple[int, ...]:
    """Per layer the window in tokens; 0 where all earlier tokens are seen."""
    if window is None and SLIDING in types:
        raise fields.refuse("sliding_window", f"a number of tokens, as layer_types has {SLIDING}")
    return tuple(window or 0 if kind == SLIDING else 0 for kind in types)
