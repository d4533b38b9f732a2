"""The trainer: steps against NumPy and torch, runs that are killed, and that learning works."""

import dataclasses
import json
import math
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import letters
import numpy as np
import pytest
import tiny as tiny_models
from letters import Letters, letters_model

import bonaware as bon
from bonaware import losses
from bonaware.samples import Sample, Samples
from bonaware.selfeval.training import OnPolicy
from bonaware.train import TARGETS, annealed, auroc
from bonaware.training import Evaluation, Labels, Rollouts, Texts
from bonaware.training.folder import RunFolder
from bonaware.training.sources import shuffled

PROMPTS = [[3, 4, 5], [6, 7]]
REWARDS = np.array([[0.0, 1.0, 1.0, 0.0], [0.25, 0.0, 0.0, 1.0]])
REINFORCE = losses.get("reinforce")()
SFT = losses.get("sft")()
SCORE = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}


def model(name="llama3", config=(), **options):
    config = tiny_models.MODELS[name] | dict(config)
    return bon.LM.from_config(config, **{"rng": 0, "threads": 1, **options})


def draw(lm, n=4, **options):
    return lm.generate(PROMPTS, n, **{"max_new_tokens": 6, "rng": 1, **options})


def weights_of(trainer):
    return {name: values.copy() for name, values in trainer._learner._named("weight")}


class NumpyAdamW:
    """The formula, in float64."""

    def __init__(self, weights, optimizer):
        self.weights = {name: w.astype(np.float64) for name, w in weights.items()}
        self.first, self.second = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
        self.options, self.steps = optimizer, 0

    def step(self, gradients, lr):
        norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
        scale = min(1.0, self.options.max_norm / norm)
        (b1, b2), self.steps = self.options.betas, self.steps + 1
        for name, gradient in gradients.items():
            g = scale * gradient.astype(np.float64)
            self.first[name] = b1 * self.first[name] + (1 - b1) * g
            self.second[name] = b2 * self.second[name] + (1 - b2) * g * g
            self.weights[name] *= 1 - lr * (self.options.weight_decay if g.ndim > 1 else 0.0)
            m = self.first[name] / (1 - b1**self.steps)
            v = self.second[name] / (1 - b2**self.steps)
            self.weights[name] -= lr * m / (np.sqrt(v) + self.options.eps)
        return norm


