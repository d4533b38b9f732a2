"""The baselines and relatives: expectations by enumeration, the rest against its formula.

An unbiased loss is compared with the gradient of its objective over all tuples of samples
of a small policy; what clips, prefers or ranks with naive loops over its published formula,
differentiated by finite differences, and with torch where torch is.
"""

import itertools
import math
import statistics
from dataclasses import fields, replace

import numpy as np
import pytest
from enumeration import (
    best_of,
    bon_law,
    expected,
    expected_gradient,
    gradient,
    score_gradient,
    softmax,
    tuples,
)

from bonaware import losses
from bonaware.losses.bonbon import bonbon_beta

THETA = np.array([0.3, -0.4, 0.9, 0.1])
P = softmax(THETA)
LOGP = np.log(P)
REF = softmax([-0.2, 0.5, 0.3, -0.6])
REWARDS = np.array([0.2, -1.0, 0.7, 0.7])
RIGHT = np.array([0.0, 1.0, 0.0, 1.0])
SCORES = np.array([2.0, 0.5, 2.0, 3.0])  # a tie, and not the order of the rewards

# Every loss of this file, with options, and inputs of any shape that it works on.
WITH_KL = {"reinforce", "grpo", "dr_grpo", "max_rl", "raft"}
ALL = {
    "sft": ("logp", "expert"),
    "reinforce": (),
    "grpo": ("logp", "old_logp", "lengths"),
    "dr_grpo": ("logp", "old_logp"),
    "max_rl": (),
    "raft": ("scores", "logp"),
    "vbon": ("scores", "logp", "ref_logp", "ref_scores"),
    "bond": ("scores", "logp", "ref_logp", "expert"),
    "bonbon": ("scores", "logp", "ref_logp"),
}
each_loss = pytest.mark.parametrize("name", ALL)


def some_inputs(name, rows=40, n=6, seed=0):
    """Rewards and keywords of a loss: random, with ties, of right shape."""
    rng = np.random.default_rng(seed)
    expert = np.arange(n) >= n - 3
    inputs = {
        "scores": rng.integers(0, 4, size=(rows, n)) / 4.0,
        "logp": -rng.gamma(4.0, 1.0, size=(rows, n)),
        "ref_logp": -rng.gamma(4.0, 1.0, size=(rows, n)),
        "lengths": rng.integers(1, 9, size=(rows, n)),
        "ref_scores": rng.integers(0, 4, size=(rows, 5)) / 4.0,
        "expert": rng.permuted(np.tile(expert, (rows, 1)), axis=1),
    }
    inputs["old_logp"] = inputs["logp"] - rng.normal(0.0, 0.5, size=(rows, n))
    rewards = rng.integers(0, 2, size=(rows, n)).astype(float)
    return rewards, {key: inputs[key] for key in ALL[name]}


def on_all(loss, n, rewards=REWARDS, m=4, **by_outcome):
    """draws [T, n], value [T] and weights [T, n] of a loss for all tuples of n samples."""
    draws = tuples(m, n)
    given = {key: np.asarray(x)[draws] for key, x in by_outcome.items()}
    return draws, *loss(np.asarray(rewards)[draws], **given)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum()


# -- unbiased: expectation over all tuples ------------------------------------


@pytest.mark.parametrize("baseline", ["loo", "none"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_reinforce_is_the_gradient_of_the_mean_reward(baseline, n):
    draws, value, weights = on_all(losses.get("reinforce")(baseline=baseline), n)
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, gradient(lambda p: -(p @ REWARDS), THETA), atol=1e-12)
    np.testing.assert_allclose(expected(P, draws, value), -(P @ REWARDS))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_dr_grpo_on_policy_is_that_gradient_less_one_nth(n):
    draws, value, weights = on_all(losses.get("dr_grpo")(), n)
    wanted = (n - 1) / n * gradient(lambda p: -(p @ REWARDS), THETA)
    np.testing.assert_allclose(expected_gradient(THETA, draws, weights), wanted, atol=1e-12)
    np.testing.assert_allclose(value, 0.0, atol=1e-15)


@pytest.mark.parametrize(("baseline", "less"), [("none", 0), ("mean", 1)])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_max_rl_is_the_gradient_of_log_p_up_to_its_order(baseline, less, n):
    def objective(p):
        fail = p @ (1 - RIGHT)
        return sum(fail**j / j for j in range(1, n - less + 1))

    loss = losses.get("max_rl")(baseline=baseline)
    draws, value, weights = on_all(loss, n, RIGHT)
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, gradient(objective, THETA), atol=1e-12)
    np.testing.assert_allclose(expected(P, draws, value), objective(P))


