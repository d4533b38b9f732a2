"""bonaware.estimators against exact arithmetic, brute force and closed forms."""

import itertools
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import seconds_to_stop
from leaks import bytes_kept

from bonaware import _estimators, _parallel
from bonaware._parallel import for_rows
from bonaware.estimators import (
    best_of_k,
    bon_kl,
    bon_lambda,
    bon_policy,
    fit_coscaling,
    interval,
    majority_at_k,
    pass_at_k,
    win_rate,
    worst_of_k,
)

ONE = np.ones(1, np.int64)

# Seconds of work if left alone: 1000 steps for each of 400 000 problems.
SLOW = {"n": np.full(400_000, 10**9), "c": 1000, "k": 1000}


def exact_pass_at_k(n, c, k):
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


def mean_over_subsets(n, k, value):
    """Mean of value(subset) over all subsets of range(n) of size k, as a Fraction."""
    subsets = list(itertools.combinations(range(n), k))
    return sum(map(value, subsets), Fraction(0)) / len(subsets)


def brute_best_of_k(rewards, k, scores):
    rewards = [Fraction(float(reward)) for reward in rewards]

    def best(subset):
        top = max(scores[i] for i in subset)
        winners = [rewards[i] for i in subset if scores[i] == top]
        return sum(winners) / len(winners)

    return float(mean_over_subsets(len(rewards), k, best))


def brute_majority_at_k(codes, correct, k, weights=None):
    """Winners share evenly; a winner's value is the mean over its votes in the subset."""
    weights = np.ones(len(codes)) if weights is None else weights
    weights = [Fraction(float(weight)) for weight in weights]
    correct = [Fraction(float(value)) for value in correct]

    def winner(subset):
        totals, values = {}, {}
        for i in subset:
            if codes[i] >= 0:
                totals[codes[i]] = totals.get(codes[i], 0) + weights[i]
                values.setdefault(codes[i], []).append(correct[i])
        if not totals:
            return sum(correct[i] for i in subset) / len(subset)
        winners = [code for code in totals if totals[code] == max(totals.values())]
        return sum(sum(values[w]) / len(values[w]) for w in winners) / len(winners)

    return float(mean_over_subsets(len(codes), k, winner))


def exact_majority_at_k(counts, right, k):
    """P(answer `right` wins) in integers: products over the other answers, by winners."""
    total = Fraction(0)
    for m in range(1, counts[right] + 1):
        ways = {(0, 0): 1}  # (samples drawn, others with m votes) -> subsets
        for count in counts[:right] + counts[right + 1 :]:
            grown = {}
            for (drawn, tied), number in ways.items():
                for j in range(min(count, m) + 1):
                    key = drawn + j, tied + (j == m)
                    grown[key] = grown.get(key, 0) + number * math.comb(count, j)
            ways = grown
        for (drawn, tied), number in ways.items():
            if drawn + m == k:
                total += Fraction(number * math.comb(counts[right], m), tied + 1)
    return float(total / math.comb(sum(counts), k))


# -- pass_at_k: values --------------------------------------------------------


def test_pass_at_k_matches_exact_fractions_for_every_small_case():
    for n in range(1, 16):
        ks = range(1, n + 1)
        got = pass_at_k(n, np.arange(n + 1), ks)
        want = [[float(exact_pass_at_k(n, c, k)) for k in ks] for c in range(n + 1)]
        np.testing.assert_allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize(
    ("n", "c", "k"),
    [
        (10**15, 1, 1),  # 1 - (1 - 1e-15) would keep one digit
        (10**12, 3, 1000),
        (1000, 400, 300),  # binomials near 1e290
        (100_000, 7, 99_000),
        (100_000, 99_000, 7),
    ],
)
def test_pass_at_k_keeps_relative_accuracy(n, c, k):
    miss = Fraction(1)
    for i in range(min(c, k)):
        miss *= Fraction(n - max(c, k) - i, n - i)
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - miss), rel=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 1.0])
def test_pass_at_k_is_unbiased(p):
    n, k = 12, 5
    c = np.arange(n + 1)
    chance = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    assert chance @ pass_at_k(n, c, k) == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_is_exactly_one_when_fewer_than_k_samples_are_wrong():
    for n, k in [(15, 7), (101, 60), (1000, 3)]:
        c = np.arange(n - k + 1, n + 1)
        assert (pass_at_k(n, c, k) == 1.0).all()


def test_pass_at_k_is_the_same_when_c_and_k_are_exchanged():
    for c, k in itertools.combinations(range(1, 40), 2):
        assert pass_at_k(40, c, k) == pass_at_k(40, k, c)


def test_pass_at_k_never_exceeds_one():
    # The bare sum for n=56, c=29, k=27 rounds to 1 + 2**-52.
    for n in (56, 57, 100):
        assert pass_at_k(n, np.arange(n + 1), range(1, n + 1)).max() <= 1.0


def test_pass_at_k_is_the_same_with_and_without_its_table():
    rng = np.random.default_rng(0)
    n = np.repeat([64, 5, 64, 30, 64], [500, 3, 20, 31, 65])
    c = rng.integers(0, n + 1)
    for k in ([1, 3, 5], 5):
        want = [pass_at_k(int(one), int(right), k) for one, right in zip(n, c, strict=True)]
        assert (pass_at_k(n, c, k) == want).all()
    c[200] = 65
    with pytest.raises(ValueError, match="problem 200 has n=64, c=65, k=5"):
        pass_at_k(n, c, 5)


def test_pass_at_k_of_several_k_is_that_of_each():
    c = np.arange(33)
    many = pass_at_k(32, c, [1, 2, 7, 32])
    for j, k in enumerate([1, 2, 7, 32]):
        assert (many[:, j] == pass_at_k(32, c, k)).all()


def test_pass_at_k_broadcasts_and_accepts_empty():
    assert pass_at_k([[8], [16]], [0, 1, 2], k=4).shape == (2, 3)
    assert pass_at_k([[8], [16]], [0, 1, 2], k=[4, 5]).shape == (2, 3, 2)
    assert pass_at_k(8, 2, k=4).shape == ()
    assert pass_at_k(8, 2, k=[]).shape == (0,)
    assert pass_at_k([], [], k=4).shape == (0,)


# -- best_of_k: values --------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("levels", [1, 2, 3, 1000], ids="{}_score_levels".format)
def test_best_of_k_matches_brute_force_for_all_k_at_once(n, levels):
    rng = np.random.default_rng(n * levels)
    rewards = rng.normal(size=(9, n))
    scores = rng.integers(-levels, levels, size=(9, n)).astype(float)
    ks = range(1, n + 1)
    got = best_of_k(rewards, ks, scores)
    want = [
        [brute_best_of_k(*row, k=k, scores=s) for k in ks]
        for *row, s in zip(rewards, scores, strict=False)
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "n", [*range(1, 20), 31, 32, 33, 63, 64, 65, 100, 128, 257, 511, 512, 513, 1000]
)
def test_best_of_k_ranks_rows_of_every_length(n):
    rng = np.random.default_rng(n)
    rewards, scores = rng.normal(size=(2, 11, n))
    ordered = np.take_along_axis(rewards, np.argsort(-scores), -1)
    for k in {1, 2, (n + 1) // 2, n} - ({2} if n == 1 else set()):
        weights = [math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)]
        np.testing.assert_allclose(best_of_k(rewards, k, scores), ordered @ weights, atol=1e-12)
        best_first = -np.sort(-rewards) @ weights
        np.testing.assert_allclose(best_of_k(rewards, k), best_first, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 6, 7, 8, 9, 15, 16, 63, 64, 65, 129, 511, 512, 513])