def assert_close(found, wanted, tolerance):
    """Every tensor, relative to its largest value."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        error = np.abs(found[name] - values).max() / np.abs(values).max()
        assert error < tolerance, name


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not np.array_equal(found[name], wanted[name])] == []


# -- one step ------------------------------------------------------------------


def test_steps_are_those_of_adamw_on_the_mean_gradient_over_prompts():
    lm = model()
    optimizer = bon.AdamW(lr=1e-3, weight_decay=0.1, max_norm=0.5, warmup=2)
    trainer = bon.Trainer(lm, REINFORCE, optimizer)
    oracle = NumpyAdamW(weights_of(trainer), optimizer)
    for step in range(3):
        samples = draw(lm, rng=step, temperature=0.8)
        _, weights = REINFORCE(REWARDS)
        gradients = lm.gradients(PROMPTS, samples.tokens, weights / len(PROMPTS), 0.8)
        metrics = trainer.step(PROMPTS, samples, REWARDS)
        norm = oracle.step(gradients, metrics["lr"])
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["lr"] == pytest.approx([0.5e-3, 1e-3, 1e-3][step])
        assert trainer.steps == step + 1
        assert_close(weights_of(trainer), oracle.weights, 2e-6)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["llama2", "gemma2"])
def test_twenty_steps_are_those_of_torch(torch, name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    transformers.utils.logging.disable_progress_bar()
    lm = model(name)
    lm.save(tmp_path / "model")
    mirror = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    groups = [{"params": [p for p in mirror.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in mirror.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-4, eps=1e-8)
    trainer = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=1e-4, eps=1e-8, weight_decay=0.1))
    rng = np.random.default_rng(0)
    for _ in range(20):
        texts = [[rng.integers(3, 90, rng.integers(1, 6)).tolist() for _ in range(4)]
                 for _ in PROMPTS]
        rewards = rng.random((2, 4))
        trainer.step(PROMPTS, texts, rewards, temperature=0.8)
        adamw.zero_grad()
        _torch_loss(torch, mirror, texts, REINFORCE(rewards)[1] / 2).backward()
        torch.nn.utils.clip_grad_norm_(mirror.parameters(), 1.0)
        adamw.step()
    theirs = {name: p.detach().numpy() for name, p in mirror.named_parameters()}
    assert_close(weights_of(trainer), theirs, 1e-4)


def _torch_loss(torch, mirror, texts, weights):
    total = 0.0
    for prompt, row, row_weights in zip(PROMPTS, texts, weights, strict=True):
        for text, weight in zip(row, row_weights, strict=True):
            ids = torch.tensor([prompt + text])
            logp = torch.log_softmax(mirror(ids).logits[0] / 0.8, -1)
            at = torch.arange(len(prompt) - 1, len(prompt) + len(text) - 1)
            total = total + weight * logp[at, torch.tensor(text)].sum()
    return total


def test_a_step_tells_what_it_found():
    lm = model()
    samples = draw(lm, temperature=0.8)
    value, weights = REINFORCE(REWARDS)
    metrics = bon.Trainer(lm, REINFORCE).step(PROMPTS, samples, REWARDS)
    assert metrics["loss"] == pytest.approx(value.mean())
    assert metrics["reward"] == pytest.approx(REWARDS.mean())
    entropy = -samples.sum_sampled_logp.sum() / samples.lengths.sum()
    assert metrics["entropy"] == pytest.approx(entropy)
    assert metrics["trained_samples"] == np.count_nonzero(weights) == 8
    assert metrics["trained_tokens"] == samples.lengths.sum() + 5
    assert metrics["no_signal"] == 0.0
    assert metrics["step_seconds"] > 0
    assert "kl" not in metrics


def test_samples_and_prompts_without_weight_cost_nothing():
    lm = model()
    samples = draw(lm)
    rewards = [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]  # bon: weights where k < 2 are wrong
    loss = losses.get("bon")(k=2)
    weights = loss(rewards)[1]
    metrics = bon.Trainer(lm, loss).step(PROMPTS, samples, rewards)
    used = weights != 0
    assert not used[0].any()
    assert metrics["trained_samples"] == used.sum() < 8
    assert metrics["trained_tokens"] == len(PROMPTS[1]) + samples.lengths[used].sum()
    assert metrics["no_signal"] == 0.5


def test_a_step_without_any_weight_leaves_the_weights_as_they_are():
    trainer = bon.Trainer(model(), REINFORCE)
    before = weights_of(trainer)
    metrics = trainer.step(PROMPTS, draw(trainer.lm), np.ones((2, 4)))
    assert_same(weights_of(trainer), before)
    assert (metrics["trained_samples"], metrics["grad_norm"], trainer.steps) == (0, 0.0, 1)


def test_a_prompt_without_signal_counts_in_the_mean_over_prompts():
    rewards = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    norms = []
    for rows in (slice(None), slice(1, 2)):
        lm = model()
        trainer = bon.Trainer(lm, REINFORCE)
        metrics = trainer.step(PROMPTS[rows], draw(lm)[rows], rewards[rows])
        norms.append(metrics["grad_norm"])
    assert norms[0] == pytest.approx(norms[1] / 2, rel=1e-6)


def _with_reasons(samples, **reasons):
    """The samples with other reasons for their end, by place, such as p1_2="aborted"."""
    changed = []
    for s in samples:
        reason = reasons.get(f"p{s.prompt}_{s.index}", s.finish_reason)
        changed.append(Sample(s.prompt, s.index, s.tokens, s.logp, s.sampled_logp, s.certainty,
                              s.text, reason, s.temperature))
    return Samples.from_list(samples.prompts, changed, samples.n)


def test_unfinished_and_missing_samples_are_masked():
    texts = draw(model()).tokens
    whole = bon.Trainer(model(), REINFORCE)
    found = whole.step(PROMPTS, [texts[0][:3], texts[1]], REWARDS)
    for reason in ("aborted", "pruned"):
        trainer = bon.Trainer(model(), REINFORCE)
        samples = _with_reasons(draw(trainer.lm), p0_3=reason)
        metrics = trainer.step(PROMPTS, samples, REWARDS)
        assert metrics["grad_norm"] == found["grad_norm"]
        assert_same(weights_of(trainer), weights_of(whole))
    ragged = bon.Trainer(model(), REINFORCE)
    ragged.step(PROMPTS, [[*texts[0][:3], None], texts[1]], REWARDS)
    assert_same(weights_of(ragged), weights_of(whole))


@pytest.mark.parametrize(("loss", "kl"), [("grpo", 0.0), ("grpo", 0.1), ("raft", 0.1)])
def test_completions_do_what_the_same_samples_do(loss, kl):
    by_samples, by_texts = (
        bon.Trainer(model(), losses.get(loss)(kl=kl), reference=model(rng=7)) for _ in range(2))
    samples = draw(by_samples.lm, temperature=0.8)
    found = by_samples.step(PROMPTS, samples, REWARDS)
    metrics = by_texts.step(PROMPTS, samples.tokens, REWARDS, temperature=0.8)
    assert_same(weights_of(by_texts), weights_of(by_samples))
    assert metrics["entropy"] == pytest.approx(found["entropy"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(found["loss"])


def test_the_entropy_is_that_of_the_samples_whose_logp_is_known():
    lm = model()
    texts = draw(lm).tokens
    metrics = bon.Trainer(lm, REINFORCE).step(PROMPTS, texts, [[1, 1, 1, 1], [0, 1, 0, 1]])
    (logp,) = model().logp(PROMPTS[1:], texts[1:])
    assert metrics["entropy"] == pytest.approx(-np.concatenate(logp).mean(), rel=1e-5)


def test_scores_rank_and_rewards_are_the_default():
    loss = losses.get("bon")(k=2)
    scores = REWARDS[:, ::-1].copy()
    norms = []
    for given in (None, REWARDS, scores):
        lm = model()
        metrics = bon.Trainer(lm, loss).step(PROMPTS, draw(lm), REWARDS, given)
        norms.append(metrics["grad_norm"])
    assert norms[0] == norms[1] != norms[2]


def test_old_logp_makes_the_ratio_count():
    lm = model()
    texts = draw(lm).tokens
    logp = np.array([[tokens.sum() for tokens in row] for row in lm.logp(PROMPTS, texts)])
    loss = losses.get("grpo")(clip=0.2)
    lengths = np.array([[len(text) for text in row] for row in texts])
    _, wanted = loss(REWARDS, lengths=lengths, logp=logp, old_logp=logp - 0.3)
    gradients = lm.gradients(PROMPTS, texts, wanted / 2)
    norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
    metrics = bon.Trainer(lm, loss).step(PROMPTS, texts, REWARDS, old_logp=logp - 0.3)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(("loss", "old"), [
    (losses.get("dr_grpo")(clip=9.0), True), (losses.get("reinforce")(kl=1.0), False),
], ids=["ratio", "kl"])  # fmt: skip
def test_samples_of_an_earlier_step_are_those_completions(loss, old):
    by_samples, by_texts = (
        bon.Trainer(model(), loss, bon.AdamW(lr=2e-3), reference=model()) for _ in range(2))
    samples = draw(by_samples.lm, temperature=0.8)
    given = {"old_logp": samples.sum_sampled_logp} if old else {}
    for _ in range(3):
        found = by_samples.step(PROMPTS, samples, REWARDS, **given)
        wanted = by_texts.step(PROMPTS, samples.tokens, REWARDS, temperature=0.8, **given)
        for name in ("loss", "kl", "entropy", "grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    assert abs(found["kl"]) > 1e-3


@pytest.mark.parametrize("share", [0.4, 0.75, 1.5])
def test_a_gradient_is_scaled_down_to_max_norm_and_never_up(share):
    samples = draw(model())
    norm = bon.Trainer(model(), REINFORCE).step(PROMPTS, samples, REWARDS)["grad_norm"]
    trainer = bon.Trainer(model(), REINFORCE, bon.AdamW(max_norm=norm / share))
    trainer.step(PROMPTS, samples, REWARDS)
    moments = [values.ravel() for _, values in trainer._learner._named("moment_1")]
    assert np.linalg.norm(np.concatenate(moments)) == pytest.approx(
        0.1 * min(norm, norm / share), rel=1e-4)


@pytest.mark.parametrize("lora", [None, bon.LoRA(rank=2)], ids=["all", "lora"])
def test_memory_is_that_of_a_backward_pass(lora):
    trainer = bon.Trainer(model(), REINFORCE, lora=lora, memory=1)
    with pytest.raises(MemoryError):
        trainer.step(PROMPTS, draw(trainer.lm), REWARDS)


def test_a_bfloat16_model_is_trained_by_float32_masters():
    lm = model("llama2", dtype="bfloat16")
    trainer = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=1e-5))
    before = trainer.master("q").copy()
    for step in range(2):
        trainer.step(PROMPTS, draw(lm, rng=step), REWARDS)
    moved = trainer.master("q") - before
    assert 0 < np.abs(moved).max() < 4e-5
    assert np.count_nonzero(moved) > 0.9 * moved.size
    held = lm._model.get("q", 0)
    assert np.count_nonzero(held != before) < 0.5 * moved.size  # such steps are lost in bfloat16
    nearest = tiny_models.to_bfloat16(trainer.master("q")).astype(np.uint32) << 16
    assert np.array_equal(held.reshape(-1), nearest.view(np.float32).reshape(-1))


# -- the reference ---------------------------------------------------------------


def test_kl_is_measured_against_the_model_at_its_start():
    lm = model()
    trainer = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=1e-2), kl=0.1)
    assert trainer.loss == losses.get("reinforce")(kl=0.1)
    assert trainer.reference.fingerprint == lm.fingerprint
    first = trainer.step(PROMPTS, draw(lm), REWARDS)
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    samples = draw(lm)
    ref = np.array([[tokens.sum() for tokens in row]
                    for row in model().logp(PROMPTS, samples.tokens)])
    wanted = (samples.sum_logp - ref).mean()
    value, weights = trainer.loss(REWARDS, logp=samples.sum_logp, ref_logp=ref)
    gradients = lm.gradients(PROMPTS, samples.tokens, weights / 2)
    norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
    second = trainer.step(PROMPTS, samples, REWARDS)
    assert second["kl"] == pytest.approx(wanted, rel=1e-3)
    assert abs(wanted) > 1e-3
    assert second["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert second["loss"] == pytest.approx(value.mean(), rel=1e-4)


def test_a_second_trainer_does_not_forget_what_adapters_learnt(tmp_path):
    lm = model("llama2")
    first = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=0.01), lora=bon.LoRA(rank=2))
    first.step(PROMPTS, draw(lm), REWARDS)
    taught = lm.logits([3, 4, 5])
    for lora in (None, bon.LoRA(rank=2), bon.LoRA(rank=4)):
        with pytest.raises(ValueError, match="has low-rank adapters that another trainer taught: "
                                             "save it, which merges them"):
            bon.Trainer(lm, REINFORCE, lora=lora)
    np.testing.assert_array_equal(lm.logits([3, 4, 5]), taught)
    assert first.step(PROMPTS, draw(lm), REWARDS)["grad_norm"] > 0
    taught = lm.logits([3, 4, 5])
    lm.save(tmp_path / "merged")
    merged = bon.LM.load(tmp_path / "merged")
    reference = bon.Trainer(merged, REINFORCE, kl=0.1, lora=bon.LoRA(rank=2)).reference
    assert not np.allclose(reference.logits([3, 4, 5]), model("llama2").logits([3, 4, 5]))
    assert np.allclose(reference.logits([3, 4, 5]), taught, atol=1e-4)


@pytest.mark.parametrize("lora", [None, bon.LoRA(rank=4)], ids=["all", "lora"])
def test_a_second_trainer_takes_the_place_of_one_that_has_learnt_nothing(lora, tmp_path):
    lm = model("llama2")
    first = bon.Trainer(lm, REINFORCE, lora=bon.LoRA(rank=2))
    second = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=0.01), lora=lora)
    second.step(PROMPTS, draw(lm), REWARDS)
    with pytest.raises(RuntimeError, match="has got other adapters since"):
        first.step(PROMPTS, draw(lm), REWARDS)
    second.save(tmp_path / "saved")
    alone = model("llama2")
    only = bon.Trainer(alone, REINFORCE, bon.AdamW(lr=0.01), lora=lora)
    only.resume(tmp_path / "saved")
    np.testing.assert_array_equal(alone.logits([3, 4, 5]), lm.logits([3, 4, 5]))


def test_a_given_reference_is_measured_without_a_kl_term():
    reference = model(rng=7)
    trainer = bon.Trainer(model(), REINFORCE, reference=reference)
    assert trainer.reference is reference
    assert trainer.step(PROMPTS, draw(trainer.lm), REWARDS)["kl"] > 0
    assert bon.Trainer(model(), REINFORCE).reference is None


def test_demonstrations_count_neither_in_kl_nor_in_entropy():
    lm = model()
    texts = draw(lm).tokens
    expert = np.array([[True] * 4, [True, True, False, False]])
    trainer = bon.Trainer(lm, SFT, reference=model(rng=7))
    metrics = trainer.step(PROMPTS, texts, REWARDS, expert=expert)
    own, ref = (one.logp(PROMPTS[1:], [texts[1][2:]])[0] for one in (model(), trainer.reference))
    gap = [mine.sum() - theirs.sum() for mine, theirs in zip(own, ref, strict=True)]
    assert metrics["kl"] == pytest.approx(np.mean(gap), rel=1e-4)
    assert metrics["entropy"] is None  # logp is not computed where the weight is 0


def test_a_loss_that_names_ref_logp_gets_it():
    lm = model()
    trainer = bon.Trainer(lm, losses.get("bonbon")(), bon.AdamW(lr=1e-3))
    assert trainer.step(PROMPTS, draw(lm), REWARDS)["grad_norm"] > 0


# -- texts and labels ----------------------------------------------------------


def test_sft_minimises_the_negative_log_likelihood():
    lm = model()
    trainer = bon.Trainer(lm, SFT, bon.AdamW(lr=3e-3))
    texts = [[[9, 8, 7]], [[11, 12]]]
    wanted = [-sum(row[0]) for row in lm.logp(PROMPTS, texts)]
    found = [trainer.step(PROMPTS, texts, np.ones((2, 1)))["loss"] for _ in range(15)]
    assert found[0] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert found[-1] < 0.3 * found[0]


def test_texts_are_rows_of_a_file_with_the_end_token_behind_them(tmp_path):
    lm = letters_model(tmp_path)
    rows = [("a", "b"), ("ab", "c"), ("ba", "a")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))
    ids = [(lm.encode(p), np.append(lm.encode(c), 1)) for p, c in rows]
    trainers = [bon.Trainer(letters_model(tmp_path), SFT, bon.AdamW(lr=0.01)) for _ in range(2)]
    records = [t.fit(Texts(source, 3), 2) for t, source in zip(trainers, (path, ids), strict=True)]
    assert_same(*map(weights_of, trainers))
    first = records[0][0]
    assert first["trained_tokens"] == sum(len(p) + len(c) for p, c in ids)
    total = sum(-float(sum(row[0])) for row in lm.logp([p for p, _ in ids], [[c] for _, c in ids]))
    assert first["nats_per_token"] == pytest.approx(total / sum(len(c) for _, c in ids), rel=1e-4)
    assert "reward" not in first


def test_a_score_head_learns_its_labels():
    lm = model(config=SCORE)
    rng = np.random.default_rng(0)

    def step(trainer):
        texts = rng.integers(2, 20, (16, 4, 3))
        return trainer.step_scores(texts[:, 0, :2], texts, (texts[:, :, -1] > 10) * 0.9 + 0.05)

    trainer = bon.Trainer(lm, optimizer=bon.AdamW(lr=3e-3))
    records = trainer.fit(step, 60)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert records[-1]["auroc"] > 0.95
    assert records[-1]["accuracy"] > 0.85
    assert records[-1]["loss"] < 0.5


def test_a_step_of_a_score_head_is_that_of_the_cross_entropy():
    lm = model(config=SCORE | {"pad_token_id": 0})
    texts = [[[9, 8, 0], [7]], [[5, 4, 3]]]
    labels = [[1.0, 0.25], [0.0]]
    scores = np.concatenate(lm.scores(PROMPTS, texts)).astype(float)
    target = np.array([1.0, 0.25, 0.0])
    trainer = bon.Trainer(lm, optimizer=bon.AdamW(lr=0.0))
    metrics = trainer.step_scores(PROMPTS, texts, labels)
    p = 1 / (1 + np.exp(-scores))
    wanted = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["trained_tokens"] == 5 + 2 + 1 + 3
    trainer._learner.accumulate_scores(
        [np.array(p, np.int32) for p in PROMPTS],
        [[np.array(t, np.int32) for t in row] for row in ([[9, 8], [7]], [[5, 4, 3]])],
        [[w / 3 for w in row] for row in ((p[:2] - target[:2]).tolist(), [p[2] - target[2]])])
    assert metrics["grad_norm"] == pytest.approx(trainer._learner.norm(), rel=1e-4)


def test_labels_are_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "label": 1}\n'
                    '{"prompt": "a", "completion": "c", "label": false}\n')
    lm = letters_model(tmp_path)
    config = lm.config | SCORE
    lm = bon.LM.from_config(config, tokenizer=tmp_path, threads=1)
    trainer = bon.Trainer(lm, optimizer=bon.AdamW(lr=1e-2))
    records = trainer.fit(Labels(path, 2), 10)
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["auroc"] == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("soft", [False, True])
def test_auroc_is_the_weighted_share_of_ordered_pairs(seed, soft):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 6, 40), rng.random(40)
    right = right if soft else right < 0.3
    weights = np.outer(right, 1 - right.astype(float)) * (1 - np.eye(40))
    gap = scores[:, None] - scores
    wanted = (weights * ((gap > 0) + 0.5 * (gap == 0))).sum() / weights.sum()
    assert auroc(scores, right) == pytest.approx(wanted)


# -- rollouts --------------------------------------------------------------------


def test_learning_from_rollouts_raises_the_reward(tmp_path):
    lm = letters_model(tmp_path)
    trainer = bon.Trainer(lm, REINFORCE, bon.AdamW(lr=0.01))
    records = trainer.fit(Rollouts(Letters(), n=16, prompts=14, seed=3), 60)
    first, last = records[0]["reward"], np.mean([r["reward"] for r in records[-5:]])
    assert first < 0.3
    assert last > 0.8
    assert records[-1]["entropy"] < records[0]["entropy"]


def test_rollouts_are_a_function_of_seed_and_step(tmp_path):
    source = Rollouts(Letters(), n=4, prompts=3, temperature=0.7, seed=5)
    lm = letters_model(tmp_path)
    drawn = [source._draw(lm, ["ab", "ab"], step) for step in (0, 0, 1)]
    assert drawn[0].text == drawn[1].text != drawn[2].text
    assert drawn[0].text[0] != drawn[0].text[1]
    other = Rollouts(Letters(), n=4, prompts=3, temperature=0.7, seed=6)
    assert other._draw(lm, ["ab", "ab"], 0).text != drawn[0].text


def test_every_epoch_takes_each_problem_once():
    places = [i for step in range(14) for i in shuffled(7, 3, seed=1, step=step)]
    epochs = [places[7 * e : 7 * e + 7] for e in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert shuffled(2, 5, seed=0, step=0).count(0) in (2, 3)


def test_rollouts_tell_what_k_samples_give(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    metrics = Rollouts(Letters(), n=6, prompts=4, verifier="likelihood")(trainer)
    assert [name for name in metrics if "@" in name] == ["pass@1", "pass@2", "pass@4", "pass@6"]
    assert metrics["pass@1"] == pytest.approx(metrics["reward"])
    assert metrics["pass@6"] == pytest.approx(1 - metrics["all_zero"])
    assert metrics["best-of-1"] == pytest.approx(metrics["reward"])
    assert metrics["best-of-6"] <= metrics["pass@6"]
    assert metrics["new_tokens"] > 24
    seconds = sum(metrics[f"{part}_seconds"] for part in ("rollout", "reward", "step"))
    assert 0.999 * seconds <= metrics["new_tokens"] / metrics["tokens_per_second"] < seconds + 1


def test_the_verifier_ranks_and_the_exact_one_is_the_reward(tmp_path):
    after = []
    for verifier in (None, "exact", "likelihood"):
        trainer = bon.Trainer(letters_model(tmp_path), losses.get("bon")(k=4))
        trainer.fit(Rollouts(Letters(), n=8, prompts=4, verifier=verifier), 1)
        after.append(weights_of(trainer))
    assert_same(after[0], after[1])
    assert not np.array_equal(after[0]["lm_head.weight"], after[2]["lm_head.weight"])


def test_demonstrations_join_the_samples(tmp_path):
    lm = letters_model(tmp_path)
    trainer = bon.Trainer(lm, losses.get("bon_sft")(k=4), bon.AdamW(lr=0.01))
    source = Rollouts(Letters(), n=8, prompts=14, expert="solution", verifier="exact")
    records = trainer.fit(source, 25)
    assert records[-1]["pass@8"] > records[0]["pass@8"]
    assert records[-1]["best-of-8"] > 0.9


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_demonstrations_have_the_probability_of_the_policy(tmp_path, temperature):
    lm = letters_model(tmp_path)
    source = Rollouts(Letters(), n=2, prompts=3, expert="solution", temperature=temperature)
    problems = source.problems[:3]
    prompts = [problem.prompt for problem in problems]
    joined = source._with_experts(lm, source._draw(lm, prompts, 0), problems)
    ids = [[[*lm.encode(problem.prompt[-1]), 1]] for problem in problems]
    for found, t in ((joined.sum_sampled_logp, temperature), (joined.sum_logp, 1.0)):
        wanted = [row[0].sum() for row in lm.logp(prompts, ids, t)]
        assert found[:, 2] == pytest.approx(wanted, rel=1e-5)
    assert [row[2] for row in joined.text] == [problem.prompt[-1] for problem in problems]


def test_demonstrations_do_not_count_as_rewards(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), losses.get("bon_sft")(k=2))
    metrics = Rollouts(Letters(), n=4, prompts=6, expert="solution")(trainer)
    assert metrics["reward"] == pytest.approx(metrics["pass@1"])
    assert metrics["all_zero"] == pytest.approx(1 - metrics["pass@4"])
    assert metrics["all_zero"] > 0


def test_rollouts_of_no_samples_do_what_the_demonstrations_alone_do(tmp_path):
    trainers = [bon.Trainer(letters_model(tmp_path), SFT, bon.AdamW(lr=0.005)) for _ in range(2)]
    (record,) = trainers[0].fit(Rollouts(Letters(), n=0, prompts=4, expert="solution"), 1)
    (wanted,) = trainers[1].fit(Texts.of_task(Letters(), "solution", prompts=4), 1)
    assert_same(*map(weights_of, trainers))
    assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert (record["new_tokens"], record["reward"], record["no_signal"]) == (0, None, 0.0)


def test_demonstrations_alone_are_imitated(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), SFT, bon.AdamW(lr=0.005))
    source = Texts.of_task(Letters(), "solution", prompts=14)
    assert len(source.rows) == 14
    assert source.rows[1] == ("aac", "c")
    records = trainer.fit(source, 40)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]


def test_the_learning_rate_follows_its_schedule_to_the_end_of_the_run(tmp_path):
    optimizer = bon.AdamW(lr=1.0, warmup=2, schedule="linear")
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE, optimizer)

    def source(trainer):
        return trainer.step(["a"], [["b", "b"]], [[0, 0]])

    records = trainer.fit(source, 6)
    assert [r["lr"] for r in records] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert source(trainer)["lr"] == 1.0  # outside of a run there is no end


def test_k_is_annealed_over_the_run(tmp_path):
    assert [annealed(32, 2, step, 5) for step in range(5)] == [32, 16, 8, 4, 2]
    assert annealed(3, 7, 0, 1) == 3
    seen = []
    trainer = bon.Trainer(letters_model(tmp_path), losses.get("bon")(k=9))

    def source(trainer):
        seen.append(trainer._loss_now().k)
        return trainer.step(["a"], [["b", "c", "a", "b"]], [[0, 1, 0, 1]])

    trainer.fit(source, 3, k=(1, 4))
    assert seen == [1, 2, 4]
    assert trainer._loss_now().k == 9


def test_evaluation_measures_held_out_problems_on_the_way(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE, bon.AdamW(lr=0.01))
    evaluation = Evaluation(task=Letters(), n=4, split="test", limit=5, verifiers=["likelihood"])
    records = trainer.fit(Rollouts(Letters(), n=8, prompts=14), 5, evaluation=evaluation,
                          eval_every=2)
    measured = [r for r in records if "eval/pass@4" in r]
    assert [r["step"] for r in measured] == [0, 2, 4, 5]
    assert {"eval/pass@1", "eval/best-of-4 by likelihood"} <= measured[0].keys()
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5]
    assert evaluation(trainer.lm) == evaluation(trainer.lm)


# -- runs ------------------------------------------------------------------------


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(records):
    return [{name: x for name, x in r.items() if "second" not in name} for r in records]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def unbroken(request, tmp_path_factory):
    """A run from its start to its end: its dtype, and its folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    letters.fit(letters.trainer_of(folder, request.param), folder / "run")
    return request.param, folder / "run"


