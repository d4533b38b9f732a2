"""bonaware.select against plain Python, and its errors."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import seconds_to_stop
from leaks import bytes_kept

from bonaware import _select
from bonaware.estimators import best_of_k, majority_at_k
from bonaware.select import best_of_n, majority, weighted_majority

OUT, F12, I12 = np.empty(1, np.int64), np.zeros((1, 2)), np.zeros((1, 2), np.int64)
ANSWER = st.sampled_from(["a", "b", "c", "", None])
WEIGHT = st.integers(0, 3).map(float)


def plain_majority(answers, weights=None, mask=None):
    """The rule in words: largest total, first seen of equals; nobody votes: first sample."""
    some = [i for i in range(len(answers)) if mask is None or mask[i]]
    totals = {}
    for i in some:
        if answers[i]:
            weight = 1 if weights is None else Fraction(weights[i])
            totals[answers[i]] = totals.get(answers[i], 0) + weight
    if not totals:
        return some[0]
    winner = max(totals, key=totals.get)  # max keeps the first of equals
    return next(i for i in some if answers[i] == winner)


def rows_of(*columns, size=12):
    """1 .. size tuples of (answer, ...), as one list per column."""
    rows = st.lists(st.tuples(*columns), min_size=1, max_size=size)
    return rows.map(lambda row: list(zip(*row, strict=True)))


# -- values -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 63, 64, 65])
@pytest.mark.parametrize("levels", [1, 3, 10**6], ids="{}_levels".format)
def test_best_of_n_is_the_first_of_the_largest(n, levels):
    scores = np.random.default_rng(n).integers(-levels, levels, size=(50, n)).astype(float)
    assert (best_of_n(scores) == scores.argmax(1)).all()
    assert (best_of_n(scores, np.ones(scores.shape, bool)) == scores.argmax(1)).all()


def test_best_of_n_looks_at_samples_only():
    scores = [[9.0, 1.0, 2.0, np.nan], [5.0, 5.0, np.nan, 7.0]]
    mask = [[False, True, True, False], [False, True, False, False]]
    assert best_of_n(scores, np.array(mask)).tolist() == [2, 1]


def test_best_of_n_takes_infinite_scores():
    inf = np.inf
    assert best_of_n([[-inf, -inf, -1.0], [-inf, -inf, -inf], [0.0, inf, inf]]).tolist() == [
        2,
        0,
        1,
    ]
    mask = np.array([[False, True, True]])
    assert best_of_n([[3.0, -inf, -inf]], mask).tolist() == [1]


def test_best_of_n_has_the_reward_of_best_of_k_with_k_n():
    rewards, scores = np.random.default_rng(0).random((2, 20, 9))
    chosen = rewards[np.arange(20), best_of_n(scores)]
    np.testing.assert_allclose(best_of_k(rewards, 9, scores), chosen)


@settings(deadline=None)
@given(rows_of(ANSWER, WEIGHT, st.booleans()))
def test_majorities_follow_the_rule(row):
    answers, weights, mask = row
    assert majority([answers]) == [plain_majority(answers)]
    assert weighted_majority([answers], [weights]) == [plain_majority(answers, weights)]
    if any(mask):
        some = np.array([mask])
        assert majority([answers], some) == [plain_majority(answers, mask=mask)]
        assert weighted_majority([answers], [weights], some) == [
            plain_majority(answers, weights, mask)
        ]


def test_majority_of_many_answers_is_the_most_common():
    rng = np.random.default_rng(0)
    codes = rng.zipf(1.3, size=(40, 500))
    for chosen, row in zip(majority(codes), codes.tolist(), strict=True):
        assert row[chosen] == Counter(row).most_common(1)[0][0]
        assert row.index(row[chosen]) == chosen


def test_majority_takes_codes_and_any_nesting():
    answers = [["x", "y", "y"], ["", "z", None]]
    codes = np.array([[4, 0, 0], [-1, 2**62, -1]])
    same = [codes, codes.tolist() and np.array(answers, object), tuple(map(tuple, answers))]
    for given_as in same:
        assert majority(given_as).tolist() == [1, 1]
    assert majority(codes.astype(np.int32) % 7).tolist() == [1, 0]
    assert majority(np.array([["x", "y", "y"]])).tolist() == [1]
    assert majority([]).shape == (0,)


def test_majority_agrees_with_its_estimator_for_all_samples():
    codes = np.random.default_rng(0).integers(0, 30, size=(50, 61))
    counts = np.stack([(codes == answer).sum(1) for answer in range(30)])
    alone = (counts == counts.max(0)).sum(0) == 1  # the estimator averages over ties
    correct = (codes == 3).astype(float)
    chosen = correct[np.arange(50), majority(codes)]
    np.testing.assert_allclose(majority_at_k(codes, correct, 61)[alone], chosen[alone], atol=1e-12)


@pytest.mark.parametrize("unit", [1.0, 1e-300, 1e300, 0.1])
def test_weighted_majority_does_not_depend_on_the_order_or_unit(unit):
    weights = unit * np.array([3, 2, 1, 2, 4.0])
    codes = np.array([0, 1, 2, 2, 1])  # totals 3, 6, 3
    for p in np.random.default_rng(0).permuted(np.tile(np.arange(5), (50, 1)), axis=1):
        chosen = weighted_majority(codes[p][None], weights[p][None])[0]
        assert codes[p][chosen] == 1


def test_weighted_majority_sees_a_tie_of_sums_in_another_order():
    # In doubles 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit.
    weights = np.array([[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]])
    assert weighted_majority([["a"] * 3 + ["b"] * 3], weights).tolist() == [0]
    assert weighted_majority([["a"] * 3 + ["b"] * 3], weights[:, ::-1]).tolist() == [0]


def test_weighted_majority_ignores_weights_of_samples_that_do_not_vote():
    answers = [["", "a", "b", None]]
    assert weighted_majority(answers, [[np.nan, 1.0, 2.0, -3.0]]).tolist() == [2]
    mask = np.array([[True, True, False, True]])
    assert weighted_majority(answers, [[np.inf, 1.0, np.nan, 0.0]], mask).tolist() == [1]


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize("column", [0, 7, 8, 12])
def test_best_of_n_rejects_nan_by_position(column):
    scores = np.random.default_rng(0).random((300, 13))
    scores[200, column] = np.nan
    message = f"scores must not be NaN, but row 200, column {column} is"
    with pytest.raises(ValueError, match=message):
        best_of_n(scores)
    with pytest.raises(ValueError, match=message):
        best_of_n(scores, np.ones(scores.shape, bool))


def test_selectors_name_the_row_without_a_sample():
    mask = np.array([[True, True], [False, False]])
    message = "at least one sample to choose from, but row 1 has none"
    with pytest.raises(ValueError, match=message):
        best_of_n(np.zeros((2, 2)), mask)
    with pytest.raises(ValueError, match=message):
        majority([["a", "b"]] * 2, mask)
    with pytest.raises(ValueError, match=message):
        weighted_majority([["a", "b"]] * 2, np.ones((2, 2)), mask)
    with pytest.raises(ValueError, match="row 0 has none"):
        best_of_n(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="row 0 has none"):
        majority([[], []])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: best_of_n([1.0, 2.0]), ValueError, r"shape \[P, n\], got \(2,\)"),
        (lambda: best_of_n([[1.0]], [[1]]), TypeError, "mask must hold bools, got dtype int64"),
        (lambda: best_of_n([[1.0]], [[True, True]]), ValueError, r"scores, \(1, 1\), got \(1, 2\)"),
        (lambda: majority([["a"]], [[True, True]]), ValueError, r"answers, \(1, 1\), got"),
        (lambda: majority(["ab"]), TypeError, "must be nested"),
        (lambda: majority([["a", 1]]), TypeError, "row 0, column 1 is int"),
        (lambda: majority(np.array([[0, -5]])), ValueError, "row 0, column 1 has -5"),
        (lambda: best_of_n([["high", 1.0]]), ValueError, "scores must be an array of numbers"),
        (
            lambda: weighted_majority([["a", "b"]], [[1.0], [1.0, 2.0]]),
            ValueError,
            "scores must be an array of numbers, rows equally long",
        ),
        (lambda: weighted_majority([["a"]], [1.0]), ValueError, r"got \(1,\) and \(1, 1\)"),
        (
            lambda: weighted_majority([["a", "b"]], [[1.0, -0.5]]),
            ValueError,
            "weights must be finite and >= 0, but row 0, column 1 has -0.5",
        ),
        (
            lambda: weighted_majority([["a"]] * 2, [[1.0], [np.nan]]),
            ValueError,
            "row 1, column 0 has nan",
        ),
        (lambda: weighted_majority([["a"]], [[np.inf]]), ValueError, "row 0, column 0 has inf"),
        (lambda: weighted_majority([["a"] * 2], [[1e308] * 2]), ValueError, "row 0 sum to more"),
        (lambda: _select.best_of_n([[1.0]], None, OUT, 0, 1), TypeError, "must be a numpy array"),
        (
            lambda: _select.best_of_n(F12, np.zeros((1, 3), bool), OUT, 0, 1),
            ValueError,
            r"got \(1, 2\) and \(1, 3\)",
        ),
        (
            lambda: _select.majority(I12, np.zeros((1, 3)), OUT, 0, 1),
            ValueError,
            r"got \(1, 2\) and \(1, 3\)",
        ),
        (lambda: _select.majority(I12 - 3, None, OUT, 0, 1), ValueError, "row 0, column 0 has -3"),
        (lambda: _select.best_of_n(F12, None, I12[0], 0, 1), ValueError, "out .* 1, got 2"),
        (lambda: _select.majority(I12, None, I12[0], 0, 1), ValueError, "out .* 1, got 2"),
        (lambda: _select.best_of_n(F12, None, OUT, 0, 2), ValueError, "stop=2 with 1 rows"),
        (lambda: _select.majority(I12, None, OUT, 0, 2), ValueError, "stop=2 with 1 rows"),
    ],
)
def test_selectors_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- the C boundary -----------------------------------------------------------
# The binding works in chunks of about 2**21 steps; these inputs span several.


def test_selectors_do_not_depend_on_chunks():
    rng = np.random.default_rng(0)
    scores, codes = rng.random((70_000, 64)), rng.integers(0, 9, size=(70_000, 64))
    assert (best_of_n(scores) == scores.argmax(1)).all()
    some = slice(60_000, 60_100)
    assert (majority(codes)[some] == majority(codes[some])).all()
    assert (
        weighted_majority(codes, scores)[some] == weighted_majority(codes[some], scores[some])
    ).all()
    scores[69_999, 1] = np.nan
    with pytest.raises(ValueError, match="row 69999, column 1"):
        best_of_n(scores)
    with pytest.raises(ValueError, match="row 69999, column 1"):
        weighted_majority(codes, scores)


@pytest.mark.clock
def test_selectors_stop_on_ctrl_c():
    codes = np.random.default_rng(0).integers(0, 50, size=(300_000, 64))

    def work():
        for _ in range(100):
            majority(codes)

    assert seconds_to_stop(work, after=0.1) < 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda: best_of_n(np.zeros((1000, 4))),
        lambda: best_of_n(np.full((1000, 4), np.nan)),
        lambda: best_of_n(np.zeros((1000, 4)), np.zeros((1000, 4), bool)),
        lambda: weighted_majority(np.zeros((100, 4), int), np.ones((100, 4))),
        lambda: majority(np.zeros((100, 4), int), np.zeros((100, 4), bool)),
        lambda: weighted_majority(np.zeros((100, 4), int), np.full((100, 4), -1.0)),
    ],
    ids=["best", "nan", "no_sample", "vote", "no_vote", "bad_weight"],
)
def test_binding_frees_its_memory_on_success_and_on_error(call):
    calls = 300
    assert bytes_kept(call, calls) < 16 * calls  # no object is smaller; caches add a few kB once