@pytest.mark.parametrize("scores", [None, SCORES], ids=["by_reward", "by_score"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_raft_is_the_cross_entropy_of_best_of_n(scores, n):
    given = {"logp": LOGP} if scores is None else {"logp": LOGP, "scores": scores}
    draws, value, weights = on_all(losses.get("raft")(), n, **given)
    target = bon_law(P, REWARDS if scores is None else scores, n)
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, gradient(lambda p: -(target @ np.log(p)), THETA), atol=1e-12)
    np.testing.assert_allclose(expected(P, draws, value), -(target @ LOGP))


def test_sft_is_the_cross_entropy_of_the_experts():
    draws = tuples(4, 3)
    expert = np.array([True, False, True])
    chances = np.where(expert, REF[draws], P[draws]).prod(1)
    expert = np.tile(expert, (len(draws), 1))
    value, weights = losses.get("sft")()(REWARDS[draws], logp=LOGP[draws], expert=expert)
    per_outcome = np.zeros(4)
    np.add.at(per_outcome, draws, chances[:, None] * weights)
    wanted = gradient(lambda p: -(REF @ np.log(p)), THETA)
    np.testing.assert_allclose(score_gradient(P, per_outcome), wanted, atol=1e-12)
    np.testing.assert_allclose(chances @ value, -(REF @ LOGP))


@pytest.mark.parametrize("scores", [None, SCORES], ids=["by_reward", "by_score"])
@pytest.mark.parametrize("k", [2, 9])
def test_vbon_with_scores_of_the_reference_is_the_gradient_of_its_bound(k, scores):
    ranked = REWARDS if scores is None else scores
    of_reference = np.array([-1.0, 0.5, 0.5, 2.0, 2.5])
    share = np.array([(1 + (of_reference < score).sum()) / 6 for score in ranked])

    def objective(p):
        return -(p @ np.log(share)) + kl(p, REF) / (k - 1)

    loss = losses.get("vbon")(k=k)
    draws = tuples(4, 3)
    given = {} if scores is None else {"scores": scores[draws]}
    value, weights = loss(
        REWARDS[draws],
        logp=LOGP[draws],
        ref_logp=np.log(REF)[draws],
        ref_scores=np.tile(of_reference, (len(draws), 1)),
        **given,
    )
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, gradient(objective, THETA), atol=1e-12)
    np.testing.assert_allclose(expected(P, draws, value), objective(P))


def bond_objective(p, anchor, ranked, beta, gamma):
    """By loops over pairs of the anchor."""
    best, reward = np.zeros(4), np.zeros(4)
    for i, j in itertools.product(range(4), repeat=2):
        chance = anchor[i] * anchor[j]
        for side, other in ((i, j), (j, i)):
            win = 0.5 + 0.5 * np.sign(ranked[side] - ranked[other])
            best[side] += chance * win
        reward -= chance * math.log(16) * (ranked < min(ranked[i], ranked[j]))
    backward = -(p @ reward) + kl(p, anchor)
    return -(1 - beta) * (best @ np.log(p)) + beta * backward + gamma * kl(p, anchor)