def assert_same_run(found, wanted):
    last = f"step-{letters.STEPS:06d}"
    for name in ("trainer.safetensors", "model.safetensors"):
        assert (found / last / name).read_bytes() == (wanted / last / name).read_bytes()
    assert without_times(lines(found)) == without_times(lines(wanted))
    assert [r["step"] for r in lines(found)] == list(range(1, letters.STEPS + 1))


@pytest.mark.parametrize("when", ["step", "save"])
def test_a_killed_run_resumes_bit_for_bit(unbroken, tmp_path, when):
    dtype, wanted = unbroken
    out = tmp_path / "run"
    program = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import letters; "
               "letters.killed(*sys.argv[1:])")
    done = subprocess.run([sys.executable, "-c", program, tmp_path, out, dtype, when],
                          capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = {entry.name for entry in out.iterdir()}
    assert "step-000002" in left
    assert any(name.startswith("step-000004.") for name in left) == (when == "save")
    trainer = letters.trainer_of(tmp_path, dtype)
    trainer.resume(out)
    assert trainer.steps == (4 if when == "step" else 2)
    letters.fit(trainer, out)
    assert_same_run(out, wanted)
    assert sorted(e.name for e in out.iterdir()) == ["metrics.jsonl", "step-000004", "step-000006"]


def test_a_run_killed_before_its_first_checkpoint_begins_again(unbroken, tmp_path):
    dtype, wanted = unbroken
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n{"step": 2, "lo')
    trainer = letters.trainer_of(tmp_path, dtype)
    trainer.resume(out)
    letters.fit(trainer, out)
    assert_same_run(out, wanted)


@pytest.mark.parametrize("at", ["rollout", "backward", "update", "line", "save"])
def test_ctrl_c_keeps_the_last_completed_step(unbroken, tmp_path, at, monkeypatch):
    dtype, wanted = unbroken
    trainer = letters.trainer_of(tmp_path, dtype)
    out = tmp_path / "run"
    press = {
        "rollout": (bon.LM, "stream"), "backward": (type(trainer._learner), "accumulate"),
        "update": (type(trainer._learner), "step"), "save": (bon.Trainer, "save"),
        "line": (RunFolder, "write"),
    }[at]  # fmt: skip
    original = getattr(*press)
    left = [3]

    def pressed(*args, **options):
        result = original(*args, **options)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return result

    left[0] = 2 if at == "save" else 3
    with monkeypatch.context() as patch:
        patch.setattr(*press, pressed)
        with pytest.warns(UserWarning, match=r"interrupted: \d of 6 steps .* resume goes on"):
            records = letters.fit(trainer, out)
    steps = {"rollout": 2, "backward": 2, "update": 3, "line": 3, "save": 4}[at]
    assert trainer.steps == steps == records[-1]["step"]
    assert trainer._learner.norm() == 0
    assert (out / f"step-{steps:06d}").is_dir()
    again = letters.trainer_of(tmp_path, dtype)
    again.resume(out)
    letters.fit(again, out)
    if at == "update":  # its line holds what was known before the update
        assert "grad_norm" not in lines(out)[2]
        (out / "metrics.jsonl").write_text((wanted / "metrics.jsonl").read_text())
    assert_same_run(out, wanted)


def test_ctrl_c_while_evaluating_keeps_the_step(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)

    def evaluation(lm):
        if trainer.steps == 2:
            raise KeyboardInterrupt
        return {"pass@1": 0.5}

    source = Rollouts(Letters(), n=4, prompts=2)
    with pytest.warns(UserWarning, match="2 of 4 steps are made and kept in memory"):
        records = trainer.fit(source, 4, evaluation=evaluation, eval_every=1)
    assert [(r["step"], "eval/pass@1" in r) for r in records] == [
        (0, True), (1, False), (1, True), (2, False)]  # fmt: skip


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_evaluation_that_was_interrupted_is_made_up_for(tmp_path, at):
    calls = []

    def evaluation(lm):
        calls.append(lm.fingerprint)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return {"x": float(len(calls))}

    def run(trainer):
        return trainer.fit(Rollouts(Letters(), n=4, prompts=2), 4, out=tmp_path / "run",
                           evaluation=evaluation, eval_every=2)

    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE, bon.AdamW(lr=0.01))
    with pytest.warns(UserWarning, match=f"interrupted: {2 * at} of 4 steps"):
        run(trainer)
    assert not trainer.complete
    again = bon.Trainer(letters_model(tmp_path), REINFORCE, bon.AdamW(lr=0.01))
    again.resume(tmp_path / "run")
    run(again)
    assert again.complete
    measured = [(r["step"], "eval/x" in r) for r in lines(tmp_path / "run")]
    assert measured == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    assert calls[at] == calls[at + 1]
    assert run(again) == []


def test_an_error_keeps_the_last_completed_step(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    rollouts = Rollouts(Letters(), n=4, prompts=2)

    def source(trainer):
        if trainer.steps == 3:
            raise RuntimeError("the reward server is down")
        return rollouts(trainer)

    with pytest.raises(RuntimeError, match="the reward server is down"):
        trainer.fit(source, 5, out=tmp_path / "run")
    assert not trainer.complete
    again = bon.Trainer(letters_model(tmp_path), REINFORCE)
    again.resume(tmp_path / "run")
    assert again.steps == 3
    again.fit(rollouts, 5, out=tmp_path / "run")
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("there", [False, True])
def test_an_error_before_the_first_step_leaves_no_run(tmp_path, there):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    out = tmp_path / "run"
    if there:
        out.mkdir()
    with pytest.raises(ValueError, match="must make one step"):
        trainer.fit(lambda trainer: {}, 1, out=out, config="x = 1\n",
                    evaluation=lambda lm: {"x": 1.0}, eval_every=1)
    assert out.exists() == there
    assert not there or not any(out.iterdir())
    trainer.fit(Rollouts(Letters(), n=4, prompts=2), 1, out=out)


def test_only_what_saving_left_is_removed(tmp_path):
    run = tmp_path / "run"
    ours = run / "step-000002.saving-abcd_123"
    theirs = [run / "step-000002.backup", run / "step-000002.saving-of-mine"]
    for folder in (ours, *theirs):
        folder.mkdir(parents=True)
    (run / "step-000002.tar.gz").touch()
    (run / "step-000003.saving-abcd_123").touch()
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    trainer.fit(Rollouts(Letters(), n=4, prompts=2), 1, out=run)
    left = {entry.name for entry in run.iterdir()}
    assert left == {"metrics.jsonl", "step-000001", "step-000002.backup", "step-000002.tar.gz",
                    "step-000002.saving-of-mine", "step-000003.saving-abcd_123"}


def test_figures_of_numpy_are_figures(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)

    def source(trainer):
        metrics = trainer.step(["a"], [["b", "c"]], [[0, 1]])
        return metrics | {"x": np.float32(0.5), "y": np.int64(3), "z": np.arange(2)}

    records = trainer.fit(source, 1, out=tmp_path / "run", eval_every=1,
                          evaluation=lambda lm: {"nan": np.float32("nan")})
    assert lines(tmp_path / "run") == records
    assert [records[1][name] for name in "xyz"] == [0.5, 3, [0, 1]]
    assert records[0] == {"step": 0, "eval/nan": None}
    with pytest.raises(TypeError, match="figures must be what JSON holds, but bad is a object"):
        trainer.fit(lambda trainer: source(trainer) | {"bad": object()}, 2, out=tmp_path / "run")
    assert (tmp_path / "run" / "step-000002").is_dir()


def test_a_folder_is_saved_through_a_link_and_not_in_place_of_the_current_one(
        tmp_path, monkeypatch):
    lm = model()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    lm.save(tmp_path / "link")
    assert bon.LM.load(tmp_path / "real").fingerprint == lm.fingerprint
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="need another folder than the current one"):
        lm.save(".")
    lm.save("below")
    assert bon.LM.load(tmp_path / "here" / "below").fingerprint == lm.fingerprint


def test_ctrl_c_in_the_evaluation_of_problems_comes_through(tmp_path, monkeypatch):
    lm = letters_model(tmp_path)
    evaluation = Evaluation(task=Letters(), n=2, split="test")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    drawing = type(lm.stream([bon.Request(0, [3], [0])]))
    monkeypatch.setattr(drawing, "__next__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluation(lm)


def test_a_checkpoint_is_a_model(unbroken, tmp_path):
    dtype, folder = unbroken
    trainer = letters.trainer_of(tmp_path, dtype)
    trainer.resume(folder)
    loaded = bon.LM.load(folder / "step-000006", threads=1)
    assert loaded.dtype == dtype
    assert np.array_equal(loaded.logits([2, 3, 4]), trainer.lm.logits([2, 3, 4]))
    assert loaded.tokenizer is not None


def test_resume_says_that_a_file_is_no_trainers(tmp_path):
    (tmp_path / "trainer.json").write_text('{"steps": 3}')
    trainer = bon.Trainer(model(), REINFORCE)
    with pytest.raises(ValueError, match=r"trainer.json: must be what Trainer.save wrote, but it "
                                         "has no 'vocab'"):
        trainer.resume(tmp_path)


def test_save_and_resume_without_a_run(tmp_path):
    first, second = (bon.Trainer(model(), REINFORCE, bon.AdamW(lr=1e-3)) for _ in range(2))
    first.step(PROMPTS, draw(first.lm), REWARDS)
    first.save(tmp_path / "saved")
    second.resume(tmp_path / "saved")
    assert second.lm.fingerprint == first.lm.fingerprint
    for trainer in (first, second):
        trainer.step(PROMPTS, draw(trainer.lm), REWARDS)
    assert second.steps == 2
    assert_same(weights_of(second), weights_of(first))


def test_a_longer_run_goes_on_in_its_folder_and_keeps_the_newest(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    source = Rollouts(Letters(), n=4, prompts=2)
    trainer.fit(source, 3, out=tmp_path / "run", save_every=1, keep=1)
    trainer.fit(source, 5, out=tmp_path / "run", save_every=1, keep=3)
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3, 4, 5]
    left = sorted(entry.name for entry in (tmp_path / "run").glob("step-*"))
    assert left == ["step-000003", "step-000004", "step-000005"]
    assert trainer.fit(source, 5, out=tmp_path / "run") == []


def test_progress_gets_every_record_and_the_bar_counts_steps(tmp_path, capsys):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    source = Rollouts(Letters(), n=4, prompts=2)
    seen = []
    assert trainer.fit(source, 2, progress=seen.append) == seen
    trainer.fit(source, 4, progress=True)
    assert "4/4" in capsys.readouterr().err
    trainer.fit(source, 5, progress=False)
    assert capsys.readouterr().err == ""


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)

    def source(trainer):
        return trainer.step(["a"], [["b", "c"]], [[0, 1]]) | {"odd": math.inf, "gap": math.nan}

    (record,) = trainer.fit(source, 1, out=tmp_path / "run")
    assert (record["odd"], record["gap"]) == (None, None)
    assert lines(tmp_path / "run") == [record]


def test_one_process_trains_in_a_folder(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    other = bon.Trainer(letters_model(tmp_path), REINFORCE)
    source = Rollouts(Letters(), n=4, prompts=2)

    def both(trainer):
        other.resume(tmp_path / "run")
        with pytest.raises(RuntimeError, match=f"another process trains in {tmp_path}/run"):
            other.fit(source, 1, out=tmp_path / "run")
        return source(trainer)

    trainer.fit(both, 1, out=tmp_path / "run")


def test_fit_works_in_a_thread(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), REINFORCE)
    source = Rollouts(Letters(), n=4, prompts=2)
    thread = threading.Thread(target=trainer.fit, args=(source, 2), kwargs={"progress": False})
    thread.start()
    thread.join()
    assert trainer.steps == 2


# -- errors ----------------------------------------------------------------------


@pytest.mark.parametrize(("make", "kind", "sentence"), [
    (lambda: bon.Trainer(model(), "bon"), TypeError,
     r"None or one of bonaware.losses, such as losses.get\('bon'\)\(k=16\), got 'bon'"),
    (lambda: bon.Trainer(model(config=SCORE), kl=0.1), TypeError, "needs a loss with an option kl"),
    (lambda: bon.Trainer(model(), kl=-0.1), ValueError, "kl must be finite and >= 0, got -0.1"),
    (lambda: bon.Trainer(model(config=SCORE), REINFORCE), ValueError,
     "has a score head, which learns by cross-entropy: need loss=None, got Reinforce"),
    (lambda: bon.Trainer(model(), SFT, kl=0.1), TypeError,
     r"kl=0.1 needs a loss with an option kl, but Sft\(\) has none"),
    (lambda: bon.Trainer(model(), losses.get("vbon")(k=2), kl=0.1), TypeError, "has none"),
    (lambda: bon.Trainer(model(), REINFORCE, kl=-1.0), ValueError, "kl must be finite and >= 0"),
    (lambda: bon.Trainer(model(), REINFORCE, reference=model("llama_linear")), ValueError,
     "the reference must predict the same 97 tokens as the model, found .* with 101"),
    (lambda: bon.LoRA(rank=0), ValueError, "need rank >= 1, got 0"),
    (lambda: bon.LoRA(rank=2.5), TypeError, "rank must be an integer, got float"),
    (lambda: bon.LoRA(rank="8"), TypeError, "rank must be an integer, got str"),
    (lambda: bon.LoRA(rank=70000), ValueError, "need rank <= 65536, got 70000"),
    (lambda: bon.LoRA(alpha=math.inf), ValueError, "need alpha > 0 in the range of float32"),
    (lambda: bon.LoRA(alpha="8"), TypeError, "alpha must be a number, got str"),
    (lambda: bon.AdamW(lr=1e39), ValueError, r"need a finite lr >= 0, got 1e\+39"),
    (lambda: bon.AdamW(lr="fast"), TypeError, "lr must be a number, got str"),
    (lambda: bon.AdamW(betas=0.9), TypeError, "betas must be two numbers, got 0.9"),
    (lambda: bon.AdamW(betas=(0.9, "x")), TypeError, "beta must be a number, got str"),
    (lambda: bon.AdamW(warmup=2.5), TypeError, "warmup must be an integer, got float"),
    (lambda: bon.AdamW(eps=1e39), ValueError, "need a finite eps > 0"),
    (lambda: bon.AdamW(max_norm=None), TypeError, "max_norm must be a number, got NoneType"),
    (lambda: bon.LoRA(targets=("q_proj", "lm_head")), ValueError,
     r"targets must be different ones of q_proj, .*, got \('q_proj', 'lm_head'\)"),
    (lambda: bon.LoRA(targets=()), ValueError, "targets must be different ones"),
    (lambda: bon.LoRA(targets=TARGETS + TARGETS), ValueError, "targets must be different ones"),
])  # fmt: skip
def test_trainers_say_what_does_not_fit(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"top_k": 5}, "samples drawn with top_k=5 are not of the policy that is trained"),
    ({"top_p": 0.9}, "drawn with top_p=0.9"),
    ({"min_p": 0.1}, "drawn with min_p=0.1"),
    ({"temperature": [0.0, 1.0, 1.0, 1.0]}, r"one temperature > 0, got \[0.0, 1.0\]"),
    ({"temperature": 0.0, "n": 1}, r"one temperature > 0, got \[0.0\]"),
], ids=str)  # fmt: skip
def test_truncated_and_mixed_samples_are_refused(options, sentence):
    trainer = bon.Trainer(model(), REINFORCE)
    samples = draw(trainer.lm, **options)
    with pytest.raises(ValueError, match=sentence):
        trainer.step(PROMPTS, samples, REWARDS[:, : samples.n])
    assert trainer.steps == 0