@pytest.mark.parametrize("rows", [3, 8, 19])
def test_best_of_k_of_all_k_weighs_every_rank_with_its_binomial(n, rows):
    rng = np.random.default_rng(n)
    rewards, scores = rng.random((2, rows, n))
    ks = [*range(n, 0, -1), *range(1, n + 1, 3)]  # in any order, some twice
    ordered = np.take_along_axis(rewards, np.argsort(-scores), -1)
    got, perfect = best_of_k(rewards, ks, scores), best_of_k(rewards, ks)
    assert got.shape == perfect.shape == (rows, len(ks))
    for column in sorted({0, 1, n // 3, n // 2, n - 1, n, len(ks) - 1} & set(range(len(ks)))):
        k = ks[column]
        weights = [math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)]
        rtol = (n + 8) * 2**-52  # nothing cancels: relative to the result
        np.testing.assert_allclose(got[:, column], ordered @ weights, rtol=rtol)
        np.testing.assert_allclose(perfect[:, column], -np.sort(-rewards) @ weights, rtol=rtol)
    assert (perfect[:, 0] == rewards.max(-1)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65, 200, 513, 1100])
@pytest.mark.parametrize("levels", [(0.0, 1.0), (-1e300, 1e300), (0.1, 0.1 + 2**-56), (7.0, 7.0)])
def test_best_of_k_of_two_levels_weighs_their_means(n, levels):
    rng = np.random.default_rng(n)
    rewards = rng.normal(size=(n + 1 if n < 70 else 19, n))
    upper = rng.permuted(np.arange(n) < np.linspace(0, n, len(rewards)).round()[:, None], axis=1)
    scores = np.where(upper, levels[1], levels[0])
    ordered = rewards.copy()  # best first, each the mean of its level
    for row, order, top in zip(ordered, np.argsort(~upper, 1, kind="stable"), upper, strict=True):
        some = top.sum() if levels[0] < levels[1] else 0
        row[:] = row[order]
        for part in (row[:some], row[some:]):
            part[:] = part.mean() if len(part) else 0
    ks = sorted({1, 2, (n + 1) // 2, n} - {2 * (n == 1)} - {0})
    got = best_of_k(rewards, ks, scores)
    for column, k in enumerate(ks):
        weights = [math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)]
        np.testing.assert_allclose(got[:, column], ordered @ weights, rtol=0, atol=1e-13)


def test_best_of_k_of_two_levels_keeps_the_digits_of_small_chances():
    n = 4000
    right = np.zeros((1, n))
    right[0, 7] = 1.0
    ks = [1, 2, 3, n - 1, n]
    np.testing.assert_allclose(best_of_k(right, ks)[0], np.array(ks) / n, rtol=1e-13)
    np.testing.assert_array_equal(best_of_k(right * 0.3, ks)[0, -1], 0.3)


def test_best_of_k_is_1_exactly_where_fewer_than_k_are_wrong():
    right = np.arange(64) < np.arange(65)[:, None]
    got = best_of_k(right.astype(float), range(1, 65))
    for row in range(65):
        assert (got[row, 64 - row :] == 1.0).all()
        assert (got[row] <= 1.0).all()


def test_best_of_k_of_two_levels_does_not_overflow():
    rewards = np.array([[-1.2e308, 1.2e308], [1.2e308, 1.2e308]])
    got = best_of_k(rewards, [1, 2], [[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(got, [[0.0, 1.2e308], [1.2e308, 1.2e308]])


def rows_of_all_kinds(rows, n):
    """Scores of two levels, of one, of ten and all different, in turn and by chance."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(rows, n))
    kind = rng.integers(0, 4, size=rows)
    scores[kind == 0] = (scores[kind == 0] > 0.2) * 0.3
    scores[kind == 1] = 2.0
    scores[kind == 2] = np.round(scores[kind == 2] * 2)
    return rng.normal(size=(rows, n)), scores


@pytest.mark.parametrize("n", [5, 64, 100])
def test_best_of_k_of_a_row_does_not_depend_on_the_others(n):
    rewards, scores = rows_of_all_kinds(60, n)
    ks = range(1, n + 1)
    together = best_of_k(rewards, ks, scores)
    for row in range(60):
        alone = best_of_k(rewards[row : row + 1], ks, scores[row : row + 1])
        np.testing.assert_array_equal(together[row : row + 1], alone)


def test_best_of_k_of_more_than_the_caches_hold_is_that_of_its_parts():
    rewards, scores = rows_of_all_kinds(33_003, 64)  # 17 MB of results: written past the caches
    ks = range(1, 65)
    whole = best_of_k(rewards, ks, scores)
    assert whole.nbytes > 16 << 20
    for start in range(0, len(rewards), 3001):
        rows = slice(start, start + 3001)
        np.testing.assert_array_equal(whole[rows], best_of_k(rewards[rows], ks, scores[rows]))


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**500, 2.0**520, 2.0**1015])
def test_best_of_k_of_all_k_keeps_rewards_of_any_size(scale):
    rng = np.random.default_rng(0)
    rewards, scores = rng.uniform(-1, 1, size=(11, 64)), rng.integers(0, 50, size=(11, 64)) + 0.0
    ks = range(1, 65)
    got = best_of_k(scale * rewards, ks, scores)
    np.testing.assert_allclose(got / scale, best_of_k(rewards, ks, scores), rtol=0, atol=1e-14)


@pytest.mark.parametrize("step", [2.0**-52, 2.0**-49, 5e-324])
def test_best_of_k_tells_scores_apart_that_differ_in_the_last_bits(step):
    n = 40
    rng = np.random.default_rng(1)
    start = 0.0 if step == 5e-324 else 1.0
    scores = np.stack([start + step * rng.permutation(n) for _ in range(10)])
    rewards = rng.normal(size=scores.shape)
    want = rewards[np.arange(10), scores.argmax(1)]
    np.testing.assert_allclose(best_of_k(rewards, n, scores), want)


@pytest.mark.parametrize("n", [5, 8, 60, 64])
@pytest.mark.parametrize(
    ("scale", "shift", "outlier"),
    [
        (1.0, 0.0, -1e30),
        (1.0, 0.0, 1e300),
        (1e-9, 1.0, 1.0),
        (1e-310, 0.0, 0.0),
        (1e307, 0.0, 1.7e308),
        (1e307, 0.0, -1.7e308),
    ],
    ids=["far_below", "far_above", "close_together", "subnormal", "up_to_the_most", "overflow"],
)
def test_best_of_k_ranks_scores_of_any_spread(n, scale, shift, outlier):
    rng = np.random.default_rng(n)
    rewards, scores = rng.normal(size=(2, 20, n))
    scores = shift + scale * scores
    scores[::2, 1] = outlier
    scores[::3, 2] = -outlier if scale == 1e307 else outlier
    ks = range(1, n + 1)
    with np.errstate(over="ignore"):
        ranks = (scores[:, :, None] < scores[:, None, :]).sum(-1)
    for row in [row for row in range(20) if len(set(ranks[row])) == n]:  # no ties
        weights = [[math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)] for k in ks]
        want = np.array(weights) @ rewards[row][np.argsort(ranks[row])]
        np.testing.assert_allclose(best_of_k(rewards, ks, scores)[row], want, atol=1e-12)
    np.testing.assert_allclose(
        best_of_k(rewards, ks, scores), best_of_k(rewards, ks, -1.0 * ranks), atol=1e-12
    )


def test_best_of_k_takes_minus_zero_for_zero():
    assert best_of_k([1.0, 0.0], 2, [-0.0, 0.0]) == 0.5
    assert best_of_k([1.0, 0.0], 2, [0.0, -0.0]) == 0.5
    assert best_of_k([1.0, 0.0, 9.0, 9.0], 4, [-0.0, 0.0, -1.0, -2.0]) == 0.5


@pytest.mark.parametrize("n", range(1, 13))
def test_best_of_all_by_a_perfect_selector_is_exactly_the_largest(n):
    rewards = np.random.default_rng(n).normal(size=(9, n))
    assert (best_of_k(rewards, n) == rewards.max(-1)).all()


def test_best_of_k_with_binary_rewards_is_pass_at_k():
    rewards = np.tri(9, 8, -1)  # row i has i correct samples of 8
    ks = range(1, 9)
    np.testing.assert_allclose(best_of_k(rewards, ks), pass_at_k(8, np.arange(9), ks), rtol=1e-14)
    np.testing.assert_allclose(
        best_of_k(rewards, ks, rewards + 0.0), pass_at_k(8, np.arange(9), ks), rtol=1e-13
    )


@pytest.mark.parametrize("n", [1, 5, 16, 33, 100])
def test_best_of_one_is_the_mean(n):
    rewards, scores = np.random.default_rng(n).normal(size=(2, 13, n))
    np.testing.assert_allclose(best_of_k(rewards, 1), rewards.mean(-1), atol=1e-14)
    np.testing.assert_allclose(best_of_k(rewards, [1, 1], scores)[:, 1], rewards.mean(-1))


def test_best_of_k_overflows_to_infinity_and_not_to_an_error():
    with np.errstate(over="ignore"):
        assert best_of_k(np.full(20, 1.7e308), 1) == np.inf


def test_best_of_k_ignores_the_order_of_samples():
    rng = np.random.default_rng(0)
    rewards, scores = rng.normal(size=50), rng.integers(4, size=50).astype(float)
    want = best_of_k(rewards, 10, scores)
    for _ in range(20):
        p = rng.permutation(50)
        assert best_of_k(rewards[p], 10, scores[p]) == pytest.approx(want)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=n, max_size=n),
            st.lists(st.integers(-5, 5), min_size=n, max_size=n),
        )
    )
)
def test_best_of_k_rises_with_k_when_scores_are_rewards(lists):
    scores, other = (np.array(x, float) for x in lists)
    curve = best_of_k(scores, range(1, len(scores) + 1))
    assert (np.diff(curve) >= -1e-12).all()
    assert curve[-1] == pytest.approx(scores.max())
    with_other = best_of_k(other, range(1, len(scores) + 1), scores)
    assert other.min() - 1e-12 <= with_other.min()
    assert with_other.max() <= other.max() + 1e-12


@pytest.mark.parametrize("k", [1, 2, 3])
def test_best_of_k_is_unbiased(k):
    p, score, reward = [0.5, 0.3, 0.2], [0.0, 1.0, 1.0], [3.0, -1.0, 5.0]
    want = np.array(reward) @ bon_policy(p, score, k)
    got = 0.0
    for draw in itertools.product(range(3), repeat=4):
        chance = math.prod(p[i] for i in draw)
        got += chance * best_of_k([reward[i] for i in draw], k, [score[i] for i in draw])
    assert got == pytest.approx(want)


def test_best_of_k_stays_finite_for_many_samples():
    rewards = np.linspace(0, 1, 100_000)
    # E[max] of k of the integers 1..n is k(n+1)/(k+1); here shifted and scaled.
    n, k = rewards.size, 50_000
    want = (k * (n + 1) / (k + 1) - 1) / (n - 1)
    assert best_of_k(rewards, k) == pytest.approx(want, rel=1e-12)


def test_best_of_k_of_very_many_k_is_that_of_each():
    rewards, scores = np.random.default_rng(0).normal(size=(2, 3, 4000))
    ks = range(1, 4001, 7)  # more than one table of weights holds
    many = best_of_k(rewards, ks, scores)
    for j in (0, 100, 255, 256, 264, len(ks) - 1):
        np.testing.assert_allclose(many[:, j], best_of_k(rewards, ks[j], scores), atol=1e-13)


def test_best_of_k_keeps_batch_shape():
    assert best_of_k(np.zeros((2, 3, 5)), 4).shape == (2, 3)
    assert best_of_k(np.zeros((2, 3, 5)), [4, 5]).shape == (2, 3, 2)
    assert best_of_k(np.zeros((0, 5)), 4).shape == (0,)
    assert best_of_k(np.zeros((0, 5)), [4, 5]).shape == (0, 2)
    assert best_of_k(np.zeros(5), []).shape == (0,)


@pytest.mark.parametrize("imperfect", [False, True])
def test_best_of_k_with_a_mask_is_that_of_the_samples_alone(imperfect):
    rng = np.random.default_rng(0)
    rewards, scores = rng.normal(size=(2, 40, 9))
    mask = rng.random((40, 9)) < 0.7
    mask[:, :3] = True
    rewards[~mask] = scores[~mask] = np.nan
    got = best_of_k(rewards, [1, 2, 3], scores if imperfect else None, mask)
    for row in range(40):
        some = scores[row][mask[row]] if imperfect else None
        want = best_of_k(rewards[row][mask[row]], [1, 2, 3], some)
        np.testing.assert_allclose(got[row], want)


def test_worst_of_k_is_the_best_of_the_negative():
    rng = np.random.default_rng(0)
    rewards, scores = rng.normal(size=(2, 3, 7))
    for k in (1, 2, 7):
        want = [-brute_best_of_k(-row, k, -row) for row in rewards]
        np.testing.assert_allclose(worst_of_k(rewards, k), want)
        want = [brute_best_of_k(r, k, -s) for r, s in zip(rewards, scores, strict=True)]
        np.testing.assert_allclose(worst_of_k(rewards, k, scores), want)
    assert worst_of_k([1.0, 2.0], 2).shape == ()
    mask = np.array([[True, True, False]])
    assert worst_of_k([[1.0, 2.0, -9.0]], 2, mask=mask) == 1.0


# -- majority_at_k: values ----------------------------------------------------


def some_votes(seed):
    """Codes with ties and samples that do not vote; rewards of three kinds."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 10))
    codes = rng.integers(-1, rng.integers(1, 7), size=n)
    correct = [codes == 0, rng.integers(0, 2, n), rng.normal(size=n)][seed % 3]
    return rng, codes, np.asarray(correct, float)


@pytest.mark.parametrize("seed", range(30))
def test_majority_at_k_matches_brute_force_for_all_k_at_once(seed):
    _, codes, correct = some_votes(seed)
    ks = range(1, len(codes) + 1)
    got = majority_at_k(codes[None], correct[None], ks)[0]
    want = [brute_majority_at_k(codes, correct, k) for k in ks]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["any", "grades", "equal", "zero_or_one", "zero"])
@pytest.mark.parametrize("seed", range(12))
def test_weighted_majority_at_k_matches_brute_force(seed, kind):
    rng, codes, correct = some_votes(seed)
    n = len(codes)
    weights = {
        "any": rng.random(n),
        "grades": rng.integers(0, 4, n).astype(float),
        "equal": np.full(n, 0.7),
        "zero_or_one": rng.integers(0, 2, n).astype(float),
        "zero": np.zeros(n),
    }[kind]
    ks = range(1, n + 1)
    got = majority_at_k(codes[None], correct[None], ks, weights[None])[0]
    want = [brute_majority_at_k(codes, correct, k, weights) for k in ks]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "counts",
    [
        [64],
        [30, 34],
        [20, 20, 24],
        [9, 9, 9, 9, 9, 9, 10],
        [2] * 32,
        [1] * 64,
        [40, 8, 5, 3, *[1] * 8],
    ],
    ids=str,
)
def test_majority_at_k_matches_integers_for_64_samples(counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    for right in {0, len(counts) - 1}:
        got = majority_at_k(codes[None], (codes == right)[None], [1, 2, 3, 17, 32, 63, 64])[0]
        want = [exact_majority_at_k(counts, right, k) for k in (1, 2, 3, 17, 32, 63, 64)]
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_majority_at_k_of_answers_without_value_adds_up_to_one():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 9, size=(5, 50))
    shares = [majority_at_k(codes, codes == answer, range(1, 51)) for answer in range(9)]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("n", [1024, 1500])
def test_majority_at_k_stays_finite_for_many_samples(n):
    codes = np.arange(n) % 3
    got = majority_at_k(codes[None], (codes == 0)[None], [1, n // 2, n])[0]
    third = (codes == 0).mean()
    assert got[0] == pytest.approx(third, rel=1e-11)
    assert third < got[1] <= 0.5 if n % 3 else got[1] == pytest.approx(1 / 3)
    assert got[2] == pytest.approx(1.0 if n % 3 == 1 else 1 / 3)


def test_majority_at_k_of_two_votes_is_by_hand():
    # Subsets of {a, a, b}: {a, a} wins a; {a, b} twice is a tie, half each.
    answers = [["a", "a", "b"]]
    assert majority_at_k(answers, [[1, 1, 0]], 2)[0] == pytest.approx(1 / 3 + 2 / 3 / 2)


def test_majority_at_one_is_the_mean():
    rng = np.random.default_rng(0)
    codes, correct = rng.integers(-1, 5, size=(20, 30)), rng.normal(size=(20, 30))
    np.testing.assert_allclose(majority_at_k(codes, correct, 1), correct.mean(1), atol=1e-13)


def test_majority_at_n_without_ties_is_the_selected_answer():
    from bonaware.select import majority

    answers = [["a", "b", "b", None, ""], [None, None, "c", "c", "d"]]
    correct = np.array([[0, 1, 1, 0, 0], [1, 1, 0, 0, 1]], float)
    want = correct[np.arange(2), majority(answers)]
    np.testing.assert_allclose(majority_at_k(answers, correct, 5), want, atol=1e-13)


def test_majority_at_k_takes_the_samples_without_answer_when_nobody_votes():
    answers = [[None, "", "a", "a"]]
    # 2 of 4: {None, ""} with chance 1/6, of which one is right; else "a" wins, wrong.
    got = majority_at_k(answers, [[1, 0, 0, 0]], 2)
    assert got == pytest.approx([1 / 12])
    weighted = majority_at_k(answers, [[1, 0, 0, 0]], 2, weights=[[9.0, 9.0, 0.1, 0.2]])
    assert weighted == pytest.approx([1 / 12])


@pytest.mark.parametrize("weighted", [False, True])
def test_majority_at_k_with_a_mask_is_that_of_the_samples_alone(weighted):
    rng = np.random.default_rng(0)
    codes, correct = rng.integers(-1, 4, size=(30, 9)), rng.normal(size=(30, 9))
    weights = rng.random((30, 9)) if weighted else None
    mask = rng.random((30, 9)) < 0.7
    mask[:, :3] = True
    correct[~mask] = np.nan
    got = majority_at_k(codes, correct, [1, 3], weights, mask=mask)
    for row in range(30):
        alone = weights[row][mask[row]][None] if weighted else None
        want = majority_at_k(
            codes[row][mask[row]][None], correct[row][mask[row]][None], [1, 3], alone
        )
        np.testing.assert_allclose(got[row], want[0], atol=1e-13)


def test_majority_at_k_does_not_depend_on_how_answers_are_spelled():
    answers = [["b", "a", "", "b", None], ["x", "x", "y", "z", "y"]]
    codes = np.array([[7, 2**40, -1, 7, -1], [0, 0, 5, 10**18, 5]])
    correct = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]])
    want = majority_at_k(answers, correct, [1, 2, 3])
    for same in (
        codes,
        codes.astype(object),
        np.array(answers, object),
        [tuple(a) for a in answers],
    ):
        if same.__class__ is np.ndarray and same is not codes and same[0, 0] == 7:
            continue
        assert (majority_at_k(same, correct, [1, 2, 3]) == want).all()


def test_weighted_majority_at_k_with_equal_weights_is_majority_at_k():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, size=(10, 64))
    want = majority_at_k(codes, codes == 0, [1, 8, 64])
    got = majority_at_k(codes, codes == 0, [1, 8, 64], np.full((10, 64), 0.3))
    assert (got == want).all()