@pytest.mark.parametrize("ours", [1, 2, 3])
@pytest.mark.parametrize("of_anchor", [2, 3])
@pytest.mark.parametrize(("beta", "gamma"), [(0.5, 0.0), (0.3, 0.7), (1.0, 0.0), (0.0, 0.0)])
def test_bond_is_the_gradient_of_the_jeffreys_divergence(ours, of_anchor, beta, gamma):
    draws = tuples(4, ours + of_anchor)
    chances = np.hstack([P[draws[:, :ours]], REF[draws[:, ours:]]]).prod(1)
    expert = np.tile(np.arange(ours + of_anchor) >= ours, (len(draws), 1))
    value, weights = losses.get("bond")(beta=beta, gamma=gamma)(
        REWARDS[draws],
        SCORES[draws],
        LOGP[draws],
        np.log(REF)[draws],
        expert=expert,
    )
    per_outcome = np.zeros(4)
    np.add.at(per_outcome, draws, chances[:, None] * weights)
    found = score_gradient(P, per_outcome)

    def objective(p):
        return bond_objective(p, REF, SCORES, beta, gamma)

    np.testing.assert_allclose(found, gradient(objective, THETA), atol=1e-12)
    np.testing.assert_allclose(chances @ value, objective(P))


def test_bond_takes_the_ranks_from_ref_scores():
    rewards, given = some_inputs("bond")
    of_anchor = np.where(given["expert"], given["scores"], np.nan)
    of_anchor = of_anchor[~np.isnan(of_anchor)].reshape(-1, 3)
    loss = losses.get("bond")()
    for found, wanted in zip(
        loss(rewards, **given, ref_scores=of_anchor), loss(rewards, **given), strict=True
    ):
        np.testing.assert_allclose(found, wanted)
    backward = losses.get("bond")(beta=1.0)(rewards, **given, ref_scores=of_anchor)[1]
    assert (backward[given["expert"]] == 0).all()


@pytest.mark.parametrize("name", sorted(WITH_KL))
def test_kl_option_is_the_gradient_of_the_divergence(name):
    given = {"logp": LOGP, "ref_logp": np.log(REF)}
    own = {"lengths": np.array([2, 1, 5, 3])} if name == "grpo" else {}
    if "logp" in ALL[name]:
        own["logp"] = LOGP
    without, with_kl = (losses.get(name)(kl=strength) for strength in (0.0, 0.25))
    draws, value, weights = on_all(without, 3, RIGHT, **own)
    _, value_kl, weights_kl = on_all(with_kl, 3, RIGHT, **own | given)
    found = expected_gradient(THETA, draws, weights_kl - weights)
    wanted = gradient(lambda p: 0.25 * kl(p, REF), THETA)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    np.testing.assert_allclose(expected(P, draws, value_kl - value), 0.25 * kl(P, REF))


def test_losses_with_a_kl_option_are_those_tested():
    have = {name for name in ALL if "kl" in {f.name for f in fields(losses.get(name)) if f.init}}
    assert have == WITH_KL


# -- biased: how much, and that it shrinks ------------------------------------


def test_grpo_tends_to_the_gradient_of_the_arcsine():
    right, p = np.array([0.0, 1.0]), 0.3
    theta = np.log([1 - p, p])
    wanted = gradient(lambda p: -2 * np.arcsin(np.sqrt(p @ right)), theta)
    shares = []
    for n in (4, 8, 16):
        draws, _, weights = on_all(losses.get("grpo")(), n, right, 2, lengths=np.ones(2))
        shares.append(expected_gradient(theta, draws, weights) @ wanted / (wanted @ wanted))
    np.testing.assert_allclose(shares, [0.6487, 0.8413, 0.9285], atol=1e-4)


def test_grpo_without_spread_and_with_equal_lengths_is_dr_grpo():
    rewards, given = some_inputs("dr_grpo")
    ones = np.ones(rewards.shape)
    for a, b in zip(
        losses.get("grpo")(std=False)(rewards, **given, lengths=ones),
        losses.get("dr_grpo")()(rewards, **given),
        strict=True,
    ):
        np.testing.assert_allclose(a, b)


def test_vbon_estimate_of_log_f_tends_to_log_f():
    lower = 0.3  # chance under the reference that a sample scores lower
    errors = []
    for m in (4, 16, 64, 256):
        counts = np.arange(m + 1)
        chance = np.array([math.comb(m, c) * lower**c * (1 - lower) ** (m - c) for c in counts])
        ref_scores = np.where(np.arange(m) < counts[:, None], 0.0, 1.0)
        ones = np.ones((m + 1, 2))
        value, _ = losses.get("vbon")()(ones, logp=ones, ref_logp=ones, ref_scores=ref_scores)
        errors.append(chance @ -value - math.log(lower))
    np.testing.assert_allclose(errors, [0.2884, 0.0723, 0.0182, 0.0046], atol=1e-4)


