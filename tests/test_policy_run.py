"""Runs under a policy: what is stored, what a broken one goes on with, and what is said of it."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from fakes import Digits

import bonaware as bon
from bonaware import _drawing, _scheduling, cli, policies
from bonaware.policy_run import PolicyRun
from bonaware.samples import Sample, Samples
from bonaware.store import Store
from bonaware.tasks import Problem

PROBLEMS = 4


class Letters(Digits):
    """A reward that any text has by its length; prompts are ids."""

    name = "letters"
    stop_strings = ()
    max_new_tokens = 12

    def load(self, split="test", limit=None):
        return [Problem(str(p), [1, 4 + p, 9], p) for p in range(PROBLEMS)][:limit]

    def reward(self, problem, text):
        return float(len(text) % 3 == problem.answer % 3)

    def answer(self, problem, text):
        return str(len(text) % 3)


@pytest.fixture(scope="module")
def lm(tiny):
    return bon.LM.load(tiny("counting", tokenizer=True), threads=1)


BEST = policies.get("best_of_n", n=3)
ADAPTIVE = policies.get("adaptive", threshold=0.4, n=4, anneal="constant")
PRUNE = policies.get("prune", n=4, checkpoints=4, fractions=0.5)
VOTES = policies.get("adaptive_consistency", n=5)


class Chance:
    """A probability for each sample, which its tokens decide; none where their sum is odd."""

    def __init__(self, shift=0, patience=100):
        self.shift = shift
        self.patience = patience  # presses Ctrl-C when it is asked for more

    def read(self, live):
        self.patience -= len(live)
        if self.patience < 0:
            raise KeyboardInterrupt
        return np.array([self.of(sample.tokens) for sample in live.samples])

    def score(self, problems, samples):
        scores = [[self.of(tokens) for tokens in row] for row in samples.tokens]
        return np.where(samples.valid, scores, np.nan)

    def of(self, tokens):
        total = int(tokens.sum())
        return np.nan if total % 2 else (total * 7 + self.shift) % 11 / 10


def evaluated(lm, policy, store=None, **options):
    options = {"verifiers": {"chance": Chance()}, "progress": False, "rng": 5} | options
    return bon.evaluate(lm, Letters(), policy=policy, temperature=1.2, store=store, **options)


def same(one, other):
    assert one.done == other.done
    assert one.complete == other.complete
    assert one.samples.text == other.samples.text
    np.testing.assert_array_equal(one.samples.finish_reason, other.samples.finish_reason)
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert one.scores.keys() == other.scores.keys()
    for name, score in one.scores.items():
        np.testing.assert_array_equal(score, other.scores[name])


# -- broken off --------------------------------------------------------------------


@pytest.mark.parametrize("policy", [BEST, ADAPTIVE, PRUNE, VOTES], ids=lambda p: type(p).__name__)
def test_a_run_killed_after_any_sample_goes_on_to_the_same_result(lm, tmp_path, policy):
    """A copy of the store's files, made while it is written, is what a kill leaves."""
    (tmp_path / "run").mkdir()

    def keep(sample):
        copies.append(shutil.copytree(tmp_path / "run", tmp_path / str(len(copies))))

    copies = []
    unbroken = evaluated(lm, policy, tmp_path / "run" / "one.sqlite", progress=keep)
    assert len(unbroken.done) == PROBLEMS
    assert len(copies) == unbroken.samples.valid.sum()
    for copy in copies:
        same(evaluated(lm, policy, copy / "one.sqlite"), unbroken)


@pytest.mark.parametrize("stop", range(1, 3 * PROBLEMS + 1))
def test_a_run_stopped_by_ctrl_c_after_any_sample_goes_on_to_the_same_result(lm, tmp_path, stop):
    seen = []

    def press(sample):
        seen.append(sample)
        if len(seen) == stop:
            raise KeyboardInterrupt

    store = tmp_path / "run.sqlite"
    with pytest.warns(UserWarning, match="interrupted"):
        assert not evaluated(lm, BEST, store, progress=press).complete
    same(evaluated(lm, BEST, store), evaluated(lm, BEST))


