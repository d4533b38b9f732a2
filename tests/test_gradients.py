"""Gradients of every weight: against torch's autograd, and against a float64 model in NumPy.

A batch holds what training meets: prompts that several completions of different lengths continue,
one token long and as long as the context, a prompt without any. Weights of samples are positive,
negative and zero. Then the promises of csrc/backward.h: the same bits whatever the memory, the
parts and the threads; and what is said where a call goes wrong.
"""

import math
import os
import signal
import threading
import time

import numpy as np
import pytest
from tiny import ARCHITECTURES, CONTEXT, MODELS

import bonaware as bon
from bonaware import _batch
from bonaware._learner import AdamW, Learner
from bonaware.config import engine

F32_ERROR, BF16_ERROR = 2e-5, 2e-2  # of the largest element of a tensor
MEMORY = 1 << 28
SHAPE = {1: (1, 33, 7), 40: (), 70: (64, 2, CONTEXT - 70), 5: (20, 50, 1, 3)}  # prompt: completions


def texts(vocab, shape, seed=3):
    """Prompts, completions, weights; ids from 1 on: torch gives a padding token no gradient."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, vocab, length).astype(np.int32) for length in shape]
    completions = [[rng.integers(1, vocab, length).astype(np.int32) for length in lengths]
                   for lengths in shape.values()]
    weights = [rng.normal(size=len(lengths)) for lengths in shape.values()]
    weights[0][:1] = 0.0
    return prompts, completions, weights


def gradients(lm, batch, temperature=1.0, memory=MEMORY):
    """Log-probabilities of all tokens in one array, and the gradient."""
    learner = Learner(lm, memory)
    logp = learner.accumulate(*batch, temperature)
    return joined(logp), learner.gradients()


def joined(logp):
    return np.concatenate([np.empty(0, np.float32), *(own for row in logp for own in row)])


def assert_near(got, want, error):
    """Every tensor within `error` of its largest element."""
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].shape == values.shape
        assert got[name].dtype == np.float32
        distance = np.abs(got[name] - values).max()
        assert distance <= error * np.abs(values).max(), name


def assert_same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        if isinstance(a, dict):
            assert list(a) == list(b)
            assert not [name for name in a if a[name].tobytes() != b[name].tobytes()]
        else:
            assert a.tobytes() == b.tobytes()


# -- torch ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def oracle(torch):
    """A function: folder, transformers' class -> model in float32 without gradients."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    transformers.utils.logging.disable_progress_bar()
    models = {}

    def load(path, kind="AutoModelForCausalLM"):
        if path not in models:
            models[path] = getattr(transformers, kind).from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager")
        models[path].zero_grad()
        return models[path]

    return load


def hidden_states(torch, model, prompt, completion):
    tokens = np.concatenate([prompt, completion]).astype(np.int64)
    return model.model(torch.tensor(tokens[None])).last_hidden_state[0]


def named_gradients(model):
    return {name: weight.grad.numpy().copy() for name, weight in model.named_parameters()}


def torch_gradients(torch, model, batch, temperature):
    """As `gradients`: prompt and completion together, one at a time."""
    loss, values = torch.zeros(()), []
    for prompt, completions, weights in zip(*batch, strict=True):
        for completion, weight in zip(completions, weights, strict=True):
            tokens = torch.tensor(np.concatenate([prompt, completion]).astype(np.int64))
            logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1] / temperature
            logp = torch.log_softmax(logits, -1).gather(1, tokens[len(prompt) :, None])[:, 0]
            values.append(logp.detach().numpy())
            loss = loss + float(weight) * logp.sum()
    loss.backward()
    return np.concatenate(values), named_gradients(model)


@pytest.mark.parametrize(("name", "temperature"), [
    *((name, 0.8) for name in ARCHITECTURES), ("llama3", 1.0), ("gemma2", 1.0), ("qwen2", 1.7),
])
def test_gradients_equal_those_of_torch(tiny, torch, oracle, name, temperature):
    batch = texts(MODELS[name]["vocab_size"], SHAPE)
    logp, got = gradients(bon.LM.load(tiny(name)), batch, temperature)
    values, want = torch_gradients(torch, oracle(tiny(name)), batch, temperature)
    np.testing.assert_allclose(logp, values, atol=1e-4)
    assert_near(got, want, F32_ERROR)


@pytest.mark.parametrize("name", ["llama_biases", "qwen3_biases", "gemma2", "mistral"])
def test_gradients_of_a_bfloat16_model_are_near_those_of_torch_in_float32(
    tiny, torch, oracle, name
):
    path = tiny(name, dtype="bfloat16")
    batch = texts(MODELS[name]["vocab_size"], SHAPE)
    lm = bon.LM.load(path)
    assert lm.dtype == "bfloat16"
    assert_near(gradients(lm, batch)[1],
                torch_gradients(torch, oracle(path), batch, 1.0)[1], BF16_ERROR)


