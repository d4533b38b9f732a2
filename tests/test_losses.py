"""The losses of best-of-k against enumeration, brute force and closed forms.

What is shown for every unbiased loss: its expected weights over all tuples of samples of a
small policy are the gradient of its objective. No formula of the package is used for the
objective; see enumeration.py.
"""

import itertools
import math
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from enumeration import (
    best_of,
    bon_law,
    bon_objective,
    expected,
    expected_gradient,
    gradient,
    multisets,
    score_gradient,
    softmax,
    tuples,
)
from interrupts import seconds_to_stop
from leaks import bytes_kept
from loss_bias import (
    SIZES,
    TABLES,
    rl_off,
    sft_objective,
    sft_off,
    variational_objective,
    winners_off,
)

from bonaware import _losses, losses
from bonaware.estimators import best_of_k, bon_lambda

THETA = np.array([0.6, -0.2, 0.1, -0.7])
P = softmax(THETA)
LOGP = np.log(P)
REWARDS = np.array([0.0, 1.0, 0.2, 0.7])
RIGHT = np.array([0.0, 1.0, 0.0, 1.0])
SELECTORS = {
    "tied": np.array([0.0, 1.0, 1.0, 2.0]),
    "tied_at_the_top": np.array([-1.0, 3.0, 0.0, 3.0]),
    "blind": np.zeros(4),
    "wrong": np.array([3.0, 0.0, 2.0, 1.0]),
    "perfect": REWARDS,
}
CLOSE = {"rtol": 0, "atol": 1e-11}


def each_selector(function):
    return pytest.mark.parametrize("scores", SELECTORS.values(), ids=SELECTORS)(function)


def on_all_tuples(loss, n, rewards=REWARDS, **by_outcome):
    """Expected value and expected gradient of a loss over all tuples of n samples."""
    draws = tuples(len(rewards), n)
    given = {name: np.asarray(x)[draws] for name, x in by_outcome.items()}
    value, weights = loss(rewards[draws], **given)
    return expected(P, draws, value), expected_gradient(THETA, draws, weights)


# -- bon -----------------------------------------------------------------------


K_N = [(1, 2), (1, 4), (2, 3), (2, 5), (3, 4), (4, 5)]
K_N_BASELINE = [(k, n, baseline) for k, n in K_N for baseline in ("subset", "loo", "none")]
K_IS_N = [(2, 2, "subset"), (5, 5, "subset"), (1, 1, "none"), (4, 4, "none")]


@pytest.mark.parametrize(("k", "n", "baseline"), K_N_BASELINE + K_IS_N)
@each_selector
def test_bon_is_the_gradient_of_best_of_k(scores, k, n, baseline):
    loss = losses.get("bon")(k=k, baseline=baseline)
    objective = bon_objective(scores, REWARDS, k)
    value, found = on_all_tuples(loss, n, scores=scores)
    np.testing.assert_allclose(found, -gradient(objective, THETA), **CLOSE)
    np.testing.assert_allclose(value, -objective(P), **CLOSE)


def brute_bon(rewards, scores, k):
    """-1/C(n,k) * sum over subsets with i of (R(best of S) - R(best of S without i))."""
    rewards = [Fraction(float(r)) for r in rewards]

    def best(subset):
        top = max(scores[i] for i in subset)
        winners = [rewards[i] for i in subset if scores[i] == top]
        return sum(winners) / len(winners)

    weights = [Fraction(0)] * len(rewards)
    for subset in itertools.combinations(range(len(rewards)), k):
        for i in subset:
            weights[i] -= best(subset) - best([j for j in subset if j != i])
    return [float(w / math.comb(len(rewards), k)) for w in weights]


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("levels", [2, 4, 1000], ids="{}_levels".format)
def test_bon_is_the_sum_over_all_subsets(levels, k):
    rng = np.random.default_rng(k)
    rewards, scores = rng.normal(size=(20, 7)), rng.integers(levels, size=(20, 7)) / 8.0
    weights = losses.get("bon")(k=k)(rewards, scores)[1]
    brute = [brute_bon(r, s, k) for r, s in zip(rewards, scores, strict=True)]
    np.testing.assert_allclose(weights, brute, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("n", "c", "k"), [(8, 3, 2), (64, 20, 16), (1000, 400, 64), (64, 40, 32)])
def test_bon_of_binary_rewards_is_its_closed_form_to_the_last_digits(n, c, k):
    rewards = (np.arange(n) < c).astype(float)[None]
    weights = losses.get("bon")(k=k)(rewards)[1][0]
    exact = -float(Fraction(math.comb(n - c, k - 1), math.comb(n, k)))
    np.testing.assert_allclose(weights[:c], exact, rtol=1e-13)
    assert (weights[c:] == 0).all()


@pytest.mark.parametrize("baseline", ["subset", "loo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3e7])
def test_bon_has_no_weights_where_all_rewards_are_equal(reward, baseline):
    scores = np.random.default_rng(0).integers(0, 4, size=(30, 9)) / 3.0
    value, weights = losses.get("bon")(k=3, baseline=baseline)(np.full((30, 9), reward), scores)
    assert (weights == 0).all()
    np.testing.assert_allclose(value, -reward, rtol=1e-15)


@pytest.mark.parametrize("n", [5, 40, 1100, 3000])
def test_bon_value_is_that_of_the_estimator_for_rows_of_any_length(n):
    rng = np.random.default_rng(n)
    rewards, scores = rng.normal(size=(11, n)), np.round(rng.normal(size=(11, n)), 1)
    value = losses.get("bon")(k=4)(rewards, scores)[0]
    np.testing.assert_allclose(-value, best_of_k(rewards, 4, scores), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [16, 1500])
@pytest.mark.parametrize("far", [0, 1e6, 1e30], ids="{}_farther".format)
def test_weights_of_scores_that_hardly_differ(n, far):
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(n), (9, 1)), axis=1)
    rewards = np.sin(ranks)
    for base in (1.0, -1.0):
        close = base + ranks * np.spacing(1.0)
        close[ranks == n - 1] += far
        for name in ("bon", "bon_rl_v"):
            loss = losses.get(name)(k=5)
            for a, b in zip(loss(rewards, close), loss(rewards, ranks), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_the_three_baselines_differ_by_what_has_no_expectation():
    draws = tuples(4, 4)
    found = [
        losses.get("bon")(k=2, baseline=baseline)(REWARDS[draws], SELECTORS["tied"][draws])[1]
        for baseline in ("subset", "loo", "none")
    ]
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert np.abs(found[1] - found[2]).max() > 0.01
    np.testing.assert_allclose(found[1].sum(1), 0, atol=1e-15)


# -- pkpo ----------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["loo_minus_one", "none"])
@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 4), (3, 5)])
def test_pkpo_is_the_gradient_of_the_largest_reward_of_k(k, n, baseline):
    objective = bon_objective(REWARDS, REWARDS, k)
    value, found = on_all_tuples(losses.get("pkpo")(k=k, baseline=baseline), n)
    np.testing.assert_allclose(found, -gradient(objective, THETA), **CLOSE)
    np.testing.assert_allclose(value, -objective(P), **CLOSE)