def test_weighted_majority_at_k_of_distinct_answers_is_best_of_k():
    weights = np.random.default_rng(0).random((4, 30))
    correct = np.random.default_rng(1).normal(size=(4, 30))
    codes = np.tile(np.arange(30), (4, 1))
    got = majority_at_k(codes, correct, [1, 5, 30], weights)
    np.testing.assert_allclose(got, best_of_k(correct, [1, 5, 30], weights), atol=1e-12)


def test_resampled_majority_is_within_its_stated_error():
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((200, 24)) < 0.55, 0, 1)
    ks = [1, 4, 12, 24]
    # Weights 1 + tiny decide ties only: nothing changes for odd k; for k=1 neither.
    weights = 1 + 1e-6 * rng.random(codes.shape)
    got = majority_at_k(codes, codes == 0, ks, weights)
    exact = majority_at_k(codes, codes == 0, ks)
    error = (got - exact)[:, :3] if ks[3] % 2 else (got - exact)[:, :1]
    assert np.abs(error).max() < 5 / 64
    assert np.abs(error.mean()) < 4 / 64 / math.sqrt(error.size)
    assert np.abs(error).max() > 0


def test_resampled_majority_depends_on_the_seed_and_not_on_the_other_rows():
    rng = np.random.default_rng(0)
    codes, weights = rng.integers(0, 2, size=(12, 40)), rng.random((12, 40))
    one = majority_at_k(codes, codes == 0, [5, 20], weights, rng=1)
    assert (one == majority_at_k(codes, codes == 0, [5, 20], weights, rng=1)).all()
    assert (one != majority_at_k(codes, codes == 0, [5, 20], weights, rng=2)).any()
    some = majority_at_k(codes[:7], codes[:7] == 0, [5, 20], weights[:7], rng=1)
    assert (one[:7] == some).all()
    assert (one[:, :1] == majority_at_k(codes, codes == 0, [5], weights, rng=1)).all()