def test_vbon_without_reference_scores_is_off_by_less_for_more_samples():
    ranked = np.array([0.0, 1.0, 2.0])
    theta = np.array([0.2, 0.5, -0.3])
    p, below = softmax(theta), np.cumsum(softmax(theta)) - softmax(theta)
    errors = []
    for n in (2, 4, 8):
        counts = np.arange(n)
        chance = [
            [math.comb(n - 1, c) * f**c * (1 - f) ** (n - 1 - c) for c in counts] for f in below
        ]
        log_f = np.array(chance) @ np.log((1 + counts) / n)
        wanted = score_gradient(p, -p * log_f)
        logp = np.log(p)
        draws, value, weights = on_all(losses.get("vbon")(), n, ranked, 3, logp=logp, ref_logp=logp)
        found = expected_gradient(theta, draws, weights)
        errors.append(np.abs(found - wanted).max() / np.abs(wanted).max())
        np.testing.assert_allclose(expected(p, draws, value), -(p @ log_f))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_vbon_without_reference_scores_and_ties_is_off_by_a_factor():
    n = 7
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(n), (20, 1)), axis=1)
    same = np.zeros(scores.shape)
    _, weights = losses.get("vbon")()(scores, logp=same, ref_logp=same)
    unbiased = -(np.log((1 + scores) / n) - np.log(np.arange(1, n + 1) / n).mean()) / n
    np.testing.assert_allclose(weights, n / (n - 1) * unbiased)


def test_bond_as_its_own_anchor_is_off_by_less_for_more_samples():
    theta = np.array([0.2, 0.5, -0.3, 0.0])
    p, logp = softmax(theta), np.log(softmax(theta))
    wanted = gradient(lambda q: bond_objective(q, p, SCORES, 0.5, 0.0), theta)
    errors = []
    for n in (3, 4, 6):
        given = {"scores": SCORES, "logp": logp, "ref_logp": logp}
        draws, value, weights = on_all(losses.get("bond")(), n, **given)
        found = expected_gradient(theta, draws, weights)
        errors.append(np.abs(found - wanted).max() / np.abs(wanted).max())
        np.testing.assert_allclose(
            expected(p, draws, value), bond_objective(p, p, SCORES, 0.5, 0.0)
        )
    np.testing.assert_allclose(np.array(errors) * (np.array([3, 4, 6]) - 1), 0.703, atol=1e-3)
    forward = losses.get("bond")(beta=0.0)
    draws, _, weights = on_all(forward, 4, scores=SCORES, logp=logp, ref_logp=logp)
    wanted = gradient(lambda q: bond_objective(q, p, SCORES, 0.0, 0.0), theta)
    np.testing.assert_allclose(expected_gradient(theta, draws, weights), wanted, atol=1e-12)


# -- clipped, preferred: against the formula in loops -------------------------


def slopes(value_of, logp, step=1e-6):
    """[n]: central differences of a function of the n log-probabilities of a prompt."""
    moves = np.eye(len(logp)) * step
    return np.array([value_of(logp + d) - value_of(logp - d) for d in moves]) / (2 * step)


def grpo_surrogate(rewards, logp, old, lengths, low, high, std):
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards) if std else 1.0
    total = 0.0
    for i, reward in enumerate(rewards):
        advantage = (reward - mean) / spread if spread > 0 else 0.0
        ratio = math.exp((logp[i] - old[i]) / lengths[i])
        kept = min(max(ratio, 1 - low), 1 + high)
        total += min(ratio * advantage, kept * advantage)
    return -total / len(rewards)


