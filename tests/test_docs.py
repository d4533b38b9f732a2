"""The examples of the pages for users run as they stand, and give what the pages say."""

import numpy as np
import pytest
from docs_examples import run_examples

pytest.importorskip("bonaware._engine", reason="the engine is not built")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_quick_start_gives_what_it_says():
    names = run_examples("quickstart.md")
    assert names["run"].rewards.shape == (100, 32)
    both = names["bon"].LM.load("countdown").generate(
        ["make 24 from 3 8 1 1 :"], n=32, max_new_tokens=32, rng=0)
    assert both.text[0] == [*names["samples"].text[0], *names["more"].text[0]]
    assert names["saved"].samples_per_prompt.mean() < 16


def test_own_model_says_what_it_has_learnt():
    names = run_examples("own_model.md")
    rhyme = names["rhyme"].removeprefix("one")
    assert sum(text == rhyme for text in names["said"]) > 4
    assert names["again"].fingerprint == names["lm"].fingerprint


def test_own_task_is_evaluated_by_its_own_rewards():
    names = run_examples("own_task.md")
    run, task = names["run"], names["TwentyFour"]()
    train, test = ({one.id for one in task.load(split)} for split in ("train", "test"))
    assert train
    assert not train & test
    assert len(task.load(limit=3)) == 3
    assert run.rewards.shape == (50, 16)
    assert 0 < run.rewards.mean() < 1
    assert "majority@k" in run.curves().mean
    assert {problem.answer["target"] for problem in run.problems} == {24}


def test_own_verifier_selects_better_than_likelihood_guides_and_teaches():
    names = run_examples("own_verifier.md")
    best = {name: mean[-1] for name, mean in names["run"].curves().mean.items()}
    assert best["best-of-k by likelihood"] < best["best-of-k by hurried"] <= best["pass@k"]
    assert 1 < names["saved"].samples_per_prompt.mean() < 16
    assert "best-of-4" in names["records"][-1]


def test_own_policy_does_the_same_when_it_is_replayed():
    names = run_examples("own_policy.md")
    replayed = names["bon"].policies.replay(
        names["Agreed"](), names["samples"], answers=names["answers"])
    run = names["run"]
    np.testing.assert_array_equal(replayed.samples.valid, run.samples.valid)
    np.testing.assert_array_equal(replayed.chosen, [run.done[p] for p in range(100)])
    assert 2 < run.samples_per_prompt.mean() < 16


def test_own_loss_is_proved_on_its_page_and_trains():
    names = run_examples("own_loss.md")
    assert [record["step"] for record in names["records"]] == [1, 2]
    assert np.abs(names["wanted"]).max() > 0.01
