"""Each bad input gives one clear error that says what was needed and what was found."""

import json

import numpy as np
import pytest
from sampling import PROMPT
from tiny import MODELS, shapes, write_checkpoint, write_safetensors

import bonaware as bon

LLAMA = MODELS["counting"]  # vocabulary 11, context 64


@pytest.fixture
def broken(tmp_path):
    """A function: changes -> folder of a model that is right but for them."""

    def folder(config=None, *, edit_table=None, files=1, **fields):
        path = tmp_path / "model"
        write_checkpoint(path, LLAMA, files=files)
        (path / "config.json").write_text(json.dumps((config or LLAMA) | fields))
        if edit_table is not None:
            table = shapes(LLAMA)
            edit_table(table)
            write_safetensors(path / "model.safetensors", table, lambda _, shape: np.ones(shape))
        return path

    return folder


@pytest.fixture
def lm(tiny):
    return bon.LM.load(tiny("counting"))


def refuses(error, *words):
    """pytest.raises for a message of one line that has all the words, in this order."""
    return pytest.raises(error, match=r"(?s)\A(?!.*\n).*" + ".*".join(words))


# -- folders and files -------------------------------------------------------


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with refuses(OSError, "no_such_model"):
        bon.LM.load(tmp_path / "no_such_model")


def test_a_folder_without_config_is_named(tmp_path):
    with refuses(OSError, r"config\.json"):
        bon.LM.load(tmp_path)


def test_a_folder_without_weights_is_named(broken):
    path = broken()
    (path / "model.safetensors").unlink()
    with refuses(OSError, r"safetensors"):
        bon.LM.load(path)


def test_a_file_that_the_index_names_but_is_not_there_is_named(broken):
    path = broken(files=3)
    (path / "model.safetensors").unlink(missing_ok=True)
    (path / "model-00002-of-00003.safetensors").unlink()
    with refuses(OSError, r"model-00002-of-00003\.safetensors"):
        bon.LM.load(path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(broken, name):
    path = broken(files=2)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(shapes(LLAMA), name)}))
    with pytest.raises((ValueError, OSError), match="index"):
        bon.LM.load(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1], ids="{}_bytes_kept".format)
def test_a_truncated_file_is_named(broken, keep):
    path = broken()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises((ValueError, OSError), match=r"model\.safetensors"):
        bon.LM.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 3}', "\xff"], ids=repr)
def test_a_config_that_is_no_json_object_is_named(broken, text):
    path = broken()
    (path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises((ValueError, OSError), match=r"config\.json|model_type|architectur"):
        bon.LM.load(path)


# -- configs -----------------------------------------------------------------


def test_an_unknown_architecture_is_named_with_the_known_ones(broken):
    path = broken(architectures=["MambaForCausalLM"], model_type="mamba")
    with refuses(ValueError, r"config\.json", "LlamaForCausalLM", "found .MambaForCausalLM"):
        bon.LM.load(path)


@pytest.mark.parametrize(("field", "value"), [
    ("partial_rotary_factor", 0.5), ("num_local_experts", 8), ("attention_multiplier", 0.01),
])
def test_a_field_that_could_change_the_mathematics_is_named(broken, field, value):
    with refuses(ValueError, field):
        bon.LM.load(broken(**{field: value}))


@pytest.mark.parametrize("rope", [
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
])
def test_an_unknown_rope_is_named(broken, rope):
    with refuses(ValueError, rope["rope_type"]):
        bon.LM.load(broken(rope_parameters=rope))


def test_an_unknown_activation_is_named(broken):
    with refuses(ValueError, "relu2"):
        bon.LM.load(broken(hidden_act="relu2"))


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_field_that_is_missing_is_named(broken, field):
    config = {name: value for name, value in LLAMA.items() if name != field}
    with refuses(ValueError, field):
        bon.LM.load(broken(config))


@pytest.mark.parametrize(("field", "value"), [
    ("hidden_size", -16), ("num_hidden_layers", "two"), ("num_attention_heads", 0),
    ("rms_norm_eps", "small"), ("num_key_value_heads", 3),
    ("vocab_size", 2**62),
])
def test_a_field_with_an_impossible_value_is_named(broken, field, value):
    with pytest.raises((ValueError, TypeError), match=f"{field}|embed"):
        bon.LM.load(broken(**{field: value}))


# -- tensors -----------------------------------------------------------------


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(broken):
    def edit(table):
        table["model.layers.0.mlp.up_proj.weight"] = (17, 16)

    with refuses(ValueError, r"model\.layers\.0\.mlp\.up_proj\.weight", "16.*16", "17.*16"):
        bon.LM.load(broken(edit_table=edit))


def test_a_missing_tensor_is_named(broken):
    with refuses(ValueError, r"model\.layers\.0\.self_attn\.k_proj\.weight"):
        bon.LM.load(broken(edit_table=lambda t: t.pop("model.layers.0.self_attn.k_proj.weight")))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight",
                                  "model.layers.0.self_attn.q_proj.bias",
                                  "model.layers.7.mlp.up_proj.weight"])
