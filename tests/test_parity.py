"""The engine against transformers, on the tiny checkpoints of tiny.py and on recorded ids.

The oracle is transformers in float32 with eager attention. For bfloat16 it reads the same
bfloat16 weights and computes in float32: then only the engine's own rounding is measured. (Its own
bfloat16 forward pass is 1e-2 to 1e-1 away from that on these models.)
"""

import json

import numpy as np
import pytest
from sampling import LAWS, law
from tiny import ARCHITECTURES, CONTEXT, MODELS

import bonaware as bon

F32_ERROR, BF16_ERROR = 2e-5, 2e-2  # of the largest logit
LENGTH = 200  # crosses every window and all bands of the ropes


@pytest.fixture(scope="module")
def oracle():
    """A function: folder -> transformers model in float32, loaded once."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = {}

    def load(path):
        if path not in models:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
            models[path] = model
        return models[path]

    yield load
    torch.set_num_threads(threads)


def ids(name, length=LENGTH, seed=1):
    return np.random.default_rng(seed).integers(0, MODELS[name]["vocab_size"], length)


def oracle_logits(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()


def distance(got, want):
    assert got.shape == want.shape
    assert got.dtype == np.float32
    return np.abs(got - want).max() / np.abs(want).max()


# -- logits ------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_float32_logits_equal_those_of_transformers(tiny, oracle, name, stored):
    path = tiny(name, dtype=stored)
    got = bon.LM.load(path, dtype="float32").logits(ids(name))
    assert distance(got, oracle_logits(oracle(path), ids(name))) < F32_ERROR


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_logits_are_near_those_of_transformers(tiny, oracle, name):
    path = tiny(name, dtype="bfloat16")
    got = bon.LM.load(path, dtype="bfloat16").logits(ids(name))
    assert distance(got, oracle_logits(oracle(path), ids(name))) < BF16_ERROR


@pytest.mark.parametrize(("route", "dtype", "error"), [
    ("onednn", "float32", F32_ERROR), ("onednn", "bfloat16", BF16_ERROR),
    ("dot", "bfloat16", BF16_ERROR),
])  # fmt: skip
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_by_other_routes_are_as_near(tiny, oracle, by_route, name, route, dtype, error):
    by_route(route, dtype)
    path = tiny(name, dtype=dtype)
    lm = bon.LM.load(path, dtype=dtype)
    if (route, dtype) == ("onednn", "bfloat16"):  # which is refused for some shapes
        if route not in lm.routes.values():
            pytest.skip("oneDNN is refused for all products of this model")
    else:
        assert set(lm.routes.values()) == {route}
    assert distance(lm.logits(ids(name)), oracle_logits(oracle(path), ids(name))) < error


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_same_from_one_file_or_many_in_either_spelling(tiny, name):
    want = bon.LM.load(tiny(name), dtype="float32").logits(ids(name))
    for path in (tiny(name, old=True), tiny(name, files=3)):
        np.testing.assert_array_equal(bon.LM.load(path, dtype="float32").logits(ids(name)), want)


@pytest.mark.parametrize("name", ["llama_biases", "gemma3"])
@pytest.mark.parametrize("shard", [None, "30KB"], ids=["one_file", "sharded"])
def test_a_folder_saved_by_transformers_gives_the_same_logits(
    tiny, oracle, tmp_path, name, shard
):
    options = {} if shard is None else {"max_shard_size": shard}
    oracle(tiny(name)).save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard is not None)
    want = bon.LM.load(tiny(name), dtype="float32").logits(ids(name))
    np.testing.assert_array_equal(bon.LM.load(tmp_path, dtype="float32").logits(ids(name)), want)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2", "mistral"])
def test_transformers_opens_what_save_wrote(tiny, oracle, tmp_path, name, stored):
    """Also where the weights are no longer those that were loaded."""
    lm = bon.LM.load(tiny(name, dtype=stored))
    for layer in range(lm.arch.layers):
        lm._model.set("down", layer, np.roll(lm._model.get("down", layer), 1, axis=0))
    lm.save(tmp_path / "saved")
    want = oracle_logits(oracle(tmp_path / "saved"), ids(name))
    error = F32_ERROR if stored == "float32" else BF16_ERROR
    assert distance(lm.logits(ids(name)), want) < error
    before = oracle_logits(oracle(tiny(name, dtype=stored)), ids(name))
    assert distance(want, before) > 0.1


@pytest.mark.parametrize("name", ["llama_biases", "qwen3", "gemma2"])
def test_transformers_opens_a_model_made_from_a_config(oracle, tmp_path, name):
    lm = bon.LM.from_config(MODELS[name] | {"initializer_range": 0.3}, rng=4)
    lm.save(tmp_path / "saved")
    want = oracle_logits(oracle(tmp_path / "saved"), ids(name))
    assert distance(lm.logits(ids(name)), want) < F32_ERROR


def test_float16_weights_are_read_exactly(tiny, oracle):
    path = tiny("llama3", dtype="float16")
    got = bon.LM.load(path, dtype="float32").logits(ids("llama3"))
    assert distance(got, oracle_logits(oracle(path), ids("llama3"))) < F32_ERROR


@pytest.mark.parametrize(("stored", "computed"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_dtype_auto_is_the_one_in_which_the_weights_are_stored(tiny, stored, computed):
    path = tiny("qwen3", dtype=stored)
    want = bon.LM.load(path, dtype=computed).logits(ids("qwen3"))
    np.testing.assert_array_equal(bon.LM.load(path).logits(ids("qwen3")), want)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 64, 65, 129, CONTEXT])
def test_logits_of_any_length_equal_the_start_of_a_longer_one(tiny, oracle, length):
    want = oracle_logits(oracle(tiny("gemma2")), ids("gemma2", CONTEXT))[:length]
    got = bon.LM.load(tiny("gemma2"), dtype="float32").logits(ids("gemma2", CONTEXT)[:length])
    assert distance(got, want) < F32_ERROR


# -- log-probabilities -------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
@pytest.mark.parametrize("name", ["llama3", "gemma2", "qwen3_biases", "mistral"])
def test_logp_is_the_log_softmax_of_transformers(tiny, oracle, name, temperature):
    prompts = [ids(name, 40, seed=2), ids(name, 1, seed=3)]
    completions = [[ids(name, n, seed=n) for n in (1, 5, 150)], [ids(name, 70, seed=9)]]
    got = bon.LM.load(tiny(name), dtype="float32").logp(
        [p.tolist() for p in prompts], [[c.tolist() for c in row] for row in completions],
        temperature=temperature,
    )
    for prompt, row, got_row in zip(prompts, completions, got, strict=True):
        for completion, logp in zip(row, got_row, strict=True):
            logits = oracle_logits(oracle(tiny(name)), np.concatenate([prompt, completion]))
            logits = logits[len(prompt) - 1 : -1].astype(np.float64) / temperature
            want = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            want = want[np.arange(len(completion)), completion]
            assert logp.shape == want.shape
            assert logp.dtype == np.float32
            np.testing.assert_allclose(logp, want, atol=2 * F32_ERROR * np.abs(logits).max())


# -- greedy ids --------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_ids_equal_those_of_transformers(tiny, oracle, name):
    torch = pytest.importorskip("torch")
    prompts = [ids(name, length, seed=length).tolist() for length in (1, 30)]
    samples = bon.LM.load(tiny(name), dtype="float32").generate(
        prompts, n=1, temperature=0, max_new_tokens=60
    )
    model = oracle(tiny(name))
    for p, prompt in enumerate(prompts):
        want = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60,
                              pad_token_id=0)[0, len(prompt):]
        assert samples.tokens[p][0].tolist() == want.tolist()
        assert samples.finish_reason[p, 0] == "length"


@pytest.mark.parametrize(("name", "recorded"), [
    ("stories260K", "greedy_256.json"), ("aidreams260K", "greedy_127.json"),
])
def test_greedy_ids_equal_the_recorded_ones(data, name, recorded):
    want = json.loads((data / "ckpt" / name / recorded).read_text())
    samples = bon.LM.load(data / "ckpt" / name, dtype="float32").generate(
        [want["prompt_ids"]], n=1, temperature=0, max_new_tokens=len(want["greedy_ids"])
    )
    assert samples.tokens[0][0].tolist() == want["greedy_ids"]


def test_greedy_text_is_the_recorded_one(data):
    folder = data / "ckpt" / "aidreams260K"
    want = json.loads((folder / "greedy_127.json").read_text())
    samples = bon.LM.load(folder, dtype="float32").generate([""], n=1, temperature=0)
    assert samples.tokens[0][0].tolist() == want["greedy_ids"]
    assert samples.text[0][0].strip() == want["text"].strip()
    assert samples.finish_reason[0, 0] == "length"  # the context of 128 tokens is full


# -- sampling laws -----------------------------------------------------------


@pytest.mark.parametrize("how", LAWS, ids=str)
def test_the_laws_that_generate_is_tested_against_are_those_of_transformers(how):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    warpers = {"temperature": process.TemperatureLogitsWarper, "top_k": process.TopKLogitsWarper,
               "top_p": process.TopPLogitsWarper, "min_p": process.MinPLogitsWarper}
    rng = np.random.default_rng(5)
    for _ in range(50):
        logits = rng.normal(scale=2, size=11)
        scores = torch.tensor(logits[None])
        for name, warper in warpers.items():  # the order in which transformers applies them
            if name in how:
                scores = warper(how[name])(None, scores)
        want = torch.softmax(scores, dim=-1)[0].numpy()
        np.testing.assert_allclose(law(logits, **how), want, atol=1e-12)
