"""bonaware.diagnostics against plain Python, and its errors."""

import statistics

import numpy as np
import pytest

from bonaware import losses
from bonaware.diagnostics import diagnose, effective_samples, weight_variance, without_signal

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(6, 5))
WEIGHTS[2] = 0.0
WEIGHTS[4] = [0.0, 0.0, -3.0, 0.0, 0.0]
MASK = RNG.random((6, 5)) < 0.7
MASK[4, 2] = True
MASK[5] = [False, False, True, False, False]


def rows(values, mask):
    return [
        [x for x, there in zip(*row, strict=True) if there]
        for row in zip(values, mask, strict=True)
    ]


# -- values -------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "ragged"])
def test_diagnostics_are_those_of_the_samples_that_are_there(mask):
    junk = np.where(MASK if mask is not None else True, WEIGHTS, np.nan)
    some = rows(WEIGHTS.tolist(), np.ones((6, 5), bool) if mask is None else mask)
    assert without_signal(junk, mask).tolist() == [not any(row) for row in some]
    np.testing.assert_allclose(
        weight_variance(junk, mask),
        [statistics.pvariance([len(row) * w for w in row]) for row in some],
    )
    np.testing.assert_allclose(
        effective_samples(junk, mask),
        [sum(map(abs, row)) ** 2 / (sum(w * w for w in row) or 1) for row in some],
    )


def test_effective_samples_lie_between_one_and_n():
    assert effective_samples([[0.0, -2.0, 0.0, 0.0]]) == 1
    assert effective_samples([[0.5, -0.5, 0.5, 0.5]]) == 4
    assert effective_samples([[0.0, 0.0]]) == 0
    inside = effective_samples(RNG.normal(size=(50, 4)))
    assert ((inside > 1) & (inside < 4)).all()


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_effective_samples_do_not_depend_on_the_unit(unit):
    np.testing.assert_allclose(effective_samples(unit * WEIGHTS), effective_samples(WEIGHTS))


def test_weight_variance_does_not_depend_on_n():
    twice = np.concatenate([WEIGHTS, WEIGHTS], axis=1) / 2
    np.testing.assert_allclose(weight_variance(twice), weight_variance(WEIGHTS))


def test_a_prompt_without_samples_has_nothing_to_learn_from():
    none = np.zeros((1, 3), bool)
    junk = np.full((1, 3), np.nan)
    assert without_signal(junk, none).tolist() == [True]
    assert weight_variance(junk, none).tolist() == [0.0]
    assert effective_samples(junk, none).tolist() == [0.0]
    assert without_signal(np.zeros((2, 0))).tolist() == [True, True]


def test_diagnose_is_the_mean_over_prompts_with_samples():
    rewards = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 9]], float)
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    _, weights = losses.get("reinforce")()(rewards[:3])
    weights = np.concatenate([weights, [[np.nan] * 3]])
    found = diagnose(weights, rewards, mask)
    assert found == {
        "reward": pytest.approx(4 / 9),
        "all_equal": pytest.approx(2 / 3),
        "all_zero": pytest.approx(1 / 3),
        "no_signal": pytest.approx(2 / 3),
        "weight_variance": pytest.approx(weight_variance(weights[2:3])[0] / 3),
        "effective_samples": pytest.approx(effective_samples(weights[2:3])[0] / 3),
    }
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("reward", [-1.0, 1.0])
def test_diagnose_does_not_look_where_no_sample_is(reward):
    found = diagnose([[0.0, 0.0, 5.0]], [[reward, reward, 9.0]], [[True, True, False]])
    assert found["reward"] == reward
    assert found["all_equal"] == found["no_signal"] == 1
    assert found["all_zero"] == 0


def test_demonstrations_count_in_weights_and_not_in_rewards():
    rewards, weights = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1]], float), WEIGHTS[:3, :3]
    expert = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
    found = diagnose(weights, rewards, None, expert)
    of_rewards = diagnose(weights[:2, :2], rewards[:2, :2])
    for name, value in diagnose(weights, rewards).items():
        wanted = of_rewards[name] if name in ("reward", "all_equal", "all_zero") else value
        assert found[name] == wanted, name
    found = diagnose(weights, rewards, None, expert | True)
    assert found["reward"] is found["all_equal"] is found["all_zero"] is None


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: without_signal([1.0]), ValueError, r"weights must have the shape \[P, n\], got"),
        (
            lambda: weight_variance([[0.0, np.inf]]),
            ValueError,
            "weights must be finite, but row 0, column 1 is inf",
        ),
        (lambda: effective_samples([[1.0]], [[1]]), TypeError, "mask must hold bools, got dtype"),
        (
            lambda: diagnose([[1.0]], [[1.0, 2.0]]),
            ValueError,
            r"weights and rewards must have the same shape, got \(1, 1\) and \(1, 2\)",
        ),
        (
            lambda: diagnose([[1.0]], [[np.nan]]),
            ValueError,
            "rewards must be finite, but row 0, column 0 is nan",
        ),
        (
            lambda: diagnose([[1.0]], [[1.0]], [[False]]),
            ValueError,
            r"need at least one sample, got shape \(1, 1\) without any",
        ),
    ],
)
def test_diagnostics_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
