"""Training low-rank adapters: gradients against torch, the model's own weights left alone."""

import numpy as np
import pytest
from tiny import MODELS

import bonaware as bon
from bonaware import lora
from bonaware._learner import AdamW, Learner, attach
from bonaware.models import family_of

ERROR = 2e-5  # of each tensor's largest gradient
TEMPERATURE = 0.8
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


def flat(per_prompt):
    return [values for own in per_prompt for values in own]


def total(logp):
    return sum(values.sum() for values in flat(logp))


def texts(name):
    rng = np.random.default_rng(3)

    def ids(length):
        return rng.integers(1, MODELS[name]["vocab_size"], length).astype(np.int32)

    completions = [[ids(n) for n in lengths] for lengths in ((1, 7, 33), (64, 2))]
    return [ids(5), ids(40)], completions, [rng.normal(size=len(c)) for c in completions]


def started(lm, rank=4, seed=1):
    """An adapter that does change the model."""
    adapter = lora.fresh(lm, rank, alpha=2.0, targets=TARGETS)
    rng = np.random.default_rng(seed)
    for _, b in adapter.pairs.values():
        b[:] = rng.normal(size=b.shape) * 0.1
    return adapter


@pytest.mark.parametrize("name", ["llama_biases", "gemma2", "qwen3"])
def test_gradients_of_adapters_are_those_of_torch(tiny, name):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers")
    lm = bon.LM.load(tiny(name))
    adapter = started(lm)
    learner = Learner(lm, start=adapter)
    prompts, completions, weights = texts(name)
    logp = learner.accumulate(prompts, completions, weights, TEMPERATURE)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny(name), dtype=torch.float32, attn_implementation="eager")
    own, names = dict(model.named_parameters()), family_of(lm.config).NAMES
    leaves, effective = {}, {}
    for (slot, layer), (a, b) in adapter.pairs.items():
        pair = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
        key = names[slot].format(i=layer)
        leaves[key.removesuffix(".weight")] = pair
        effective[key] = own[key].detach() + adapter.scaling * pair[1] @ pair[0]
    total, expected = 0.0, []
    for prompt, row, weight in zip(prompts, completions, weights, strict=True):
        for text, w in zip(row, weight, strict=True):
            ids = torch.tensor(np.concatenate([prompt, text])[None], dtype=torch.long)
            logits = torch.func.functional_call(model, effective, (ids,)).logits[0]
            drawn = torch.log_softmax(logits[len(prompt) - 1:-1] / TEMPERATURE, -1).gather(
                1, ids[0, len(prompt):, None])[:, 0]
            expected.append(drawn.detach().numpy())
            total = total + w * drawn.sum()
    total.backward()
    for got, want in zip(flat(logp), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)
    gradients = learner.gradients()
    assert len(gradients) == 2 * len(leaves)
    for module, pair in leaves.items():
        for half, leaf in zip("AB", pair, strict=True):
            want = leaf.grad.numpy()
            got = gradients[f"{module}.lora_{half}.weight"]
            assert np.abs(got - want).max() < ERROR * np.abs(want).max(), module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_move_and_the_saved_model_has_them_merged(tiny, tmp_path, dtype):
    lm = bon.LM.load(tiny("llama3", dtype=dtype))
    before = {key: lm._model.get(key[0], key[1] or 0) for key in
              [(slot, layer) for slot, layer, _ in lm.arch.slots()]}
    learner = Learner(lm, start=lora.fresh(lm, rank=4, targets=TARGETS))
    prompts, completions, weights = texts("llama3")
    start = total(learner.accumulate(prompts, completions, weights))
    for _ in range(5):
        learner.step(AdamW(lr=0.05), 0.05)
        logp = learner.accumulate(prompts, completions, [-np.ones(len(w)) for w in weights])
    assert total(logp) > start  # it has learnt
    for (slot, layer), values in before.items():
        np.testing.assert_array_equal(lm._model.get(slot, layer or 0), values)
    lm.save(tmp_path / "merged")
    merged = bon.LM.load(tmp_path / "merged", dtype="float32")
    tokens = np.arange(1, 40)
    apart = bon.LM.load(tiny("llama3", dtype=dtype), dtype="float32")  # and its cache
    attach(apart, learner.adapter())
    np.testing.assert_allclose(merged.logits(tokens), apart.logits(tokens), rtol=0,
                               atol=2e-5 * np.abs(lm.logits(tokens)).max())
    error = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]  # there keys and values are rounded
    np.testing.assert_allclose(merged.logits(tokens), lm.logits(tokens), rtol=0,
                               atol=error * np.abs(lm.logits(tokens)).max())
    assert merged.fingerprint != bon.LM.load(tiny("llama3", dtype=dtype)).fingerprint


def test_state_of_adapters_comes_back_bit_for_bit(tiny, tmp_path):
    prompts, completions, weights = texts("qwen2")

    def step(learner):
        learner.accumulate(prompts, completions, weights)
        learner.step(AdamW(lr=0.01), 0.01)

    first = Learner(bon.LM.load(tiny("qwen2")), start=started(bon.LM.load(tiny("qwen2"))))
    step(first)
    first.save(tmp_path / "state.safetensors")
    other = bon.LM.load(tiny("qwen2"))
    second = Learner(other, start=lora.fresh(other, rank=4, alpha=2.0, targets=TARGETS))
    second.load(tmp_path / "state.safetensors")
    step(first)
    step(second)
    for key, (a, b) in first.adapter().pairs.items():
        np.testing.assert_array_equal(second.adapter().pairs[key][0], a)
        np.testing.assert_array_equal(second.adapter().pairs[key][1], b)