def test_pkpo_of_binary_rewards_is_the_transform_of_its_paper():
    n, c, k = 8, 3, 4
    weights = losses.get("pkpo")(k=k, baseline="none")([[1.0] * c + [0.0] * (n - c)])[1][0]
    at_least_one = 1 - math.comb(n - 1 - c, k - 1) / math.comb(n - 1, k - 1)
    np.testing.assert_allclose(weights[:c], -k / n)
    np.testing.assert_allclose(weights[c:], -k / n * at_least_one)


# -- bon_rlb -------------------------------------------------------------------

FAIL = P[RIGHT == 0].sum()
PASS_AT = {k: lambda p, k=k: 1 - p[RIGHT == 0].sum() ** k for k in (1, 2, 3, 4, 8)}


def rlb_on_all(n, name="bon_rlb", known=True, **options):
    draws = tuples(4, n)
    given = {"fail": np.full(len(draws), FAIL)} if known else {}
    value, weights = losses.get(name)(**options)(RIGHT[draws], **given)
    return value, expected_gradient(THETA, draws, weights)


@pytest.mark.parametrize("k", PASS_AT)
@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bon_rlb", {}),
        ("bon_rlb", {"bounded": True}),
        ("bon_rlb", {"clip": 1e9}),
        ("bon_rlb_p", {}),
    ],
    ids=["exact", "bounded", "pair", "positive"],
)
def test_bon_rlb_is_the_gradient_of_pass_at_k_for_a_given_fail(name, options, n, k):
    value, found = rlb_on_all(n, name, k=k, **options)
    np.testing.assert_allclose(found, -gradient(PASS_AT[k], THETA), **CLOSE)
    np.testing.assert_allclose(value, -PASS_AT[k](P))


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize("fail", [0.3, 0.9])
def test_bon_rlb_penalise_keeps_the_direction_and_inflates_hard_prompts(fail, k):
    theta = np.array([np.log(fail / (1 - fail)), 0.0])
    draws = tuples(2, 4)
    loss = losses.get("bon_rlb")(k=k, sign="penalise")
    weights = loss(np.array([0.0, 1.0])[draws], fail=np.full(len(draws), fail))[1]
    found = expected_gradient(theta, draws, weights)
    wanted = -gradient(lambda p: 1 - p[0] ** k, theta)
    np.testing.assert_allclose(found, wanted * (1 + fail) / (1 - fail), **CLOSE)
    if fail == 0.9:
        np.testing.assert_allclose(found / wanted, 19)


def test_pairs_of_bon_rlb_are_indicator_means_over_the_best_of_k():
    k, f = 4, FAIL
    law = bon_law(P, RIGHT, k)
    g_plus, g_minus = k * f ** (k - 1) / (1 - f**k), k * f / (1 - f)
    wanted = gradient(PASS_AT[k], THETA)
    for plus, minus, factor in [
        (g_plus, g_minus, 1),
        (g_plus, -g_minus, (1 + f) / (1 - f)),
        (k * f**k * (1 - f) / (1 - f**k), -k * (1 - f), 1),
        (k * f ** (k - 1) * (1 - f) / (1 - f**k), 0, 1),
    ]:
        found = score_gradient(P, law * np.where(RIGHT == 1, plus, minus))
        np.testing.assert_allclose(found, factor * wanted, **CLOSE)


@pytest.mark.parametrize("name", ["bon_rlb", "bon_rlb_p"])
def test_bon_rlb_from_the_others_is_unbiased_for_k_up_to_2(name):
    for k in (1, 2):
        _, found = rlb_on_all(4, name, known=False, k=k, estimate_from="loo")
        np.testing.assert_allclose(found, -gradient(PASS_AT[k], THETA), **CLOSE)


