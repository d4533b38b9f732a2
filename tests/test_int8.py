"""Models whose weights are held in int8 (csrc/int8.h): what is rounded, and what that costs.

The rounding is done once more in NumPy, and the model with the rounded weights computed in
float32, which test_parity.py compares with transformers: what is left is the rounding of
activations to 12 bits (2e-3 of the largest logit here), and of keys and values to bfloat16 (6e-3).
Products are tested against whole numbers in tests/c/test_int8.c, the same-bits rule in
test_same_bits.py.
"""

import numpy as np
import pytest
from tiny import CONTEXT, MODELS

import bonaware as bon
from bonaware import estimators, lora
from bonaware.lm import LM

ARCHITECTURES = [name for name in MODELS if name not in ("counting", "wide")]


def rounded(weights):
    """Weights [outputs, inputs] as int8.h says: whole multiples of a scale, and of a second."""
    weights = weights.astype(np.float32)
    scale = np.abs(weights).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    near = scale * np.rint(weights * inverse)
    rest = weights - near
    fine = scale / np.float32(254)
    inverse = np.divide(np.float32(1), fine, out=np.zeros_like(fine), where=fine > 0)
    better = near + fine * np.clip(np.rint(rest * inverse), -127, 127)
    error = np.sqrt((rest.astype(float) ** 2).mean(1))
    rough = error > 0.02 * np.abs(weights.astype(float)).mean(1)
    return np.where(rough[:, None], better, near), rough.sum()


def matrices(lm):
    for slot, layer, words in lm.arch.slots():
        if len(lm.arch.shape(words)) == 2 and slot != "score":
            yield slot, layer or 0


def log_softmax(logits):
    shifted = logits.astype(float) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_rounded_weights(tiny, name):
    path = tiny(name, dtype="bfloat16")
    int8, exact = (LM.load(path, dtype=dtype) for dtype in ("int8", "float32"))
    for slot, layer in matrices(exact):
        want, _ = rounded(exact._model.get(slot, layer))
        np.testing.assert_array_equal(int8._model.get(slot, layer), want)
        exact._model.set(slot, layer, want)
    ids = np.random.default_rng(3).integers(0, MODELS[name]["vocab_size"], CONTEXT)
    want = exact.logits(ids)
    assert np.abs(int8.logits(ids) - want).max() < 7e-3 * np.abs(want).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_of_8_bits_are_near_those_of_12(tiny, by_route, name):
    path = tiny(name, dtype="bfloat16")
    ids = np.random.default_rng(3).integers(0, MODELS[name]["vocab_size"], CONTEXT)
    want = LM.load(path, dtype="int8").logits(ids)
    by_route("dot", "int8")
    lm = LM.load(path, dtype="int8")
    assert set(lm.routes.values()) == {"dot"}
    error = np.abs(lm.logits(ids) - want).max() / np.abs(want).max()
    assert 0 < error < 5e-2


def test_outputs_with_a_few_large_weights_are_as_good_as_16_bits(tiny):
    lm = LM.load(tiny("llama3"), dtype="int8")
    weights, fine = lm._model.get("down", 1).copy(), lm._model.fine_rows
    weights[::5, 7] = 200 * np.abs(weights).max()
    lm._model.set("down", 1, weights)
    want, rough = rounded(weights)
    assert rough == len(weights[::5])
    assert lm._model.fine_rows == fine + rough
    np.testing.assert_array_equal(lm._model.get("down", 1), want)
    error = np.abs(want - weights).max(1) / np.abs(weights).max(1)
    assert error[::5].max() < 1 / (127 * 508) * 1.01
    assert np.isfinite(lm.logits([1, 2, 3])).all()
    size = lm._model.bytes
    for _ in range(3):  # what is filled again takes no more room
        lm._model.set("down", 1, weights)
    assert (lm._model.bytes, lm._model.fine_rows) == (size, fine + rough)
    np.testing.assert_array_equal(lm._model.get("down", 1), want)