def test_a_trainer_saves_its_adapters(tiny, tmp_path):
    lm = bon.LM.load(tiny("llama2"))
    prompts, completions, _ = texts("llama2")
    trainer = bon.Trainer(lm, bon.losses.get("sft")(), AdamW(lr=0.01), bon.LoRA(rank=2, alpha=6))
    trainer.step(prompts, [row[:1] for row in completions], [[1.0], [1.0]])
    trainer.save_adapter(tmp_path / "adapter")
    found = lora.read(tmp_path / "adapter", bon.LM.load(tiny("llama2")))
    wanted = trainer._learner.adapter()
    assert (found.rank, found.alpha, found.pairs.keys()) == (2, 6, wanted.pairs.keys())
    for key, (a, b) in wanted.pairs.items():
        np.testing.assert_array_equal(found.pairs[key][0], a)
        np.testing.assert_array_equal(found.pairs[key][1], b)
        assert b.any()
    with pytest.raises(ValueError, match="trains all weights: there are no adapters"):
        bon.Trainer(bon.LM.load(tiny("llama2"))).save_adapter(tmp_path / "none")


def test_samples_are_drawn_with_the_adapters(tiny):
    lm = bon.LM.load(tiny("llama2"))
    prompt = [[1, 2, 3]]
    plain = lm.generate(prompt, n=4, max_new_tokens=12, progress=False)
    Learner(lm, start=lora.fresh(lm))
    unchanged = lm.generate(prompt, n=4, max_new_tokens=12, progress=False)
    Learner(lm, start=started(lm))
    changed = lm.generate(prompt, n=4, max_new_tokens=12, progress=False)
    assert [t.tolist() for t in plain.tokens[0]] == [t.tolist() for t in unchanged.tokens[0]]
    assert [t.tolist() for t in plain.tokens[0]] != [t.tolist() for t in changed.tokens[0]]
    scored = lm.logp(prompt, [changed.tokens[0]])[0]
    for got, want in zip(scored, changed.logp[0], strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_an_adapter_in_some_layers_only_is_refused(tiny):
    lm = bon.LM.load(tiny("llama2"))
    adapter = lora.fresh(lm)
    del adapter.pairs["q", 1]
    with pytest.raises(ValueError, match="q has none in layer 1"):
        Learner(lm, start=adapter)


def test_unknown_targets_are_named(tiny):
    with pytest.raises(ValueError, match="found 'lm_head'"):
        lora.fresh(bon.LM.load(tiny("llama2")), targets=("q_proj", "lm_head"))
    with pytest.raises(ValueError, match="need at least one target"):
        lora.fresh(bon.LM.load(tiny("llama2")), targets=())


def test_a_learner_whose_adapters_were_replaced_says_so(tiny, tmp_path):
    """It must not touch them: their memory is another's now."""
    lm = bon.LM.load(tiny("llama2"))
    prompts, completions, weights = texts("llama2")
    old, new = Learner(lm, start=lora.fresh(lm, 4)), Learner(lm, start=lora.fresh(lm, 6))
    for call in (lambda: old.accumulate(prompts, completions, weights), old.norm, old.zero,
                 lambda: old.step(AdamW(), 0.1), old.adapter, lambda: old.weight("q", 0),
                 lambda: old.save(tmp_path / "state")):
        with pytest.raises(RuntimeError, match="has got other adapters since"):
            call()
    new.accumulate(prompts, completions, weights)
    new.step(AdamW(), 0.1)
    lm._model.remove_adapters()
    with pytest.raises(RuntimeError, match="has got other adapters since"):
        new.norm()


def test_an_adapter_that_is_refused_leaves_the_others_in_place(tiny):
    lm = bon.LM.load(tiny("llama2"))
    learner = Learner(lm, start=started(lm))
    logits, wrong = lm.logits([1, 2, 3]), lora.fresh(lm)
    del wrong.pairs["down", 2]
    with pytest.raises(ValueError, match="down has none in layer 2"):
        Learner(lm, start=wrong)
    np.testing.assert_array_equal(lm.logits([1, 2, 3]), logits)
    assert learner.norm() == 0


def test_tensors_that_an_adapter_replaces_whole_stay_in_it(tiny, tmp_path):
    lm = bon.LM.load(tiny("llama2", labels=1))
    embed = lm._model.get("embed", 0) * 2
    start = lora.Adapter(4, 2.0, started(lm).pairs, {("embed", 0): embed})
    learner = Learner(lm, start=start)
    prompts, completions, weights = texts("llama2")
    learner.accumulate_scores(prompts, completions, weights)
    learner.step(AdamW(), 0.1)
    lora.write(tmp_path / "adapter", learner.adapter(), lm)
    other = bon.LM.load(tiny("llama2", labels=1))
    found = lora.read(tmp_path / "adapter", other)
    assert set(found.full) == {("embed", 0), ("score", 0)}
    lora.merge(other, found)
    for got, want in zip(other.scores(prompts, completions), lm.scores(prompts, completions),
                         strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
