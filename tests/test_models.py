"""Configurations to architectures: both spellings, every refusal, the same as transformers."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import tiny

from bonaware.models import arch_of, family_of, pad_token_id

MODELS = sorted(tiny.MODELS)
LLAMA, QWEN2, GEMMA3 = (tiny.MODELS[name] for name in ("llama2", "qwen2_windows", "gemma3"))


def fields(arch):
    """An Arch as a dict that == compares."""
    values = {f.name: getattr(arch, f.name) for f in dataclasses.fields(arch)}
    return values | {"rope_freq": [table.tolist() for table in arch.rope_freq]}


def ulps(a, b):
    """Largest distance of two float32 arrays of positive numbers, in units in the last place."""
    a, b = (np.asarray(x, np.float32).view(np.int32).astype(np.int64) for x in (a, b))
    return int(abs(a - b).max())


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_both_spellings_mean_the_same(name):
    config = tiny.MODELS[name]
    assert fields(arch_of(tiny.old_spelling(config))) == fields(arch_of(config))


@pytest.mark.parametrize("name", MODELS)
def test_slots_are_the_tensors_of_the_checkpoint(name):
    config = tiny.MODELS[name]
    arch, names = arch_of(config), family_of(config).NAMES
    slots = {names[slot].format(i=layer): arch.shape(words) for slot, layer, words in arch.slots()}
    assert slots == tiny.shapes(config)


def test_llama_reads_every_size():
    arch = arch_of({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 97, "hidden_size": 40,
        "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 5,
    })
    assert (arch.vocab, arch.hidden, arch.intermediate, arch.layers) == (97, 40, 44, 3)
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.max_positions) == (5, 5, 8, 2048)
    assert (arch.activation, arch.norm_eps, arch.tied) == ("silu", 1e-6, False)
    assert (arch.attn_scale, arch.embed_scale, arch.norm_offset) == (8**-0.5, 1, 0)
    assert (arch.window, arch.rope, arch.ropes, arch.rope_scale) == ((0,) * 3, (0,) * 3, 1, (1,))


def test_gemmas_scale_embeddings_and_offset_norms():
    gemma, gemma2, gemma3 = (arch_of(tiny.MODELS[n]) for n in ("gemma", "gemma2", "gemma3"))
    for arch in (gemma, gemma2, gemma3):
        assert arch.embed_scale == math.sqrt(arch.hidden)
        assert (arch.norm_offset, arch.activation, arch.tied) == (1, "gelu_tanh", True)
    assert (gemma.post_norms, gemma2.post_norms, gemma3.post_norms) == (False, True, True)
    assert (gemma2.attn_softcap, gemma2.final_softcap) == (4, 6)
    assert (gemma3.attn_softcap, gemma3.final_softcap) == (0, 0)
    assert (gemma.attn_scale, gemma2.attn_scale) == (16**-0.5, 20**-0.5)
    assert gemma3.rope == (1, 1, 1, 1, 1, 0, 1)
    assert gemma3.window == (19, 19, 19, 19, 19, 0, 19)


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


def test_absent_fields_have_the_defaults_of_transformers():
    mistral = without(tiny.MODELS["mistral"], "sliding_window", "tie_word_embeddings")
    assert arch_of(mistral).window == (4096,) * 3
    gemma2 = without(tiny.MODELS["gemma2"], "sliding_window", "layer_types", "tie_word_embeddings",
                     "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    arch = arch_of(gemma2)
    assert arch.window == (4096, 0, 4096, 0)
    assert (arch.attn_softcap, arch.final_softcap, arch.attn_scale) == (50, 30, 1 / 16)
    assert arch.tied
    off = gemma2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert (arch_of(off).attn_softcap, arch_of(off).final_softcap) == (0, 0)


def test_qwen_windows_need_use_sliding_window():
    config = without(QWEN2, "layer_types")
    assert arch_of(config).window == (0, 29, 29)
    assert arch_of(config | {"max_window_layers": 0}).window == (29, 29, 29)
    assert arch_of(config | {"use_sliding_window": False}).window == (0, 0, 0)
    with pytest.raises(ValueError, match="sliding_window must be a number of tokens"):
        arch_of(QWEN2 | {"use_sliding_window": False})


SCORER = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}


@pytest.mark.parametrize(("given", "labels"), [
    ({}, 2), ({"num_labels": 1}, 1), ({"num_labels": 5}, 5), ({"id2label": None}, 2),
    ({"id2label": {"0": "LABEL_0"}}, 1), ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
    ({"id2label": {"0": "a"}, "num_labels": 1}, 1),
])
def test_labels_are_counted_as_in_transformers(given, labels):
    arch = arch_of(SCORER | given)
    assert arch.labels == labels
    slots = {slot: arch.shape(words) for slot, _, words in arch.slots()}
    assert slots["score"] == (labels, arch.hidden)
    assert "head" not in slots
    assert arch_of(LLAMA | given).labels == 0


def test_labels_that_are_no_labels_are_refused():
    for given, message in (
        ({"num_labels": 0}, "num_labels must be an integer from 1 to 65536, found 0"),
        ({"id2label": {}}, "id2label must be an object with 1 to 65536 entries, found {}"),
        ({"id2label": ["a"]}, "id2label must be an object or null, found"),
        ({"id2label": {"0": "a"}, "num_labels": 2},
         r"num_labels must be the number of entries of id2label \(1\), found 2"),
    ):
        with pytest.raises(ValueError, match=message):
            arch_of(SCORER | given)


def test_the_padding_token_has_the_default_of_the_family():
    assert pad_token_id(LLAMA) is None
    assert pad_token_id(LLAMA | {"pad_token_id": 7}) == 7
    gemma = tiny.MODELS["gemma2"]
    assert pad_token_id(without(gemma, "pad_token_id")) == 0
    assert pad_token_id(gemma | {"pad_token_id": None}) is None


def test_multimodal_gemma3_is_its_text_part():
    text = without(GEMMA3, "architectures", "hidden_act")
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
              "text_config": text, "vision_config": {"hidden_size": 7}, "mm_tokens_per_image": 4,
              "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7}
    assert fields(arch_of(config)) == fields(arch_of(GEMMA3))
    with pytest.raises(ValueError, match="text_config must be an object"):
        arch_of(without(config, "text_config"))
    with pytest.raises(ValueError, match="tie_word_embeddings must be the same as in text_config"):
        arch_of(config | {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match="text_config: the field 'new' is unknown"):
        arch_of(config | {"text_config": text | {"new": 1}})
    with pytest.raises(ValueError, match="the field 'text_config' is unknown"):
        arch_of(GEMMA3 | {"text_config": text})


def test_absent_sizes_of_multimodal_gemma3_are_those_of_transformers():
    arch = arch_of({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {
        "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}})  # as gemma-3-4b-it has it
    assert (arch.vocab, arch.heads, arch.kv_heads, arch.head_dim) == (262208, 8, 4, 256)
    assert arch.window[:7] == (1024,) * 5 + (0, 1024)
    assert arch.rope_freq[0][0] == 1 / 8
    assert arch.rope_freq[1][0] == 1


# -- rotary frequencies ----------------------------------------------------------------------


def test_frequencies_are_powers_of_theta():
    table = arch_of(LLAMA | {"head_dim": 64}).rope_freq[0]
    exact = [10000.0 ** (-2 * i / 64) for i in range(32)]
    assert ulps(table, exact) <= 2
    assert not table.flags.writeable


def test_llama3_scaling_keeps_fast_and_divides_slow_waves():
    """The three bands of Llama 3.1, in exact arithmetic."""
    theta, factor, low, high, context = 500000.0, 8.0, 1.0, 4.0, 8192
    table = arch_of(LLAMA | {"head_dim": 128, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": context}}).rope_freq[0]
    bands = set()
    for i, got in enumerate(table):
        freq = theta ** (-2 * i / 128)
        turns = context * freq / (2 * math.pi)
        blend = min(1.0, max(0.0, (turns - low) / (high - low)))
        bands.add(blend if blend in (0, 1) else 0.5)
        assert got == pytest.approx((1 - blend) * freq / factor + blend * freq, rel=2e-6)
    assert bands == {0, 0.5, 1}


ROPES = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 1000000},
    {"rope_type": "linear", "rope_theta": 500000.0, "factor": 3.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.5,
     "high_freq_factor": 3.0, "original_max_position_embeddings": 256},
]


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_frequencies_are_those_of_transformers(rope, head_dim):
    pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama")
    config = LLAMA | {"head_dim": head_dim, "rope_parameters": rope,
                      "max_position_embeddings": 131072}
    reference = llama.modeling_llama.LlamaRotaryEmbedding(llama.LlamaConfig(**without(
        json.loads(json.dumps(config)), "architectures", "model_type")))
    arch = arch_of(config)
    assert ulps(arch.rope_freq[0], reference.inv_freq.numpy()) <= 2
    assert arch.rope_scale[0] == reference.attention_scaling


@pytest.mark.parametrize("name", MODELS)
def test_config_written_by_transformers_means_the_same(name):
    """In the way it writes it now, and what it makes of the spelling of version 4."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny.MODELS[name]
    for given in (config, tiny.old_spelling(config)):
        values = without(json.loads(json.dumps(given)), "architectures", "model_type")
        theirs = transformers.CONFIG_MAPPING[config["model_type"]](**values)
        for use_diff in (True, False):
            written = json.loads(theirs.to_json_string(use_diff=use_diff))
            written["architectures"] = config["architectures"]
            assert fields(arch_of(written)) == fields(arch_of(config))