@pytest.mark.heavy
@pytest.mark.parametrize("route", ["tile", "dot"])
@pytest.mark.parametrize("name", ["countdown", "countdown-selfeval"])
def test_the_embedded_models_hardly_change(by_route, name, route):
    """KL of at most 0.01 nats a token, and pass@k within the interval of the exact model."""
    task = bon.tasks.get("countdown")
    problems = task.load("test", limit=100)
    prompts = [task.prompt(problem) for problem in problems]
    models = {"bfloat16": LM.load(name, dtype="bfloat16")}
    by_route(route, "int8")
    models["int8"] = LM.load(name, dtype="int8")
    drawn = {dtype: lm.generate(prompts, n=16, max_new_tokens=task.max_new_tokens, progress=False)
             for dtype, lm in models.items()}
    divergence = []
    for prompt, row in zip(prompts[:20], drawn["bfloat16"].tokens, strict=False):
        for tokens in row[:4]:
            ids = np.concatenate([models["int8"].encode(prompt), tokens])
            near, far = (log_softmax(lm.logits(ids)) for lm in models.values())
            divergence.append((np.exp(near) * (near - far)).sum(-1))
    assert 0 < np.concatenate(divergence).mean() < 0.01
    rewards = {dtype: task.rewards(problems, samples.text) for dtype, samples in drawn.items()}
    ks = [1, 4, 16]
    low, high = estimators.interval(estimators.best_of_k(rewards["bfloat16"], ks))
    found = estimators.best_of_k(rewards["int8"], ks).mean(0)
    assert (low <= found).all()
    assert (found <= high).all()


def test_memory_is_half_of_that_of_bfloat16(tiny):
    sizes = {dtype: LM.load(tiny("wide"), dtype=dtype)._model.bytes
             for dtype in ("float32", "bfloat16", "int8")}
    assert sizes["int8"] < 0.53 * sizes["bfloat16"] < 0.27 * sizes["float32"]


def test_fingerprints_and_settings_say_int8(tiny):
    lm = LM.load(tiny("qwen3"), dtype="int8")
    assert lm.fingerprint.endswith("-int8")
    assert lm.fingerprint != LM.load(tiny("qwen3")).fingerprint
    assert lm.settings()["dtype"] == "int8"
    lm._model.set("down", 0, 2 * lm._model.get("down", 0))
    before = lm.fingerprint
    lm.weights_changed()
    assert lm.fingerprint != before
    assert lm.fingerprint.endswith("-int8")
    assert "int8" in repr(lm)
    assert bon.config.describe()["routes"]["int8"][0] == "tile"


@pytest.mark.parametrize("use", [
    lambda lm, _: lm.gradients([[1, 2]], [[[3]]], weights=[[1.0]]),
    lambda lm, _: bon.Trainer(lm, bon.losses.get("bon")(k=2)),
    lambda lm, _: bon.Trainer(lm, bon.losses.get("bon")(k=2), lora=bon.LoRA(rank=2)),
    lambda lm, path: lm.save(path / "saved"),
    lambda lm, _: lora.merge(lm, lora.fresh(lm, rank=2)),
], ids=["gradients", "trainer", "lora", "save", "merge"])  # fmt: skip
def test_what_needs_the_weights_themselves_is_refused(tiny, tmp_path, use):
    lm = LM.load(tiny("llama2"), dtype="int8")
    before, fingerprint = lm.logits([1, 2, 3]), lm.fingerprint
    with pytest.raises(ValueError, match=r"in int8.*load it in float32 or bfloat16"):
        use(lm, tmp_path)
    np.testing.assert_array_equal(lm.logits([1, 2, 3]), before)
    assert lm.fingerprint == fingerprint
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(ValueError, match="'bfloat16' or 'int8', got 'int4'"):
        LM.load(tiny("llama2"), dtype="int4")
    with pytest.raises(ValueError, match="'float32' or 'bfloat16', got 'int8'"):
        LM.from_config(MODELS["llama2"], dtype="int8")