def test_resampled_majority_counts_votes_without_weight_once_and_others_not_at_all():
    weights = np.random.default_rng(0).random(24)  # two answers with the same total
    row = np.concatenate([weights, weights, np.zeros(9), np.ones(9)])
    codes = np.repeat([0, 1, 0, -1], [24, 24, 9, 9])[None]
    got = majority_at_k(codes, codes == 0, len(row), row[None])
    assert got == [0.5]
    assert majority_at_k(codes, codes < 0, len(row), row[None]) == [0.0]


def test_majority_of_more_than_1500_samples_is_resampled():
    codes = np.repeat([0, 1], [1000, 700])[None]
    got = majority_at_k(codes, codes == 0, [1, 3])[0]
    p = 1000 / 1700
    assert got == pytest.approx([p, p**2 * (3 - 2 * p)], abs=5 / 64)


# -- win_rate and interval ----------------------------------------------------


def test_win_rate_counts_ties_as_half_and_drops_nan():
    rate, error = win_rate([[1.0, 0.0, 0.5, np.nan], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(rate, [0.5, 1.0])
    np.testing.assert_allclose(error, [np.std([1, 0, 0.5], ddof=1) / np.sqrt(3), 0.0])


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 16, 61, 64])
def test_win_rate_is_the_mean_of_fractions_with_their_standard_error(n):
    rng = np.random.default_rng(n)
    wins = rng.random((2, 6, n))
    wins[:, :, 2:][rng.random((2, 6, n - 2)) < 0.3] = np.nan
    rates, errors = win_rate(wins)
    assert rates.shape == errors.shape == (2, 6)
    for row, rate, error in zip(wins.reshape(-1, n), rates.flat, errors.flat, strict=True):
        made = [Fraction(float(x)) for x in row if not np.isnan(x)]
        mean = sum(made) / len(made)
        variance = sum((x - mean) ** 2 for x in made) / (len(made) - 1) / len(made)
        assert rate == pytest.approx(float(mean), rel=1e-14)
        assert error == pytest.approx(math.sqrt(variance), rel=1e-13)


