"""The exact divergence from a reference model, and its gradient, against torch."""

import numpy as np
import pytest
from tiny import MODELS

import bonaware as bon
from bonaware._learner import Learner
from bonaware.models import family_of

ERROR = 2e-5  # of each tensor's largest gradient
TEMPERATURE = 0.8


def flat(per_prompt):
    return [values for own in per_prompt for values in own]


def texts(name, seed=5):
    """Three prompts and their completions of several lengths; no id is the padding's."""
    rng = np.random.default_rng(seed)

    def ids(length):
        return rng.integers(1, MODELS[name]["vocab_size"], length).astype(np.int32)

    prompts = [ids(length) for length in (1, 9, 40)]
    completions = [[ids(n) for n in lengths] for lengths in ((3, 1), (30, 12, 2), (50,))]
    return prompts, completions, [rng.normal(size=len(c)) for c in completions]


def oracle(torch, path, other, prompts, completions, weights, kl_weights):
    """Per-token divergences, and the gradients of the objective by autograd."""
    transformers = pytest.importorskip("transformers")
    model, reference = (transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager") for folder in (path, other))
    total, divergences = 0.0, []
    for prompt, own, weight, kl_weight in zip(prompts, completions, weights, kl_weights,
                                              strict=True):
        for text, w, k in zip(own, weight, kl_weight, strict=True):
            ids = torch.tensor(np.concatenate([prompt, text])[None], dtype=torch.long)
            rows = slice(len(prompt) - 1, -1)
            logp = torch.log_softmax(model(ids).logits[0, rows] / TEMPERATURE, -1)
            with torch.no_grad():
                other_logp = torch.log_softmax(reference(ids).logits[0, rows] / TEMPERATURE, -1)
            divergence = (logp.exp() * (logp - other_logp)).sum(-1)
            drawn = logp.gather(1, ids[0, len(prompt):, None]).sum()
            total = total + w * drawn + k * divergence.sum()
            divergences.append(divergence.detach().numpy())
    total.backward()
    return divergences, {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["llama_biases", "qwen2", "gemma2"])
def test_divergence_and_its_gradient_are_those_of_torch(tiny, name):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    path, other = tiny(name), tiny(name, seed=1)
    prompts, completions, weights = texts(name)
    kl_weights = [np.abs(w[::-1]) for w in weights]
    lm = bon.LM.load(path)
    learner = Learner(lm)
    learner.set_reference(bon.LM.load(other))
    logp, kl = learner.accumulate_kl(prompts, completions, weights, kl_weights, TEMPERATURE)
    divergences, gradients = oracle(torch, path, other, prompts, completions, weights, kl_weights)
    for got, want in zip([d for own in kl for d in own], divergences, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)
    expected = lm.logp(prompts, completions, TEMPERATURE)
    for got, want in zip(flat(logp), flat(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)
    for key, got in learner.gradients().items():
        assert np.abs(got - gradients[key]).max() < ERROR * np.abs(gradients[key]).max(), key


def test_a_shared_prompt_has_the_divergences_of_all_its_copies(tiny):
    """Every completion with its own weight, whatever order the engine has them in."""
    lm, rng = bon.LM.load(tiny("gemma2")), np.random.default_rng(2)
    shared, alone = Learner(lm), Learner(lm)
    for learner in (shared, alone):
        learner.set_reference(bon.LM.from_config(MODELS["gemma2"], rng=1))
    prompts, completions, weights = texts("gemma2")
    kl_weights = [rng.normal(size=len(row)) for row in weights]
    _, kl = shared.accumulate_kl(prompts, completions, weights, kl_weights, TEMPERATURE)
    copies = [prompt for prompt, row in zip(prompts, completions, strict=True) for _ in row]
    _, one = alone.accumulate_kl(
        copies, [[text] for row in completions for text in row],
        *([[x] for row in numbers for x in row] for numbers in (weights, kl_weights)), TEMPERATURE)
    for got, (want,) in zip((own for row in kl for own in row), one, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)
    want = alone.gradients()
    for key, got in shared.gradients().items():
        assert np.abs(got - want[key]).max() < ERROR * np.abs(want[key]).max(), key


@pytest.mark.parametrize("name", ["llama2", "llama_biases", "qwen2", "gemma2"])
def test_no_divergence_from_oneself(tiny, name):
    lm = bon.LM.load(tiny(name))
    learner = Learner(lm)
    learner.set_reference(bon.LM.load(tiny(name)))
    prompts, completions, weights = texts(name)
    ones = [np.ones(len(w)) for w in weights]
    nothing = [np.zeros(len(w)) for w in weights]
    _, kl = learner.accumulate_kl(prompts, completions, nothing, ones)
    assert max(np.abs(d).max() for own in kl for d in own) < 1e-6
    scale = Learner(lm)
    scale.accumulate(prompts, completions, ones)
    assert learner.norm() < 1e-5 * scale.norm()


def test_the_memory_that_is_allowed_is_for_the_reference_too(tiny):
    """Activations of a wide one do not fit where those of a narrow one do."""
    def reference(width):
        return bon.LM.from_config({**MODELS["llama2"], "intermediate_size": width})

    prompts, completions, weights = texts("llama2")
    learner = Learner(bon.LM.load(tiny("llama2")), memory=3 << 20)
    learner.set_reference(reference(44))
    learner.accumulate_kl(prompts, completions, weights, weights)
    learner.set_reference(reference(4096))
    with pytest.raises(MemoryError, match="does not fit into the memory for training"):
        learner.accumulate_kl(prompts, completions, weights, weights)


def test_a_reference_of_another_vocabulary_is_refused(tiny):
    learner = Learner(bon.LM.load(tiny("llama2")))
    with pytest.raises(ValueError, match="same vocabulary"):
        learner.set_reference(bon.LM.load(tiny("llama_linear")))


def test_a_divergence_that_is_not_finite_is_said_and_leaves_no_gradient(tiny):
    reference = bon.LM.load(tiny("llama2"))
    reference._model.set("final_norm", 0, np.full(40, np.nan, np.float32))
    learner = Learner(bon.LM.load(tiny("llama2")))
    learner.set_reference(reference)
    prompts, completions, weights = texts("llama2")
    with pytest.raises(ValueError, match="computed a logit that is NaN"):
        learner.accumulate_kl(prompts, completions, weights, weights)
    assert learner.norm() == 0


def test_divergence_without_reference_is_refused(tiny):
    learner = Learner(bon.LM.load(tiny("llama2")))
    with pytest.raises(ValueError, match="needs a reference"):
        learner.accumulate_kl([np.array([1], np.int32)], [[np.array([2], np.int32)]], [[1.0]],
                              [[1.0]])


def test_names_of_gradients_are_those_of_the_checkpoint(tiny):
    lm = bon.LM.load(tiny("gemma2"))
    names = family_of(lm.config).NAMES
    expected = {names[slot].format(i=layer) for slot, layer, _ in lm.arch.slots()}
    assert set(Learner(lm).gradients()) == expected