def test_a_tensor_that_the_architecture_does_not_know_is_named(broken, name):
    with refuses(ValueError, name.replace(".", r"\.")):
        bon.LM.load(broken(edit_table=lambda t: t.update({name: (16,)})))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error_and_not_a_sample(tmp_path, value):
    def values(name, shape):
        return np.full(shape, value if "up_proj" in name else 0.5, np.float32)

    path = write_checkpoint(tmp_path / "model", LLAMA, values=values)
    with refuses(ValueError, "finite|NaN|nan"):
        bon.LM.load(path).generate([PROMPT], n=2, max_new_tokens=4)


# -- options of load ---------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"dtype": "float8"}, ["dtype", "float32", "bfloat16", "float8"]),
    ({"threads": 0}, ["threads", "0"]),
    ({"threads": -2}, ["threads", "-2"]),
    ({"memory": 0}, ["memory", "0"]),
    ({"memory": -5}, ["memory", "-5"]),
], ids=str)
def test_options_of_load_out_of_range_are_refused(tiny, options, words):
    with refuses(ValueError, *words):
        bon.LM.load(tiny("counting"), **options)


def test_a_memory_too_small_for_one_sample_says_what_is_needed_and_found(tiny):
    with pytest.raises((ValueError, MemoryError), match=r"(?s)need.*1000"):
        bon.LM.load(tiny("counting"), memory=1000).generate([PROMPT], n=1, max_new_tokens=30)


# -- prompts -----------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "error", "words"), [
    ([], ValueError, ["1 to 64 tokens", "prompt 1", "0"]),
    ([3] * 65, ValueError, ["1 to 64 tokens", "prompt 1", "65"]),
    ([1, 11], ValueError, ["11"]),
    ([1, -1], ValueError, ["-1"]),
    ([1, 2**40], ValueError, [str(2**40)]),
    ([1.5, 2.0], TypeError, ["int|float"]),
    ("hello", ValueError, ["tokenizer"]),
    ([{"role": "user", "content": "hello"}], ValueError, ["tokenizer|template"]),
    (None, TypeError, ["NoneType|None"]),
], ids=str)
def test_a_prompt_that_cannot_be_used_is_refused(lm, prompt, error, words):
    with refuses(error, *words):
        lm.generate([[1, 2], prompt], n=2)


@pytest.mark.parametrize("prompts", [5, 1.5, None, [None], [1.5, 2.5]], ids=str)
def test_prompts_of_the_wrong_kind_are_refused(lm, prompts):
    with refuses(TypeError, "a prompt must be a str, a sequence of token ids or"):
        lm.generate(prompts, n=1)


def test_a_prompt_that_cannot_be_used_is_named_by_its_number(lm):
    with refuses(ValueError, "prompt 2", "11"):
        lm.generate([[1], [2], [3, 11]], n=1)