@pytest.mark.parametrize("n", [2, 7, 8, 64, 65, 1000])
@pytest.mark.parametrize(
    ("first", "others", "spread"),
    [
        (0.5, 0.5, 0.5),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.25, 0.25, 0.0),
        (-0.0, 0.0, 1.0),
        (1.0, 0.25, 1e-9),
        (0.25, 0.25, 1e-9),
        (0.875, 0.125, 2.0**-50),
    ],
)
def test_win_rate_keeps_its_accuracy_wherever_the_first_value_lies(n, first, others, spread):
    row = others + spread * np.random.default_rng(n).random(n)
    row[0] = first
    made = [Fraction(float(x)) for x in row]
    mean = sum(made) / n
    variance = sum((x - mean) ** 2 for x in made) / (n - 1) / n
    rate, error = win_rate(row)
    assert rate == pytest.approx(float(mean), rel=1e-14)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-12 if n == 1000 else 1e-13)


@pytest.mark.parametrize("n", [3, 8, 19])
def test_win_rate_rejects_by_position_wherever_it_is(n):
    for column in range(n):
        for value in (-0.25, 1.25, np.inf, -np.inf):
            wins = np.full((3, n), 0.5)
            wins[1, column] = value
            with pytest.raises(ValueError, match=f"but row 1, column {column} is {value}"):
                win_rate(wins)


def test_win_rate_needs_a_comparison_in_every_row():
    assert win_rate(np.empty((0, 4)))[0].shape == (0,)
    with pytest.raises(ValueError, match="element 1 has none"):
        win_rate([[0.5, 0.5], [np.nan, np.nan]])
    with pytest.raises(ValueError, match="element 0 has none"):
        win_rate(np.empty((2, 0)))
    with pytest.raises(ValueError, match="preferences must be an array of numbers"):
        win_rate([["won"]])


def test_win_rate_of_one_comparison_has_no_standard_error():
    rate, error = win_rate([0.25, np.nan])
    assert rate == 0.25
    assert np.isnan(error)


def test_interval_is_near_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).random(300)
    low, high = interval(values)
    half = 1.96 * values.std() / math.sqrt(300)
    assert values.mean() - low == pytest.approx(half, rel=0.08)
    assert high - values.mean() == pytest.approx(half, rel=0.08)


def test_interval_covers_as_often_as_it_says():
    values = np.random.default_rng(0).random((60, 400))  # 400 experiments of 60 prompts
    low, high = interval(values, level=0.9)
    inside = ((low <= 0.5) & (high >= 0.5)).mean()
    assert 0.84 < inside < 0.95


def test_interval_is_over_one_axis_and_repeatable():
    values = np.random.default_rng(0).random((3, 20, 2))
    low, high = interval(values, axis=1, rng=5)
    assert low.shape == high.shape == (3, 2)
    assert (low < values.mean(1)).all()
    assert (values.mean(1) < high).all()
    assert (interval(values, axis=-2, rng=5)[0] == low).all()
    assert (interval(values, axis=1, rng=6)[0] != low).any()
    narrow_low, narrow_high = interval(values, axis=1, level=0.5, rng=5)
    assert (low < narrow_low).all()
    assert (narrow_high < high).all()


def test_interval_of_equal_values_is_that_value():
    low, high = interval(np.full((200_000, 1), 0.25)[:50])
    assert low == high == 0.25


# -- the law of best-of-k -----------------------------------------------------


def enumerated_policy(p, scores, k):
    """Exact law by going through all k-tuples."""
    policy = np.zeros(len(p))
    for draw in itertools.product(range(len(p)), repeat=k):
        top = max(scores[i] for i in draw)
        winners = [i for i in draw if scores[i] == top]
        for i in winners:
            policy[i] += math.prod(p[j] for j in draw) / len(winners)
    return policy


@pytest.mark.parametrize(
    "scores", [[3, 1, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, -np.inf]], ids=str
)
def test_bon_policy_is_the_law_of_the_best_of_k_draws(scores):
    p = np.array([0.1, 0.2, 0.3, 0.4])
    got = bon_policy(p, scores, [1, 2, 3, 4])
    for j, k in enumerate([1, 2, 3, 4]):
        np.testing.assert_allclose(got[:, j], enumerated_policy(p, scores, k), atol=1e-15)


def test_bon_policy_of_binary_scores_is_that_of_the_paper():
    p, k, f = np.array([0.2, 0.1, 0.7]), 5, 0.7
    want = [0.2 * (1 - f**k) / (1 - f), 0.1 * (1 - f**k) / (1 - f), 0.7 * f ** (k - 1)]
    np.testing.assert_allclose(bon_policy(p, [1, 1, 0], k), want)


def test_bon_policy_keeps_relative_accuracy_of_rare_samples():
    p = np.array([1 - 1e-12, 1e-12])
    assert bon_policy(p, [0.0, 1.0], 2)[1] == pytest.approx(2e-12 - 1e-24, rel=1e-13)
    assert bon_policy(p[::-1], [0.0, 1.0], 2)[0] == pytest.approx(1e-24, rel=1e-9)


def test_bon_policy_variational_tends_to_the_exact_law_in_divergence():
    n, k = 20_000, 8
    p, scores = np.full(n, 1 / n), np.arange(n)
    for law in ("exact", "variational"):
        q = bon_policy(p, scores, k, law=law)
        assert q.sum() == pytest.approx(1)
        assert (q * np.log(q / p)).sum() == pytest.approx(float(bon_kl(k)), abs=2e-3)


@pytest.mark.parametrize("law", ["exact", "variational"])
def test_bon_policy_is_a_distribution_where_p_is_one_but_for_rounding(law):
    p = np.array([0.5, 0.25, 0.25]) * (1 + 5e-7)
    assert bon_policy(p, [0.0, 1.0, 2.0], k=1, law=law).sum() == pytest.approx(1, abs=1e-12)
    assert bon_policy(p, [0.0, 1.0, 2.0], k=4, law=law).sum() == pytest.approx(1, abs=1e-12)


def test_bon_policy_gives_nothing_to_samples_of_no_probability():
    got = bon_policy([[0.5, 0.0, 0.5]], [[0.0, 1.0, 2.0]], 3)
    np.testing.assert_allclose(got, [[1 / 8, 0, 7 / 8]])


@pytest.mark.parametrize("fail", [0.0, 1e-12, 0.3, 0.5, 1 - 1e-9, 1.0])
def test_bon_kl_with_fail_matches_high_precision(fail):
    got = bon_kl([1, 2, 5, 100], fail=fail)
    with localcontext(prec=60):
        f = Decimal(fail)
        want = []
        for k in (1, 2, 5, 100):
            right = 1 - f**k
            gain = right * (right / (1 - f)).ln() if f < 1 else Decimal(0)
            want.append(float(gain + (f**k * (k - 1) * f.ln() if f > 0 else 0)))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-300)


def test_bon_kl_of_scores_is_that_of_the_policy():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(6, 11)).astype(float)
    for k in (1, 2, 7):
        q = bon_policy(np.full(scores.shape, 1 / 11), scores, k)
        np.testing.assert_allclose(bon_kl(k, scores), (q * np.log(q * 11)).sum(-1), atol=1e-13)
    correct = scores > 0
    np.testing.assert_allclose(
        bon_kl([3, 4], correct), bon_kl([3, 4], fail=1 - correct.mean(-1)), atol=1e-13
    )