def test_ctrl_c_notes_the_prompts_that_are_done(lm, monkeypatch):
    def press(drawing, request):
        if request.prompt == 1:
            raise KeyboardInterrupt
        return add(drawing, request)

    add = _drawing.Drawing._add_prompt
    monkeypatch.setattr(_drawing.Drawing, "_add_prompt", press)
    monkeypatch.setattr(_scheduling, "MAX_SLOTS", 1)  # one prompt after another
    with pytest.warns(UserWarning, match="interrupted"):
        broken = evaluated(lm, BEST)
    assert list(broken.done) == [0]
    assert "interrupted, 1 prompts are done" in broken.head


@pytest.mark.parametrize("patience", range(5))
def test_ctrl_c_before_a_sample_was_read_draws_it_again(lm, tmp_path, patience):
    store = tmp_path / "run.sqlite"
    with pytest.warns(UserWarning, match="interrupted"):
        evaluated(lm, ADAPTIVE, store, verifiers={"chance": Chance(patience=patience)})
    same(evaluated(lm, ADAPTIVE, store), evaluated(lm, ADAPTIVE))


def test_samples_without_a_score_are_not_drawn_again(lm, tmp_path):
    run = evaluated(lm, BEST, tmp_path / "run.sqlite")
    assert np.isnan(run.scores["chance"][run.samples.valid]).any()
    with Store(tmp_path / "run.sqlite") as store:
        store._db.execute("DELETE FROM done")  # as if it had been killed
    again = evaluated(lm, BEST, tmp_path / "run.sqlite")
    assert again.samples.stats.new_tokens == 0
    same(again, run)


@pytest.mark.parametrize("policy", [ADAPTIVE, PRUNE], ids=lambda p: type(p).__name__)
def test_fewer_problems_can_be_taken_from_a_larger_run_which_stays_as_it_is(lm, tmp_path, policy):
    store = tmp_path / "run.sqlite"
    before = evaluated(lm, policy, store)
    fewer = evaluated(lm, policy, store, limit=2)
    assert fewer.done == {p: before.done[p] for p in range(2)}
    np.testing.assert_array_equal(fewer.scores["chance"], before.scores["chance"][:2])
    assert fewer.complete
    assert np.isfinite(fewer.values).all()
    same(evaluated(lm, policy, store), before)


def test_a_policy_that_votes_asks_no_verifier(lm):
    class Costly(Chance):
        def read(self, live):
            raise AssertionError("nobody needs this")

    run = evaluated(lm, VOTES, verifiers={"chance": Costly()})
    assert run.settings["guide"] is None
    np.testing.assert_array_equal(run.scores["chance"], Chance().score(None, run.samples))


# -- what is compared with the store -------------------------------------------------


def test_a_call_that_is_refused_leaves_the_store_as_it_was(lm, tmp_path):
    store = tmp_path / "run.sqlite"
    with pytest.raises(ValueError, match="under way, which verifier Exact"):
        evaluated(lm, PRUNE, store, verifiers=["exact"])
    same(evaluated(lm, PRUNE, store), evaluated(lm, PRUNE))


QUESTION = {"question": [6, 7], "target": 3, "other": 4}


@pytest.mark.parametrize(("other", "said"), [
    ({"question": [6, 8]}, "[6, 8]"),
    ({"target": 5}, '"target": 5'),
    ({"renormalise": True}, '"renormalise": true'),
    ({"model": "another"}, '"model": ["'),
])  # fmt: skip
def test_a_store_guided_by_another_judge_is_refused(lm, tiny, tmp_path, other, said):
    def guided(**options):
        verifier = bon.verifiers.get("self_evaluation", **QUESTION | options)
        return evaluated(lm, BEST, tmp_path / "run.sqlite", verifiers={"judge": verifier})

    if "model" in other:
        other = {"model": bon.LM.load(tiny("counting", tokenizer=True, seed=9), threads=1)}
    before = guided()
    same(guided(question=np.array([6, 7])), before)
    same(guided(question=(6, 7)), before)
    with pytest.raises(ValueError, match="guide is") as raised:
        guided(**other)
    assert said in str(raised.value).partition(" and ")[2]


