"""The trainer for TRL: its weights, its gradient against the engine's, and what it refuses.

The model is that of letters.py: eleven tokens, and a reward that ten steps raise.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from docs_examples import run_examples
from letters import letters_model

import bonaware as bon

trl = pytest.importorskip("trl", reason="the integration is with TRL: pip install '.[trl]'")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402
from datasets import Dataset  # noqa: E402

from bonaware.integrations.trl import (  # noqa: E402
    BoNGRPOTrainer,
    EngineRollout,
    _requests,
    set_weights,
)

# What TRL, accelerate and torch warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

GRADIENT_ERROR = 2e-4  # of the largest element of a tensor
N = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a model over letters with its tokenizer."""
    base = tmp_path_factory.mktemp("trl")
    letters_model(base / "tokenizer").save(base / "model")
    return base / "model"


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokenizer_of(folder):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token=tiny.PIECES[0],
        eos_token=tiny.PIECES[1], padding_side="left")


def first_letter(prompts, completions, **_):
    return [float(text.startswith(prompt[-1])) for prompt, text in zip(prompts, completions,
                                                                      strict=True)]


def varied(completion_ids, **_):
    return [sum(ids) / 10 for ids in completion_ids]


def length(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def config(folder, **options):
    return trl.GRPOConfig(**{
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "num_generations": N, "max_steps": 1,
        "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0,
        "max_completion_length": 3, "learning_rate": 0.02, "logging_steps": 1, "seed": 3,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False, **options,
    })


class Recorder(BoNGRPOTrainer):
    """Keeps what was drawn for the newest step."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.drawn = output
        self.advantages = [*getattr(self, "advantages", ()), *output["advantages"].tolist()]
        self.rewards = self._scored.clone()
        return output


def trainer_of(folder, loss, cls=Recorder, reward_funcs=first_letter, options=(), **args):
    rows = [{"prompt": "".join(word)} for word in ("aab", "bca", "cbc", "abc", "bbb", "cca")]
    return cls(load(folder), reward_funcs, config(folder, **args), loss=loss,
               train_dataset=Dataset.from_list(rows), processing_class=tokenizer_of(folder),
               **dict(options))


def unpadded(ids, mask):
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def groups(rows):
    return [rows[i:i + N] for i in range(0, len(rows), N)]


def gathered(rows):
    """Of all processes, in their order."""
    return gather_object(rows)


class Compare(transformers.TrainerCallback):
    """Before every step of the optimiser: the gradient of the engine, and that of TRL."""

    def __init__(self, trainer, folder, loss):
        self.trainer, self.loss, self.steps = trainer, loss, 0
        self.lm, self.first = (bon.LM.load(folder, threads=1) for _ in range(2))

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        drawn, temperature = self.trainer.drawn, args.temperature
        set_weights(self.lm, model.named_parameters())
        prompts = gathered(unpadded(drawn["prompt_ids"], drawn["prompt_mask"]))[::N]
        completions = groups(gathered(unpadded(drawn["completion_ids"],
                                               drawn["completion_mask"])))
        given = {}
        if self.loss.kl:
            given = {name: [[x.sum(dtype=float) for x in row]
                            for row in lm.logp(prompts, completions, temperature)]
                     for name, lm in (("logp", self.lm), ("ref_logp", self.first))}
        rewards = groups(self.trainer.rewards[:, 0].tolist())
        value, weights = self.loss(rewards, **given)
        error = 1e-5 if self.loss.kl else 1e-12
        advantages, values = (gathered(drawn[name].tolist()) for name in ("advantages", "values"))
        np.testing.assert_allclose(-np.reshape(advantages, (-1, N)) / N, weights, rtol=0,
                                   atol=error)
        np.testing.assert_allclose(values[::N], value, rtol=0, atol=error)
        logged = list(self.trainer._logs["advantages"])[-len(advantages):]
        np.testing.assert_array_equal(logged, advantages)
        want = self.lm.gradients(prompts, completions, weights / len(weights), temperature)
        found = dict(model.named_parameters())
        assert want.keys() == found.keys()
        for name, values in want.items():
            distance = np.abs(found[name].grad.numpy() - values).max()
            assert distance <= GRADIENT_ERROR * np.abs(values).max(), name
        assert any(values.any() for values in want.values())
        self.steps += 1


# Gradients.


@pytest.mark.parametrize(("loss", "args", "engine"), [
    (bon.losses.get("bon")(k=2), {"temperature": 0.8}, False),
    (bon.losses.get("bon")(k=2, kl=0.3), {"beta": 0.3, "temperature": 1.3}, True),
    (bon.losses.get("vbon")(k=4), {"per_device_train_batch_size": 12,
                                   "gradient_accumulation_steps": 1}, True),
], ids=["bon", "bon with beta", "vbon with its own kl"])
def test_the_gradient_of_every_step_is_that_of_the_engine(folder, loss, args, engine):
    options = {"rollout_func": EngineRollout(bon.LM.load(folder, threads=1))} if engine else {}
    trainer = trainer_of(folder, loss, reward_funcs=varied, options=options, max_steps=3, **args)
    compare = Compare(trainer, folder, loss)
    trainer.add_callback(compare)
    trainer.train()
    assert compare.steps == 3


def test_the_gradient_is_that_of_the_engine_on_a_real_checkpoint(folder, data, tmp_path):
    """One step on a model that was trained on stories, with its own end tokens."""
    path = data / "ckpt" / "aidreams260K"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), pad_token="<unk>", eos_token="</s>",
        bos_token="<s>", padding_side="left")
    rows = Dataset.from_list([{"prompt": text} for text in ("Once", "The dog", "A")])
    loss = bon.losses.get("bon")(k=2)
    trainer = Recorder(load(path), lambda completions, **_: [text.count("a") / 10
                                                            for text in completions],
                       config(tmp_path, max_completion_length=24, temperature=0.9), loss=loss,
                       train_dataset=rows, processing_class=tokenizer)
    compare = Compare(trainer, path, loss)
    trainer.add_callback(compare)
    trainer.train()
    assert compare.steps == 1


def test_groups_may_be_spread_over_processes(folder):
    """Two processes with one and a half groups each; see spread_groups.py."""
    command = [sys.executable, str(Path(__file__).with_name("spread_groups.py")), str(folder)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_ten_steps_with_samples_of_the_engine_raise_the_reward(folder):
    loss = bon.losses.get("bon")(k=1)
    options = {"rollout_func": EngineRollout(bon.LM.load(folder, threads=1))}
    trainer = trainer_of(folder, loss, options=options, max_steps=10,
                         num_generations=8, per_device_train_batch_size=24,
                         num_generations_eval=4)
    trainer.train()
    found = trainer.evaluate(trainer.train_dataset)
    assert found["eval_loss"] == pytest.approx(-found["eval_reward"], abs=0.1)  # means of means
    logged = list(trainer._logs["advantages"])
    assert logged == trainer.advantages[-len(logged):]
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 10
    rewards = [row["reward"] for row in logged]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    assert all(row["loss"] == pytest.approx(-row["reward"], abs=1e-6) for row in logged)
    assert {"bon/no_signal", "bon/left_out", "entropy"} <= logged[0].keys()


# What counts as drawn.


def test_samples_without_reward_and_cut_ones_count_as_not_drawn(folder):
    def sometimes(prompts, completions, **_):
        found = first_letter(prompts, completions)
        return [None if i % N == 1 else reward for i, reward in enumerate(found)]

    loss = bon.losses.get("reinforce")()
    trainer = trainer_of(folder, loss, reward_funcs=sometimes, mask_truncated_completions=True)
    trainer.train()
    drawn = trainer.drawn
    mask = drawn["completion_mask"].any(1).reshape(-1, N).numpy()
    last = drawn["completion_ids"][:, -1].numpy()  # TRL: cut, unless an end token or padding
    cut = ~np.isin(last, [0, 1]).reshape(-1, N)
    assert 0 < cut.sum() < cut.size
    np.testing.assert_array_equal(mask, ~cut)
    mask[:, 1] = False
    weights = -drawn["advantages"].reshape(-1, N).numpy() / N
    rewards = np.nan_to_num(trainer.rewards[:, 0].reshape(-1, N).numpy())
    enough = mask.sum(1) >= 2
    assert enough.any()
    assert (weights[~enough] == 0).all()
    np.testing.assert_allclose(weights[enough], loss(rewards[enough], mask=mask[enough])[1])
    logged = next(row for row in trainer.state.log_history if "bon/left_out" in row)
    assert logged["bon/left_out"] == pytest.approx(1 - enough.mean())


def test_tokens_of_an_environment_have_no_part_in_logp(folder):
    """A rollout function may say which tokens are not the policy's."""
    rollout = EngineRollout(bon.LM.load(folder, threads=1))

    def masked(prompts, trainer):
        found = rollout(prompts, trainer)
        rows = found["completion_ids"]
        return found | {"env_mask": [[0] + [1] * (len(ids) - 1) for ids in rows]}

    trainer = trainer_of(folder, bon.losses.get("grpo")(), reward_funcs=varied, max_steps=1,
                         options={"rollout_func": masked})
    trainer.train()
    drawn, lm = trainer.drawn, rollout.lm
    prompts = unpadded(drawn["prompt_ids"], drawn["prompt_mask"])
    completions = unpadded(drawn["completion_ids"], drawn["completion_mask"])
    set_weights(lm, trainer.model.named_parameters())
    want = [row[0][1:].sum() for row in lm.logp(prompts, [[ids] for ids in completions])]
    with torch.no_grad():
        found, _ = trainer._read(trainer.model, drawn)
    np.testing.assert_allclose(found, want, atol=1e-5)
    there = [len(ids) > 1 for ids in completions]
    assert not drawn["advantages"][~torch.tensor(there)].any()
    lengths = np.array([len(ids) - 1 for ids in completions]).reshape(-1, N)
    rewards, mask = trainer.rewards[:, 0].reshape(-1, N), np.reshape(there, (-1, N))
    _, weights = bon.losses.get("grpo")()(rewards, lengths=np.maximum(lengths, 1), mask=mask)
    np.testing.assert_allclose(-drawn["advantages"].reshape(-1, N) / N, weights, atol=1e-12)


def test_a_selector_gives_the_scores_and_no_reward(folder):
    loss = bon.losses.get("bon")(k=2)
    trainer = trainer_of(folder, loss, reward_funcs=[first_letter, length],
                         options={"selector": "length"})
    trainer.train()
    rewards, scores = (trainer.rewards[:, i].reshape(-1, N).numpy() for i in range(2))
    weights = -trainer.drawn["advantages"].reshape(-1, N).numpy() / N
    np.testing.assert_allclose(weights, loss(rewards, scores)[1], atol=1e-12)
    assert not np.allclose(weights, loss(rewards)[1])


# Rollouts.


def test_the_engine_gets_the_weights_of_the_trainer(folder):
    model, lm = load(folder), bon.LM.load(folder, threads=1)
    before = lm.fingerprint
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        set_weights(lm, model.named_parameters())
        want = model(torch.tensor([[2, 3, 4]])).logits[0]
    np.testing.assert_allclose(lm.logits([2, 3, 4]), want, atol=1e-4)
    assert lm.fingerprint != before
    with pytest.raises(ValueError, match=r"need .*weight of shape \[.*found no such weight"):
        set_weights(lm, [])


def test_rollouts_are_drawn_as_the_trainer_says_and_anew_each_time(folder):
    rollout = EngineRollout(bon.LM.load(folder, threads=1))
    trainer = trainer_of(folder, bon.losses.get("bon")(k=2), temperature=0.4,
                         max_completion_length=5)
    first, second = (rollout(["abb"] * 6 + ["c"] * 6, trainer) for _ in range(2))
    assert first["completion_ids"] != second["completion_ids"]
    assert first["prompt_ids"] == 6 * [[10]] + 6 * [[4]]
    assert max(map(len, first["completion_ids"])) == 5
    want = rollout.lm.logp([[10], [4]], [first["completion_ids"][:6], first["completion_ids"][6:]],
                           temperature=0.4)
    for got, expected in zip(first["logprobs"], want[0] + want[1], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_equal_prompts_are_read_once_and_numbered():
    requests = _requests([[1, 2], [1, 2], [3], [1, 2]])
    assert [(r.prompt, r.tokens.tolist(), list(r.indices), r.repeat) for r in requests] == [
        (0, [1, 2], [0, 1], 0), (1, [3], [0], 0), (2, [1, 2], [0], 1)]


# Refusals.


@pytest.mark.parametrize(("args", "match"), [
    ({"loss_type": "grpo"}, "loss_type='grpo' belongs to the loss of GRPO and would be without"),
    ({"epsilon_high": 0.3}, "epsilon_high=0.3 belongs to the loss of GRPO"),
    ({"scale_rewards": "batch"}, "scale_rewards='batch' would be without effect"),
    ({"top_p": 0.9}, "top_p=0.9 makes the samples those of another policy"),
    ({"generation_kwargs": {"temperature": 2.0}}, "generation_kwargs=.* another policy"),
    ({"num_generations": 2}, "needs at least 3 samples of every prompt, but num_generations=2"),
    ({"num_iterations": 2}, "samples must be used once.* got 2, 2 and 2"),
    ({"steps_per_generation": 4}, "samples must be used once.* got 1, 4 and 2"),
], ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_options_that_would_be_ignored_or_wrong_are_refused(folder, args, match):
    with pytest.raises(ValueError, match=match):
        trainer_of(folder, bon.losses.get("bon")(k=3), **args)


def test_losses_that_a_rollout_can_not_serve_are_refused(folder):
    with pytest.raises(TypeError, match="needs expert, which a rollout does not have"):
        trainer_of(folder, bon.losses.get("bon_sft")(k=2))
    with pytest.raises(TypeError, match=r"beta=0.1 needs a loss with an option kl"):
        trainer_of(folder, bon.losses.get("bonbon")(), beta=0.1)
    with pytest.raises(TypeError, match="takes no scores, so selector='length' would be without"):
        trainer_of(folder, bon.losses.get("reinforce")(), options={"selector": "length"})
    with pytest.raises(ValueError, match="one of first_letter, got 'length'"):
        trainer_of(folder, bon.losses.get("bon")(k=2), options={"selector": "length"})


# Docs.


def test_examples_of_the_page_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(folder)
    tokenizer_of(folder).save_pretrained(tmp_path / "tokenizer")
    run_examples("torch.md", "TRL")