def test_bon_kl_of_scores_is_below_the_bound_and_reaches_it():
    scores = np.random.default_rng(0).random(50_000)
    assert bon_kl(16, scores.round(2)) < bon_kl(16, scores) < bon_kl(16)
    assert bon_kl(16, scores) == pytest.approx(bon_kl(16), abs=1e-3)


def test_bon_kl_with_a_mask_is_that_of_the_samples_alone():
    scores = np.array([[1.0, 2.0, np.nan], [1.0, 1.0, 5.0]])
    mask = np.array([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(
        bon_kl(3, scores, mask=mask), [bon_kl(3, [1.0, 2.0]), bon_kl(3, [1.0, 1.0, 5.0])]
    )


def test_bon_lambda_is_the_root_to_high_precision():
    ks = [2, 3, 4, 8, 16, 32, 64, 1000]
    for k, lam in zip(ks, bon_lambda(ks), strict=True):
        with localcontext(prec=50):
            # The divergence rises with slope below 1 / lam, so its error bounds that of lam.
            x = Decimal(float(lam))
            e = x.exp()
            error = x * e / (e - 1) - 1 - ((e - 1) / x).ln() - Decimal(k).ln() + 1 - 1 / Decimal(k)
            slope = 1 / x - x * e / (e - 1) ** 2
            assert abs(error / slope) < Decimal("1e-13") * x


def test_bon_lambda_matches_the_table_of_the_method():
    want = [0.0, 2.289, 4.917, 9.055, 17.03, 33.02, 65.01]
    np.testing.assert_allclose(bon_lambda([1, 2, 4, 8, 16, 32, 64]), want, atol=0.005)
    assert bon_lambda(10**6) == pytest.approx(10**6 + 1, rel=1e-6)
    assert bon_lambda(2).shape == ()


# -- fit_coscaling ------------------------------------------------------------


def coscaling_data():
    temperatures, ks = np.array([0.2, 0.6, 1.2]), np.array([1, 2, 4, 8, 16, 32])
    a, b = np.array([-0.8, -1.0, -1.5]), np.array([-0.1, -0.3, -0.5])
    return temperatures, ks, a, b, np.exp(a[:, None] * ks ** b[:, None])


def test_fit_coscaling_recovers_a_curve_of_its_form():
    temperatures, ks, a, b, curve = coscaling_data()
    fit = fit_coscaling(temperatures, ks, curve)
    np.testing.assert_allclose(fit.a, a, rtol=1e-9)
    np.testing.assert_allclose(fit.b, b, rtol=1e-9)
    assert fit.residual.max() < 1e-12
    assert (fit.left_out == 0).all()
    np.testing.assert_allclose(fit.predict(1000, temperatures), np.exp(a * 1000.0**b))
    np.testing.assert_allclose(fit.predict(ks[None], temperatures[:, None]), curve)


@pytest.mark.heavy
def test_fit_coscaling_finds_the_least_squares_of_scipy():
    from scipy.optimize import curve_fit

    temperatures, ks, a, b, curve = coscaling_data()
    noisy = curve * np.random.default_rng(0).uniform(0.9, 1.0, curve.shape)
    fit = fit_coscaling(temperatures, ks, noisy)
    for t in range(3):
        (want_a, want_b), _ = curve_fit(
            lambda n, a, b: a * n**b, ks.astype(float), np.log(noisy[t]), p0=(a[t], b[t])
        )
        assert fit.a[t] == pytest.approx(want_a, rel=1e-5)
        assert fit.b[t] == pytest.approx(want_b, rel=1e-5)


def test_fit_coscaling_leaves_out_zero_and_one_and_counts_them():
    temperatures, ks, a, _, curve = coscaling_data()
    curve[0, 4:] = 1.0
    curve[2, 0] = 0.0
    fit = fit_coscaling(temperatures, ks, curve)
    assert fit.left_out.tolist() == [2, 0, 1]
    np.testing.assert_allclose(fit.a, a)


def test_fit_coscaling_takes_the_mean_over_prompts():
    temperatures, ks, _, _, curve = coscaling_data()
    prompts = np.stack([curve**2, 2 * curve - curve**2])  # their mean is curve
    fit, want = fit_coscaling(temperatures, ks, prompts), fit_coscaling(temperatures, ks, curve)
    np.testing.assert_allclose(fit.a, want.a)


def test_coscaling_best_temperature_rises_with_n_and_beats_all_others():
    temperatures, ks, _, _, curve = coscaling_data()
    fit = fit_coscaling(temperatures, ks, curve)
    assert fit.best_temperature([1, 4, 10_000]).tolist() == [0.2, 0.6, 1.2]
    between = np.linspace(0.2, 1.2, 101)
    for n in (1, 3, 10, 1e5):
        best = fit.predict(n, fit.best_temperature(n))
        assert fit.predict(n, between).max() <= best * (1 + 1e-12)


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        ([8, 3], [1, 1], 4, "problem 1 has n=3, c=1, k=4"),
        ([8, 3], [1, 1], [2, 4], "problem 1 has n=3, c=1, k=4"),
        ([8, 8], [1, 9], 4, "problem 1 has n=8, c=9"),
        ([8, 8], [-1, 1], 4, "problem 0 has n=8, c=-1"),
        ([2] * 9, [1] * 8 + [3], 1, "problem 8 has n=2, c=3"),
        ([2**53 + 1], [1], 1, "problem 0"),
        ([8], [1], 0, "k must be >= 1, got 0"),
        ([8], [1], [1, -2], "k must be >= 1, got -2"),
        ([8], [1], [[1]], r"got shape \(1, 1\)"),
    ],
)
def test_pass_at_k_rejects_bad_counts_by_name(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("rewards", [[[1, 0], [1]], [["a", "b"]]])
def test_rewards_that_are_no_array_of_numbers_get_a_sentence(rewards):
    with pytest.raises(ValueError, match="rewards must be an array of numbers, rows equally long"):
        best_of_k(rewards, 1)


def test_pass_at_k_rejects_what_is_not_an_integer():
    with pytest.raises(TypeError, match="c must hold integers, got dtype float64"):
        pass_at_k([8], [1.0], 4)
    with pytest.raises(TypeError, match="k must hold integers, got dtype float64"):
        pass_at_k([8], [1], 4.0)
    with pytest.raises(TypeError, match="c must hold integers, got dtype bool"):
        pass_at_k([8], [True], 4)


@pytest.mark.parametrize("k", [-1, 0, 4, [1, 4]])
def test_best_of_k_rejects_k_out_of_range(k):
    with pytest.raises(ValueError, match=r"got k=4 with n=3|k must be >= 1, got (0|-1)"):
        best_of_k([1.0, 2.0, 3.0], k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["rewards", "scores", "perfect", "mean", "mean_scores", "masked"])
def test_best_of_k_rejects_non_finite_by_position(value, where):
    rewards, scores = np.zeros((2, 300, 5))
    (scores if "scores" in where else rewards)[200, 3] = value
    mask = np.arange(5) < np.full((300, 1), 4) if where == "masked" else None
    k = 1 if "mean" in where else 2
    with pytest.raises(ValueError, match="must be finite, but row 200, column 3 is not"):
        best_of_k(rewards, k, None if where in ("perfect", "mean") else scores, mask)


def test_best_of_k_rejects_different_shapes():
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        best_of_k([1.0, 2.0, 3.0], 1, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"shape of rewards, \(3,\), got \(2,\)"):
        best_of_k([1.0, 2.0, 3.0], 1, mask=[True, False])


def test_estimators_name_the_row_with_too_few_samples():
    mask = np.array([[True] * 3, [True, False, True]])
    message = "need 1 <= k <= n, but row 1 has n=2 samples, k=3"
    with pytest.raises(ValueError, match=message):
        best_of_k(np.zeros((2, 3)), [1, 3], mask=mask)
    with pytest.raises(ValueError, match=message):
        majority_at_k(np.zeros((2, 3), int), np.zeros((2, 3)), [1, 3], mask=mask)
    codes = np.array([[0, 0, 0], [0, -2, 0]])
    with pytest.raises(ValueError, match=message):
        _estimators.majority_at_k(codes, None, F23, np.array([1, 3]), 0, np.empty((2, 2)), 0, 2)
    with pytest.raises(TypeError, match="mask must hold bools, got dtype int64"):
        best_of_k(np.zeros((2, 3)), 1, mask=np.ones((2, 3), int))


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (["ab", "cd"], TypeError, "must be nested"),
        ([3, 4], TypeError, "must be nested"),
        ([["a"], ["b", "c"]], ValueError, "row 0 has 1 and row 1 has 2"),
        ([["a", "b"], ["c", 3]], TypeError, "row 1, column 1 is int"),
        ([["a", "b"], ["c", ["d"]]], TypeError, "row 1, column 1 is list"),
        ([[0.5, 0.5]], TypeError, "row 0, column 0 is float"),
        (np.array([[0, -1], [0, -2]]), ValueError, "row 1, column 1 has -2"),
        (np.array([0, 1]), ValueError, r"shape \[P, n\], got \(2,\)"),
    ],
)
def test_majority_at_k_rejects_what_is_no_answer(answers, error, message):
    with pytest.raises(error, match=message):
        majority_at_k(answers, np.zeros((2, 2)), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": np.zeros((2, 4))}, r"correct and answers .* got \(2, 4\) and \(2, 3\)"),
        ({"weights": np.zeros((3, 2))}, r"weights and answers .* got \(3, 2\) and \(2, 3\)"),
        ({"weights": [[1, 1, 1], [1, -2, 1]]}, "weights must be .* row 1, column 1 has -2.0"),
        ({"weights": [[1, 1, 1], [1, 1, np.nan]]}, "weights must be .* row 1, column 2 has nan"),
        ({"weights": [[1e308] * 3] * 2}, "weights of row 0 sum to more"),
        ({"correct": [[0, 0, 0], [0, np.inf, 0]]}, "rewards must be finite, but row 1, column 1"),
        ({"k": 4}, "got k=4 with n=3"),
        ({"k": 0}, "k must be >= 1"),
    ],
)
def test_majority_at_k_rejects_bad_values_by_position(change, message):
    call = {"answers": np.zeros((2, 3), int), "correct": np.zeros((2, 3)), "k": 2}
    with pytest.raises(ValueError, match=message):
        majority_at_k(**call | change)