def test_truncation_that_truncates_nothing_is_fine():
    trainer = bon.Trainer(model(), REINFORCE)
    trainer.step(PROMPTS, draw(trainer.lm, top_p=1.0, min_p=0.0), REWARDS)
    assert trainer.steps == 1


@pytest.mark.parametrize(("call", "kind", "sentence"), [
    (lambda t, s: t.step(PROMPTS[:1], s, REWARDS), ValueError,
     "one row of samples per prompt, got 2 rows for 1 prompts"),
    (lambda t, s: t.step(PROMPTS[::-1], s, REWARDS), ValueError,
     r"row 0 was drawn for \[3, 4, 5\], and prompt 0 is \[6, 7\]"),
    (lambda t, s: t.step(PROMPTS, s, REWARDS, temperature=1.0), ValueError,
     "temperature is for completions; Samples know theirs, got 1.0"),
    (lambda t, s: t.step(PROMPTS, s.tokens, [1.0]), ValueError,
     r"rewards must have the shape \[P, n\], got \(1,\)"),
    (lambda t, s: t.step(PROMPTS, s.tokens, REWARDS[:, :3]), ValueError,
     "a column for each completion, got 3 columns for 4 completions"),
    (lambda t, s: t.step(PROMPTS, s.tokens, REWARDS[:1]), ValueError,
     r"rewards must have the shape \[P, n\] of the samples, \(2, 4\), got \(1, 4\)"),
    (lambda t, s: t.step(PROMPTS, s, REWARDS * np.nan), ValueError, "rewards must be finite"),
    (lambda t, s: t.step(PROMPTS, s, REWARDS, expert=REWARDS > 0), TypeError,
     "loss reinforce: it does not use expert"),
    (lambda t, s: t.step(PROMPTS, s.tokens, REWARDS, temperature=0.0), ValueError,
     r"temperature of a policy that is trained must be in \[1e-30, 1e\+30\], got 0.0"),
    (lambda t, s: t.step(PROMPTS, s.tokens, REWARDS, temperature=1e-40), ValueError,
     r"must be in \[1e-30, 1e\+30\], got 1e-40"),
    (lambda t, s: t.step([], [], np.empty((0, 4))), ValueError,
     "need at least one prompt, got none"),
    (lambda t, s: t.step([], [], []), ValueError, "need at least one prompt, got none"),
    (lambda t, s: t.step(PROMPTS, s.tokens, REWARDS * 1e300), ValueError,
     "weights must be finite: number 0 of the batch is not"),
    (lambda t, s: t.step_scores(PROMPTS, s.tokens, REWARDS), ValueError,
     "a score head of one label, but LlamaForCausalLM is a LlamaForCausalLM with 0"),
    (lambda t, s: t.fit(7, 1), TypeError, "source must be a task, its name, or a callable"),
    (lambda t, s: t.fit("nothing", 1), ValueError, "there is no 'nothing'"),
    (lambda t, s: t.fit(lambda t: {}, 1), ValueError, "must make one step .* made 0"),
    (lambda t, s: t.fit(lambda t: {}, 0), ValueError, "need steps >= 1, got 0"),
    (lambda t, s: t.fit(lambda t: {}, 1, keep=0), ValueError, "need keep >= 1, got 0"),
    (lambda t, s: t.fit(lambda t: {}, 1, save_every=-1), ValueError, "need save_every >= 0"),
    (lambda t, s: t.fit(lambda t: {}, 1, eval_every=-1), ValueError, "need eval_every >= 0"),
    (lambda t, s: t.fit(lambda t: {}, 1, k=(1, 2)), TypeError,
     r"k=\(1, 2\) needs a loss with an option k, but Reinforce"),
])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_steps_say_what_does_not_fit(call, kind, sentence):
    trainer = bon.Trainer(model(), REINFORCE)
    samples = draw(trainer.lm)
    before = weights_of(trainer)
    with pytest.raises(kind, match=sentence):
        call(trainer, samples)
    assert trainer.steps == 0
    assert trainer._learner.norm() == 0
    assert_same(weights_of(trainer), before)