def test_bon_rlb_serves_fewer_samples_than_k_and_clips():
    rewards = [[0.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4]
    value, weights = losses.get("bon_rlb")(k=32)(rewards)
    np.testing.assert_allclose(value, [0.75**32 - 1, 0, -1])
    assert weights[0, 3] < 0 < weights[0, 0]
    assert (weights[1:] == 0).all()
    for options in ({"sign": "penalise"}, {"clip": 2.0}, {"bounded": True}):
        assert (losses.get("bon_rlb")(k=32, **options)(rewards)[1][1:] == 0).all()
    f, k, clip = 0.75, 4, 1.5
    clipped = losses.get("bon_rlb")(k=k, clip=clip)(rewards[:1])[1][0]
    a_plus = min(k * f ** (k - 1) / (1 - f**k), clip) * (1 - f**k) / (1 - f)
    a_minus = min(k * f / (1 - f), clip) * f ** (k - 1)
    np.testing.assert_allclose(clipped[3], -(a_plus - a_minus) / 4)
    np.testing.assert_allclose(clipped.sum(), 0, atol=1e-15)


@pytest.mark.parametrize("fail", [0.0, 1.0])
def test_bon_rlb_with_fail_at_its_ends_is_finite(fail):
    rewards = np.full((1, 3), 1 - fail)
    for options in ({}, {"sign": "penalise"}, {"clip": 3.0}, {"bounded": True}):
        value, weights = losses.get("bon_rlb")(k=3, **options)(rewards, fail=[fail])
        assert value == fail - 1
        assert (weights == 0).all()


# -- bon_rl --------------------------------------------------------------------


def brute_bon_rl(rewards, scores, k, variational, win_rate=None):
    """Loops over pairs, from the formulas of the docstring."""
    n, lam = len(rewards), float(bon_lambda(k))
    up_to = np.array([(scores <= s).sum() for s in scores])
    low = np.array([(scores < s).sum() for s in scores])
    if variational:
        win = (up_to - 1) / (n - 1) if win_rate is None else win_rate
        tilt, of_f, of_g = np.exp(lam * (win - 1)), np.full(n, lam), np.zeros(n)
    else:
        win, f, g = (up_to - 1) / (n - 1), up_to / n, low / n
        tilt = (f**k - g**k) / (f - g)
        of_f = k * f ** (k - 1) / (f**k - g**k) - 1 / (f - g)
        of_g = 1 / (f - g) - k * g ** (k - 1) / (f**k - g**k)
    tilts = [Fraction(float(x)) for x in tilt]  # one may have nearly all the mass
    share, truth = [x / sum(tilts) for x in tilts], [Fraction(float(r)) for r in rewards]
    mean = sum(v * r for v, r in zip(share, truth, strict=True))
    spread = 1 - sum(v * v for v in share)
    c = [float(v * (r - mean) / spread) for v, r in zip(share, truth, strict=True)]
    c, mean = np.array(c), float(mean)
    beat = low / (n - 1)
    return -mean, -c - pairs(c, of_f, of_g, win, beat, scores, win_rate, lambda i, j: i != j)


def pairs(c, of_f, of_g, win, beat, scores, win_rate, counts):
    n = len(c)
    out = np.zeros(n)
    for j in range(n):
        for i in range(n):
            if counts(i, j):
                others = sum(counts(i, other) for other in range(n))
                divisor = others if win_rate is not None else others - 1
                out[j] += c[i] * of_f[i] * ((scores[i] >= scores[j]) - win[i]) / divisor
                out[j] += c[i] * of_g[i] * ((scores[i] > scores[j]) - beat[i]) / divisor
    return out


def brute_winners(rewards, scores, k, variational):
    """draws="bon": winners of neighbours, pairs between groups."""
    n, lam, groups = len(rewards), float(bon_lambda(k)), len(rewards) // k
    group = np.arange(n) // k
    tops = [scores[group == g].max() for g in range(groups)]
    of = [np.flatnonzero((group == g) & (scores == tops[g])) for g in range(groups)]
    means = np.array([rewards[w].mean() for w in of])
    c, win, beat = np.zeros((3, n))
    for g, winners in enumerate(of):
        for i in winners:
            c[i] = (rewards[i] - np.delete(means, g).mean()) / len(winners) / groups
    for i in range(n):
        outside = scores[group != group[i]]
        win[i], beat[i] = (outside <= scores[i]).mean(), (outside < scores[i]).mean()
    f = np.array([(scores <= s).mean() for s in scores])
    g = np.array([(scores < s).mean() for s in scores])
    of_f = k * f ** (k - 1) / (f**k - g**k) - 1 / (f - g)
    of_g = 1 / (f - g) - k * g ** (k - 1) / (f**k - g**k)
    if variational:
        of_f, of_g = np.full(n, lam), np.zeros(n)
    spread = pairs(c, of_f, of_g, win, beat, scores, None, lambda i, j: group[i] != group[j])
    return -means.mean(), -c - spread


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
@pytest.mark.parametrize("levels", [2, 4, 1000], ids="{}_levels".format)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_bon_rl_v_is_its_formula(k, levels, variational):
    rng = np.random.default_rng(k)
    rewards, scores = rng.random((20, 7)), rng.integers(levels, size=(20, 7)) / 4.0
    value, weights = losses.get("bon_rl_v")(k=k, variational=variational)(rewards, scores)
    for r in range(20):
        wanted = brute_bon_rl(rewards[r], scores[r], k, variational)
        np.testing.assert_allclose(value[r], wanted[0], **CLOSE)
        np.testing.assert_allclose(weights[r], wanted[1], **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 8, 1000])
def test_bon_rl_v_takes_a_known_win_rate(k):
    rng = np.random.default_rng(k)
    rewards, scores, known = rng.random((3, 20, 7))
    value, weights = losses.get("bon_rl_v")(k=k)(rewards, scores, win_rate=known)
    for r in range(20):
        wanted = brute_bon_rl(rewards[r], scores[r], k, True, known[r])
        np.testing.assert_allclose(value[r], wanted[0], **CLOSE)
        np.testing.assert_allclose(weights[r], wanted[1], rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 4), (2, 7), (3, 8), (4, 8)])