def test_win_rate_and_interval_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"in \[0, 1\], but row 0, column 1 is 1.5"):
        win_rate([[0.0, 1.5]])
    with pytest.raises(ValueError, match="element 1 has none"):
        win_rate([[0.5], [np.nan]])
    with pytest.raises(ValueError, match="single number"):
        win_rate(0.5)
    with pytest.raises(ValueError, match="row 1, column 0 is not"):
        interval([[0.0], [np.nan]])
    with pytest.raises(ValueError, match="at least 2 values along axis 1, got 1"):
        interval([[0.0], [1.0]], axis=1)
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 95"):
        interval([0.0, 1.0], level=95)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bon_kl(2, [1.0], 0.5), "not both"),
        (lambda: bon_kl(2, fail=1.5), r"fail must be in \[0, 1\], but it is 1.5"),
        (lambda: bon_kl(2, fail=[0.5, np.nan]), "element 1 is nan"),
        (lambda: bon_kl(2, [[1.0, np.nan]]), "scores must not be NaN, but row 0, column 1"),
        (lambda: bon_kl(2, 1.0), "single number"),
        (lambda: bon_kl(0), "k must be >= 1"),
        (lambda: bon_kl(2, mask=[True]), "mask belongs to scores"),
        (lambda: bon_kl(2, [[1.0]], mask=[[False]]), "element 0 has none"),
        (lambda: bon_lambda(0), "k must be >= 1"),
        (lambda: bon_policy([0.5, 0.4], [0, 1], 2), "it sums to 0.9"),
        (lambda: bon_policy([[1.0, 0.0], [0.5, 0.4]], [[0, 1]] * 2, 2), "element 1 sums to 0.9"),
        (lambda: bon_policy([0.5, 0.5], [0, 1, 2], 2), "scores and p must have the same shape"),
        (lambda: bon_policy([-0.5, 1.5], [0, 1], 2), "element 0 is -0.5"),
        (lambda: bon_policy(1.0, 1.0, 2), "single number"),
        (lambda: bon_policy([1.0], [1.0], 2, law="soft"), "got 'soft'"),
        (lambda: fit_coscaling([1.0], [1, 2], [0.5, 0.6]), "need temperatures"),
        (lambda: fit_coscaling([1.0, 0.5], [1, 2], [[0.5, 0.6]] * 2), "must rise"),
        (lambda: fit_coscaling([1.0], [1, 1], [[0.5, 0.6]]), "all different"),
        (lambda: fit_coscaling([1.0], [1, 2], [[0.5, 1.0]]), "temperature 1.0 has 1 of 2"),
        (lambda: fit_coscaling([1.0], [1, 2], [[0.5, 1.1]]), "row 0, column 1 is 1.1"),
        (lambda: fit_coscaling([1.0], [1, 2], [[0.5, 0.6]]).predict(0, 1.0), "n must be >= 1"),
        (lambda: fit_coscaling([1.0], [1, 2], [[0.5, 0.6]]).predict(2, 2.0), "got 2.0"),
    ],
)
def test_law_and_fit_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ([1, 2], "got list"),
        (np.zeros(2), "got dtype float64 with 1 dimension"),
        (np.zeros((2, 2), np.int64), "got dtype int64 with 2 dimension"),
        (np.zeros(4, np.int64)[::2], "not contiguous"),
        (np.zeros(2, ">i8"), "got dtype >i8"),
    ],
    ids=["list", "float64", "2d", "strided", "big_endian"],
)
def test_binding_refuses_what_it_would_have_to_copy(bad, found):
    with pytest.raises(TypeError, match=rf"^n must be a.*{found}"):
        _estimators.pass_at_k(bad, np.zeros(2, np.int64), ONE, np.empty((2, 1)), 0, 2)