# -- errors ----------------------------------------------------------------------------------

BAD_FIELDS = [
    ("hidden_size", -5, "must be an integer from 1 to 16777216, found -5"),
    ("hidden_size", 64.0, "must be an integer"),
    ("hidden_size", True, "must be an integer"),
    ("hidden_size", None, "must be an integer"),
    ("hidden_size", "64", "must be an integer"),
    ("num_hidden_layers", 10**12, "must be an integer from 1 to 4096, found 1000000000000"),
    ("num_hidden_layers", 0, "must be an integer"),
    ("num_key_value_heads", 3, "must be a divisor of num_attention_heads (4), found 3"),
    ("head_dim", 7, "must be even"),
    ("max_position_embeddings", 2**31, "must be an integer"),
    ("rms_norm_eps", 0, "must be a positive number"),
    ("rms_norm_eps", 1e-60, "must be a positive number"),
    ("rms_norm_eps", 10**400, "must be a positive number"),
    ("rms_norm_eps", [1e-5], "must be a positive number"),
    ("rms_norm_eps", None, "must be a positive number"),
    ("tie_word_embeddings", 1, "must be true or false, found 1"),
    ("hidden_act", "gelu", "must be silu, found 'gelu'"),
    ("hidden_act", ["silu"], "must be silu"),
    ("pretraining_tp", 2, "must be 1 for this architecture, found 2"),
    ("pretraining_tp", True, "must be 1"),
    ("use_sliding_window", True, "must be False for this architecture"),
    ("partial_rotary_factor", 0.5, "must be 1.0"),
    ("model_type", "mistral", "must be llama for LlamaForCausalLM, found 'mistral'"),
    ("auto_map", {"AutoModelForCausalLM": "x.py"}, "must be without a model: code of a checkpoint"),
    ("rope_scaling", 3, "must be an object or null, found 3"),
    ("rope_parameters", [], "must be an object or null"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_FIELDS)
def test_bad_value_is_named_with_what_was_found(name, value, message):
    with pytest.raises(ValueError, match=re.escape(f"config.json: {name} {message}")):
        arch_of(LLAMA | {name: value})


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_attention_heads",
                                  "num_hidden_layers", "intermediate_size"])