def test_bon_rl_v_of_winners_is_its_formula(k, n, variational):
    rng = np.random.default_rng(n)
    loss = losses.get("bon_rl_v")(k=k, draws="bon", variational=variational)
    rewards, scores = rng.random((30, n)), rng.integers(3, size=(30, n)) / 4.0
    value, weights = loss(rewards, scores)
    for r in range(30):
        wanted = brute_winners(rewards[r], scores[r], k, variational)
        np.testing.assert_allclose(value[r], wanted[0], **CLOSE)
        np.testing.assert_allclose(weights[r], wanted[1], **CLOSE)


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@each_selector
def test_bon_rl_v_of_all_outcomes_is_the_gradient_of_its_objective(scores, k, variational):
    loss = losses.get("bon_rl_v")(k=k, variational=variational, enumerated=True)
    make = variational_objective if variational else bon_objective
    objective = make(scores, REWARDS, k)
    known = [{}]
    if variational:
        known.append({"win_rate": (scores[None, :] <= scores[:, None]) @ P[:, None]})
    for given in known:
        given = {name: x.reshape(1, 4) for name, x in given.items()}
        value, weights = loss(REWARDS[None], scores[None], logp=LOGP[None], **given)
        np.testing.assert_allclose(value, -objective(P), **CLOSE)
        found = score_gradient(P, weights[0])
        np.testing.assert_allclose(found, -gradient(objective, THETA), **CLOSE)


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
def test_bon_rl_s_selects_by_the_reward(variational):
    rewards = np.random.default_rng(0).integers(3, size=(50, 9)) / 2.0
    by_reward = losses.get("bon_rl_s")(k=3, variational=variational)(rewards)
    by_score = losses.get("bon_rl_v")(k=3, variational=variational)(rewards, rewards)
    np.testing.assert_array_equal(by_reward[1], by_score[1])
    np.testing.assert_array_equal(by_reward[0], by_score[0])
    loss = losses.get("bon_rl_s")(k=3, variational=variational, enumerated=True)
    make = variational_objective if variational else bon_objective
    found = score_gradient(P, loss(REWARDS[None], logp=LOGP[None])[1][0])
    wanted = -gradient(make(REWARDS, REWARDS, 3), THETA)
    np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.parametrize("draws", ["policy", "bon"])
@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
def test_bon_rl_v_with_k_1_is_unbiased(draws, variational):
    loss = losses.get("bon_rl_v")(k=1, draws=draws, variational=variational)
    _, found = on_all_tuples(loss, 4, scores=SELECTORS["tied"])
    np.testing.assert_allclose(found, -gradient(lambda p: p @ REWARDS, THETA), **CLOSE)


@pytest.mark.parametrize("draws", ["policy", "bon"])
@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_bon_rl_has_no_weights_where_all_rewards_are_equal(reward, variational, draws):
    rewards = np.full((5, 9), reward)
    options = {"k": 4, "variational": variational, "draws": draws}
    scores = np.random.default_rng(0).random((5, 9))
    assert (losses.get("bon_rl_v")(**options)(rewards, scores)[1] == 0).all()
    assert (losses.get("bon_rl_s")(**options)(rewards)[1] == 0).all()


@pytest.mark.parametrize("k", [1, 64, 10**6])
@pytest.mark.parametrize("variational", [True, False], ids=["variational", "exact"])
def test_bon_rl_is_finite_for_any_k(variational, k):
    rng = np.random.default_rng(0)
    rewards, scores = rng.random((30, 6)), rng.integers(4, size=(30, 6))
    value, weights = losses.get("bon_rl_v")(k=k, variational=variational)(rewards, scores)
    assert np.isfinite(value).all()
    assert np.isfinite(weights).all()


# -- bon_sft -------------------------------------------------------------------


def brute_bon_sft(scores, logp, expert, k, win_rate=None):
    lam, n = float(bon_lambda(k)), len(scores)
    experts, policy = np.flatnonzero(expert), np.flatnonzero(~expert)
    m, spared = len(policy), int(win_rate is None)
    win = np.array([(scores[[j for j in policy if j != i]] <= scores[i]).mean() for i in range(n)])
    win = win if win_rate is None else win_rate
    top = win[policy].max()
    share = np.exp(lam * (win[policy] - top))
    log_z = np.log(share.mean()) + lam * top
    share /= share.sum()
    weights = np.zeros(n)
    weights[experts] = -1 / len(experts)
    for j, v in zip(policy, share, strict=True):
        weights[j] = (m * v - 1) / (m - 1)
        for i, v_i in zip(policy, share, strict=True):
            if i != j:
                weights[j] += lam / (m - 1 - spared) * v_i * ((scores[i] >= scores[j]) - win[i])
        for i in experts:
            shown = (scores[i] >= scores[j]) - win[i]
            weights[j] -= lam / (m - spared) * shown / len(experts)
    return log_z - (logp + lam * win)[experts].mean(), weights


