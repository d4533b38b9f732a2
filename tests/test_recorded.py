"""Published figures of recorded samples, reproduced from the files of the data folder."""

import csv
import gzip
import json
import re

import numpy as np
import pytest

from bonaware.estimators import best_of_k, majority_at_k, pass_at_k, win_rate
from bonaware.select import best_of_n, majority

EMPTY = "(empty)"  # upstream lets an empty answer take part in the vote like any other


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- Qwen2.5-Math: marks, answers and reward-model scores ----------------------


@pytest.fixture(scope="module")
def qwen(data):
    rows = lines(data / "samples" / "qwen25math_eval_rm_maj_math_cot_100.jsonl")
    correct = np.array([row["score"] for row in rows], float)
    scores = np.array([row["pred_score"] for row in rows])[..., 0]
    return correct, scores, [row["pred"] for row in rows]


def test_qwen_mean_and_pass_at_8(qwen):
    correct, _, _ = qwen
    counts = correct.sum(1).astype(int)
    assert best_of_k(correct, 1).mean() == pytest.approx(0.91)
    assert pass_at_k(8, counts, 1).mean() == pytest.approx(0.91)
    assert pass_at_k(8, counts, 8).mean() == pytest.approx(0.96)
    assert best_of_k(correct, 8).mean() == pytest.approx(0.96)


def test_qwen_best_of_8_by_reward_model(qwen):
    correct, scores, _ = qwen
    chosen = correct[np.arange(100), best_of_n(scores)]
    assert chosen.mean() == pytest.approx(0.94)
    assert best_of_k(correct, 8, scores).mean() == pytest.approx(0.94)


def test_qwen_majority_of_8(qwen):
    correct, _, answers = qwen
    chosen = correct[np.arange(100), majority(answers)]
    assert chosen.mean() == pytest.approx(0.93)
    estimates = majority_at_k(answers, correct, [1, 8]).mean(0)
    assert estimates[0] == pytest.approx(0.91)
    assert estimates[1] == pytest.approx(0.93, abs=0.02)  # shares ties, upstream takes the first


# -- BoInf: 80 answers per problem ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "mean", "maj", "any_right", "mixed"),
    [
        ("aime2024_Datarus-R1-14B-preview", 0.5158, 0.7000, 0.8667, 24),
        ("math500_Phi-4-reasoning", 0.8783, 0.9440, 0.9820, 442),
        ("math500_Qwen3-30B-A3B-Thinking-2507", 0.9543, 0.9600, 0.9680, 37),
    ],
)
def test_boinf_figures(data, name, mean, maj, any_right, mixed):
    rows = lines(data / "samples" / "boinf" / f"analysis_{name}.jsonl")
    answers = [[EMPTY if a == "" else a for a, _ in row["all_answers"]] for row in rows]
    correct = [
        [a == row["gold_answer"] for a in some] for some, row in zip(answers, rows, strict=True)
    ]
    correct = np.array(correct)
    curve = best_of_k(correct, range(1, 81)).mean(0)
    chosen = correct[np.arange(len(rows)), majority(answers)]
    assert curve[0] == pytest.approx(mean, abs=5e-5)
    assert curve[-1] == pytest.approx(any_right, abs=5e-5)
    assert chosen.mean() == pytest.approx(maj, abs=5e-5)
    assert len(rows) - (correct.all(1) | ~correct.any(1)).sum() == mixed

    votes = majority_at_k(answers, correct, [1, 80])
    counts = [sorted(row["answer_counts"].values()) for row in rows]
    alone = np.array([len(c) == 1 or c[-2] < c[-1] for c in counts])
    assert votes[:, 0].mean() == pytest.approx(mean, abs=5e-5)
    np.testing.assert_allclose(votes[alone, 1], chosen[alone], atol=1e-11)  # equals share


# -- ESC: last letters -----------------------------------------------------------


def test_esc_last_letters_figures(data):
    rows = lines(data / "samples" / "esc_gpt35_last_letters_T0.7.jsonl")
    found = [
        [re.search(r"answer is ([A-Za-z]+)", text) for text in row["generated_answer"]]
        for row in rows
    ]
    answers = [[match and match[1].lower() for match in row] for row in found]
    right = [row["answer"].lower() for row in rows]
    correct = np.array([[a == gold for a in row] for row, gold in zip(answers, right, strict=True)])
    assert best_of_k(correct, [1, 40]).mean(0) == pytest.approx([0.7388, 0.914], abs=5e-5)
    at = np.arange(len(rows))
    assert correct[at, majority(answers)].mean() == pytest.approx(0.816)
    voting = [[a or EMPTY for a in row] for row in answers]
    assert correct[at, majority(voting)].mean() == pytest.approx(0.808)


# -- AlpacaEval: preferences ----------------------------------------------------


def as_win(preference):
    """1 .. 2 (the model wins) to 0 .. 1; 0 is a draw; a missing one is dropped."""
    preference = np.array(preference, float)
    return np.where(preference == 0, 1.5, preference) - 1


def check_win_rate(preference, rate, error, discrete):
    wins = as_win(preference)
    got, got_error = win_rate(wins)
    assert 100 * got == pytest.approx(rate, abs=1e-8)
    assert 100 * got_error == pytest.approx(error, abs=1e-8)
    if discrete is not None:
        got, _ = win_rate(np.where(np.isnan(wins), wins, (np.sign(wins - 0.5) + 1) / 2))
        assert 100 * got == pytest.approx(discrete, abs=1e-8)


def test_alpaca_eval_leaderboard_rows(data):
    folder = data / "alpaca_eval"
    judged = {}
    name = "derived_preferences_weighted_alpaca_eval_gpt4_turbo_10models.tsv.gz"
    with gzip.open(folder / name, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            value = float(row["preference"]) if row["preference"] else np.nan
            judged.setdefault(row["model"], []).append(value)
    board = next((folder / "leaderboards").rglob("*_leaderboard_10models.csv"))
    with board.open(encoding="utf-8", newline="") as file:
        published = {row[""]: row for row in csv.DictReader(file)}
    assert len(published) == len(judged) == 10
    for model, row in published.items():
        figures = (float(row[key]) for key in ("win_rate", "standard_error", "discrete_win_rate"))
        check_win_rate(judged[model], *figures)


@pytest.mark.parametrize(
    ("path", "rate", "error"),
    [
        ("alpaca-7b/alpaca_eval_gpt4", 26.459627329, 1.535711470),
        ("alpaca-7b/weighted_alpaca_eval_gpt4_turbo", 2.591450540, 0.487085538),
        ("gemma-7b-it/weighted_alpaca_eval_gpt4_turbo", 6.937294379, 0.786966573),
    ],
)
def test_alpaca_eval_annotations(data, path, rate, error):
    file = data / "alpaca_eval" / "results" / path / "annotations.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    preference = [np.nan if row["preference"] is None else row["preference"] for row in rows]
    check_win_rate(preference, rate, error, None)