@pytest.mark.parametrize("at", ["_kl", "_update"])
def test_ctrl_c_in_a_step_leaves_nothing_behind(at, monkeypatch):
    trainer = bon.Trainer(model(), REINFORCE)

    def interrupted(*args):
        assert trainer._learner.norm() > 0
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(PROMPTS, draw(trainer.lm), REWARDS)
    assert trainer._learner.norm() == 0
    assert trainer.steps == 0


def test_ctrl_c_right_behind_the_update_leaves_no_old_fingerprint(monkeypatch):
    trainer = bon.Trainer(model(), REINFORCE)
    samples, before = draw(trainer.lm), trainer.lm.fingerprint
    calls = []

    def interrupted():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        type(trainer.lm).weights_changed(trainer.lm)

    monkeypatch.setattr(trainer.lm, "weights_changed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(PROMPTS, samples, REWARDS)
    assert trainer.steps == 1
    assert trainer.lm.fingerprint != before


def test_a_gradient_that_is_not_finite_moves_nothing():
    trainer = bon.Trainer(model(), REINFORCE)
    samples, before = draw(trainer.lm), weights_of(trainer)
    with pytest.raises(ValueError, match="the gradient's norm is nan: the step was not made"):
        trainer.step(PROMPTS, samples, REWARDS * 1e39)
    assert trainer._learner.norm() == 0
    assert_same(weights_of(trainer), before)
    trainer.step(PROMPTS, samples, REWARDS)
    assert trainer.steps == 1


@pytest.mark.parametrize(("labels", "sentence"), [
    ([[1.0], [1.0]], r"one number per completion, \[2, 1\] for these prompts, got .*\(1,\)"),
    ([[1.0, 2.0], [0.0]], r"labels must be in \[0, 1\], but element 1 of prompt 0 is 2.0"),
    ([[1.0, 0.0], [math.nan]], "element 0 of prompt 1 is nan"),
], ids=str)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(labels, sentence):
    trainer = bon.Trainer(model(config=SCORE))
    with pytest.raises(ValueError, match=sentence):
        trainer.step_scores(PROMPTS, [[[1], [2]], [[3]]], labels)
    with pytest.raises(ValueError, match="at least one completion, got none"):
        trainer.step_scores(PROMPTS, [[], []], [[], []])
    with pytest.raises(ValueError, match="a score head is trained by step_scores"):
        trainer.step(PROMPTS, [[[1]], [[2]]], [[1], [0]])


def test_annealing_to_more_than_n_is_refused_before_the_first_step(tmp_path):
    trainer = bon.Trainer(letters_model(tmp_path), losses.get("bon")(k=2))
    source = Rollouts(Letters(), n=4, prompts=2)
    with pytest.raises(ValueError, match=r"k=8.* needs at least 8 samples of every prompt"):
        trainer.fit(source, 3, k=(1, 8))
    with pytest.raises(ValueError, match="k must be two ints, at the first and the last step"):
        trainer.fit(source, 3, k=(1, 2, 3))


@pytest.mark.parametrize(("loss", "n", "kl", "sentence"), [
    (losses.get("bon")(k=3), 2, 0.0, "at least 3 samples of every prompt, but there are 2"),
    (losses.get("raft")(), 1, 0.1, "at least 2 samples of every prompt, but there are 1"),
], ids=["k", "kl"])
def test_too_few_samples_for_the_loss_are_refused_before_the_run(tmp_path, loss, n, kl, sentence):
    trainer = bon.Trainer(letters_model(tmp_path), loss, kl=kl)
    with pytest.raises(ValueError, match=sentence):
        trainer.fit(Rollouts(Letters(), n=n, prompts=2), 1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_that_a_loss_does_not_see_need_not_be_enough_for_it(tmp_path):
    lm = letters_model(tmp_path)
    lm.self_evaluation = {"question": [5], "target": 2, "other": 3, "ends": []}
    trainer = bon.Trainer(lm, losses.get("bon")(k=16))
    trainer.fit(OnPolicy(Letters(), n=4, prompts=2), 1)
    assert trainer.complete


def test_runs_are_not_mixed(tmp_path):
    source = Rollouts(Letters(), n=4, prompts=2)
    first = bon.Trainer(letters_model(tmp_path), REINFORCE)
    first.fit(source, 2, out=tmp_path / "run")
    second = bon.Trainer(letters_model(tmp_path), REINFORCE)
    with pytest.raises(FileExistsError, match="run holds a run: resume it with trainer"):
        second.fit(source, 2, out=tmp_path / "run")
    second.resume(tmp_path / "run" / "step-000002")  # a checkpoint alone: to go on elsewhere
    with pytest.raises(FileExistsError, match="holds a run"):
        second.fit(source, 3, out=tmp_path / "run")
    second.fit(source, 3, out=tmp_path / "other")
    assert [r["step"] for r in lines(tmp_path / "other")] == [3]
    with pytest.raises(FileExistsError, match="new or empty"):
        second.save(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="found neither in"):
        second.resume(tmp_path)


def test_resume_wants_the_reference_of_the_run(unbroken, tmp_path):
    dtype, folder = unbroken
    other = letters_model(tmp_path, rng=1, dtype=dtype)
    with pytest.raises(ValueError, match="was trained against another reference: make the trainer"):
        bon.Trainer(other, REINFORCE, kl=0.1).resume(folder)


LORA = bon.LoRA(rank=2, alpha=4.0, targets=("q_proj", "v_proj"))


@pytest.mark.parametrize(("lora", "other", "sentence"), [
    (None, lambda: bon.Trainer(model(config={"num_hidden_layers": 1})), "with layers 3, not 1"),
    (None, lambda: bon.Trainer(model(config={"rope_parameters": {
        "rope_type": "default", "rope_theta": 50.0}})), "with rope_freq .*, not "),
    (None, lambda: bon.Trainer(model(config={"rms_norm_eps": 0.1})), "norm_eps 1e-05, not 0.1"),
    (None, lambda: bon.Trainer(model(dtype="bfloat16")), "with dtype 'float32', not 'bfloat16'"),
    (None, lambda: bon.Trainer(model(), lora=LORA), "with lora None, not {.*'rank': 2"),
    (LORA, lambda: bon.Trainer(model()), "with lora {.*}, not None"),
    (LORA, lambda: bon.Trainer(model(), lora=dataclasses.replace(LORA, alpha=32.0)),
     "with lora {'alpha': 4.0, .*, not {'alpha': 32.0"),
    (LORA, lambda: bon.Trainer(model(), lora=dataclasses.replace(LORA, targets=("q_proj",))),
     "with lora .*'v_proj'.*, not "),
    (LORA, lambda: bon.Trainer(model(rng=1), lora=LORA), "holds adapters of another model: make"),
], ids=["layers", "rope", "eps", "dtype", "lora", "no lora", "alpha", "targets", "base"])
def test_resume_wants_the_model_and_the_adapters_of_the_run(lora, other, sentence, tmp_path):
    first = bon.Trainer(model(), REINFORCE, bon.AdamW(lr=0.01), lora=lora)
    first.step(PROMPTS, draw(first.lm), REWARDS)
    first.save(tmp_path / "saved")
    trainer = other()
    before = trainer.lm.logits([3, 4, 5])
    with pytest.raises(ValueError, match=sentence):
        trainer.resume(tmp_path / "saved")
    np.testing.assert_array_equal(trainer.lm.logits([3, 4, 5]), before)
    assert trainer.steps == 0


def test_resume_does_not_mind_the_order_of_the_targets(tmp_path):
    bon.Trainer(model(), lora=LORA).save(tmp_path / "saved")
    turned = dataclasses.replace(LORA, targets=LORA.targets[::-1])
    bon.Trainer(model(), lora=turned).resume(tmp_path / "saved")


def _rewritten(path, change, **metadata):
    """A state file with its last second moment, and perhaps its number of steps, changed."""
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(path)
    name = [name for name in tensors if name.startswith("moment_2")][-1]
    tensors |= change(name, tensors[name])
    safetensors.save_file(tensors, path, {"steps": "1"} | metadata)


def _nothing(name, values):
    return {}


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda path: path.write_bytes(path.read_bytes()[:1000]), "must be a whole safetensors file"),
    (lambda path: path.write_bytes(b""), "must be a whole safetensors file"),
    (lambda path: _rewritten(path, lambda name, x: {name: x.astype(np.float64)}),
     r"must hold moment_2.* as F32 of shape .*, found F64 of shape "),
    (lambda path: _rewritten(path, lambda name, x: {name: x[:1]}), r"found F32 of shape \(1,"),
    (lambda path: _rewritten(path, lambda name, x: {name: x * np.nan}),
     "moment_2.* must be finite, but .* is nan"),
    (lambda path: _rewritten(path, lambda name, x: {"weight.more": x}),
     "must hold what is trained and nothing else, found weight.more"),
    (lambda path: _rewritten(path, _nothing, steps="9" * 30), "how many steps .* found '999"),
    (lambda path: _rewritten(path, _nothing, steps="9" * 5000), "how many steps"),
    (lambda path: _rewritten(path, _nothing, steps="²"), "how many steps"),
], ids=["cut", "empty", "type", "shape", "nan", "more", "steps", "digits", "square"])
def test_a_broken_state_is_named_and_changes_nothing(spoil, sentence, tmp_path):
    first = bon.Trainer(model(), REINFORCE, bon.AdamW(lr=0.01))
    first.step(PROMPTS, draw(first.lm), REWARDS)
    first.save(tmp_path / "saved")
    spoil(tmp_path / "saved" / "trainer.safetensors")
    trainer = bon.Trainer(model(), REINFORCE)
    before = weights_of(trainer)
    with pytest.raises(ValueError, match="trainer.safetensors: .*" + sentence):
        trainer.resume(tmp_path / "saved")
    assert_same(weights_of(trainer), before)
    assert trainer.steps == 0