@pytest.mark.parametrize("known", [False, True], ids=["estimated", "known"])
@pytest.mark.parametrize("k", [1, 2, 8, 3000])
def test_bon_sft_is_its_formula(k, known):
    rng = np.random.default_rng(k)
    scores, logp = rng.integers(4, size=(30, 8)) / 2.0, -rng.random((30, 8))
    experts = 1 + rng.integers(4, size=(30, 1))
    expert = rng.permuted(np.arange(8) < experts, axis=1)
    given = {"win_rate": 0.7 * rng.random((30, 8))} if known else {}
    value, weights = losses.get("bon_sft")(k=k)(scores, scores, logp, expert=expert, **given)
    for r in range(30):
        rate = given["win_rate"][r] if known else None
        wanted = brute_bon_sft(scores[r], logp[r], expert[r], k, rate)
        np.testing.assert_allclose(value[r], wanted[0], rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(weights[r], wanted[1], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("k", [1, 2, 5])
@each_selector
def test_bon_sft_of_all_outcomes_is_the_gradient_of_log_best_of_k(scores, k):
    experts = np.array([3, 1, 1])
    at = np.concatenate([experts, np.arange(4)])
    expert = np.arange(7)[None] < 3
    loss = losses.get("bon_sft")(k=k, enumerated=True)
    objective = sft_objective(scores, experts, k)
    reaches = (scores[None, :] <= scores[:, None]) @ P
    for given in ({}, {"win_rate": reaches[at][None]}):
        value, weights = loss(
            REWARDS[at][None], scores[at][None], LOGP[at][None], expert=expert, **given
        )
        np.testing.assert_allclose(value, objective(P), **CLOSE)
        of_outcome = np.zeros(4)
        np.add.at(of_outcome, at, weights[0])
        found = score_gradient(P, of_outcome)
        np.testing.assert_allclose(found, gradient(objective, THETA), **CLOSE)


# -- bias ----------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
def test_tables_of_the_docs_are_what_enumeration_gives(make):
    docs = Path(__file__).parents[1] / "docs" / "design" / "losses.md"
    assert make() in docs.read_text()


@pytest.mark.parametrize("known", ["nothing", "Q"])
@pytest.mark.parametrize("k", [2, 4, 8])
def test_bias_of_the_variational_losses_shrinks_with_n(k, known):
    few, many = SIZES[1], SIZES[-1]
    for bias in (
        lambda n: rl_off("bon_rl_v", k, n, True, known),
        lambda n: rl_off("bon_rl_s", k, n, True, known),
        lambda n: sft_off(k, n, known),
    ):
        assert bias(many) < bias(few) / 3
    few, many = (rl_off("bon_rl_v", k, n, False, "nothing") for n in (few, many))
    assert many < few / 3


def test_bias_of_winners_shrinks_with_n():
    assert winners_off(2, 10) < winners_off(2, 6) < winners_off(2, 4)


# -- the KL term ---------------------------------------------------------------

WITH_KL = {
    "bon": {"k": 2}, "pkpo": {"k": 2}, "bon_rlb": {"k": 2}, "bon_rlb_p": {"k": 2},
    "bon_rl_s": {"k": 2}, "bon_rl_v": {"k": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_KL)
def test_kl_adds_the_gradient_of_the_divergence_from_the_reference(name):
    draws = tuples(4, 3)
    reference = softmax(np.array([0.1, 0.5, -0.5, 0.3]))
    given = {"scores": RIGHT[draws]} if name == "bon_rl_v" else {}
    plain = losses.get(name)(**WITH_KL[name])
    with_kl = replace(plain, kl=0.3)
    both = {"logp": LOGP[draws], "ref_logp": np.log(reference)[draws]}
    value, weights = with_kl(RIGHT[draws], **given, **both)
    plain_value, plain_weights = plain(RIGHT[draws], **given)
    found = expected_gradient(THETA, draws, weights - plain_weights)
    wanted = gradient(lambda p: 0.3 * (p * np.log(p / reference)).sum(), THETA)
    np.testing.assert_allclose(found, wanted, **CLOSE)
    divergence = (P * np.log(P / reference)).sum()
    np.testing.assert_allclose(expected(P, draws, value - plain_value), 0.3 * divergence)


# -- what holds for all of them --------------------------------------------------

ALL = {
    "bon": {"k": 3}, "bon_loo": {"k": 3, "baseline": "loo"},
    "bon_none": {"k": 3, "baseline": "none"}, "pkpo": {"k": 3},
    "bon_rl_s": {"k": 3}, "bon_rl_v": {"k": 3},
    "bon_rl_v_exact": {"k": 3, "variational": False}, "bon_sft": {"k": 3},
    "bon_rlb": {"k": 3}, "bon_rlb_p": {"k": 3, "estimate_from": "loo"},
}  # fmt: skip


def make_loss(label):
    name = max((name for name in losses.available() if label.startswith(name)), key=len)
    return losses.get(name)(**ALL[label])


def some_inputs(loss, rows=40, n=9, seed=0, levels=4):
    rng = np.random.default_rng(seed)
    given = {
        "scores": rng.integers(levels, size=(rows, n)) / 4.0 - 0.5,
        "logp": -rng.random((rows, n)),
        "expert": rng.permuted(np.tile(np.arange(n) < 2, (rows, 1)), axis=1),
    }
    rewards = rng.integers(2, size=(rows, n)).astype(float)
    wanted = {*loss.inputs} if loss.name != "bon_sft" else {"scores", "logp", "expert"}
    return rewards, {name: x for name, x in given.items() if name in wanted}


each_loss = pytest.mark.parametrize("label", ALL)


@each_loss
def test_masked_rows_are_the_shorter_rows(label):
    loss = make_loss(label)
    rewards, given = some_inputs(loss)
    keep = np.random.default_rng(1).random(rewards.shape) < 0.7
    keep[:, :6] = True
    if "expert" in given:
        given["expert"][:] = np.arange(9) < 2
    hidden = {
        name: np.where(keep, x, x if x.dtype == bool else np.nan) for name, x in given.items()
    }
    value, weights = loss(np.where(keep, rewards, np.nan), **hidden, mask=keep)
    assert (weights[~keep] == 0).all()
    for r in range(len(rewards)):
        short = {name: x[r, keep[r]][None] for name, x in given.items()}
        wanted = loss(rewards[r, keep[r]][None], **short)
        np.testing.assert_array_equal(value[r], wanted[0][0])
        np.testing.assert_array_equal(weights[r, keep[r]], wanted[1][0])


@each_loss
def test_results_follow_the_order_of_the_samples(label):
    loss = make_loss(label)
    rewards, given = some_inputs(loss)
    order = np.random.default_rng(1).permutation(rewards.shape[1])
    value, weights = loss(rewards, **given)
    shuffled = loss(rewards[:, order], **{name: x[:, order] for name, x in given.items()})
    np.testing.assert_allclose(shuffled[0], value, **CLOSE)
    np.testing.assert_allclose(shuffled[1], weights[:, order], **CLOSE)


@each_loss
@pytest.mark.parametrize("n", [9, 1030])
def test_a_row_does_not_depend_on_the_others(label, n):
    loss = make_loss(label)
    rewards, given = some_inputs(loss, rows=19, n=n)
    value, weights = loss(rewards, **given)
    for r in (0, 7, 8, 18):
        alone = loss(rewards[r : r + 1], **{name: x[r : r + 1] for name, x in given.items()})
        np.testing.assert_array_equal(value[r], alone[0][0])
        np.testing.assert_array_equal(weights[r], alone[1][0])


@each_loss
def test_no_rows_give_no_results(label):
    loss = make_loss(label)
    rewards, given = some_inputs(loss, rows=0)
    value, weights = loss(rewards, **given)
    assert value.shape == (0,)
    assert weights.shape == (0, 9)


def test_a_loss_takes_lists_and_integers_and_leaves_them_alone():
    rewards = np.array([[0, 1, 1]])
    value, weights = losses.get("bon")(k=2)(rewards.tolist(), scores=[[3, 1, 2]])
    assert value.dtype == weights.dtype == np.float64
    assert rewards.tolist() == [[0, 1, 1]]


def test_get_knows_the_losses_and_says_so():
    assert {"bon", "bon_sft", "bon_rl_v", "bon_rl_s", "bon_rlb", "bon_rlb_p", "pkpo"} <= set(
        losses.available()
    )
    with pytest.raises(ValueError, match=r"no 'bom' in bonaware\.losses; there are: .*bon"):
        losses.get("bom")
    assert str(losses.get("bon")(k=2)) == "Bon(k=2, baseline='subset', kl=0.0)"


# -- errors --------------------------------------------------------------------

ONE_ROW = [[0.0, 1.0, 1.0, 0.0]]
EXPERTS = [[True, False, False, False]]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("bon", {"k": 0}, ValueError, "k must be >= 1, got 0"),
        ("bon", {"k": 2.0}, TypeError, "k must be an int, got float"),
        ("bon", {"k": True}, TypeError, "k must be an int, got bool"),
        ("bon", {"k": 2, "baseline": "mean"}, ValueError, 'baseline must be one of "subset", '),
        ("bon", {"k": 2, "kl": -1}, ValueError, "kl must be finite and >= 0, got -1"),
        ("bon", {"k": 2, "kl": "1"}, TypeError, "kl must be a number, got str"),
        ("pkpo", {"k": 2, "baseline": "subset"}, ValueError, '"loo_minus_one", "none"'),
        ("bon_rlb", {"k": 2, "sign": "+"}, ValueError, 'sign must be one of "exact", "penalise"'),
        ("bon_rlb", {"k": 2, "clip": np.inf}, ValueError, "clip must be finite"),
        ("bon_rlb", {"k": 2, "bounded": True, "clip": 1.0}, ValueError, "bounded=True goes with"),
        ("bon_rlb_p", {"k": 2, "estimate_from": "f"}, ValueError, '"all", "loo"'),
        ("bon_rl_v", {"k": 2, "draws": "best"}, ValueError, 'draws must be one of "policy", "bon"'),
        ("bon_rl_s", {"k": 2, "draws": "bon", "enumerated": True}, ValueError, "enumerated=True"),
        ("bon_sft", {"k": -1}, ValueError, "k must be >= 1, got -1"),
    ],
)
def test_options_out_of_range_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        losses.get(name)(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.get("bon_rl_v")(k=2)(ONE_ROW), TypeError,
         "scores is missing; its inputs are rewards, scores, win_rate, log_normaliser, mask"),
        (lambda: losses.get("pkpo")(k=2)(ONE_ROW, ONE_ROW), TypeError,
         "loss pkpo: it does not use scores; its inputs are rewards, mask"),
        (lambda: losses.get("bon_sft")(k=2)(ONE_ROW, ONE_ROW), TypeError, "logp is missing"),
        (lambda: losses.get("bon")(k=2, kl=0.1)(ONE_ROW), TypeError, "logp is missing"),
        (lambda: losses.get("raft")(kl=0.1)(ONE_ROW), TypeError, "logp is missing"),
        (lambda: losses.get("bon_rl_s")(k=2, variational=False)(ONE_ROW, win_rate=ONE_ROW),
         TypeError, "it does not use win_rate"),
        (lambda: losses.get("bon_rl_s")(k=2, enumerated=True)(ONE_ROW), TypeError,
         "logp is missing"),
        (lambda: losses.get("bon")(k=2)([0.0, 1.0]), ValueError,
         r"rewards must have the shape \[P, n\], got \(2,\)"),
        (lambda: losses.get("bon")(k=2)(ONE_ROW, [[1.0]]), ValueError,
         r"scores must have the shape \(1, 4\), got \(1, 1\)"),
        (lambda: losses.get("bon")(k=2)([[0.0, np.nan]]), ValueError,
         "finite, but row 0, column 1 is"),
        (lambda: losses.get("bon")(k=2)(ONE_ROW, [[0.0, np.inf, 1.0, 2.0]]), ValueError,
         "finite, but row 0, column 1 is"),
        (lambda: losses.get("bon")(k=5)(ONE_ROW), ValueError,
         r"Bon\(k=5, .*\) needs at least 5 samples of every prompt, but row 0 has 4"),
        (lambda: losses.get("bon")(k=4, baseline="loo")(ONE_ROW), ValueError, "at least 5 samples"),
        (lambda: losses.get("bon")(k=1)([[1.0]]), ValueError, "at least 2 samples"),
        (lambda: losses.get("bon")(k=3)(ONE_ROW * 2, mask=[[True] * 4, [True, True, False, False]]),
         ValueError, "at least 3 samples of every prompt, but row 1 has 2"),
        (lambda: losses.get("bon")(k=2)(ONE_ROW, mask=[[1, 1, 1, 0]]), TypeError,
         "mask must hold bools"),
        (lambda: losses.get("bon")(k=2)([[0.0, np.nan, 1.0]], mask=[[True] * 3]), ValueError,
         "rewards must be finite, but row 0, column 1 is nan"),
        (lambda: losses.get("bon_rlb")(k=2)([[0.0, 0.5, 1.0]]), ValueError,
         "rewards must be 0 or 1, but row 0, column 1 is 0.5"),
        (lambda: losses.get("bon_rlb_p")(k=2)(
            [[2.0, 1.0, 0.0], [1.0, 3.0, 0.0]], mask=[[False, True, True], [True] * 3]),
         ValueError, "rewards must be 0 or 1, but row 1, column 1 is 3.0"),
        (lambda: losses.get("bon_rlb")(k=2)(ONE_ROW, fail=[1.5]), ValueError,
         r"fail must be in \[0, 1\], but element 0 is 1.5"),
        (lambda: losses.get("bon_rlb")(k=2)(ONE_ROW, fail=[0.5, 0.5]), ValueError,
         r"fail must have the shape \(1,\), got \(2,\)"),
        (lambda: losses.get("bon_rl_s")(k=2)(ONE_ROW, win_rate=[[0.0, 1.0, 2.0, 0.5]]), ValueError,
         r"win_rate must be in \[0, 1\], but row 0, column 2 is 2.0"),
        (lambda: losses.get("bon_rl_s")(k=3, draws="bon")(ONE_ROW), ValueError,
         "at least 6 samples"),
        (lambda: losses.get("bon_rl_s")(k=2, enumerated=True)(ONE_ROW, logp=ONE_ROW), ValueError,
         r"exp\(logp\) that add up to 1, but row 0 adds up to 7.4"),
        (lambda: losses.get("bon_sft")(k=2)(ONE_ROW, ONE_ROW, ONE_ROW, expert=ONE_ROW), TypeError,
         "expert must hold bools, got dtype float64"),
        (lambda: losses.get("bon_sft")(k=2)(
            ONE_ROW * 2, ONE_ROW * 2, ONE_ROW * 2, expert=[*EXPERTS, [False] * 4]),
         ValueError, r"1 demonstration \(expert True\) and 3 samples .* row 1 has 0 and 4"),
        (lambda: losses.get("bon_sft")(k=2)(ONE_ROW, ONE_ROW, ONE_ROW, expert=[[True] * 2 +
         [False] * 2]), ValueError, "3 samples of the policy .* row 0 has 2 and 2"),
        (lambda: losses.get("bon_sft")(k=2)(
            ONE_ROW * 2, ONE_ROW * 2, ONE_ROW * 2, expert=EXPERTS * 2,
            mask=[[True] * 4, [False] + [True] * 3]),
         ValueError, r"1 demonstration \(expert True\) and 3 samples .* row 1 has 0 and 3"),
        (lambda: losses.get("bon_sft")(k=2, enumerated=True)(
            ONE_ROW, ONE_ROW, np.log([[0.25] * 4]), expert=[[False] * 4]),
         ValueError, r"and 1 samples of the policy in every row, but row 0 has 0 and 4"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_get_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- the C boundary and threads -----------------------------------------------

A = np.array(ONE_ROW)
V, W = np.zeros(1), np.zeros((1, 4))
B = np.array(EXPERTS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _losses.bon(A.tolist(), A, 2, 0, V, W, 0, 1), TypeError, "scores must be a numpy"),
        (lambda: _losses.bon(A, A[:, ::2], 2, 0, V, W, 0, 1), TypeError, "rewards .*contiguous"),
        (lambda: _losses.bon(A, A[:, :2].copy(), 2, 0, V, W, 0, 1), ValueError, "same shape"),
        (lambda: _losses.bon(A, A, 0, 0, V, W, 0, 1), ValueError, "need k >= 1"),
        (lambda: _losses.bon(A, A, 2, 3, V, W, 0, 1), ValueError, "baseline <= 2, got 2, 3"),
        (lambda: _losses.bon(A, A, 5, 0, V, W, 0, 1), ValueError, "out of its range"),
        (lambda: _losses.bon(A, A, 2, 0, V[:0], W, 0, 1), ValueError, "one element for each of 1"),
        (lambda: _losses.bon(A, A, 2, 0, V, W[:, :2].copy(), 0, 1), ValueError, "same shape"),
        (lambda: _losses.bon(A, A, 2, 0, V, W, 0, 2), ValueError, "start <= stop <= rows"),
        (lambda: _losses.bon_rl(A, A, W[:, :1].copy(), *[None] * 2, 2, 0, 1.0, 0, V, W, 0, 1),
         ValueError, "chance and scores"),
        (lambda: _losses.bon_rl(A, A, None, A + 1, None, 2, False, 1.0, False, V, W, 0, 1),
         ValueError, "out of its range at row 0, column 1|out of its range at row 0, column 0"),
        (lambda: _losses.bon_rl(A, A, None, A, None, 2, True, 1.0, False, V, W, 0, 1),
         ValueError, "out of its range"),
        (lambda: _losses.bon_rl(A, A, None, None, None, 2, False, np.nan, False, V, W, 0, 1),
         ValueError, "finite strength"),
        (lambda: _losses.bon_rl(A, A, None, None, None, 3, False, 1.0, True, V, W, 0, 1),
         ValueError, "out of its range"),
        (lambda: _losses.bon_sft(A, A, A, None, None, None, 2, 1.0, V, W, 0, 1), TypeError,
         "expert must be a C-contiguous bool"),
        (lambda: _losses.bon_sft(A, A, ~B & B, None, None, None, 2, 1.0, V, W, 0, 1), ValueError,
         "row 0 has 0 and 4"),
        (lambda: _losses.bon_sft(A, A, B, None, A + 1, None, 2, 1.0, V, W, 0, 1), ValueError,
         "out of its range at row 0, column 1"),
        (lambda: _losses.count_correct(A + 0.5, V, 0, 1), ValueError,
         "rewards must be 0 or 1, but row 0, column 0"),
        (lambda: _losses.two_weights(A, V, np.zeros(2), W, 0, 1), ValueError, "miss must have one"),
        (lambda: _losses.weigh_by_count(A, V, V, V, W, 0, 1), ValueError,
         "hit must have an element for each of 0 to 4, got 1"),
    ],
)  # fmt: skip
def test_binding_refuses_what_the_core_could_not_use(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("label", ["bon", "bon_none", "bon_rl_v", "bon_rl_v_exact", "bon_sft"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 8), (8, 5)])
def test_what_is_not_finite_is_found_in_every_input(label, value, row, column):
    loss = make_loss(label)
    rewards, given = some_inputs(loss, rows=9)
    numbers = given if loss.name == "bon_sft" else given | {"rewards": rewards}
    for name in numbers.keys() - {"expert"}:
        spoilt = {"rewards": rewards, **given}
        spoilt[name] = spoilt[name].copy()
        spoilt[name][row, column] = value
        with pytest.raises(ValueError, match=f"finite, but row {row}, column {column} is"):
            loss(**spoilt)