I23, F23, F32, OUT = (
    np.zeros((2, 3), np.int64),
    np.zeros((2, 3)),
    np.zeros((3, 2)),
    np.empty((2, 1)),
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _estimators.pass_at_k(I23[0], I23[:, 0].copy(), ONE, OUT, 0, 2),
            r"n and c must have the same shape, got \(3,\) and \(2,\)",
        ),
        (lambda: _estimators.best_of_k(F23, F32, ONE, OUT, 0, 2), r"got \(2, 3\) and \(3, 2\)"),
        (
            lambda: _estimators.majority_at_k(I23, F32, F23, ONE, 0, OUT, 0, 2),
            r"got \(2, 3\) and \(3, 2\)",
        ),
        (
            lambda: _estimators.majority_at_k(I23, None, F32, ONE, 0, OUT, 0, 2),
            r"got \(2, 3\) and \(3, 2\)",
        ),
        (lambda: _estimators.best_of_k(F23, F23, ONE, F23, 0, 2), r"out .* \(2, 1\), got \(2, 3\)"),
        (lambda: _estimators.pass_at_k(I23[0], I23[0], ONE, OUT, 0, 2), r"\(3, 1\), got \(2, 1\)"),
        (
            lambda: _estimators.majority_at_k(I23, None, F23, ONE, 0, F32, 0, 2),
            r"out .* \(2, 1\), got \(3, 2\)",
        ),
        (lambda: _estimators.win_rate(F23, OUT, F23, 0, 2), r"got \(2, 1\) and \(2, 3\)"),
        (lambda: _estimators.win_rate(F23, F23, OUT, 0, 2), r"out .* \(2, 1\), got \(2, 3\)"),
        (lambda: _estimators.win_rate(F23, OUT, OUT, 1, 3), "start=1, stop=3 with 2 rows"),
        (lambda: _estimators.best_of_k(F23, F23, ONE, OUT, 1, 3), "start=1, stop=3 with 2 rows"),
        (lambda: _estimators.best_of_k(F23, F23, ONE, OUT, -1, 2), "start=-1, stop=2"),
        (lambda: _estimators.best_of_k(F23, F23, ONE, OUT, 2, 1), "start=2, stop=1"),
        (lambda: _estimators.best_of_k(F23, F23, 4 * ONE, OUT, 0, 2), "got k=4 with n=3"),
        (lambda: _estimators.best_of_k(F23, F23, 0 * ONE, OUT, 0, 2), "got k=0 with n=3"),
        (
            lambda: _estimators.pass_at_k(I23[0], I23[0], 0 * ONE, np.empty((3, 1)), 0, 3),
            "k must be",
        ),
    ],
)
def test_binding_refuses_shapes_and_rows_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_binding_refuses_to_write_what_is_read_only():
    out = np.empty((2, 1))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        _estimators.best_of_k(F23, F23, ONE, out, 0, 2)


def test_binding_writes_the_rows_it_is_asked_for():
    out = np.full((10, 1), -1.0)
    _estimators.best_of_k(np.ones((10, 3)), np.ones((10, 3)), ONE, out, 2, 5)
    assert out.ravel().tolist() == [-1, -1, 1, 1, 1, -1, -1, -1, -1, -1]


# -- the C boundary and threads -----------------------------------------------
# The binding works in chunks of about 2**21 steps; these inputs span several.


@pytest.fixture(params=["1", "3"], ids="{}_threads".format)
def threads(request, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", request.param)
    return int(request.param)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    rewards, weights = rng.random((2, 3001, 64))
    codes, c = rng.integers(0, 4, size=(3001, 64)), rng.integers(0, 65, size=3_000_001)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(
            [
                pass_at_k(64, c, 7),
                best_of_k(rewards, range(1, 65), weights),
                majority_at_k(codes, rewards, [1, 64]),
                majority_at_k(codes[:60], rewards[:60], [1, 64], weights[:60]),
            ]
        )
    for one, three in zip(*results, strict=True):
        assert (one == three).all()


def test_threads_are_started_for_much_work_only(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for rows, some in ((10, False), (200_000, True)):
        names = set()
        for_rows(lambda a, b, n=names: n.add(threading.current_thread().name), rows, 1000)
        assert (names != {threading.main_thread().name}) is some


def test_ctrl_c_while_parts_are_handed_out_leaves_the_others_undone(monkeypatch):
    """That moment is hard to meet by the clock: the twentieth part brings it."""
    handed_out, begun, on = [], [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def submit(self, *part):
            handed_out.append(part)
            if len(handed_out) == 20:
                raise KeyboardInterrupt
            return super().submit(*part)

        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            on.set()
            super().shutdown(wait)

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(_parallel, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        for_rows(lambda start, stop: begun.append(start) or on.wait(), 200_000, 1000)
    assert len(begun) <= 2


def test_the_first_of_several_errors_is_raised(threads):
    rewards = np.zeros((200_000, 64))
    rewards[[60_001, 150_000], 3] = np.nan
    with pytest.raises(ValueError, match="row 60001, column 3"):
        best_of_k(rewards, [1, 2])


def test_pass_at_k_values_and_errors_do_not_depend_on_chunks():
    n, c, k = 10**6, np.arange(10_000), 1000
    whole = pass_at_k(n, c, k)
    assert (whole[::97] == [pass_at_k(n, ci, k) for ci in c[::97]]).all()
    c[8567] = -1
    with pytest.raises(ValueError, match="problem 8567 has n=1000000, c=-1"):
        pass_at_k(n, c, k)


def test_best_of_k_values_and_errors_do_not_depend_on_chunks():
    rewards, scores = np.random.default_rng(0).normal(size=(2, 50, 5000))
    ks = range(1, 5000, 50)
    whole = best_of_k(rewards, ks, scores)
    for row in (0, 23, 24, 49):
        assert (whole[row] == best_of_k(rewards[row], ks, scores[row])).all()
    rewards[49, 4] = np.nan
    with pytest.raises(ValueError, match="row 49, column 4"):
        best_of_k(rewards, ks)


def test_majority_at_k_values_and_errors_do_not_depend_on_chunks():
    rng = np.random.default_rng(0)
    codes, correct = rng.integers(0, 5, size=(2000, 64)), rng.random((2000, 64))
    whole = majority_at_k(codes, correct, [1, 32])
    parts = [
        majority_at_k(codes[i : i + 77], correct[i : i + 77], [1, 32]) for i in range(0, 2000, 77)
    ]
    assert (whole == np.concatenate(parts)).all()
    correct[1999, 4] = np.nan
    with pytest.raises(ValueError, match="row 1999, column 4"):
        majority_at_k(codes, correct, 1)


def slow_majority():
    codes = np.random.default_rng(0).integers(0, 8, size=(4000, 64))
    return majority_at_k(codes, codes == 0, 64, np.random.default_rng(1).random(codes.shape))


def slow_best_of_k():
    return best_of_k(np.random.default_rng(0).random((5000, 2000)), range(1, 2000))


@pytest.mark.clock
@pytest.mark.parametrize("work", [lambda: pass_at_k(**SLOW), slow_best_of_k, slow_majority])
def test_estimators_stop_on_ctrl_c(work, threads):
    assert seconds_to_stop(work, after=0.1) < 0.3


RAGGED = np.random.default_rng(0).random((300, 3000))
VOTES = np.random.default_rng(0).integers(0, 8, size=(400, 64))


@pytest.mark.parametrize(
    "work",
    [
        lambda: pass_at_k(**{**SLOW, "n": SLOW["n"][:40_000]}),
        lambda: best_of_k(RAGGED, range(1, 1500)),
        lambda: majority_at_k(
            VOTES, VOTES == 0, 64, weights=RAGGED[:1, :64] * np.ones(VOTES.shape)
        ),
    ],
    ids=["pass_at_k", "best_of_k", "majority_at_k"],
)
def test_estimators_run_without_the_gil(work):
    worker = threading.Thread(target=work)
    start = time.perf_counter()
    worker.start()
    time.sleep(0.005)
    woke = time.perf_counter() - start
    worker.join()
    assert woke < (time.perf_counter() - start) / 2  # else the GIL kept us asleep


CODES = np.zeros((10, 100), np.int64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(np.full(1000, 8), np.full(1000, 4), 1),
        lambda: pass_at_k(np.full(1000, 8), np.full(1000, 9), 1),
        lambda: _estimators.pass_at_k(np.full(1000, 8), [], ONE, OUT, 0, 1),
        lambda: best_of_k(np.zeros((10, 1000)), 3),
        lambda: best_of_k(np.full((10, 1000), np.nan), 3),
        lambda: majority_at_k(CODES, CODES, 1),
        lambda: majority_at_k(CODES, CODES, 1, CODES - 1.0),
        lambda: majority_at_k(CODES, CODES + np.nan, 1),
    ],
    ids=["pass", "pass_error", "pass_type_error", "best", "best_error", "vote", "weight", "reward"],
)
def test_binding_frees_its_memory_on_success_and_on_error(call):
    calls = 200
    assert bytes_kept(call, calls) < 16 * calls  # no object is smaller; caches add a few kB once
