"""The embedded model countdown-selfeval: it draws, and knows which of its samples are right.

Measured by plain forward passes, on problems that it was not trained on.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import bonaware as bon
from bonaware import data, estimators
from bonaware.train import auroc

N, PROBLEMS = 16, 150
FIRST, LATE = 9, 18  # tokens up to the numbers that are left: three of them, two of them


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
    assert asked["question"] == judge.encode("open?").tolist()
    assert [asked["target"], asked["other"]] == judge.encode("yes no").tolist()


def test_right_samples_end_and_few_hold_a_word_of_question_or_answer(judge, samples, right):
    asked = judge.self_evaluation
    words = {*asked["question"], asked["target"], asked["other"]}
    odd = [bool(words & set(tokens.tolist())) for row in samples.tokens for tokens in row]
    assert np.mean(odd) < 0.03
    ended = samples.finish_reason == "eos"
    assert 0.6 < ended.mean() < 0.9  # the others miss the target and go on
    assert (right[~ended] == 0).all()


@pytest.mark.parametrize("cut", [FIRST, LATE, None])
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


@pytest.mark.parametrize("cut", [LATE, None])
def test_the_answer_is_the_chance_to_end_right(judge, samples, right, cut):
    answer = ask(judge, samples, cut)
    assert ((answer - right) ** 2).mean() < 0.1 * right.var()  # Brier, against a constant's
    assert abs(answer.mean() - right.mean()) < 0.02


def test_samples_name_the_numbers_that_are_left(problems, samples):
    named = []
    for problem, row in zip(problems, samples.text, strict=True):
        for text in row:
            first = re.match(r"\s*(\d+) . (\d+) = (\d+) left (\d+) (\d+) (\d+) ,", text)
            one, other, result, *left = map(int, first.groups()) if first else [0] * 6
            rest = list(problem.answer["numbers"])
            if one in rest:
                rest.remove(one)
            if other in rest:
                rest.remove(other)
            named.append(sorted(left) == sorted([*rest, result]))
    assert np.mean(named) > 0.95


def test_beginnings_are_told_apart_where_two_numbers_are_left(judge, problems, samples, right):
    begun = ask(judge, samples, LATE)
    assert within(begun, right) > 0.9
    verifier = bon.verifiers.get("self_evaluation", lm=judge)
    read = verifier.prefix_scores(problems, samples, LATE)[..., 0]
    longer = samples.lengths > LATE
    np.testing.assert_allclose(read[longer], begun[longer], atol=1e-5)
    assert np.isnan(read[~longer]).all()


@pytest.mark.parametrize(("share", "points"), [(0.5, 0.02), (0.75, 0.04)])
def test_dropping_early_costs_little_and_less_than_at_random(judge, problems, samples, right,
                                                             whole, share, points):
    prefix = bon.verifiers.get("self_evaluation", lm=judge).prefix_scores(problems, samples, LATE)
    rows = np.arange(PROBLEMS)
    options = {"n": N, "checkpoints": LATE, "fractions": 1 - share}

    def accuracy(policy, *scores):
        return right[rows, bon.policies.replay(policy, samples, whole, *scores).chosen].mean()

    full = accuracy(bon.policies.get("best_of_n", n=N))
    pruned = accuracy(bon.policies.get("prune", **options), prefix)
    random = accuracy(bon.policies.get("prune_random", rng=0, **options))
    assert pruned >= full - points
    assert pruned > random + 0.02