def test_binding_refuses_to_write_what_is_read_only():
    fixed = W.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="weights must be writeable"):
        _losses.bon(A, A, 2, 0, V, fixed, 0, 1)


@pytest.mark.parametrize("label", ["bon", "bon_rl_v", "bon_sft"])
def test_results_of_more_than_the_caches_hold_are_those_of_their_parts(label):
    loss = make_loss(label)
    rewards, given = some_inputs(loss, rows=33_003, n=64)
    value, weights = loss(rewards, **given)
    assert weights.nbytes > 16 << 20  # written past the caches
    for start in range(0, len(rewards), 3001):
        rows = slice(start, start + 3001)
        some = {name: x[rows] for name, x in given.items()}
        for whole, part in zip((value, weights), loss(rewards[rows], **some), strict=True):
            np.testing.assert_array_equal(whole[rows], part)


@pytest.mark.parametrize("label", ["bon", "bon_rl_v", "bon_rlb"])
def test_results_do_not_depend_on_the_number_of_threads(label, monkeypatch):
    loss = make_loss(label)
    rewards, given = some_inputs(loss, rows=20_000, n=33)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(loss(rewards, **given))
    for value, weights in results[1:]:
        np.testing.assert_array_equal(value, results[0][0])
        np.testing.assert_array_equal(weights, results[0][1])