def test_resume_forgets_the_gradient(tmp_path):
    first, second = bon.Trainer(model(), REINFORCE), bon.Trainer(model(), REINFORCE)
    first.save(tmp_path / "saved")
    second._learner.accumulate([np.array([1], np.int32)], [[np.array([2], np.int32)]], [[1.0]])
    second.resume(tmp_path / "saved")
    assert second._learner.norm() == 0


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = bon.Trainer(model(), REINFORCE, bon.AdamW(lr=1e38, weight_decay=10.0))
    trainer.step(PROMPTS, draw(trainer.lm), REWARDS)
    with pytest.raises(ValueError, match=r"trainer.safetensors: .* must be finite, but .* is "):
        trainer.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("make", "kind", "sentence"), [
    (lambda path: Rollouts(Letters(), n=0), ValueError, "need n >= 1, got 0"),
    (lambda path: Rollouts(Letters(), n=2.5), TypeError, "n must be an integer, got float"),
    (lambda path: Rollouts(Letters(), max_new_tokens=0), ValueError, "need max_new_tokens >= 1"),
    (lambda path: Rollouts(Letters(), prompts=0), ValueError, "need prompts >= 1, got 0"),
    (lambda path: Rollouts(Letters(), seed=-1), ValueError, "need seed >= 0, got -1"),
    (lambda path: Rollouts(Letters(), temperature=0.0), ValueError,
     "need temperature > 0 to learn from samples, got 0.0"),
    (lambda path: Rollouts(Letters(), limit=0), ValueError,
     "need at least one problem, but task letters has none in split 'train' with limit=0"),
    (lambda path: Rollouts(Letters(), expert="proof"), ValueError,
     "problem aaa needs a field 'proof' with a demonstration .*; there are solution"),
    (lambda path: Rollouts(Letters(), verifier="oracle"), ValueError, "there is no 'oracle'"),
    (lambda path: Texts([("a", "b")], 0), ValueError, "need prompts >= 1, got 0"),
    (lambda path: Texts([("a", "b")], seed=-1), ValueError, "need seed >= 0, got -1"),
    (lambda path: Labels([("a", "b", 1)], -3), ValueError, "need prompts >= 1, got -3"),
    (lambda path: Rollouts(Letters(), verifier="reward_model"), TypeError,
     "options of verifier reward_model: 'model' is missing; there are: model, "),
    (lambda path: Texts([]), ValueError, "at least one row of prompt, completion, got none"),
    (lambda path: Texts([("a", "b", "c")]), ValueError,
     "need rows of prompt, completion, but row 0 has 3 entries"),
    (lambda path: Texts(path), ValueError, "line 1: need a field 'completion'"),
    (lambda path: Labels(path), ValueError, "line 1: need a field 'completion'"),
])  # fmt: skip
def test_sources_say_what_does_not_fit(make, kind, sentence, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(kind, match=sentence):
        make(path)


def test_a_task_needs_texts():
    trainer = bon.Trainer(model(), REINFORCE)
    with pytest.raises(ValueError, match="a task rewards texts, but LlamaForCausalLM has no tok"):
        trainer.fit(Rollouts(Letters()), 1)


def test_no_warning_is_given_where_nothing_happens(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bon.Trainer(letters_model(tmp_path), REINFORCE).fit(Rollouts(Letters(), 2, 2), 1)