def test_threads_and_memory_of_a_judge_may_change(lm, tiny, tmp_path):
    judge = tiny("counting", tokenizer=True, seed=9)
    for options in ({"threads": 1}, {"threads": 1, "memory": 1 << 26}):
        verifier = bon.verifiers.get("self_evaluation", model=judge, **QUESTION | options)
        evaluated(lm, BEST, tmp_path / "run.sqlite", verifiers={"judge": verifier})


def test_another_kind_of_verifier_under_the_same_name_is_refused(lm, tmp_path):
    for name in ("likelihood", "self_certainty"):
        verifiers = {"chance": bon.verifiers.get(name)}
        evaluated(lm, BEST, tmp_path / f"{name}.sqlite", verifiers=verifiers)
        with pytest.raises(ValueError, match=r"guide is .*there and .*Chance"):
            evaluated(lm, BEST, tmp_path / f"{name}.sqlite")


def test_options_of_a_stored_policy_may_be_numbers_of_numpy(lm, tmp_path):
    evaluated(lm, policies.get("best_of_n", n=np.int64(3)), tmp_path / "run.sqlite")
    same(evaluated(lm, BEST, tmp_path / "run.sqlite"), evaluated(lm, BEST))


def test_temperatures_are_the_policys_or_the_callers(lm):
    annealing = policies.get("adaptive", threshold=1, n=3)
    each = [1.0, 0.5, 2.0]
    with pytest.raises(ValueError, match=r"give it one, got \[1.0, 0.5, 2.0\]"):
        bon.evaluate(lm, Letters(), policy=annealing, temperature=each, verifiers=[Chance()])
    with pytest.raises(ValueError, match=r"give it one, got \[1.0, 0.5, 2.0\]"):
        lm.generate([[1, 2]], policy=annealing, temperature=each, progress=False)
    run = bon.evaluate(lm, Letters(), policy=BEST, temperature=each, progress=False)
    np.testing.assert_array_equal(run.samples.temperature, [each] * PROBLEMS)
    run = bon.evaluate(lm, Letters(), policy=annealing, temperature=2, progress=False,
                       verifiers=[Chance()])
    drawn = run.samples.valid
    np.testing.assert_array_equal(run.samples.temperature[drawn],
                                  np.tile([0, 1, 1.5], (PROBLEMS, 1))[drawn])


def test_k_is_refused_before_anything_is_drawn(lm):
    with pytest.raises(ValueError, match=r"curves over k .* but policy BestOfN\(n=3\) decides"):
        evaluated(lm, BEST, k=[1, 2], progress=pytest.fail)


def test_a_name_is_no_policy(lm):
    with pytest.raises(TypeError, match=r"get\('best_of_n', n=8\), got 'adaptive'"):
        evaluated(lm, "adaptive")
    with pytest.raises(TypeError, match="got <class"):
        lm.generate([[1, 2]], policy=policies.adaptive.Adaptive, progress=False)


def test_exact_guides_nothing_where_there_are_no_problems(lm):
    verifier = bon.verifiers.get("exact", task=Letters())
    assert evaluated(lm, BEST, verifiers=[verifier]).complete
    with pytest.raises(ValueError, match=r"prompts only: use bonaware.evaluate"):
        lm.generate([[1, 2]], policy=BEST, verifier=verifier, max_new_tokens=3, progress=False)


# -- figures -----------------------------------------------------------------------


def of_rewards(policy, rewards, done, complete=True):
    """A run with these rewards; NaN: the sample was pruned."""
    samples = [
        Sample(p, i, np.arange(2, dtype=np.int32), *[np.zeros(2, np.float32)] * 3, "a",
               "pruned" if np.isnan(reward) else "eos", 1.0)
        for p, row in enumerate(rewards) for i, reward in enumerate(row)
    ]  # fmt: skip
    n = len(rewards[0])
    drawn = Samples.from_list([[1]] * len(rewards), samples, n)
    problems = [Problem(str(p), [1], None) for p in range(len(rewards))]
    return PolicyRun(problems, drawn, np.array(rewards), {}, None, complete=complete,
                     policy=policy, done=done)


NONE = [np.nan, np.nan]
PAIR = policies.get("prune", checkpoints=1, fractions=0.5, n=2)