@pytest.mark.parametrize("std", [True, False], ids=["std", "no_std"])
@pytest.mark.parametrize("clip_high", [None, 0.1])
def test_grpo_is_the_clipped_surrogate(std, clip_high):
    rewards, given = some_inputs("grpo")
    rewards = rewards + given["old_logp"] / 10
    value, weights = losses.get("grpo")(clip=0.05, clip_high=clip_high, std=std)(rewards, **given)
    high = 0.05 if clip_high is None else clip_high
    for row in range(len(rewards)):
        old, lengths = given["old_logp"][row], given["lengths"][row]

        def surrogate(logp, row=row, old=old, lengths=lengths):
            return grpo_surrogate(rewards[row].tolist(), logp, old, lengths, 0.05, high, std)

        logp = given["logp"][row]
        np.testing.assert_allclose(value[row], surrogate(logp), atol=1e-12)
        np.testing.assert_allclose(weights[row], slopes(surrogate, logp), atol=1e-8)
    assert 0.2 < (weights == 0).mean() < 0.8  # both sides of the clip were seen


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_without_old_logp_every_ratio_is_one(name):
    rewards, given = some_inputs(name)
    wanted = losses.get(name)()(rewards, **given | {"old_logp": given["logp"]})
    found = losses.get(name)()(rewards, **{key: x for key, x in given.items() if "logp" not in key})
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("clip_high", [None, 0.6])
def test_dr_grpo_is_the_clipped_surrogate(clip_high):
    rewards, given = some_inputs("dr_grpo")
    value, weights = losses.get("dr_grpo")(clip=0.2, clip_high=clip_high)(rewards, **given)
    high = 0.2 if clip_high is None else clip_high
    one = np.ones(rewards.shape[1])
    for row in range(len(rewards)):
        old = given["old_logp"][row]

        def surrogate(logp, row=row, old=old):
            return grpo_surrogate(rewards[row].tolist(), logp, old, one, 0.2, high, False)

        logp = given["logp"][row]
        np.testing.assert_allclose(value[row], surrogate(logp), atol=1e-12)
        np.testing.assert_allclose(weights[row], slopes(surrogate, logp), atol=1e-8)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_clip_stops_a_sample_that_has_moved_its_way_far_enough(name):
    rewards = [[1.0, 0.0, 1.0, 0.0]]
    moved = [[0.3, -0.3, -0.3, 0.3]]  # the first two as far as the clip lets them
    lengths = {"lengths": [[1, 1, 1, 1]]} if name == "grpo" else {}
    logp = np.full((1, 4), -5.0)
    _, weights = losses.get(name)()(rewards, logp=logp + moved, old_logp=logp, **lengths)
    assert (weights[0, :2] == 0).all()
    assert weights[0, 2] < 0 < weights[0, 3]


def bonbon_naive(scores, logp, ref_logp, alpha):
    """Mean over all choices of a best and a worst."""
    n = len(scores)
    margin = (n - 1) * sum(1 / i for i in range(1, n))
    if min(scores) == max(scores):
        return 0.0
    best = [i for i in range(n) if scores[i] == max(scores)]
    worst = [i for i in range(n) if scores[i] == min(scores)]
    total = 0.0
    for i, j in itertools.product(best, worst):
        h = (logp[i] - logp[j]) - (ref_logp[i] - ref_logp[j])
        total += alpha * -logp[i] + (1 - alpha) * (h - margin) ** 2
    return total / (len(best) * len(worst))


@pytest.mark.parametrize("alpha", [0.0, 0.005, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 5])
def test_bonbon_is_its_formula_and_its_gradient(alpha, n):
    rewards, given = some_inputs("bonbon", n=n)
    value, weights = losses.get("bonbon")(alpha=alpha)(rewards, **given)
    for row in range(len(rewards)):
        scores, ref = given["scores"][row], given["ref_logp"][row]

        def formula(logp, scores=scores, ref=ref):
            return bonbon_naive(scores, logp, ref, alpha)

        np.testing.assert_allclose(value[row], formula(given["logp"][row]), rtol=1e-12)
        wanted = slopes(formula, given["logp"][row], 1e-4)
        np.testing.assert_allclose(weights[row], wanted, atol=1e-6)


def test_bonbon_margin_is_what_best_of_n_reaches():
    assert bonbon_beta(8) == pytest.approx(0.0275482094, rel=1e-8)
    n, levels = 8, 200_000
    up_to = np.arange(1, levels + 1) / levels
    law = np.diff(up_to**n, prepend=0.0)  # of the best of n, over equally likely levels
    gain = np.log(law * levels)
    of_best, of_worst = law @ gain, law[::-1] @ gain
    assert of_best - of_worst == pytest.approx(0.5 / bonbon_beta(n), rel=1e-3)


