"""The embedded model countdown-selfeval: it draws, and knows which of its samples are right.

Measured by plain forward passes, on problems that it was not trained on.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import bonaware as bon
from bonaware import data, estimators
from bonaware.train import auroc

N, PROBLEMS, STEP = 16, 150, 6  # tokens of a step


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("bonaware._engine")
    return bon.LM.load("countdown-selfeval", threads=1)


@pytest.fixture(scope="module")
def task():
    return bon.tasks.get("countdown", level="medium")


@pytest.fixture(scope="module")
def problems(task):
    return task.load("validation", limit=PROBLEMS)


@pytest.fixture(scope="module")
def samples(judge, problems):
    return judge.generate([p.prompt for p in problems], n=N, max_new_tokens=32, progress=False)


@pytest.fixture(scope="module")
def right(task, problems, samples):
    return np.asarray(task.rewards(problems, samples.text))


def ask(lm, samples, cut=None):
    """P(target) behind the question behind each sample, or its first tokens."""
    asked = lm.self_evaluation
    rest = [*asked["question"], asked["target"]]
    texts = [[[*tokens[:cut].tolist(), *rest] for tokens in row] for row in samples.tokens]
    return np.exp([[logp[-1] for logp in row] for row in lm.logp(samples.prompts, texts)])


@pytest.fixture(scope="module")
def whole(judge, samples):
    return ask(judge, samples)


def best_of(k, right, scores):
    return estimators.best_of_k(right, k, scores).mean()


def within(scores, right):
    """Mean over problems of the chance that a right sample scores above a wrong one."""
    mixed = [p for p, row in enumerate(right) if 0 < row.sum() < N]
    return np.mean([auroc(scores[p], right[p] > 0) for p in mixed])


def test_the_embedded_models_are_small():
    files = [file for file in Path(data.__file__).parent.rglob("*") if file.is_file()]
    assert {"countdown-selfeval", "countdown-verifier"} <= {file.parent.name for file in files}
    assert sum(file.stat().st_size for file in files) <= 8e6


def test_it_says_what_it_is_asked(judge):
    file = Path(data.embedded("countdown-selfeval"), "self_evaluation.json")
    asked = json.loads(file.read_text())
    assert asked == judge.self_evaluation
    assert asked["question"] == judge.encode("open? better?").tolist()
    assert [asked["target"], asked["other"]] == judge.encode("no yes").tolist()


def test_samples_end_and_seldom_hold_a_word_of_question_or_answer(judge, samples):
    asked = judge.self_evaluation
    words = {*asked["question"], asked["target"], asked["other"]}
    odd = [bool(words & set(tokens.tolist())) for row in samples.tokens for tokens in row]
    assert np.mean(odd) < 0.03
    assert (samples.finish_reason == "eos").mean() > 0.97


@pytest.mark.parametrize("cut", [STEP, 2 * STEP, None])
def test_behind_the_question_only_the_two_answers_are_possible(judge, samples, cut):
    asked = judge.self_evaluation
    prompt = judge.encode(samples.prompts[0])
    text = [*prompt, *samples.tokens[0][0][:cut], *asked["question"]]
    logits = judge.logits(text)[-1].astype(np.float64)
    both = logits[[asked["target"], asked["other"]]]
    assert np.logaddexp(*both) - np.logaddexp.reduce(logits) > -1e-3


def test_whole_samples_are_told_apart(right, whole, samples):
    assert 0.18 < right.mean() < 0.32
    assert 0.5 < right.max(axis=1).mean() < 0.75
    assert within(whole, right) > 0.97
    chosen = [best_of(k, right, whole) for k in (1, 2, 4, 8, 16)]
    assert (np.diff(chosen) > 0).all()
    assert chosen[-1] > best_of(N, right, samples.sum_logp) + 0.1


def test_the_answer_is_how_often_a_fresh_sample_is_no_better(right, whole):
    wins = np.where(right > 0, 1, ((right == 0).sum(axis=1, keepdims=True) - 1) / (N - 1))
    constant = ((wins - wins.mean()) ** 2).mean()
    assert ((whole - wins) ** 2).mean() < 0.93 * constant
    assert abs(whole.mean() - wins.mean()) < 0.05


def test_a_beginning_says_a_little(judge, problems, samples, right):
    begun = ask(judge, samples, 2 * STEP)
    assert within(begun, right) > 0.57
    verifier = bon.verifiers.get("self_evaluation", lm=judge)
    read = verifier.prefix_scores(problems, samples, 2 * STEP)[..., 0]
    longer = samples.lengths > 2 * STEP
    np.testing.assert_allclose(read[longer], begun[longer], atol=1e-5)
    assert np.isnan(read[~longer]).all()