@pytest.mark.clock
@pytest.mark.parametrize("threads", ["1", "2"])
def test_losses_stop_on_ctrl_c(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    rewards = np.random.default_rng(0).random((700, 20_000))
    loss = losses.get("bon")(k=4, baseline="loo")
    assert seconds_to_stop(lambda: loss(rewards), after=0.1) < 0.3


def test_kernels_run_without_the_gil():
    rewards = np.random.default_rng(0).random((100, 20_000))
    out = np.empty(100), np.empty(rewards.shape)
    work = threading.Thread(target=lambda: _losses.bon(rewards, rewards, 4, 0, *out, 0, 100))
    start = time.perf_counter()
    work.start()
    time.sleep(0.005)
    woke = time.perf_counter() - start
    work.join()
    assert woke < (time.perf_counter() - start) / 2  # else the GIL kept us asleep


@pytest.mark.parametrize(
    "call",
    [
        lambda: _losses.bon(A, A, 2, 0, V, W, 0, 1),
        lambda: _losses.bon(A, A, 5, 0, V, W, 0, 1),
        lambda: _losses.bon_rl(A, A, None, None, None, 2, False, 1.0, False, V, W, 0, 1),
        lambda: _losses.bon_rl(A * np.nan, A, None, None, None, 2, False, 1.0, False, V, W, 0, 1),
        lambda: _losses.bon_sft(A, A, B, None, None, None, 2, 1.0, V, W, 0, 1),
        lambda: _losses.bon_sft(A, A, ~B, None, None, None, 2, 1.0, V, W, 0, 1),
        lambda: _losses.count_correct(A + 0.5, V, 0, 1),
        lambda: _losses.two_weights(A, V, V, W, 0, 1),
        lambda: _losses.weigh_by_count(A, np.zeros(5), np.zeros(5), V, W, 0, 1),
    ],
    ids=["bon", "bon_error", "rl", "rl_error", "sft", "sft_error", "count_error", "weights",
         "by_count_error"],
)
def test_binding_frees_its_memory_on_success_and_on_error(call):
    calls = 200
    assert bytes_kept(call, calls) < 16 * calls  # no object is smaller; caches add a few kB once


# -- the tools of these tests ----------------------------------------------------


def test_multisets_stand_for_all_tuples():
    every, (some, orders) = tuples(3, 5), multisets(3, 5)
    weights = np.cos(np.sort(every, axis=1)) + np.arange(5)
    fewer = np.cos(some) + np.arange(5)
    theta = THETA[:3]
    assert orders.sum() == pytest.approx(3**5)
    chances = np.prod(softmax(theta)[every], axis=1)
    assert chances @ weights.sum(1) == pytest.approx(
        (np.prod(softmax(theta)[some], axis=1) * orders) @ fewer.sum(1)
    )


def test_the_law_of_best_of_k_is_what_is_drawn():
    scores = SELECTORS["tied"]
    law = bon_law(P, scores, 3)
    assert law.sum() == pytest.approx(1)
    draws = tuples(4, 3)
    assert law @ REWARDS == pytest.approx(expected(P, draws, best_of(draws, scores, REWARDS)))


def test_a_huge_ratio_leaves_finite_weights():
    for name, more in (("grpo", {"lengths": [[1, 1, 1]]}), ("dr_grpo", {})):
        loss = losses.get(name)()
        given = {"logp": [[0.0, 0.0, 0.0]], "old_logp": [[-1000.0, 0.0, 0.0]], **more}
        value, weights = loss([[1.0, 1.0, 1.0]], **given)
        assert (value == 0).all()
        assert (weights == 0).all()
        value, weights = loss([[0.0, 1.0, 1.0]], **given)
        assert np.isfinite(value).all()
        assert np.isfinite(weights).all()


def test_the_kl_term_needs_two_samples_of_every_prompt():
    loss, nothing = losses.get("raft")(kl=0.1), [[0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="at least 2 samples of every prompt, but row 1 has 1"):
        loss([[1.0, 0.0], [1.0, 0.0]], logp=nothing, ref_logp=nothing,
             mask=[[True, True], [True, False]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["bon_rlb", "bon_rlb_p"])
@pytest.mark.parametrize("n", [1, 4])
def test_no_prompt_has_no_weights_and_no_warning(name, n):
    value, weights = losses.get(name)(k=2)(np.zeros((0, n)))
    assert value.shape == (0,)
    assert weights.shape == (0, n)