# -- published surrogates by torch --------------------------------------------


def test_grpo_on_policy_is_the_gradient_of_the_surrogate_per_token():
    torch = pytest.importorskip("torch")
    rewards, given = some_inputs("grpo", rows=5)
    given = {"lengths": given["lengths"]}
    _, weights = losses.get("grpo")()(rewards, **given)
    _, dr_weights = losses.get("dr_grpo")()(rewards)
    for row in range(5):
        tokens = [torch.randn(int(t)).double() for t in given["lengths"][row]]
        for divide, found in ((True, weights[row]), (False, dr_weights[row])):
            leaves = [t.clone().requires_grad_() for t in tokens]
            reward = torch.tensor(rewards[row])
            advantage = reward - reward.mean()
            if divide and reward.std() > 0:
                advantage = advantage / reward.std()
            terms = []
            for leaf, a in zip(leaves, advantage, strict=True):
                ratio = (leaf - leaf.detach()).exp()
                term = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
                terms.append(term.mean() if divide else term.sum())
            (-torch.stack(terms).mean()).backward()
            for leaf, weight in zip(leaves, found, strict=True):
                np.testing.assert_allclose(leaf.grad.numpy(), weight, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_clipped_ratio_of_samples_has_the_gradient_of_torch(name):
    torch = pytest.importorskip("torch")
    rewards, given = some_inputs(name)
    value, weights = losses.get(name)()(rewards, **given)
    logp = torch.tensor(given["logp"], requires_grad=True)
    reward = torch.tensor(rewards)
    advantage = reward - reward.mean(1, keepdim=True)
    if name == "grpo":
        spread = reward.std(1, keepdim=True)
        advantage = torch.where(spread > 0, advantage / spread, 0.0)
    per_token = torch.tensor(given.get("lengths", np.ones(rewards.shape)))
    ratio = ((logp - torch.tensor(given["old_logp"])) / per_token).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean(1)
    loss.sum().backward()
    np.testing.assert_allclose(value, loss.detach().numpy(), atol=1e-12)
    moving = np.abs(advantage.numpy()) > 0
    np.testing.assert_allclose(weights[moving], logp.grad.numpy()[moving], atol=1e-12)
    assert (weights[~moving] == 0).all()


def test_bonbon_has_the_gradient_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    scores, ref = rng.random((30, 8)), -rng.gamma(4.0, size=(30, 8))
    logp = torch.tensor(-rng.gamma(4.0, size=(30, 8)), requires_grad=True)
    best, worst = scores.argmax(1), scores.argmin(1)
    rows = np.arange(30)
    h = (logp[rows, best] - logp[rows, worst]) - torch.tensor(ref[rows, best] - ref[rows, worst])
    loss = -0.1 * logp[rows, best] + 0.9 * (h - 1 / (2 * bonbon_beta(8))) ** 2
    loss.sum().backward()
    value, weights = losses.get("bonbon")(alpha=0.1)(
        scores, logp=logp.detach().numpy(), ref_logp=ref
    )
    np.testing.assert_allclose(value, loss.detach().numpy())
    np.testing.assert_allclose(weights, logp.grad.numpy(), atol=1e-12)


# -- what holds for all -------------------------------------------------------


@each_loss
def test_a_ragged_row_is_the_shorter_row(name):
    rewards, given = some_inputs(name)
    loss = losses.get(name)()
    value, weights = loss(rewards, **given)
    pad = {"expert": False, "lengths": 0}
    junk = {
        key: x if key == "ref_scores" else np.insert(x, [0, 3, 6], pad.get(key, 99), axis=1)
        for key, x in given.items()
    }
    wide = np.insert(rewards, [0, 3, 6], np.nan, axis=1)
    mask = ~np.isnan(wide)
    ragged_value, ragged_weights = loss(wide, **junk, mask=mask)
    np.testing.assert_array_equal(ragged_value, value)
    np.testing.assert_array_equal(ragged_weights[mask].reshape(weights.shape), weights)
    assert (ragged_weights[~mask] == 0).all()


@each_loss
def test_order_of_samples_and_prompts_does_not_matter(name):
    rewards, given = some_inputs(name)
    loss = losses.get(name)()
    value, weights = loss(rewards, **given)
    rng = np.random.default_rng(5)
    columns, rows = rng.permutation(6), rng.permutation(40)
    moved = {
        key: x[rows] if key == "ref_scores" else x[rows][:, columns] for key, x in given.items()
    }
    moved_value, moved_weights = loss(rewards[rows][:, columns], **moved)
    np.testing.assert_allclose(moved_value, value[rows], atol=1e-13)
    np.testing.assert_allclose(moved_weights, weights[rows][:, columns], atol=1e-13)


@each_loss
def test_no_prompts_give_no_values(name):
    rewards, given = some_inputs(name, rows=0)
    value, weights = losses.get(name)()(rewards, **given)
    assert value.shape == (0,)
    assert weights.shape == (0, 6)


@pytest.mark.parametrize("name", ["reinforce", "grpo", "dr_grpo", "max_rl", "bonbon", "vbon"])
@pytest.mark.parametrize("equal", [0.0, 1.0, 0.1])
def test_equal_rewards_give_zero_weights_and_no_nan(name, equal):
    rewards = np.full((3, 7), 1.0 if name == "max_rl" and equal == 0.1 else equal)
    same = np.full((3, 7), -2.3)
    given = {"lengths": np.ones((3, 7))} if name == "grpo" else {}
    if name in ("bonbon", "vbon"):
        given = {"logp": same, "ref_logp": same}
    value, weights = losses.get(name)()(rewards, **given)
    assert (weights == 0).all()
    assert np.isfinite(value).all()


@pytest.mark.parametrize("name", ["raft", "vbon", "bond", "bonbon"])
def test_only_the_ranks_of_the_scores_count(name):
    rewards, given = some_inputs(name)
    loss = losses.get(name)()
    other = given | {"scores": np.exp(given["scores"])}
    if "ref_scores" in given:
        other["ref_scores"] = np.exp(given["ref_scores"])
    for a, b in zip(loss(rewards, **given), loss(-rewards, **other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["raft", "vbon", "bond", "bonbon"])
def test_rewards_are_the_scores_that_are_not_given(name):
    _, given = some_inputs(name)
    scores = given.pop("scores")
    loss = losses.get(name)()
    for a, b in zip(loss(scores, **given), loss(-scores, scores, **given), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["sft", "raft"])
def test_weights_do_not_need_logp_but_the_value_does(name):
    rewards, given = some_inputs(name)
    _, wanted = losses.get(name)()(rewards, **given)
    del given["logp"]
    value, weights = losses.get(name)()(rewards, **given)
    assert np.isnan(value).all()
    np.testing.assert_array_equal(weights, wanted)


def test_sft_without_experts_imitates_all_and_with_none_of_them_nothing():
    logp = [[-1.0, -3.0], [-2.0, -2.0]]
    value, weights = losses.get("sft")()(np.zeros((2, 2)), logp=logp)
    assert value.tolist() == [2.0, 2.0]
    assert (weights == -0.5).all()
    none = np.array([[True, False], [False, False]])
    value, weights = losses.get("sft")()(np.zeros((2, 2)), logp=logp, expert=none)
    assert value.tolist() == [1.0, 0.0]
    assert weights.tolist() == [[-1.0, 0.0], [0.0, 0.0]]


def test_raft_value_is_the_best_of_the_log_probabilities():
    draws = tuples(4, 3)
    value, _ = losses.get("raft")()(REWARDS[draws], SCORES[draws], LOGP[draws])
    np.testing.assert_allclose(value, -best_of(draws, SCORES, LOGP))


def test_vbon_strength_of_kl_follows_k():
    assert replace(losses.get("vbon")(k=5), k=3).kl == 0.5


# -- errors -------------------------------------------------------------------

TWO = [[0.0, 1.0]]
THREE = [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("reinforce", {"baseline": "mean"}, ValueError, 'one of "loo", "none", got \'mean\''),
        ("max_rl", {"baseline": "loo"}, ValueError, 'one of "mean", "none", got \'loo\''),
        ("grpo", {"clip": -0.1}, ValueError, "clip must be finite and >= 0, got -0.1"),
        ("grpo", {"clip_high": math.nan}, ValueError, "clip_high must be finite and >= 0"),
        ("dr_grpo", {"clip": "0.2"}, TypeError, "clip must be a number, got str"),
        ("dr_grpo", {"clip_high": -1}, ValueError, "clip_high must be finite and >= 0"),
        ("raft", {"kl": -1.0}, ValueError, "kl must be finite and >= 0, got -1.0"),
        ("vbon", {"k": 1}, ValueError, "k must be >= 2, got 1"),
        ("vbon", {"k": 2.0}, TypeError, "k must be an int, got float"),
        ("bond", {"beta": 1.5}, ValueError, r"beta must be in \[0, 1\], got 1.5"),
        ("bond", {"gamma": -1.0}, ValueError, "gamma must be finite and >= 0"),
        ("bonbon", {"alpha": 2}, ValueError, r"alpha must be in \[0, 1\], got 2"),
    ],
)
def test_options_out_of_range_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        losses.get(name)(**options)


@pytest.mark.parametrize(
    ("expert", "mask", "found"),
    [
        ([True, True, False, False], [True, False, True, True], "2 and 1"),
        ([False, True, True, True], [False, True, True, True], "0 and 3"),
    ],
)
def test_bond_counts_only_samples_that_are_there(expert, mask, found):
    same = np.zeros((1, 4))
    with pytest.raises(ValueError, match=f"but row 0 has {found}"):
        losses.get("bond")()(same, logp=same, ref_logp=same, expert=[expert], mask=[mask])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: losses.get("reinforce")()([[1.0]]),
            ValueError,
            "at least 2 samples .* row 0 has 1",
        ),
        (lambda: losses.get("max_rl")()([[1.0]]), ValueError, "at least 2 samples .* row 0 has 1"),
        (
            lambda: losses.get("max_rl")()([[0.0, 1.0], [0.0, 0.5]]),
            ValueError,
            "rewards must be 0 or 1, but row 1, column 1 is 0.5",
        ),
        (
            lambda: losses.get("bonbon")()([[1.0]], logp=[[1.0]], ref_logp=[[1.0]]),
            ValueError,
            "at least 2 samples .* row 0 has 1",
        ),
        (lambda: losses.get("grpo")()(TWO), TypeError, "loss grpo: lengths is missing"),
        (
            lambda: losses.get("dr_grpo")()(TWO, old_logp=TWO),
            TypeError,
            "loss dr_grpo: logp is missing; old_logp needs it",
        ),
        (lambda: losses.get("vbon")()(TWO, logp=TWO), TypeError, "loss vbon: ref_logp is missing"),
        (lambda: losses.get("bonbon")()(TWO, logp=TWO), TypeError, "bonbon: ref_logp is missing"),
        (
            lambda: losses.get("bond")()(TWO, logp=TWO, ref_logp=TWO),
            ValueError,
            "at least 3 samples .* row 0 has 2",
        ),
        (
            lambda: losses.get("bond")()(
                THREE, logp=THREE, ref_logp=THREE, expert=[[True, False, False]]
            ),
            ValueError,
            r"1 sample of the policy and 2 of the anchor .* but row 0 has 2 and 1",
        ),
        (
            lambda: losses.get("bond")()(
                [[0.0, 1.0, 1.0]] * 2,
                logp=[[0.0, 1.0, 1.0]] * 2,
                ref_logp=[[0.0, 1.0, 1.0]] * 2,
                expert=[[True, False, True], [True, True, True]],
            ),
            ValueError,
            "but row 1 has 0 and 3",
        ),
        (
            lambda: losses.get("bond")()(THREE, logp=THREE, ref_logp=THREE, ref_scores=[[1.0]]),
            ValueError,
            "needs ref_scores of at least 2 samples, got 1",
        ),
    ],
)
def test_losses_say_what_is_missing(call, error, message):
    with pytest.raises(error, match=message):
        call()
