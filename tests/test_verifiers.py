"""bonaware.verifiers: what a selector sees."""

import numpy as np
import pytest

from bonaware import tasks, verifiers
from bonaware.samples import Sample, Samples


def sample(index, logp, certainty, text, prompt=0):
    logp = np.array(logp, np.float32)
    return Sample(prompt, index, np.zeros(len(logp), np.int32), logp, 2 * logp,
                  np.array(certainty, np.float32), text, "eos", 1.0)


@pytest.fixture
def samples():
    """One prompt, n=3: a long sample, a short one, and one that was not drawn."""
    drawn = [sample(0, [-0.5, -0.25, -0.75], [1, 2, 6], "the sun"), sample(1, [-1], [4], "rain")]
    return Samples.from_list(["p"], drawn, n=3)


PROBLEMS = [tasks.Problem(id="0", prompt="p", answer=["sun"])]


def test_every_verifier_file_is_available():
    assert {"exact", "likelihood", "self_certainty"} <= set(verifiers.available())
    with pytest.raises(ValueError, match=r"no 'oracle' in bonaware\.verifiers; there are: exact"):
        verifiers.get("oracle")


def test_exact_scores_with_the_tasks_reward(samples):
    scores = verifiers.get("exact", task=tasks.get("keywords")).score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[1, 0, np.nan]])


def test_likelihood_sums_raw_log_probabilities(samples):
    scores = verifiers.get("likelihood").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[-1.5, -1, np.nan]])


def test_likelihood_by_length_is_the_mean_per_token(samples):
    scores = verifiers.get("likelihood", normalize="length").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[-0.5, -1, np.nan]])


def test_self_certainty_is_the_mean_per_token(samples):
    scores = verifiers.get("self_certainty").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[3, 4, np.nan]])


@pytest.mark.parametrize("name", ["likelihood", "self_certainty"])
def test_scores_are_float64_and_the_callers_own(samples, name):
    verifier = verifiers.get(name)
    scores = verifier.score(PROBLEMS, samples)
    want = scores.copy()
    assert scores.dtype == np.float64
    scores[:] = 0
    np.testing.assert_array_equal(verifier.score(PROBLEMS, samples), want)


@pytest.mark.parametrize(("name", "options"), [
    ("exact", {"task": tasks.get("keywords")}), ("likelihood", {}), ("self_certainty", {}),
    ("likelihood", {"normalize": "length"}),
])
def test_no_prompts_and_no_samples_have_a_shape(name, options):
    verifier = verifiers.get(name, **options)
    assert verifier.score([], Samples.from_list([], [], n=2)).shape == (0, 0)
    one = verifier.score(PROBLEMS, Samples.from_list(["p"], [], n=2))
    assert one.shape == (1, 2)
    assert np.isnan(one).all()


@pytest.mark.filterwarnings("error")
def test_a_sample_without_tokens_is_no_division_by_zero():
    empty = Samples.from_list(["p"], [sample(0, [], [], "")], n=1)
    assert verifiers.get("likelihood", normalize="length").score(PROBLEMS, empty)[0, 0] == 0
    assert np.isnan(verifiers.get("self_certainty").score(PROBLEMS, empty)[0, 0])


# -- errors ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [
    ("exact", {"task": tasks.get("keywords")}), ("likelihood", {}), ("self_certainty", {}),
])
def test_problems_and_prompts_must_be_equally_many(samples, name, options):
    with pytest.raises(ValueError, match="need one prompt per problem, got 1 prompts for 2"):
        verifiers.get(name, **options).score(PROBLEMS * 2, samples)


def test_exact_needs_a_task_and_texts():
    with pytest.raises(TypeError, match="task"):
        verifiers.get("exact")
    mute = Samples.from_list(["p"], [sample(0, [-1], [1], None), sample(1, [-1], [1], "a")], n=3)
    with pytest.raises(ValueError, match="verifier exact needs texts, but 1 samples have none"):
        verifiers.get("exact", task=tasks.get("keywords")).score(PROBLEMS, mute)


def test_likelihood_refuses_unknown_normalizations():
    with pytest.raises(ValueError, match="normalize must be None or 'length', got 'len'"):
        verifiers.get("likelihood", normalize="len")