# -- score heads ---------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("with_probabilities", [False, True], ids=["scores", "cross_entropy"])
@pytest.mark.parametrize(("name", "labels"), [("llama3", 1), ("qwen2", 2), ("gemma2", 3)])
def test_gradients_of_scores_equal_those_of_torch(
    tiny, torch, oracle, name, labels, with_probabilities
):
    path, label = tiny(name, labels=labels), labels - 1
    lm, model = bon.LM.load(path), oracle(path, "AutoModelForSequenceClassification")
    prompts, completions, weights = texts(lm.arch.vocab, {**SHAPE, 12: (0, 4, 0)})
    rng = np.random.default_rng(8)
    probabilities = [rng.choice([0.0, 1.0, 0.3], len(row)) for row in completions]
    learner = Learner(lm, MEMORY)
    scores = learner.accumulate_scores(
        prompts, completions, weights, probabilities if with_probabilities else None, label)
    loss, values = torch.zeros(()), []
    for prompt, row, weight, wanted in zip(prompts, completions, weights, probabilities,
                                           strict=True):
        for completion, w, t in zip(row, weight, wanted, strict=True):
            hidden = hidden_states(torch, model, prompt, completion)[-1]
            score = model.score(hidden)[label]
            values.append(score.item())
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(score, torch.tensor(t))
            loss = loss + float(w) * (-entropy if with_probabilities else score)
    loss.backward()
    np.testing.assert_allclose(np.concatenate(scores), values, atol=1e-4)
    assert_near(learner.gradients(), named_gradients(model), F32_ERROR)


def test_scores_of_a_learner_are_those_of_the_model(tiny):
    lm = bon.LM.load(tiny("qwen3", labels=2))
    prompts, completions, weights = texts(lm.arch.vocab, SHAPE)
    got = Learner(lm, MEMORY).accumulate_scores(prompts, completions, weights, label=1)
    want = lm.scores(prompts, completions)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b[:, 1], atol=1e-4)


def test_a_shared_prompt_has_the_scores_of_all_its_copies(tiny):
    """Empty completions first, last and in between: their targets stand before the others'."""
    lm, rng = bon.LM.load(tiny("qwen2", labels=1)), np.random.default_rng(1)
    prompt = rng.integers(1, lm.arch.vocab, 6).astype(np.int32)
    row = [rng.integers(1, lm.arch.vocab, n).astype(np.int32) for n in (0, 5, 0, 1, 9, 0)]
    weights, wanted = rng.normal(size=len(row)), rng.uniform(size=len(row))
    shared, alone = Learner(lm, MEMORY), Learner(lm, MEMORY)
    (got,) = shared.accumulate_scores([prompt], [row], [weights], [wanted])
    want = alone.accumulate_scores([prompt] * len(row), [[text] for text in row],
                                   weights[:, None], wanted[:, None])
    np.testing.assert_allclose(got, np.concatenate(want), atol=1e-5)
    assert_near(shared.gradients(), alone.gradients(), F32_ERROR)


def test_the_gradient_of_the_cross_entropy_weighs_a_score_by_its_error(tiny):
    """d(-CE)/d score = t - sigmoid(score): the same as weights on scores."""
    lm = bon.LM.load(tiny("llama_biases", labels=1))
    batch = texts(lm.arch.vocab, SHAPE)
    probabilities = [np.linspace(0, 1, len(row)) for row in batch[1]]
    learner = Learner(lm, MEMORY)
    scores = learner.accumulate_scores(*batch, probabilities)
    got = learner.gradients()
    learner.zero()
    errors = [w * (t - sigmoid(s.astype(float)))
              for w, t, s in zip(batch[2], probabilities, scores, strict=True)]
    learner.accumulate_scores(*batch[:2], errors)
    assert_near(got, learner.gradients(), F32_ERROR)


# -- a model in float64, and its differences -----------------------------------


def norm(arch, x, weight):
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + arch.norm_eps)
    return x / scale * (arch.norm_offset + weight)


def softcap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def turned(arch, layer, x):
    """x [T, heads, head_dim] by its rotary angles, which are float32 as in the engine."""
    table = arch.rope[layer]
    angle = np.arange(len(x), dtype=np.float32)[:, None] * arch.rope_freq[table]
    cos, sin = (f(angle.astype(float))[:, None] * arch.rope_scale[table] for f in (np.cos, np.sin))
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(arch, layer, q, k, v):
    """[T, heads, head_dim] of queries, [T, kv_heads, head_dim] of keys and values."""
    group = arch.heads // arch.kv_heads
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    s = softcap(arch.attn_scale * np.einsum("thd,shd->hts", q, k), arch.attn_softcap)
    behind = np.arange(len(q))[:, None] - np.arange(len(q))
    s[:, (behind < 0) | (behind >= (arch.window[layer] or len(q)))] = -np.inf
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(axis=-1, keepdims=True), v)


