"""Losses on torch tensors: the numbers of the C kernels, and gradients that torch agrees with."""

import sys
import types

import numpy as np
import pytest
import test_losses
import test_losses_relatives
from docs_examples import run_examples
from enumeration import bon_objective, gradient, tuples

import bonaware as bon

torch = pytest.importorskip("torch", reason="the integration is with torch")

from bonaware.integrations import torch as bridge  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors(given, dtype=torch.float64):
    return {name: torch.tensor(x) if x.dtype == bool else torch.tensor(x, dtype=dtype)
            for name, x in given.items()}


def some_call(label):
    """A loss with rewards and keywords of the right shapes, with ties."""
    if label in test_losses.ALL:
        loss = test_losses.make_loss(label)
        return loss, *test_losses.some_inputs(loss)
    return bon.losses.get(label)(), *test_losses_relatives.some_inputs(label)


LABELS = (*test_losses.ALL, *test_losses_relatives.ALL)
each_loss = pytest.mark.parametrize("label", LABELS)


def test_every_loss_is_here():
    assert {some_call(label)[0].name for label in LABELS} == set(bon.losses.available())


# Values.


@each_loss
def test_value_and_weights_are_those_of_arrays_bit_for_bit(label):
    loss, rewards, given = some_call(label)
    value, weights = loss(rewards, **given)
    found = bridge.weights(loss, torch.tensor(rewards), **tensors(given))
    assert [x.dtype for x in found] == [torch.float64] * 2
    np.testing.assert_array_equal(found[0].numpy(), value)
    np.testing.assert_array_equal(found[1].numpy(), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_loss
def test_the_gradient_by_logp_is_the_weights_over_the_prompts(label, dtype):
    loss, rewards, given = some_call(label)
    logp = torch.tensor(given.pop("logp", np.zeros(rewards.shape)), dtype=dtype)
    logp.requires_grad_()
    read = {"logp": logp.detach().double().numpy()} if "logp" in loss.inputs else {}
    value, weights = loss(rewards, **given, **read)
    found = bridge.objective(loss, logp, torch.tensor(rewards), **tensors(given))
    (3 * found).backward()
    assert found.item() == pytest.approx(value.mean(), rel=1e-14)
    assert logp.grad.dtype == dtype
    want = torch.tensor(3 * weights / len(value)).to(dtype)
    torch.testing.assert_close(logp.grad, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-12)


def test_places_without_sample_get_no_gradient_whatever_stands_there():
    logp = torch.tensor([[-1.0, float("nan"), -2.0, -3.0]], requires_grad=True)
    rewards = torch.tensor([[1.0, float("nan"), 0.0, 1.0]])
    mask = torch.tensor([[True, False, True, True]])
    loss = bon.losses.get("bon")(k=2)
    bridge.objective(loss, logp, rewards, mask=mask).backward()
    _, want = loss([[1.0, 0.0, 1.0]])
    np.testing.assert_allclose(logp.grad[:, [0, 2, 3]], want, rtol=1e-6)
    assert logp.grad[0, 1] == 0


def test_what_the_loss_says_of_its_inputs_is_said_here_too():
    logp = torch.zeros((1, 2), requires_grad=True)
    with pytest.raises(ValueError, match="needs at least 3 samples of every prompt"):
        bridge.objective(bon.losses.get("bon")(k=3), logp, rewards=torch.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"rewards must have the shape of logp, \[1, 2\], got"):
        bridge.objective(bon.losses.get("reinforce")(), logp, rewards=torch.zeros((1, 3)))
    with pytest.raises(TypeError, match="does not use fail"):
        bridge.weights(bon.losses.get("reinforce")(), torch.zeros((1, 2)), fail=[0.5])


# Gradients.


def smooth(name):
    """Losses whose value is itself a function of logp, with inputs that they need."""
    rng = np.random.default_rng(5)
    logp = rng.normal(-3, 0.2, (4, 6))
    old = logp + rng.normal(0, 0.05, logp.shape)
    expert = torch.tensor(rng.permuted(np.tile(np.arange(6) < 3, (4, 1)), axis=1))
    ref = torch.tensor(rng.normal(-3, 0.2, (4, 6)))
    return logp, {
        "sft": {"expert": expert}, "raft": {}, "bonbon": {"ref_logp": ref},
        "grpo": {"old_logp": torch.tensor(old), "lengths": torch.full((4, 6), 3)},
        "dr_grpo": {"old_logp": torch.tensor(old)},
    }[name]


@pytest.mark.parametrize(("name", "options"), [
    ("sft", {}), ("raft", {}), ("bonbon", {}), ("grpo", {"clip": 0.5}),
    ("dr_grpo", {"clip": 0.5}),
])
def test_torch_finds_the_gradient_of_a_value_that_knows_logp(name, options):
    """Finite differences of the value, where the loss is a function of logp."""
    logp, inputs = smooth(name)
    rewards = torch.tensor(np.random.default_rng(6).normal(size=logp.shape))
    loss = bon.losses.get(name)(**options)
    assert torch.autograd.gradcheck(
        lambda x: bridge.objective(loss, x, rewards, **inputs),
        torch.tensor(logp, requires_grad=True), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_bon_through_autograd_is_the_gradient_of_best_of_k(k):
    """The softmax is torch's; expectation and objective are sums over all tuples of draws."""
    theta = np.array([0.3, -0.5, 0.9])
    scores, rewards = np.array([1.0, 2.0, 2.0]), np.array([0.3, 1.0, -0.2])
    draws = tuples(3, 3)
    logits = torch.tensor(theta, requires_grad=True)
    logp = torch.log_softmax(logits, 0)[torch.tensor(draws)]
    chances = logp.detach().sum(1).exp()
    value, weights = bridge.weights(bon.losses.get("bon")(k=k), rewards[draws], scores[draws])
    bridge.weighted(logp, value, len(draws) * chances[:, None] * weights).backward()
    want = -gradient(bon_objective(scores, rewards, k), theta)
    np.testing.assert_allclose(logits.grad, want, atol=1e-12)


# verl: a registry as verl 0.9.1 has it; that version wants a GPU stack to be imported.


@pytest.fixture
def registry(monkeypatch):
    known = {}

    def register_adv_est(name):
        def decorator(function):
            if name in known and known[name] != function:
                raise ValueError(f"Adv estimator {name} has already been registered")
            known[name] = function
            return function
        return decorator

    module = types.ModuleType("verl.trainer.ppo.core_algos")
    module.register_adv_est = register_adv_est
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return known


def of_verl(rewards, lengths, groups, width=5):
    """Arguments that verl calls an estimator with: the reward stands on the last token."""
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    scores = torch.zeros(mask.shape)
    for row, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        scores[row, max(length - 1, 0)] = reward
    return {"token_level_rewards": scores, "response_mask": mask,
            "index": np.array(groups, dtype=object), "config": {}}


@pytest.mark.parametrize(("name", "options"), [("bon", {"k": 2}), ("grpo", {}), ("pkpo", {"k": 2})])
def test_a_policy_loss_of_verl_gets_the_gradient_of_the_loss(name, options):
    """seq-mean-token-sum of -log_prob * advantages, for groups of different sizes, mixed."""
    from bonaware.integrations.verl import estimator

    groups = ["x", "y", "x", "y", "x", "y", "x"]
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 2.0]
    lengths = [3, 1, 5, 2, 4, 5, 1]
    call = of_verl(rewards, lengths, groups)
    loss = bon.losses.get(name)(**options)
    advantages, returns = estimator(loss)(**call)
    assert advantages is returns
    assert not advantages[call["response_mask"] == 0].any()
    logp = torch.randn(call["response_mask"].shape, requires_grad=True)
    (-logp * advantages * call["response_mask"]).sum(1).mean().backward()
    for group in "xy":
        rows = [i for i, g in enumerate(groups) if g == group]
        more = {"lengths": [[lengths[i] for i in rows]]} if "lengths" in loss.inputs else {}
        _, weights = loss([[rewards[i] for i in rows]], **more)
        want = torch.tensor(weights[0])[:, None] / 2 * call["response_mask"][rows]
        torch.testing.assert_close(logp.grad[rows].double(), want, rtol=1e-6, atol=1e-7)


def test_verl_samples_without_tokens_count_as_not_drawn():
    from bonaware.integrations.verl import estimator

    call = of_verl([1.0, 9.0, 0.0, 1.0], [2, 0, 2, 1], ["x", "x", "x", "y"])
    advantages, _ = estimator(bon.losses.get("reinforce")())(**call)
    _, weights = bon.losses.get("reinforce")()([[1.0, 0.0]])
    np.testing.assert_allclose(advantages[[0, 2], 0], -weights[0] * 3 / 2, rtol=1e-6)
    assert not advantages[[1, 3]].any()  # no token; alone in its group


def test_verl_groups_that_are_all_too_small_are_refused():
    from bonaware.integrations.verl import estimator

    with pytest.raises(ValueError, match="at least 3 samples of every prompt, but the largest"):
        estimator(bon.losses.get("bon")(k=3))(**of_verl([1.0, 0.0], [1, 1], ["x", "x"]))


def test_verl_knows_what_is_registered(registry):
    run_examples("torch.md", "verl")
    advantages, _ = registry["bon16"](**of_verl([1.0] + 31 * [0.0], 32 * [2], 32 * ["x"]))
    _, weights = bon.losses.get("bon")(k=16)([[1.0] + 31 * [0.0]])
    np.testing.assert_allclose(advantages[:, 0], -32 * weights[0], rtol=1e-6)


@pytest.mark.parametrize(("name", "options", "missing"), [
    ("bonbon", {}, "logp"), ("bon", {"k": 2, "kl": 0.1}, "logp"), ("bon_sft", {"k": 2}, "expert"),
])
def test_verl_losses_that_need_more_are_refused(name, options, missing):
    from bonaware.integrations.verl import estimator

    with pytest.raises(TypeError, match=f"needs {missing}, which verl does not give"):
        estimator(bon.losses.get(name)(**options))


# Docs.


def test_examples_of_the_page_run():
    found = run_examples("torch.md", "torch")
    value, weights = found["value"], found["weight"]
    assert found["loss"].item() == pytest.approx(value.mean().item())
    assert weights.abs().max() > 0
    assert found["logits"].grad.abs().max() > 0
