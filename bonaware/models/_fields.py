"""Reads fields of a config.json one by one, and complains about those nobody has read.

Knows which fields leave the mathematics of a forward pass alone; knows no architecture.
"""

import reprlib
from collections.abc import Sequence, Set
from typing import Any

__all__ = ["REQUIRED", "Fields", "show"]

REQUIRED: Any = object()

# Fields of transformers' configurations that change nothing about the logits of a text: names,
# ids, defaults of generation and training, formats. Sources: PreTrainedConfig and
# GenerationConfig of transformers 4.57 and 5.23, and what published checkpoints carry.
_HARMLESS = """
    architectures model_type _name_or_path name_or_path _commit_hash transformers_version
    dtype torch_dtype use_cache initializer_range attention_dropout hidden_dropout_prob
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id
    decoder_start_token_id mask_token_id image_token_id
    output_hidden_states output_attentions return_dict torchscript use_bfloat16 tf_legacy_loss
    tie_encoder_decoder is_decoder chunk_size_feed_forward id2label label2id num_labels
    problem_type finetuning_task task_specific_params tokenizer_class prefix
    max_length min_length do_sample early_stopping num_beams temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens epsilon_cutoff eta_cutoff encoder_repetition_penalty
    num_beam_groups diversity_penalty num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_lookbehind target_lookbehind
    attn_implementation _attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled cache_implementation ignore_keys_at_rope_validation
    unsloth_fixed unsloth_version model_max_length
"""
HARMLESS = frozenset(_HARMLESS.split())

# Fields that change nothing at these values, in families that do not read them.
NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "rope_interleaved": False,
    "use_bidirectional_attention": False,
    "use_sliding_window": False,
}

_short = reprlib.Repr()
_short.maxstring = 100


def show(value: Any) -> str:
    """An untrusted value for a message: short, however long, deep or strange it is."""
    return _short.repr(value)


class Fields:
    """A dict of configuration fields; every reader checks kind and range and says what is wrong.

    `where` is how messages call the dict. A field that is absent has its default. One that is
    null has it too where the default is None (derived from others), and is an error elsewhere.
    `harmless` are names that nobody needs to read.
    """

    def __init__(self, values: dict[str, Any], where: str, harmless: Set[str] = HARMLESS):
        self.values = values
        self.where = where
        self.harmless = harmless
        self.seen: set[str] = set()

    def refuse(self, name: str, must: str) -> ValueError:
        """The error to raise: what the field must be, and what it is."""
        found = show(self.values[name]) if name in self.values else "no such field"
        return ValueError(f"{self.where}: {name} must be {must}, found {found}")

    def raw(self, name: str, default: Any = None) -> Any:
        """The value itself, of any kind."""
        self.seen.add(name)
        return self.values.get(name, default)

    def _get(self, name: str, default: Any, must: str) -> Any:
        value = self.raw(name, default)
        if value is REQUIRED or (value is None and default is not None):
            raise self.refuse(name, must)
        return value

    def size(self, name: str, default: Any = REQUIRED, *, limit: int, lowest: int = 1) -> Any:
        """An int from lowest to limit (None where absent or null and the default is None)."""
        must = f"an integer from {lowest} to {limit}"
        value = self._get(name, default, must)
        if value is None:
            return None
        if type(value) is not int or not lowest <= value <= limit:
            raise self.refuse(name, must)
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """A positive float (None where absent or null and the default is None)."""
        must = "a positive number within the range of float32"
        value = self._get(name, default, must)
        if value is None:
            return None
        if type(value) not in (int, float) or not 1e-37 <= value <= 1e38:
            raise self.refuse(name, must)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default, "true or false")
        if type(value) is not bool:
            raise self.refuse(name, "true or false")
        return value

    def word(self, name: str, default: Any, allowed: Sequence[str]) -> str:
        must = allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
        value = self._get(name, default, must)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(name, must)
        return value

    def part(self, name: str) -> "Fields | None":
        """An object inside this one, or None where absent or null."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(name, "an object or null")
        return Fields(value, f"{self.where}: {name}")

    def finish(self) -> None:
        """Every field must have been read, or be known to change nothing."""
        for name, value in self.values.items():
            if name in self.seen or name in self.harmless or value is None:
                continue
            if name == "auto_map":
                self._refuse_own_code(value)
            elif name not in NEUTRAL:
                raise ValueError(
                    f"{self.where}: the field {show(name)} is unknown, and it might change the "
                    f"mathematics of the model (found {show(value)})"
                )
            elif value != NEUTRAL[name] or isinstance(value, bool) != isinstance(
                NEUTRAL[name], bool
            ):
                raise self.refuse(name, f"{NEUTRAL[name]!r} for this architecture")

    def _refuse_own_code(self, value: Any) -> None:
        """auto_map names Python files of the checkpoint; those of a tokenizer do not matter."""
        if not isinstance(value, dict) or any(name.startswith("AutoModel") for name in value):
            raise self.refuse("auto_map", "without a model: code of a checkpoint is not run")