def activation(arch, x):
    if arch.activation == "silu":
        return x / (1 + np.exp(-x))
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits64(arch, weights, tokens):
    """The transformer of csrc/arch.h; weights: (slot, layer) -> float64."""
    x = weights["embed", None][tokens] * arch.embed_scale

    def project(slot, layer, h):
        return h @ weights[slot, layer].T + weights.get((f"{slot}_bias", layer), 0.0)

    def heads(slot, layer, h):
        y = project(slot, layer, h).reshape(len(h), -1, arch.head_dim)
        if slot == "v":
            return y
        scale = weights.get((f"{slot}_norm", layer))
        return turned(arch, layer, y if scale is None else norm(arch, y, scale))

    for i in range(arch.layers):
        h = norm(arch, x, weights["attn_norm", i])
        h = attention(arch, i, *(heads(slot, i, h) for slot in "qkv"))
        h = project("o", i, h.reshape(len(x), -1))
        x = x + (norm(arch, h, weights["attn_post_norm", i]) if arch.post_norms else h)
        h = norm(arch, x, weights["mlp_norm", i])
        h = project("down", i, activation(arch, project("gate", i, h)) * project("up", i, h))
        x = x + (norm(arch, h, weights["mlp_post_norm", i]) if arch.post_norms else h)
    head = weights["embed" if arch.tied else "head", None]
    return softcap(norm(arch, x, weights["final_norm", None]) @ head.T, arch.final_softcap)


def objective64(arch, weights, batch, temperature):
    total = 0.0
    for prompt, completions, row in zip(*batch, strict=True):
        for completion, weight in zip(completions, row, strict=True):
            tokens = np.concatenate([prompt, completion])
            logits = logits64(arch, weights, tokens)[len(prompt) - 1 : -1] / temperature
            top = logits.max(axis=-1)
            log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
            total += weight * (logits[np.arange(len(completion)), completion] - log_sum).sum()
    return total


def unit(x):
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("name", ["llama_biases", "qwen3_biases", "gemma2", "gemma3"])
def test_gradients_are_the_differences_of_a_float64_model(tiny, name):
    """Along a random direction of each tensor, and along its gradient."""
    lm, temperature = bon.LM.load(tiny(name)), 0.8
    arch = lm.arch
    slots = [(slot, layer) for slot, layer, _ in arch.slots()]
    weights = {(s, layer): lm._model.get(s, layer or 0).astype(float) for s, layer in slots}
    tokens = np.arange(60) * 7 % arch.vocab
    want = logits64(arch, weights, tokens)
    assert np.abs(lm.logits(tokens) - want).max() < F32_ERROR * np.abs(want).max()

    batch = texts(arch.vocab, {23: (7, 12), 1: (2,)})
    _, got = gradients(lm, batch, temperature)
    rng, step = np.random.default_rng(1), 1e-5
    for (slot, layer), gradient in zip(slots, got.values(), strict=True):
        old, gradient = weights[slot, layer], gradient.reshape(weights[slot, layer].shape)
        direction = unit(gradient) + unit(rng.normal(size=old.shape))
        ends = []
        for sign in (1, -1):
            weights[slot, layer] = old + sign * step * direction
            ends.append(objective64(arch, weights, batch, temperature))
        weights[slot, layer] = old
        slope = (ends[0] - ends[1]) / (2 * step)
        error = abs(slope - (gradient * direction).sum())
        assert error < F32_ERROR * np.linalg.norm(gradient), (slot, layer)


# -- the same bits, the same sums ----------------------------------------------


@pytest.fixture(scope="module")
def loaded(tiny):
    """A function: name, dtype, threads -> the model, loaded once."""
    cache = {}

    def load(name, dtype="float32", threads=2):
        key = name, dtype, threads
        if key not in cache:
            cache[key] = bon.LM.load(tiny(name, dtype=dtype), dtype=dtype, threads=threads)
        return cache[key]

    return load


def smallest_memory(lm, batch):
    """Bytes, to 2 %, without which a backward pass of the batch does not fit."""
    low, high = 1 << 16, MEMORY
    while high > 1.02 * low:
        middle = math.isqrt(low * high)
        try:
            Learner(lm, middle).accumulate(*batch)
            high = middle
        except MemoryError:
            low = middle
    return high


@pytest.mark.parametrize(("name", "dtype"), [
    ("llama3", "float32"), ("qwen2", "float32"), ("gemma2", "float32"), ("qwen2", "bfloat16"),
])
def test_memory_does_not_show_in_the_gradient(loaded, name, dtype):
    """From all in one part with all layers kept, to a tree at a time and none."""
    lm = loaded(name, dtype)
    batch = texts(lm.arch.vocab, {1: (1, 33, 7), 40: (), 20: (24, 2), 5: (20,)})
    want = gradients(lm, batch)
    budget = least = smallest_memory(lm, batch)
    while budget < 4 * least:
        assert_same_bits(gradients(lm, batch, memory=budget), want)
        budget = int(budget * 1.4)


