"""Policies inside transformers' generate, on tiny models with random weights."""

import sys

import numpy as np
import pytest
from docs_examples import examples, run_examples

import bonaware as bon

torch = pytest.importorskip("torch", reason="the integration is with transformers")
transformers = pytest.importorskip("transformers")

from bonaware.integrations import transformers as bridge  # noqa: E402
from bonaware.integrations.transformers import by_policy  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PROMPTS = [[5, 6, 7, 8], [9, 10], [3]]
PAD = 0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny import cached_checkpoint

    path = cached_checkpoint(tmp_path_factory.mktemp("tiny"), "llama2", logit_scale=1.5)
    found = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    found.generation_config.pad_token_id = PAD
    found.generation_config.eos_token_id = [2, 4, 11, 20, 30, 40, 50, 60]
    return found


@pytest.fixture(scope="module")
def lm(tmp_path_factory, model):
    from tiny import cached_checkpoint

    path = cached_checkpoint(tmp_path_factory.mktemp("lm"), "llama2", logit_scale=1.5)
    return bon.LM.load(path, threads=1)


def batch(prompts=PROMPTS):
    width = max(map(len, prompts))
    rows = [[PAD] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def generate(model, prompts=PROMPTS, seed=0, **options):
    torch.manual_seed(seed)
    return model.generate(**batch(prompts), **{
        "custom_generate": by_policy, "do_sample": True, "max_new_tokens": 12,
        "return_dict_in_generate": True, "top_k": 0, **options})


def policy(name, **options):
    return bon.policies.get(name, **options)


# What is drawn.


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_are_what_the_engine_says_of_their_tokens(model, lm, temperature):
    """Log-probabilities at temperature 1 and as drawn, against another implementation."""
    samples = generate(model, policy=policy("best_of_n", n=5), temperature=temperature).samples
    for found, at in ((samples.logp, 1.0), ([[s.sampled_logp for s in samples[p]]
                                            for p in range(3)], temperature)):
        want = lm.logp(PROMPTS, samples.tokens, at)
        for row, wanted in zip(found, want, strict=True):
            for got, expected in zip(row, wanted, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-4)
    for sample in samples[:]:
        tokens = np.concatenate([PROMPTS[sample.prompt], sample.tokens]).astype(np.int32)
        logits = lm.logits(tokens)[len(PROMPTS[sample.prompt]) - 1 : -1].astype(float)
        logp = logits - np.logaddexp.reduce(logits, 1)[:, None]
        np.testing.assert_allclose(sample.certainty, -logp.mean(1) - np.log(97), atol=1e-4)


def test_samples_end_where_their_first_end_token_is(model):
    samples = generate(model, policy=policy("best_of_n", n=16)).samples
    ends = model.generation_config.eos_token_id
    assert set(samples.finish_reason.ravel()) == {"eos", "length"}
    for sample in samples[:]:
        last = sample.finish_reason == "eos"
        assert (sample.tokens[-1] in ends) == last
        assert not np.isin(sample.tokens[:-1], ends).any()
        assert last or len(sample.tokens) == 12


def test_other_criteria_end_a_sample_with_stop(model):
    class AtLargeIds(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return input_ids[:, -1] >= 70

    samples = generate(model, policy=policy("best_of_n", n=8), stopping_criteria=[AtLargeIds()],
                       decode=str).samples
    assert "stop" in samples.finish_reason
    for sample in samples[:]:
        stopped = sample.finish_reason == "stop"
        assert (sample.tokens[-1] >= 70) == stopped or len(sample.tokens) == 12
        assert (sample.tokens[:-1] < 70).all()
        assert not stopped or sample.text == str(sample.tokens.tolist())


def test_the_sequence_is_the_prompt_with_the_chosen_sample(model):
    found = generate(model, policy=policy("best_of_n", n=6))
    plain = generate(model, policy=policy("best_of_n", n=6), return_dict_in_generate=False)
    torch.testing.assert_close(found.sequences, plain)
    samples, start = found.samples, batch()["input_ids"].shape[1]
    for p, (row, i) in enumerate(zip(found.sequences, samples.chosen, strict=True)):
        torch.testing.assert_close(row[:start], batch()["input_ids"][p])
        tokens = samples.tokens[p][i]
        np.testing.assert_array_equal(row[start : start + len(tokens)], tokens)
        assert (row[start + len(tokens) :] == PAD).all()


def test_waves_of_a_few_rows_draw_as_many_samples(model):
    samples = generate(model, policy=policy("best_of_n", n=5), batch_size=4).samples
    assert samples.valid.all()
    assert samples.n == 5


def test_truncation_stands_behind_the_temperature(model, lm):
    """min_p at 0.3: no token that is less likely than that at the temperature is drawn."""
    samples = generate(model, policy=policy("best_of_n", n=8), temperature=0.5, min_p=0.3).samples
    for sample in samples[:]:
        tokens = np.concatenate([PROMPTS[sample.prompt], sample.tokens]).astype(np.int32)
        logits = lm.logits(tokens)[len(PROMPTS[sample.prompt]) - 1 : -1].astype(float) / 0.5
        gap = np.take_along_axis(logits, sample.tokens[:, None], 1)[:, 0] - logits.max(1)
        assert (gap >= np.log(0.3) - 1e-3).all()


# What is decided.


@pytest.mark.parametrize("verifier", ["likelihood", "self_certainty"])
def test_the_best_score_is_taken_as_a_selector_takes_it(model, verifier):
    samples = generate(model, policy=policy("best_of_n", n=8), verifier=verifier).samples
    scores = bon.verifiers.get(verifier).score([None] * 3, samples)
    np.testing.assert_array_equal(samples.scores, scores)
    np.testing.assert_array_equal(samples.chosen, bon.select.best_of_n(scores))


def test_an_adaptive_policy_stops_as_its_replay_does(model):
    def verifier(prompts, samples):
        return [len(sample.tokens) / 12 for sample in samples]

    seen = policy("adaptive", threshold=0.9, n=8, waves=(1, 2), anneal="constant")
    samples = generate(model, policy=seen, verifier=verifier).samples
    counts = samples.valid.sum(1)
    assert counts.min() < 8
    again = bon.policies.replay(seen, samples, samples.scores)
    np.testing.assert_array_equal(again.samples.valid, samples.valid)
    np.testing.assert_array_equal(again.chosen, samples.chosen)


def test_the_first_sample_of_an_annealed_policy_is_greedy(model):
    seen = policy("adaptive", threshold=1.0, n=4)
    samples = generate(model, policy=seen, verifier=lambda _, s: [0.0] * len(s),
                       temperature=0.8).samples
    np.testing.assert_allclose(samples.temperature, np.tile(0.8 * seen.temperatures(1.0), (3, 1)))
    greedy = model.generate(**batch(), do_sample=False, max_new_tokens=12)
    start = batch()["input_ids"].shape[1]
    for p in range(3):
        tokens = samples.tokens[p][0]
        np.testing.assert_array_equal(greedy[p, start : start + len(tokens)], tokens)
    assert (samples.sum_sampled_logp[:, 0] == 0).all()


def test_a_policy_that_counts_votes_gets_answers(model):
    samples = generate(model, policy=policy("adaptive_consistency", n=12), decode=str,
                       answer=lambda p, text: "same").samples
    assert (samples.valid.sum(1) == 4).all()


def test_a_verifier_sees_prompts_and_texts(model):
    seen = []

    def verifier(prompts, samples):
        seen.extend(zip(prompts, samples, strict=True))
        return np.arange(len(samples))

    generate(model, policy=policy("best_of_n", n=2), verifier=verifier, decode=str)
    assert [prompt for prompt, _ in seen] == [str(p) for p in PROMPTS for _ in range(2)]
    ends = model.generation_config.eos_token_id
    assert all(sample.text == str([t for t in sample.tokens.tolist() if t not in ends])
               for _, sample in seen)


def test_the_hook_needs_no_engine(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "bonaware._engine", None)
    assert generate(model, policy=policy("best_of_n", n=2)).samples.n == 2


# What is refused.


@pytest.mark.parametrize(("options", "match"), [
    ({"policy": ("prune", {"checkpoints": 4, "fractions": 0.5})}, "LM.generate can do and tran"),
    ({"policy": ("adaptive", {"threshold": 0.5})}, "compares scores with a probability"),
    ({"policy": ("adaptive_consistency", {})}, "needs answers to vote with"),
    ({"do_sample": False}, "would all be the same: need do_sample=True"),
    ({"num_return_sequences": 2}, "num_return_sequences=2 would be without effect"),
    ({"output_logits": True}, "output_logits=True would be without effect"),
    ({"verifier": "self_evaluation"}, "must be 'likelihood' or 'self_certainty', or a callable"),
    ({"verifier": lambda prompts, samples: [0.5]}, "one number per sample, 48, got shape"),
], ids=["checkpoints", "probability", "votes", "greedy", "rows", "logits", "engine", "shape"])
def test_what_would_be_wrong_or_without_effect_is_refused(model, options, match):
    if isinstance(options.get("policy"), tuple):
        name, its = options["policy"]
        options = options | {"policy": policy(name, **its)}
    with pytest.raises(ValueError, match=match):
        generate(model, **options)


# Docs.


def test_examples_of_the_page_run(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(tmp_path / "model")
    found = run_examples("torch.md", "transformers")
    assert isinstance(found["taken"], bridge.PolicyOutput)
    assert found["taken"].samples.n == 8
    assert found["few"].shape[0] == 1


def test_a_folder_can_carry_the_hook(tmp_path, monkeypatch, model):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "c"))
    folder = tmp_path / "model" / "custom_generate"
    folder.mkdir(parents=True)
    (folder / "generate.py").write_text(examples("torch.md", "transformers")[-1])
    options = {"policy": policy("best_of_n", n=3), "custom_generate": str(folder.parent)}
    samples = generate(model, trust_remote_code=True, **options).samples
    assert samples.n == 3