@pytest.mark.parametrize("tokens", [[], [11], [-1], [1] * 65], ids=str)
def test_logits_refuses_tokens_out_of_range(lm, tokens):
    with refuses(ValueError, "empty|at least|11|-1|64"):
        lm.logits(tokens)


def test_logp_refuses_what_does_not_fit(lm):
    with refuses(ValueError, "2", "1"):
        lm.logp([[1], [2]], [[[3]]])
    with refuses(ValueError, "11"):
        lm.logp([[1]], [[[3, 11]]])
    with refuses(ValueError, "65"):  # the last token's probability needs no place of its own
        lm.logp([[1] * 60], [[[3] * 6]])
    assert len(lm.logp([[1] * 60], [[[3] * 5]])[0][0]) == 5
    with refuses(ValueError, "temperature", "0"):
        lm.logp([[1]], [[[3]]], temperature=0)


# -- options of generate -----------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"n": 0}, ["n ", "0"]),
    ({"n": -3}, ["n ", "-3"]),
    ({"start": -1}, ["start", "-1"]),
    ({"temperature": -0.5}, ["temperature", "-0.5"]),
    ({"temperature": np.nan}, ["temperature", "nan"]),
    ({"temperature": np.inf}, ["temperature", "inf"]),
    ({"temperature": [1.0, 0.5, -1.0]}, ["temperature", "-1"]),
    ({"temperature": [1.0, 0.5]}, ["temperature", "3", "2"]),
    ({"temperature": 0}, ["temperature 0", "3"]),
    ({"temperature": [0, 1.0, 0]}, ["temperature 0", "2"]),
    ({"top_k": -1}, ["top_k", "-1"]),
    ({"top_k": 0}, ["top_k", "0"]),
    ({"top_p": 0.0}, ["top_p", "0"]),
    ({"top_p": 1.5}, ["top_p", "1.5"]),
    ({"top_p": np.nan}, ["top_p", "nan"]),
    ({"min_p": -0.1}, ["min_p", "-0.1"]),
    ({"min_p": 1.5}, ["min_p", "1.5"]),
    ({"max_new_tokens": 0}, ["max_new_tokens", "0"]),
    ({"max_new_tokens": -1}, ["max_new_tokens", "-1"]),
    ({"stop_strings": ["a"]}, ["stop_strings", "tokenizer"]),
    ({"rng": -1}, ["rng", "-1"]),
], ids=str)
def test_options_of_generate_out_of_range_are_refused(lm, options, words):
    with refuses(ValueError, *words):
        lm.generate([PROMPT], **{"n": 3, **options})


@pytest.mark.parametrize("options", [
    {"n": 2.5}, {"n": "3"}, {"temperature": "hot"}, {"top_k": 1.5}, {"max_new_tokens": 2.5},
    {"rng": 0.5}, {"stop_strings": 3}, {"top_p": "most"},
], ids=str)
def test_options_of_the_wrong_kind_are_refused(lm, options):
    with refuses(TypeError, next(iter(options))):
        lm.generate([PROMPT], **{"n": 3, **options})


def test_an_empty_stop_string_is_refused(tiny):
    model = bon.LM.load(tiny("counting", tokenizer=True, eos=[0, 1]))
    with refuses(ValueError, "stop_strings", "empty"):
        model.generate([PROMPT], n=2, stop_strings=["ab", ""])


def test_after_an_error_the_model_can_be_used(lm):
    want = lm.generate([PROMPT], n=2, max_new_tokens=4).tokens
    for options in ({"n": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match=r"n|temperature"):
            lm.generate([PROMPT], **{"n": 2, **options})
    with pytest.raises(ValueError, match="11"):
        lm.generate([PROMPT, [11]], n=2)
    got = lm.generate([PROMPT], n=2, max_new_tokens=4).tokens
    for a, b in zip(want[0], got[0], strict=True):
        np.testing.assert_array_equal(a, b)
