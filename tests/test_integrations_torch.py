"""Losses on torch tensors: the numbers of the C kernels, and gradients that torch agrees with."""

import numpy as np
import pytest
from enumeration import bon_objective, gradient, tuples
from test_losses import each_loss, make_loss, some_inputs

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


# Values.


@each_loss
def test_value_and_weights_are_those_of_arrays_bit_for_bit(label):
    loss = make_loss(label)
    rewards, given = some_inputs(loss)
    value, weights = loss(rewards, **given)
    found = bridge.weights(loss, torch.tensor(rewards), **tensors(given))
    assert [x.dtype for x in found] == [torch.float64] * 2
    np.testing.assert_array_equal(found[0].numpy(), value)
    np.testing.assert_array_equal(found[1].numpy(), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_loss
def test_the_gradient_by_logp_is_the_weights_over_the_prompts(label, dtype):
    loss = make_loss(label)
    rewards, given = some_inputs(loss)
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