def test_size_must_be_given(name):
    with pytest.raises(ValueError, match=f"{name} must be .*, found no such field"):
        arch_of(without(LLAMA, name))


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_number_of_key_heads_is_not_guessed(name):
    with pytest.raises(ValueError, match=r"num_key_value_heads must be .*, found no such field"):
        arch_of(without(tiny.MODELS[name], "num_key_value_heads"))


def test_hidden_size_must_be_a_multiple_of_heads_where_head_dim_is_derived():
    with pytest.raises(ValueError, match=r"hidden_size must be a multiple .* \(4\), found 42"):
        arch_of(without(LLAMA, "head_dim") | {"hidden_size": 42})


@pytest.mark.parametrize("name", MODELS)
def test_unknown_field_is_named(name):
    with pytest.raises(ValueError, match=r"field 'residual_multiplier' is unknown.*found 0.5"):
        arch_of(tiny.MODELS[name] | {"residual_multiplier": 0.5}, "dir/config.json")


def test_fields_that_change_nothing_are_fine():
    harmless = {"use_cache": False, "transformers_version": "9.9", "torch_dtype": "bfloat16",
                "top_k": 3, "pretraining_tp": 1, "new_field": None, "attention_dropout": 0.5,
                "auto_map": {"AutoTokenizer": "x.py"}, "partial_rotary_factor": 1}
    assert fields(arch_of(LLAMA | harmless)) == fields(arch_of(LLAMA))


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [3], ["GPT2LMHeadModel"],
                                   ["../llama"], ["_fieldsForCausalLM"], ["LLAMAForCausalLM"],
                                   ["Llama"]])
