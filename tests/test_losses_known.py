"""bon_rl_v, bon_rl_s and bon_sft where win rates and the law's normaliser are known: unbiased.

Expected weights over all tuples of samples of a small policy against the gradient of each
objective (enumeration.py), and single rows against loops over triples.
"""

import itertools
import math

import numpy as np
import pytest
from enumeration import expected, expected_gradient, gradient, softmax, tuples
from loss_bias import sft_objective, variational_objective

from bonaware import _losses, losses
from bonaware.estimators import bon_lambda

THETA = np.array([0.6, -0.2, 0.1, -0.7])
P = softmax(THETA)
REWARDS = np.array([0.0, 1.0, 0.2, 0.7])
SELECTORS = {
    "untied": np.array([0.0, 3.0, 1.0, 2.0]),
    "tied": np.array([0.0, 1.0, 1.0, 2.0]),
    "tied_at_the_top": np.array([-1.0, 3.0, 0.0, 3.0]),
    "blind": np.zeros(4),
    "wrong": np.array([3.0, 0.0, 2.0, 1.0]),
}
each_selector = pytest.mark.parametrize("scores", SELECTORS.values(), ids=SELECTORS)
CLOSE = {"rtol": 0, "atol": 1e-11}


def win_rates(scores):
    return (scores[None, :] <= scores[:, None]) @ P


def log_normaliser(scores, k):
    return math.log(P @ np.exp(float(bon_lambda(k)) * win_rates(scores)))


def known_of(scores, draws, k):
    """The two inputs for tuples of outcomes, [T, n] and [T]."""
    log_z = np.full(len(draws), log_normaliser(scores, k))
    return {"win_rate": win_rates(scores)[draws], "log_normaliser": log_z}


def loosest(k):
    """log_normaliser of a policy whose scores never tie."""
    lam = float(bon_lambda(k))
    return lam + math.log(-math.expm1(-lam) / lam) if lam else 0.0


# -- expectations --------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 3), (2, 5), (5, 3), (5, 4), (16, 4)])
@each_selector
def test_bon_rl_v_is_unbiased(scores, k, n):
    draws = tuples(4, n)
    known = known_of(scores, draws, k)
    value, weights = losses.get("bon_rl_v")(k=k)(REWARDS[draws], scores[draws], **known)
    objective = variational_objective(scores, REWARDS, k)
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, -gradient(objective, THETA), **CLOSE)
    np.testing.assert_allclose(expected(P, draws, value), -objective(P), **CLOSE)


@pytest.mark.parametrize("rewards", [REWARDS, np.array([0.0, 1.0, 0.0, 1.0])], ids=["own", "tied"])
@pytest.mark.parametrize("k", [2, 7])
def test_bon_rl_s_is_unbiased(k, rewards):
    draws = tuples(4, 4)
    value, weights = losses.get("bon_rl_s")(k=k)(rewards[draws], **known_of(rewards, draws, k))
    objective = variational_objective(rewards, rewards, k)
    found = expected_gradient(THETA, draws, weights)
    np.testing.assert_allclose(found, -gradient(objective, THETA), **CLOSE)
    np.testing.assert_allclose(expected(P, draws, value), -objective(P), **CLOSE)


@pytest.mark.parametrize(("k", "m"), [(1, 3), (2, 3), (2, 5), (5, 4), (16, 4)])
@each_selector
def test_bon_sft_is_unbiased_and_its_value_exact(scores, k, m):
    experts = np.array([3, 1, 1])
    draws = tuples(4, m)
    both = np.concatenate([np.tile(experts, (len(draws), 1)), draws], axis=1)
    expert = np.broadcast_to(np.arange(m + 3) < 3, both.shape)
    given = {"scores": scores[both], "logp": np.log(P)[both], "expert": expert}
    value, weights = losses.get("bon_sft")(k=k)(REWARDS[both], **given, **known_of(scores, both, k))
    objective = sft_objective(scores, experts, k)
    found = expected_gradient(THETA, draws, weights[:, 3:])
    found += expected_gradient(THETA, both[:1, :3], weights[:1, :3]) / P[experts].prod()
    np.testing.assert_allclose(found, gradient(objective, THETA), **CLOSE)
    np.testing.assert_allclose(value, objective(P), **CLOSE)


@pytest.mark.parametrize("k", [2, 8, 64])
def test_the_normaliser_without_ties_is_the_least_there_is(k):
    lam, levels = float(bon_lambda(k)), 200_000
    untied = lam + np.log(np.exp(lam * (np.arange(1, levels + 1) / levels - 1)).mean())
    np.testing.assert_allclose(untied, loosest(k), atol=1e-3)
    assert untied > loosest(k)