def test_figures_are_of_the_prompts_that_are_done():
    run = of_rewards(PAIR, [[1, np.nan], [1, 1], [0, 1]], {0: 0, 2: 1}, complete=False)
    np.testing.assert_array_equal(run.counted, [True, False, True])
    np.testing.assert_array_equal(run.values, [1, 1])
    np.testing.assert_array_equal(run.samples_per_prompt, [2, 2])
    np.testing.assert_array_equal(run.chosen()["policy"], [0, -1, 1])
    assert run.pruned == 1 / 4
    assert "interrupted, 2 prompts are done" in run.summary()


def test_a_prompt_of_which_no_sample_ended_counts_as_0():
    run = of_rewards(PAIR, [[1, 1], NONE, [np.nan, 1]], {0: 1, 1: -1, 2: 1})
    np.testing.assert_array_equal(run.values, [1, 0, 1])
    assert run.accuracy()[0] == pytest.approx(2 / 3)
    assert run.selected()["policy"] == pytest.approx(2 / 3)


def test_one_prompt_has_figures_but_no_interval(tmp_path):
    run = of_rewards(PAIR, [[1, np.nan], [0, 0]], {0: 0}, complete=False)
    mean, low, high = run.accuracy()
    assert mean == 1
    assert np.isnan([low, high]).all()
    assert "mean reward         1.000 of 1 prompt" in run.summary()
    assert json.loads(json.dumps(run.to_dict()))["low"] is None
    assert "1.000 of 1 prompt" in run.report(tmp_path / "page.html").read_text("utf-8")
    assert "1.000 of 1 prompt" in run.plot().get_title()


def test_no_prompt_that_is_done_gives_no_figures(tmp_path):
    run = of_rewards(PAIR, [[1, np.nan], [0, 0]], {}, complete=False)
    for figure in (run.accuracy, run.selected, run.plot):
        with pytest.raises(ValueError, match="is done with, but of 2 prompts there is none"):
            figure()
    assert run.to_dict() == {}
    assert "n=2) is done with no prompt yet, so there are no figures" in run.summary()
    page = run.report(tmp_path / "page.html").read_text("utf-8")
    assert "n=2) is done with no prompt yet, so there are no figures" in page


# -- read again ----------------------------------------------------------------------


@pytest.mark.parametrize("policy", [BEST, ADAPTIVE, PRUNE, VOTES], ids=lambda p: type(p).__name__)
def test_a_store_read_again_is_the_same_run(lm, tmp_path, policy):
    run = evaluated(lm, policy, tmp_path / "run.sqlite")
    again = bon.evaluate_recorded(tmp_path / "run.sqlite")
    same(again, run)
    assert again.policy == policy
    assert again.answers == run.answers
    assert again.to_dict() == run.to_dict()
    with pytest.raises(ValueError, match="curves over k need samples whose number"):
        again.curves()
    with pytest.raises(ValueError, match="curves over k need samples whose number"):
        bon.evaluate_recorded(tmp_path / "run.sqlite", k=[1])


def test_a_store_read_again_shows_the_figures_of_the_policy(lm, tmp_path, capsys):
    evaluated(lm, ADAPTIVE, tmp_path / "run.sqlite")
    assert cli.main(["evaluate", "--samples", str(tmp_path / "run.sqlite")]) == 0
    shown = capsys.readouterr().out
    assert "samples per prompt" in shown
    assert "prompts by the samples they took" in shown
    assert "best-of-k" not in shown


def test_a_store_of_which_fewer_problems_were_taken_has_the_figures_of_these(lm, tmp_path):
    evaluated(lm, PRUNE, tmp_path / "run.sqlite")
    fewer = evaluated(lm, PRUNE, tmp_path / "run.sqlite", limit=2)
    again = bon.evaluate_recorded(tmp_path / "run.sqlite")
    assert again.done == fewer.done
    assert not again.complete
    np.testing.assert_array_equal(again.values, fewer.values)


def test_a_store_of_a_policy_from_elsewhere_is_refused(lm, tmp_path):
    @dataclass(frozen=True)
    class Mine(policies.Policy):
        n: int = 2

        def decide(self, seen):
            return policies.Decision(draw=2 - seen.drawn)

    store = tmp_path / "run.sqlite"
    evaluated(lm, Mine(), store)
    with pytest.raises(ValueError, match=r"run\.sqlite: need a policy of bonaware .* there is no"):
        bon.evaluate_recorded(store)