def test_unknown_architecture_lists_the_known_ones(names):
    with pytest.raises(ValueError, match="architecture") as caught:
        arch_of(LLAMA | {"architectures": names})
    if names and isinstance(names, list) and isinstance(names[0], str):
        assert "one of Gemma" in str(caught.value)
        assert "Qwen3ForSequenceClassification, found " in str(caught.value)


def test_config_must_be_a_dict():
    with pytest.raises(TypeError, match="config must be a dict, got list"):
        arch_of([])


BAD_ROPES = [
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
     "rope_type must be one of default, linear, llama3, found 'yarn'"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "found 'dynamic'"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor must be .* found no such field"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor must be a positive"),
    ({"rope_parameters": {"rope_type": "default", "factor": 2}}, "'factor' is unknown"),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_theta must be a positive"),
    ({"rope_parameters": {"rope_theta": None}}, "rope_theta must be a positive"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1.0"),
    ({"rope_parameters": {"rope_type": "linear", "type": "default", "factor": 2}},
     "type must be the same as rope_type"),
    ({"rope_parameters": {}, "rope_scaling": {}}, "rope_scaling must be absent"),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0},
     r"rope_theta must be the same as in config.json: rope_parameters \(5.0\), found 6.0"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                          "high_freq_factor": 4}}, "high_freq_factor must be above"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e-37, "factor": 1e-37}},
     "must give finite frequencies"),
]


@pytest.mark.parametrize(("values", "message"), BAD_ROPES)
def test_bad_rope_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        arch_of(without(LLAMA, "rope_parameters") | values)


@pytest.mark.parametrize(("values", "message"), [
    ({"layer_types": ["full_attention"]}, "layer_types must be a list of 7 times"),
    ({"layer_types": ["chunked_attention"] * 7}, "layer_types must be"),
    ({"layer_types": [[]] * 7}, "layer_types must be"),
    ({"sliding_window": None}, "sliding_window must be a number of tokens"),
    ({"sliding_window": 0}, "sliding_window must be an integer"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention must be False"),
    ({"rope_parameters": {"rope_type": "default"}}, "'rope_type' is unknown"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 8}}, "rope_scaling must be absent"),
    ({"hidden_activation": "gelu"}, "hidden_activation must be gelu_pytorch_tanh"),
])
def test_bad_gemma3_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        arch_of(GEMMA3 | values)


def test_window_size_of_the_first_gemma2_files_must_agree():
    config = tiny.MODELS["gemma2"]
    assert arch_of(config | {"sliding_window_size": 24}).window == arch_of(config).window
    with pytest.raises(ValueError, match=r"must be the same as sliding_window \(24\), found 25"):
        arch_of(config | {"sliding_window_size": 25})