# -- rows ----------------------------------------------------------------------


def brute_bon_rl(rewards, scores, k, win_rate, log_z):
    """By loops over pairs and triples of different samples."""
    n, lam = len(rewards), float(bon_lambda(k))
    t = np.exp(lam * win_rate - log_z)
    weights, value = np.zeros(n), 0.0
    for i, j in itertools.permutations(range(n), 2):
        weights[i] -= t[i] * t[j] * (rewards[i] - rewards[j]) / (n * (n - 1))
        value -= (t[i] * (rewards[i] - rewards[j]) + rewards[j]) / (n * (n - 1))
    for i, j, other in itertools.permutations(range(n), 3):
        tilt = lam * ((scores[i] >= scores[j]) - win_rate[i])
        pair = t[i] * t[other] * (rewards[i] - rewards[other])
        weights[j] -= tilt * pair / (n * (n - 1) * (n - 2))
    return value, weights


def some_rows(k, rows=20, n=7, levels=4, seed=0):
    rng = np.random.default_rng(seed)
    rewards, scores = rng.random((rows, n)), rng.integers(levels, size=(rows, n)) / 4.0
    lam = float(bon_lambda(k))
    known = {"win_rate": 1 - rng.random((rows, n)) / (1 + lam / 4)}
    known["log_normaliser"] = lam - rng.random(rows) * (lam - loosest(k))
    return rewards, scores, known


@pytest.mark.parametrize("k", [1, 2, 8, 1000])
@pytest.mark.parametrize("levels", [2, 4, 1000], ids="{}_levels".format)
def test_bon_rl_v_is_its_formula(k, levels):
    rewards, scores, known = some_rows(k, levels=levels)
    value, weights = losses.get("bon_rl_v")(k=k)(rewards, scores, **known)
    for r, (rate, log_z) in enumerate(zip(*known.values(), strict=True)):
        wanted = brute_bon_rl(rewards[r], scores[r], k, rate, log_z)
        np.testing.assert_allclose(value[r], wanted[0], rtol=1e-11)
        np.testing.assert_allclose(weights[r], wanted[1], rtol=1e-11, atol=1e-11)


def test_bon_sft_is_its_formula():
    k, m = 5, 6
    _, scores, known = some_rows(k, n=m + 1)
    logp, expert = -scores - 1, np.broadcast_to(np.arange(m + 1) == 0, scores.shape)
    value, weights = losses.get("bon_sft")(k=k)(scores, scores, logp, expert=expert, **known)
    lam, rate = float(bon_lambda(k)), known["win_rate"]
    t = np.exp(lam * rate - known["log_normaliser"][:, None])
    wanted = np.zeros(scores.shape)
    wanted[:, 0] = -1
    for j in range(1, m + 1):
        over = (scores >= scores[:, j : j + 1]) - rate
        pairs = sum(t[:, i] * over[:, i] for i in range(1, m + 1) if i != j)
        wanted[:, j] = (t[:, j] - 1) / m + lam * pairs / (m * (m - 1)) - lam * over[:, 0] / m
    np.testing.assert_allclose(weights, wanted, rtol=1e-11, atol=1e-12)
    loss = known["log_normaliser"] - logp[:, 0] - lam * rate[:, 0]
    np.testing.assert_allclose(value, loss, rtol=1e-12)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3e7])
def test_bon_rl_has_no_weights_where_all_rewards_are_equal(reward):
    _, scores, known = some_rows(4)
    value, weights = losses.get("bon_rl_v")(k=4)(np.full(scores.shape, reward), scores, **known)
    assert (weights == 0).all()
    np.testing.assert_allclose(value, -reward, rtol=1e-15)


@pytest.mark.parametrize("win_rate", [0.0, 0.5, 1.0])
def test_results_are_finite_where_masses_underflow(win_rate):
    rewards, scores, known = some_rows(10**6)
    known["win_rate"] = np.full(rewards.shape, win_rate)
    expert = np.broadcast_to(np.arange(7) == 0, rewards.shape)
    results = [
        losses.get("bon_rl_v")(k=10**6)(rewards, scores, **known),
        losses.get("bon_sft")(k=10**6)(rewards, scores, -scores, expert=expert, **known),
    ]
    assert all(np.isfinite(x).all() for result in results for x in result)