def test_layers_that_are_computed_again_do_not_show_in_the_gradient(loaded):
    """One tree: from what does not hold the results of all layers, to what does."""
    lm = loaded("llama3")
    batch = texts(lm.arch.vocab, {100: (50, 60)})
    least = smallest_memory(lm, batch)
    arch, rows = lm.arch, 100 + 49 + 59
    widths = (arch.heads * 2 + arch.kv_heads * 2) * arch.head_dim + arch.hidden
    results_of_a_layer = 4 * rows * (widths + 2 * arch.intermediate)
    all_kept = least + (arch.layers - 1) * results_of_a_layer
    want = gradients(lm, batch)
    for memory in np.linspace(least, 1.1 * all_kept, 5):
        assert_same_bits(gradients(lm, batch, memory=int(memory)), want)


def test_blocks_of_logits_do_not_show_in_the_gradient():
    """A vocabulary of which 239 rows make 64 MB; where there is room a block has 512."""
    vocab, rows = 70_000, (300, 290)
    lm = bon.LM.from_config({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False}, rng=0)
    batch = texts(vocab, {1: rows})
    blocks = [4 * vocab * (64 * 2**20 // (4 * vocab)), 4 * vocab * 512]
    others = smallest_memory(lm, batch) - blocks[0]
    assert others < blocks[1] - blocks[0]  # so that only the second budget holds wide blocks
    few, many = (gradients(lm, batch, memory=2 * others + block) for block in blocks)
    assert_same_bits(few, many)


@pytest.mark.parametrize("name", ["wide", "gemma2"])
def test_threads_do_not_show_in_the_gradient(loaded, name):
    batch = texts(MODELS[name]["vocab_size"], SHAPE)
    want = gradients(loaded(name), batch)
    assert_same_bits(gradients(loaded(name, threads=1), batch), want)
    assert_same_bits(gradients(loaded(name, threads=3), batch), want)


def test_a_batch_of_several_parts_is_the_sum_of_its_trees_in_order(loaded):
    """More rows than the engine works on at a time."""
    lm = loaded("llama3")
    batch = texts(lm.arch.vocab, {200 + i: (9, 4 + i) for i in range(11)})
    assert sum(map(len, batch[0])) > 2048
    learner = Learner(lm, MEMORY)
    logp = [learner.accumulate(*([part] for part in tree)) for tree in zip(*batch, strict=True)]
    parts, got = learner.gradients(), gradients(lm, batch)
    embedding = "model.embed_tokens.weight"  # summed up by batches
    assert_near({embedding: got[1].pop(embedding)}, {embedding: parts.pop(embedding)}, 1e-6)
    assert_same_bits(got, (joined(row for one in logp for row in one), parts))


def test_a_learner_accumulates_until_it_is_told_to_forget(loaded):
    lm = loaded("qwen2")
    learner, batch = Learner(lm, MEMORY), texts(lm.arch.vocab, SHAPE)
    first, once = learner.accumulate(*batch), learner.gradients()
    second, twice = learner.accumulate(*batch), learner.gradients()
    assert_same_bits([joined(first)], [joined(second)])
    assert_near(twice, {name: 2 * values for name, values in once.items()}, 1e-5)
    squares = sum((values.astype(float) ** 2).sum() for values in twice.values())
    assert learner.norm() == pytest.approx(math.sqrt(squares), rel=1e-6)
    learner.zero()
    assert learner.norm() == 0
    learner.accumulate(*batch)
    assert_same_bits([learner.gradients()], [once])


@pytest.mark.parametrize("name", ["llama3", "gemma3", "mistral"])
def test_a_shared_prompt_has_the_gradient_of_all_its_copies(loaded, name):
    lm = loaded(name)
    prompts, completions, weights = texts(lm.arch.vocab, SHAPE)
    logp, shared = gradients(lm, (prompts, completions, weights))
    copies = [(prompt, [text], [weight]) for prompt, row, own in
              zip(prompts, completions, weights, strict=True)
              for text, weight in zip(row, own, strict=True)]
    alone, sums = gradients(lm, tuple(zip(*copies, strict=True)))
    np.testing.assert_allclose(alone, logp, atol=1e-4)
    assert_near(shared, sums, 1e-5)


def test_prompts_in_another_order_have_the_same_gradient(loaded):
    lm = loaded("qwen3")
    batch = texts(lm.arch.vocab, SHAPE)
    backwards = tuple(list(part)[::-1] for part in batch)
    assert_near(gradients(lm, backwards)[1], gradients(lm, batch)[1], 1e-5)


def test_logp_of_a_learner_is_that_of_the_model(loaded):
    lm = loaded("gemma2")
    batch = texts(lm.arch.vocab, SHAPE)
    logp, _ = gradients(lm, batch, 0.7)
    np.testing.assert_allclose(logp, joined(lm.logp(*batch[:2], temperature=0.7)), atol=1e-4)


def test_lm_gradients_are_those_of_a_learner(loaded):
    lm = loaded("llama3")
    prompts, completions, weights = texts(lm.arch.vocab, SHAPE)
    got = lm.gradients([prompt.tolist() for prompt in prompts], completions, weights, 0.8)
    assert_same_bits([got], [gradients(lm, (prompts, completions, weights), 0.8)[1]])
    nothing = np.empty(0, np.int32)
    longer = [[nothing, *row] for row in completions]
    heavier = [[5.0, *row] for row in weights]
    assert_same_bits([lm.gradients(prompts, longer, heavier, 0.8)], [got])


def test_no_completions_have_no_gradient(loaded):
    lm = loaded("llama3")
    for batch in (([], [], []), (texts(97, SHAPE)[0], [[]] * 4, [[]] * 4)):
        learner = Learner(lm, MEMORY)
        assert learner.accumulate(*batch) == [[] for _ in batch[0]]
        assert learner.norm() == 0


def test_a_text_as_long_as_the_context_is_learned_from(loaded):
    lm = loaded("llama_biases")
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 97, CONTEXT).astype(np.int32)
    for cut in (1, CONTEXT - 1):
        logp, got = gradients(lm, ([whole[:cut]], [[whole[cut:]]], [[1.0]]))
        assert logp.shape == (CONTEXT - cut,)
        assert all(np.isfinite(values).all() for values in got.values())


# -- errors --------------------------------------------------------------------


def arrays(lm, shape=None, seed=3):
    """Arguments of the engine's accumulate by name, to be damaged."""
    prompts, completions, weights = texts(lm.arch.vocab, shape or {4: (3, 1), 2: (5,)}, seed)
    per_token = [np.repeat(weight, [len(text) for text in row]).astype(np.float32)
                 for weight, row in zip(weights, completions, strict=True)]
    names = ("tokens", "prompt_rows", "branches", "branch_rows", "target_row", "target_token",
             "target_weight")
    return dict(zip(names, _batch.predictions(prompts, completions, per_token).arrays(),
                    strict=True)) | {"temperature": 1.0, "target_probability": None}


def change(name, index, value):
    def damage(given):
        given[name] = given[name].copy()
        given[name][index] = value
    return damage


def replace(name, value):
    return lambda given: given.update({name: value(given) if callable(value) else value})


def shorter(name):
    return replace(name, lambda given: given[name][:-1])


@pytest.mark.parametrize(("damage", "error", "message"), [
    (change("prompt_rows", 1, 1), ValueError, "tokens must have length 11, got 12"),
    (change("tokens", 3, 97), ValueError, "token ids must lie in the vocabulary: number 3 .* 97"),
    (change("tokens", 0, -1), ValueError, "token ids must lie in the vocabulary: number 0 .* -1"),
    (change("target_token", 2, 97), ValueError, "targets must lie in the vocab.*: number 2 .* 97"),
    (change("target_token", 2, -5), ValueError, "targets must lie in the vocab.*: number 2 .* -5"),
    (change("target_row", 8, 12), ValueError, "rows of targets must exist and ascend: number 8"),
    (change("target_row", 3, 0), ValueError, "rows of targets must exist and ascend: number 3"),
    (change("target_weight", 1, np.nan), ValueError, "weights must be finite: number 1"),
    (change("target_weight", 0, np.inf), ValueError, "weights must be finite: number 0"),
    (change("branches", 0, 3), ValueError, "branches must count the entries of branch_rows"),
    (change("branches", 0, 1), ValueError, "branches must count the entries of branch_rows"),
    (change("branch_rows", 0, 2**64 - 1), ValueError, "branches must count the entries"),
    (change("prompt_rows", 0, 2**64 - 1), ValueError, "branches must count the entries"),
    (replace("target_probability", lambda g: g["target_weight"] * 0 + 1.5), ValueError,
     r"probabilities must lie in \[0, 1\]: number 0"),
    (replace("target_probability", lambda g: g["target_weight"] * np.nan), ValueError,
     r"probabilities must lie in \[0, 1\]: number 0"),
    (replace("target_probability", np.ones(3, np.float32)), ValueError,
     "target_probability must have length 9, got 3"),
    (shorter("target_token"), ValueError, "target_token must have length 9, got 8"),
    (shorter("target_weight"), ValueError, "target_weight must have length 9, got 8"),
    (shorter("branches"), ValueError, "branches must have length 2, got 1"),
    (replace("tokens", lambda g: g["tokens"].tolist()), TypeError, "tokens"),
    (replace("tokens", lambda g: g["tokens"].astype(np.int64)), TypeError, "tokens"),
    (replace("target_row", lambda g: g["target_row"][None]), TypeError, "target_row .* 1 dimen"),
    (replace("temperature", 0.0), ValueError, "need a finite temperature > 0"),
    (replace("temperature", math.nan), ValueError, "need a finite temperature > 0"),
    (replace("temperature", math.inf), ValueError, "need a finite temperature > 0"),
])
def test_a_damaged_batch_is_refused(loaded, damage, error, message):
    lm = loaded("llama2")
    learner, given = engine().Learner(lm._model, MEMORY), arrays(lm)
    damage(given)
    with pytest.raises(error, match=message):
        learner.accumulate(*given.values())
    assert learner.norm() == 0


@pytest.mark.parametrize(("shape", "message"), [
    ({CONTEXT + 1: (1,)}, f"a prompt must fit the model's context: number 0 .* {CONTEXT + 1}"),
    ({3: (2,), CONTEXT: (1, 3)}, "a prompt and its completion must fit .*: number 1 .* has 2"),
    ({3: (2, CONTEXT)}, f"a prompt and its completion must fit .* {CONTEXT - 1}"),
    ({0: (2,)}, "a prompt needs at least one token: number 0 of the batch has 0"),
])
def test_texts_that_do_not_fit_are_refused(loaded, shape, message):
    lm = loaded("llama2")
    with pytest.raises(ValueError, match=message):
        Learner(lm, MEMORY).accumulate(*texts(lm.arch.vocab, shape))


def test_lm_gradients_say_what_does_not_match(loaded):
    lm = loaded("llama2")
    with pytest.raises(ValueError, match=r"one number per completion, \[1\] .*, got \[2\]"):
        lm.gradients([[1, 2]], [[[3]]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="need one finite temperature > 0, got 0"):
        lm.gradients([[1, 2]], [[[3]]], [[1.0]], temperature=0)
    with pytest.raises(ValueError, match="weights must be finite"):
        lm.gradients([[1, 2]], [[[3]]], [[np.nan]])


def test_labels_that_the_score_head_has_not_are_refused(tiny):
    lm = bon.LM.load(tiny("llama2", labels=2))
    prompts, completions, weights = texts(lm.arch.vocab, {4: (2,)})
    with pytest.raises(ValueError, match=r"be labels of the score head: number 0 .* has 2"):
        Learner(lm, MEMORY).accumulate_scores(prompts, completions, weights, label=2)


@pytest.mark.parametrize("wrong", [[[1.0, 2.0]], [[[1.0]]], [1.0], [[1.0], [1.0]], []])
def test_a_learner_takes_one_number_per_completion(tiny, wrong):
    """Also where NumPy would spread or cut them to fit."""
    text = [np.array([1, 2], np.int32)], [[np.array([3, 4, 5], np.int32)]]
    learner, scorer = Learner(bon.LM.load(tiny("llama2"))), Learner(
        bon.LM.load(tiny("llama2", labels=1)))
    learner.set_reference(bon.LM.load(tiny("llama2")))
    for name, call in (
        ("weights", lambda: learner.accumulate(*text, wrong)),
        ("kl_weights", lambda: learner.accumulate_kl(*text, [[1.0]], wrong)),
        ("weights", lambda: scorer.accumulate_scores(*text, wrong)),
        ("probabilities", lambda: scorer.accumulate_scores(*text, [[1.0]], wrong)),
    ):
        with pytest.raises(ValueError, match=f"^{name} must have one number per completion"):
            call()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_completion_without_tokens_is_refused(loaded, place):
    lm, row = loaded("llama2"), [np.array([3, 4], np.int32), np.array([5], np.int32)]
    row.insert(place, np.empty(0, np.int32))
    with pytest.raises(ValueError, match="a completion needs at least one token"):
        Learner(lm, MEMORY).accumulate([np.array([1, 2], np.int32)], [row], [[1.0] * 3])


@pytest.mark.parametrize(("name", "slot"), [("llama2", "head"), ("llama2_tied", "embed")])
def test_a_learner_sees_weights_that_others_have_changed(tiny, name, slot):
    """By setting them, or by a step of another learner."""
    lm = bon.LM.load(tiny(name))
    batch = texts(lm.arch.vocab, {9: (1, 7), 4: (3,)})
    learner, other = Learner(lm, MEMORY), Learner(lm, MEMORY)
    learner.accumulate(*batch)

    def check():
        learner.zero()
        learner.accumulate(*batch)
        assert_same_bits([learner.gradients()], [gradients(lm, batch)[1]])

    lm._model.set(slot, 0, lm._model.get(slot, 0) * np.float32(1.5))
    check()
    other.accumulate(*batch)
    other.step(AdamW(), 0.1)
    check()


def test_a_state_that_does_not_fit_changes_nothing(tiny, tmp_path):
    """A file whose last tensor is another model's, and one of no learner."""
    from safetensors.numpy import load_file, save_file

    lm, path = bon.LM.load(tiny("llama2")), tmp_path / "state.safetensors"
    batch = texts(lm.arch.vocab, {9: (1, 7)})
    learner, logits = Learner(lm, MEMORY), lm.logits([1, 2, 3])
    learner.accumulate(*batch)
    learner.save(path)
    state = {key: values * 2 for key, values in load_file(path).items()}
    cut = {**state, "moment_2.lm_head.weight": np.zeros((2, 2), np.float32)}
    for tensors, steps, message in (
        (cut, {"steps": "1"}, r"lm_head.weight as F32 of shape \(97, 40\), found F32 of shape"),
        ({}, {"steps": "1"}, "must hold .*embed_tokens.weight as F32 of shape .*, found None"),
        (state, None, "must say how many steps were made"),
        (state, {"steps": "x"}, "must say how many steps were made, found 'x'"),
    ):
        save_file(tensors, path, steps)
        with pytest.raises(ValueError, match=message):
            learner.load(path)
    assert_same_bits([lm.logits([1, 2, 3])], [logits])
    assert learner.steps == 0
    save_file(state, path, {"steps": "3"})
    learner.load(path)
    assert (learner.steps, learner.norm()) == (3, 0)  # what was accumulated before is forgotten


def test_too_little_memory_is_said_and_leaves_no_gradient(loaded):
    lm = loaded("qwen2")
    batch = texts(lm.arch.vocab, {3: (2, 4), 100: (90, 40)})
    learner = Learner(lm, int(smallest_memory(lm, batch) * 0.95))
    with pytest.raises(MemoryError, match="one prompt with its completions does not fit"):
        learner.accumulate(*batch)
    assert learner.norm() == 0
    learner.accumulate(*(part[:1] for part in batch))
    assert learner.norm() > 0


def test_weights_that_are_not_finite_are_said_and_leave_no_gradient(tiny):
    lm = bon.LM.load(tiny("llama3"))
    learner, batch = Learner(lm, MEMORY), texts(lm.arch.vocab, SHAPE)
    learner.accumulate(*batch)
    down = lm._model.get("down", 1)
    for bad in (np.nan, np.inf):
        damaged = down.copy()
        damaged[3, 4] = bad
        lm._model.set("down", 1, damaged)
        with pytest.raises(ValueError, match="computed a logit that is NaN or infinite: its weig"):
            learner.accumulate(*batch)
        assert learner.norm() == 0
    lm._model.set("down", 1, down)
    learner.accumulate(*batch)
    assert_same_bits([learner.gradients()], [gradients(lm, batch)[1]])


def test_a_learner_is_made_of_a_model_and_bytes(loaded):
    make, model = engine().Learner, loaded("llama2")._model
    with pytest.raises(TypeError, match="Model"):
        make("llama2", MEMORY)
    with pytest.raises(ValueError, match="need memory >= 1, got 0"):
        make(model, 0)


@pytest.mark.parametrize(("options", "message"), [
    ((-1.0, 0.9, 0.999, 1e-8, 0.0, 1.0), "lr >= 0"), ((1e-3, 1.0, 0.999, 1e-8, 0, 1), "beta1"),
    ((1e-3, 0.9, -0.1, 1e-8, 0.0, 1.0), "beta2 < 1"), ((1e-3, 0.9, 0.9, 0.0, 0, 1), "eps > 0"),
    ((1e-3, 0.9, 0.999, 1e-8, math.nan, 1.0), "weight_decay >= 0"),
    ((math.inf, 0.9, 0.999, 1e-8, 0, 1), "a finite lr"), ((0, 0.9, 0.9, 1e-39, 0, 1), "1.2e-38 at"),
    ((0, 0.9, 0.9, math.inf, 0, 1), "finite eps"), ((0, 0.9, 0.9, 1, math.inf, 1), "finite weight"),
])
def test_steps_with_bad_options_are_refused(loaded, options, message):
    learner = engine().Learner(loaded("llama2")._model, MEMORY)
    with pytest.raises(ValueError, match=message):
        learner.step(*options)
    assert learner.steps == 0


@pytest.mark.parametrize("options", [{"eps": 1e-39}, {"eps": math.inf},
                                     {"weight_decay": math.inf}])
def test_numbers_that_float32_does_not_hold_are_refused(options):
    """eps = 1e-60 would be 0, and a weight without gradient 0 / 0."""
    (name,) = options
    with pytest.raises(ValueError, match=f"need a finite {name}"):
        AdamW(**options)


def test_tensors_are_asked_for_by_kind_slot_and_layer(loaded):
    lm = loaded("qwen2")
    learner = engine().Learner(lm._model, MEMORY)
    for call, message in (
        (("sum", "q", 0), "a kind is weight, gradient, moment_1 or moment_2, got sum"),
        (("weight", "nose", 0), "nose"),
        (("weight", "head", 0), "this architecture has no slot head in layer 0"),
        (("weight", "q", 3), "this architecture has no slot q in layer 3"),
        (("gradient", "embed", 1), "this architecture has no slot embed in layer 1"),
        (("weight", "q", -1), "no slot q in layer -1"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.get(*call)
        with pytest.raises(ValueError, match=message):
            learner.set(*call, np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match=r"slot final_norm must have shape \[36"):
        learner.set("weight", "final_norm", 0, np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="final_norm"):
        learner.set("weight", "final_norm", 0, np.zeros(36))
    with pytest.raises(TypeError, match="steps cannot be deleted"):
        del learner.steps
    with pytest.raises((OverflowError, TypeError)):
        learner.steps = -1
    assert learner.steps == 0


@pytest.mark.parametrize(("share", "scale"), [(2.0, 1.0), (0.25, 0.25)])
def test_only_gradients_that_are_too_long_are_scaled(tiny, share, scale):
    """With a large eps, as AdamW otherwise hardly sees how long they are."""
    lm, other = (bon.LM.load(tiny("llama2")) for _ in range(2))
    clipped, plain = Learner(lm, MEMORY), Learner(other, MEMORY)
    prompts, completions, weights = texts(lm.arch.vocab, {9: (1, 7)})
    clipped.accumulate(prompts, completions, weights)
    plain.accumulate(prompts, completions, [scale * row for row in weights])
    norm = clipped.norm()
    found = clipped.step(AdamW(eps=1e6, max_norm=share * norm), 1e5)
    plain.step(AdamW(eps=1e6, max_norm=math.inf), 1e5)
    assert found["grad_norm"] == norm
    np.testing.assert_allclose(lm.logits([1, 2, 3]), other.logits([1, 2, 3]), atol=1e-3)
    moved = np.abs(other.logits([1, 2, 3]) - bon.LM.load(tiny("llama2")).logits([1, 2, 3]))
    assert moved.max() > 0.1


def test_a_step_on_a_gradient_that_is_not_finite_is_not_made(tiny):
    lm = bon.LM.load(tiny("llama2"))
    learner, before = Learner(lm, MEMORY), lm.logits([1, 2, 3])
    learner._engine.set("gradient", "final_norm", 0, np.full(40, np.inf, np.float32))
    with pytest.raises(ValueError, match="norm is inf: the step was not made"):
        learner.step(AdamW(), 1e-3)
    assert learner.norm() == 0
    assert learner.steps == 0
    assert_same_bits([lm.logits([1, 2, 3])], [before])


# -- Ctrl-C and threads --------------------------------------------------------


@pytest.fixture
def long_work(tiny):
    """A learner and a batch for some seconds."""
    lm = bon.LM.load(tiny("wide"))
    return Learner(lm, MEMORY), texts(lm.arch.vocab, {200 + p: [100] * 6 for p in range(24)})


@pytest.mark.clock
def test_ctrl_c_ends_a_backward_pass_soon_and_leaves_no_gradient(long_work):
    learner, batch = long_work
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.4, send)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        learner.accumulate(*batch)
    assert time.perf_counter() - sent[0] < 0.5
    assert learner.norm() == 0
    timer.join()


@pytest.mark.clock
def test_another_thread_runs_meanwhile_but_not_with_the_same_learner(long_work):
    learner, batch = long_work
    refused = []

    def intrude():
        for call in (learner.norm, learner.zero, lambda: learner.weight("q", 0),
                     lambda: learner.step(AdamW(), 0.0), lambda: learner.accumulate(*batch)):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, intrude)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        learner.accumulate(*batch)
    timer.join()
    assert refused == ["the learner is in use by another thread"] * 5


@pytest.mark.clock
def test_a_reference_is_not_changed_while_it_is_compared_with(tiny, long_work):
    learner, (prompts, completions, weights) = long_work
    reference, refused = bon.LM.load(tiny("wide")), []
    learner.set_reference(reference)
    norm = reference._model.get("final_norm", 0)

    def intrude():
        for call in (reference._model.remove_adapters,
                     lambda: reference._model.set("final_norm", 0, norm)):
            with pytest.raises(RuntimeError, match="while another thread uses the model"):
                call()
            refused.append(call)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, intrude)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        learner.accumulate_kl(prompts, completions, weights, weights)
    timer.join()
    assert len(refused) == 2
    reference._model.set("final_norm", 0, norm)  # and it may be, once that is over


# -- shares of a batch -----------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_of_a_batch_have_its_gradient_and_its_values(loaded, count):
    lm = loaded("llama_biases", "float32")
    prompts, completions, weights = texts(lm.arch.vocab, {9: (4, 1), 30: (7,), 2: (1, 1, 5),
                                                          11: (2, 8)})
    batch = _batch.predictions(prompts, completions, [
        np.repeat(row, [len(text) for text in own]).astype(np.float32)
        for row, own in zip(weights, completions, strict=True)])
    whole, parts = Learner(lm), Learner(lm)
    values, _ = whole._engine.accumulate(*batch.arrays(), 1.0)
    shares = batch.shares(count)
    found = [parts._engine.accumulate(*arrays, 1.0)[0] for arrays, _ in shares]
    assert len(shares) == min(count, 4)
    assert np.array_equal(np.concatenate(found), values)
    assert [targets.stop - targets.start for _, targets in shares] == list(map(len, found))
    assert_near(parts.gradients(), whole.gradients(), 1e-6)


def test_shares_are_runs_of_prompts_of_about_as_many_rows():
    ids = [np.arange(length, dtype=np.int32) for length in (10, 10, 20, 40)]
    batch = _batch.predictions(ids, [[np.ones(1, np.int32)]] * 4, [np.ones(1, np.float32)] * 4)
    assert [arrays[1].tolist() for arrays, _ in batch.shares(2)] == [[10, 10, 20], [40]]
    assert [arrays[1].tolist() for arrays, _ in batch.shares(9)] == [[10], [10], [20], [40]]
    assert _batch.predictions([], [], []).shares(3) == []