@pytest.mark.parametrize("name", ["bon_rl_v", "bon_sft"])
@pytest.mark.parametrize("n", [9, 1030])
def test_rows_do_not_depend_on_each_other_on_masks_or_on_order(name, n):
    loss = losses.get(name)(k=3)
    rewards, scores, known = some_rows(3, rows=11, n=n)
    rng = np.random.default_rng(1)
    given = {"scores": scores, "win_rate": known["win_rate"]}
    if name == "bon_sft":
        given["logp"] = -scores
        given["expert"] = np.broadcast_to(np.arange(n) < 2, scores.shape)
    log_z, keep = known["log_normaliser"], np.ones(rewards.shape, bool)
    keep[::2, 2 : n // 2] = False
    value, weights = loss(rewards, **given, log_normaliser=log_z, mask=keep)
    for r in range(len(rewards)):
        there = rng.permutation(np.flatnonzero(keep[r]))
        alone = loss(
            rewards[r, there][None],
            **{key: x[r, there][None] for key, x in given.items()},
            log_normaliser=log_z[r : r + 1],
        )
        np.testing.assert_allclose(value[r], alone[0][0], rtol=1e-13)
        np.testing.assert_allclose(weights[r, there], alone[1][0], rtol=1e-9, atol=1e-12)
    assert (weights[~keep] == 0).all()


# -- errors --------------------------------------------------------------------

ONE = [[0.0, 1.0, 1.0, 0.0]]
RATES = [[0.5, 1.0, 1.0, 0.5]]


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({}, {"log_normaliser": [2.0]}, TypeError, "log_normaliser goes with win_rate"),
        ({}, {"win_rate": RATES, "log_normaliser": [2.5]}, ValueError,
         r"log_normaliser must be from log\(\(e\*\*lam - 1\) / lam\) to lam, which for k=2 is "
         r"1.35\d* to 2.28\d*, but element 0 is 2.5"),
        ({}, {"win_rate": RATES, "log_normaliser": [1.3]}, ValueError, "but element 0 is 1.3"),
        ({}, {"win_rate": RATES, "log_normaliser": [np.nan]}, ValueError,
         "log_normaliser must be finite, but element 0 is nan"),
        ({}, {"win_rate": RATES, "log_normaliser": [[2.0]]}, ValueError,
         r"log_normaliser must have the shape \(1,\), got \(1, 1\)"),
        ({"variational": False}, {"log_normaliser": [2.0]}, TypeError,
         "does not use log_normaliser"),
        ({"draws": "bon"}, {"log_normaliser": [2.0]}, TypeError, "does not use log_normaliser"),
        ({"enumerated": True}, {"logp": np.log([[0.25] * 4]), "log_normaliser": [2.0]}, TypeError,
         "does not use log_normaliser"),
    ],
)  # fmt: skip
def test_a_normaliser_that_fits_nothing_gets_a_sentence(options, given, error, message):
    with pytest.raises(error, match=message):
        losses.get("bon_rl_s")(k=2, **options)(ONE, **given)


def test_bon_sft_refuses_a_normaliser_of_no_law():
    given = {"scores": ONE, "logp": ONE, "expert": [[True, False, False, False]]}
    with pytest.raises(ValueError, match=r"for k=2 is 1.35\d* to 2.28\d*, but element 0 is 0.0"):
        losses.get("bon_sft")(k=2)(ONE, **given, win_rate=RATES, log_normaliser=[0.0])


A = np.array(ONE)
V, W, Z = np.zeros(1), np.zeros((1, 4)), np.ones(1)


@pytest.mark.parametrize(
    ("chance", "win_rate", "log_z", "message"),
    [
        (None, None, Z, "out of its range at row 0, column 0"),
        (A / 2, A, Z, "out of its range at row 0, column 0"),
        (None, A, Z + 0.01, "out of its range at row 0, column 0"),
        (None, A, np.ones(2), "log_normaliser must have one element for each of 1 rows, got 2"),
    ],
)
def test_binding_refuses_what_the_core_could_not_use(chance, win_rate, log_z, message):
    with pytest.raises(ValueError, match=message):
        _losses.bon_rl(A, A, chance, win_rate, log_z, 2, False, 1.0, False, V, W, 0, 1)


def test_later_rows_of_a_call_use_their_own_normaliser():
    rewards, scores, known = some_rows(3, rows=3000, n=64)
    value, weights = losses.get("bon_rl_v")(k=3)(rewards, scores, **known)
    last = {name: x[-2:] for name, x in known.items()}
    alone = losses.get("bon_rl_v")(k=3)(rewards[-2:], scores[-2:], **last)
    np.testing.assert_array_equal(value[-2:], alone[0])
    np.testing.assert_array_equal(weights[-2:], alone[1])
