"""bonaware.evaluation: the main job, with a model that is a function of its seed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from fakes import Digits, FakeLM

import bonaware
from bonaware.evaluation import evaluate
from bonaware.recorded import evaluate_recorded
from bonaware.store import Store, StoreError


class Mute(Digits):
    """No majority vote, and half a point for coming close."""

    def reward(self, problem, text):
        return {0: 1.0, 1: 0.5}.get(abs(int(text) - problem.answer), 0.0)

    def answer(self, problem, text):
        return None


def run(lm=None, n=8, task=None, **options):
    options = {"progress": False} | options
    return evaluate(lm or FakeLM(), task or Digits(), n, **options)


def same(one, other):
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert one.samples.text == other.samples.text
    assert one.scores.keys() == other.scores.keys()
    for name, score in one.scores.items():
        np.testing.assert_array_equal(score, other.scores[name])


# -- values ------------------------------------------------------------------


def test_rewards_scores_and_answers_are_those_of_the_samples():
    made = run(verifiers=("likelihood", "exact"))
    assert made.n == 8
    for sample in made.samples:
        p, i = sample.prompt, sample.index
        assert made.rewards[p, i] == (sample.text == str(p % 4))
        assert made.scores["likelihood"][p, i] == pytest.approx(sample.logp.sum(dtype=float))
        assert made.answers[p][i] == sample.text
    np.testing.assert_array_equal(made.scores["exact"], made.rewards)


def test_curves_are_the_means_of_the_estimators():
    made = run()
    curves = made.curves()
    assert curves.k.tolist() == [1, 2, 4, 8]
    assert list(curves.mean) == ["pass@k", "best-of-k by likelihood", "majority@k"]
    assert curves.mean["pass@k"][0] == pytest.approx(made.rewards.mean())
    assert curves.mean["pass@k"][-1] == pytest.approx(made.rewards.max(axis=1).mean())
    best = made.scores["likelihood"].argmax(axis=1)
    chosen = made.rewards[np.arange(6), best].mean()
    assert curves.mean["best-of-k by likelihood"][-1] == pytest.approx(chosen)
    assert made.selected()["likelihood"] == pytest.approx(chosen)
    for name, mean in curves.mean.items():
        assert (curves.low[name] <= mean + 1e-12).all()
        assert (curves.high[name] >= mean - 1e-12).all()


def test_a_wider_level_gives_wider_intervals():
    narrow, wide = (run().curves(level) for level in (0.5, 0.99))
    assert (narrow.high["pass@k"] - narrow.low["pass@k"]).sum() < (
        wide.high["pass@k"] - wide.low["pass@k"]
    ).sum()


def test_rewards_between_0_and_1_give_max_at_k_and_no_votes_give_no_majority():
    made = run(task=Mute())
    assert made.answers is None
    assert list(made.curves().mean) == ["max@k", "best-of-k by likelihood"]
    assert list(made.selected()) == ["likelihood"]


def test_prompts_that_look_the_same_are_drawn_apart():
    lm = FakeLM()
    made = run(lm)
    (requests, _), = lm.asked
    assert [request.repeat for request in requests] == [0, 1, 0, 0, 0, 0]
    assert made.samples.text[0] != made.samples.text[1]


def test_the_tasks_defaults_hold_unless_something_else_is_given():
    lm = FakeLM()
    run(lm)
    run(lm, stop_strings=(), max_new_tokens=3, top_k=5, top_p=0.9, min_p=0.1, temperature=0.5)
    assert lm.asked[0][1] == {
        "temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "max_new_tokens": 9,
        "stop_strings": ["!"], "rng": 0,
    }  # fmt: skip
    assert lm.asked[1][1] == {
        "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 3,
        "stop_strings": [], "rng": 0,
    }  # fmt: skip


def test_split_and_limit_reach_the_task():
    made = run(split="train", limit=2)
    assert [problem.id for problem in made.problems] == ["train/0", "train/1"]


def test_a_verifier_object_is_named_by_its_options():
    made = run(verifiers=[bonaware.verifiers.get("likelihood", normalize="length")])
    assert list(made.scores) == ["Likelihood(normalize='length')"]


def test_verifiers_may_be_named():
    by_length = bonaware.verifiers.get("likelihood", normalize="length")
    made = run(verifiers={"short": by_length, "truth": "exact"})
    assert list(made.scores) == ["short", "truth"]
    np.testing.assert_array_equal(made.scores["truth"], made.rewards)


def test_chosen_are_the_samples_that_selected_is_the_mean_of():
    made = run()
    chosen = made.chosen()
    assert list(chosen) == ["likelihood", "majority"]
    np.testing.assert_array_equal(chosen["likelihood"], made.scores["likelihood"].argmax(axis=1))
    for name, picks in chosen.items():
        assert made.selected()[name] == made.rewards[np.arange(6), picks].mean()


def test_equal_texts_of_a_problem_are_read_once():
    class Counting(Digits):
        def __init__(self):
            self.read = []

        def answer(self, problem, text):
            self.read.append((problem.id, text))
            return text

    task = Counting()
    made = run(task=task)
    assert len(task.read) == len(set(task.read)) < made.rewards.size


def test_temperatures_per_sample_reach_each_sample():
    schedule = [0.0, 0.5, 0.75, 1.0]
    made = run(n=4, temperature=schedule)
    np.testing.assert_array_equal(made.samples.temperature, [schedule] * 6)


def test_a_generator_gives_a_seed_that_gives_the_same_run_again():
    made = run(rng=np.random.default_rng(3))
    same(made, run(rng=made.settings["seed"]))
    assert run(rng=None).settings["seed"] != run(rng=None).settings["seed"]


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"n": 0}, ValueError, "need n >= 1 samples per prompt, got n=0"),
    ({"n": 2.0}, TypeError, "n must be an integer, got float"),
    ({"temperature": 0}, ValueError, "at temperature 0 .* need at most one, got 8"),
    ({"temperature": [0.0] * 2 + [1.0] * 6}, ValueError, "need at most one, got 2"),
    ({"temperature": [1.0, 1.0]}, ValueError, r"need n=8 values, got shape \(2,\)"),
    ({"temperature": -1}, ValueError, "need a finite temperature >= 0, got -1"),
    ({"verifiers": "likelihood"}, TypeError, "must be a sequence of names or verifiers"),
    ({"verifiers": ["nope"]}, ValueError, "there is no 'nope'"),
    ({"verifiers": ["exact", "exact"]}, ValueError, "two verifiers are called 'exact': name them"),
    ({"verifiers": ["reward_model"]}, TypeError, "options of verifier reward_model: 'model' is"),
    ({"task": "nope"}, ValueError, "there is no 'nope'"),
    ({"k": [1, 9]}, ValueError, "need 1 <= k <= n, but n is 8"),
    ({"k": []}, ValueError, "need 1 <= k <= n"),
    ({"k": 4}, TypeError, "k must be a sequence of int, got 4"),
], ids=str)  # fmt: skip
def test_wrong_use_is_refused_before_anything_is_drawn(options, error, message):
    lm = FakeLM()
    with pytest.raises(error, match=message):
        run(lm, **options)
    assert not lm.asked


def test_the_path_of_a_model_is_no_model():
    with pytest.raises(TypeError, match=r"lm must be a model, such as LM.load\('models/x'\)"):
        run("models/x")


# -- the store: killed, continued, extended ------------------------------------


@pytest.mark.parametrize("stop_after", [0, 1, 7, 8, 30, 47])
def test_a_run_that_broke_off_continues_to_the_same_result(tmp_path, stop_after):
    path = tmp_path / "run.sqlite"
    broken = FakeLM(stop_after, RuntimeError("the power went"))
    with pytest.raises(RuntimeError, match="the power went"):
        run(broken, store=path)
    lm = FakeLM()
    made = run(lm, store=path)
    assert set(lm.drawn).isdisjoint(broken.drawn)
    assert len(lm.drawn) + len(broken.drawn) == 48
    same(made, run())


def test_a_finished_run_is_not_drawn_again(tmp_path):
    first = run(store=tmp_path / "run.sqlite")
    lm = FakeLM()
    again = run(lm, store=tmp_path / "run.sqlite")
    assert not lm.asked
    assert again.samples.stats is None
    same(first, again)


def test_extending_n_keeps_the_first_samples(tmp_path):
    run(n=8, store=tmp_path / "run.sqlite")
    lm = FakeLM()
    made = run(lm, n=32, store=tmp_path / "run.sqlite")
    assert min(index for _, index in lm.drawn) == 8
    same(made, run(n=32))


def test_fewer_samples_and_problems_can_be_taken_from_a_larger_store(tmp_path):
    run(n=8, store=tmp_path / "run.sqlite")
    lm = FakeLM()
    same(run(lm, n=4, limit=3, store=tmp_path / "run.sqlite"), run(n=4, limit=3))
    assert not lm.asked
    same(run(lm, n=8, store=tmp_path / "run.sqlite"), run(n=8))


def test_more_problems_can_be_added(tmp_path):
    run(limit=2, store=tmp_path / "run.sqlite")
    lm = FakeLM()
    same(run(lm, store=tmp_path / "run.sqlite"), run())
    assert {prompt for prompt, _ in lm.drawn} == {2, 3, 4, 5}


def test_temperatures_can_be_extended_with_n(tmp_path):
    schedule = [0.0, 0.5, 0.75, 1.0]
    run(n=2, temperature=schedule[:2], store=tmp_path / "run.sqlite")
    made = run(n=4, temperature=schedule, store=tmp_path / "run.sqlite")
    same(made, run(n=4, temperature=schedule))


def test_no_seed_takes_the_seed_of_the_store(tmp_path):
    first = run(rng=7, store=tmp_path / "run.sqlite")
    same(first, run(rng=None, store=tmp_path / "run.sqlite"))


@pytest.mark.parametrize(("change", "message"), [
    ({"rng": 1}, "seed is 0 there and 1 here"),
    ({"temperature": 0.5}, "temperature is 1.0 there and 0.5 here"),
    ({"max_new_tokens": 5}, "max_new_tokens is 9 there and 5 here"),
    ({"split": "train"}, 'split is "test" there and "train" here'),
], ids=str)  # fmt: skip
def test_other_settings_are_refused(tmp_path, change, message):
    run(store=tmp_path / "run.sqlite")
    with pytest.raises(ValueError, match=message):
        run(store=tmp_path / "run.sqlite", **change)


def test_another_model_is_refused(tmp_path):
    run(store=tmp_path / "run.sqlite")
    lm = FakeLM()
    lm.fingerprint = "f1"
    with pytest.raises(ValueError, match='fingerprint is "f0" there and "f1" here'):
        run(lm, store=tmp_path / "run.sqlite")


def test_another_task_is_refused(tmp_path):
    run(store=tmp_path / "run.sqlite")
    task = Digits()
    task.name = "letters"
    with pytest.raises(ValueError, match='task is "digits" there and "letters" here'):
        run(task=task, store=tmp_path / "run.sqlite")


def test_samples_finished_before_a_full_disk_survive(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    begin = Store.begin

    def begin_on_a_small_disk(store, *arguments):
        begin(store, *arguments)
        pages = store._one("PRAGMA page_count")
        store._db.execute(f"PRAGMA max_page_count={pages + 2}")

    with monkeypatch.context() as small:
        small.setattr(Store, "begin", begin_on_a_small_disk)
        with pytest.raises(StoreError, match="the disk is full"):
            run(n=32, store=path)
    lm = FakeLM()
    same(run(lm, n=32, store=path), run(n=32))
    assert 0 < len(lm.drawn) < 6 * 32


# -- Ctrl-C --------------------------------------------------------------------


def test_ctrl_c_gives_what_has_finished_and_says_how_to_go_on(tmp_path):
    path = tmp_path / "run.sqlite"
    with pytest.warns(UserWarning, match=r"20 of 48 samples are .* in .*run\.sqlite; the same"):
        made = run(FakeLM(stop_after=20), store=path)
    assert not made.complete
    assert made.samples.valid.sum() == 20
    assert "aborted" not in made.samples.finish_reason
    assert made.counted.tolist() == [True, True] + [False] * 4
    assert made.curves().prompts == 2
    assert "20 samples of 48: interrupted, 2 prompts have all n" in repr(made)
    same(run(store=path), run())


def test_ctrl_c_before_any_prompt_is_complete_gives_no_figures():
    with pytest.warns(UserWarning, match="3 of 48 samples are finished and kept in memory"):
        made = run(FakeLM(stop_after=3))
    assert "no prompt has all n=8 samples yet" in repr(made)
    made._repr_html_()
    with pytest.raises(ValueError, match="need a prompt with all n=8 samples, but of 6 prompts"):
        made.curves()


# -- killed for real -----------------------------------------------------------

DRAW = """
    import sys
    from bonaware import evaluate
    from fakes import Digits, FakeLM
    evaluate(FakeLM(), Digits(), 10_000, store=sys.argv[1],
             progress=lambda sample: print(sample.index, flush=True))
"""


def test_sigkill_loses_no_finished_sample(tmp_path):
    path = tmp_path / "run.sqlite"
    places = [Path(bonaware.__file__).parents[1], Path(__file__).parent]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRAW), path], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
    ) as child:  # fmt: skip
        lines = [child.stdout.readline() for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout  # what it printed in the meantime
    lm = FakeLM()
    with contextlib.closing(Store(path, readonly=True)) as store:
        kept = len(list(store.samples()))
    n = kept + 5
    made = run(lm, n=n, limit=1, store=path)
    assert len(lm.drawn) == 5
    assert kept in (len(lines), len(lines) + 1)
    same(made, run(n=n, limit=1))


# -- what people see -----------------------------------------------------------


def test_the_bar_counts_samples_and_begins_with_those_that_are_there(tmp_path, capsys):
    run(n=4, store=tmp_path / "run.sqlite")
    run(n=8, store=tmp_path / "run.sqlite", progress=True)
    error = capsys.readouterr().err
    assert "24/48" in error
    assert "48/48" in error
    assert "tokens/s" in error


def test_progress_may_be_a_function_or_nothing(capsys):
    seen = []
    run(progress=seen.append)
    assert len(seen) == 48
    run(progress=False)
    run()
    assert capsys.readouterr().err == ""


def test_summary_is_an_aligned_table():
    lines = run().summary().splitlines()
    assert lines[0] == "fake on digits: 6 prompts, n=8, 48 samples"
    head, *rows = lines[2:7]
    assert head.split("   ") == ["k", *head.split("   ")[1:]]
    for row in rows:
        for column in ("pass@k", "best-of-k by likelihood", "majority@k"):
            at = head.index(column)
            assert row[at - 1] == " "
            assert row[at].isdigit()
    assert "from n=8 samples of each of 6 prompts" in lines[7]
    assert "chosen from all samples (ties: lowest index): likelihood 0." in lines[8]


def test_a_table_wider_than_the_terminal_goes_on_below():
    curves = run().curves()
    wide = curves.to_text().splitlines()
    folded = curves.to_text(60)
    *blocks, last = folded.split("\n\n")
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 60
    *rows, note = last.splitlines()
    assert note == wide[-1]
    assert [row.split() for row in rows] == [[row.split()[0], *row.split()[-3:]]
                                             if row[0] != "k" else ["k", "majority@k"]
                                             for row in wide[:-1]]  # fmt: skip
    assert all(row[0] in "k1248" for block in folded.split("\n\n") for row in block.splitlines()
               if row != note)  # fmt: skip
    assert curves.to_text(1).count("pass@k") == 1  # one curve per block at least
    fits = max(map(len, wide[:-1]))
    assert curves.to_text(fits).count("\n\n") == 0 < curves.to_text(fits - 1).count("\n\n")


def test_one_prompt_has_figures_but_no_interval():
    made = run(limit=1)
    curves = made.curves()
    assert curves.mean["pass@k"][0] == made.rewards.mean()
    assert np.isnan(curves.low["pass@k"]).all()
    assert curves.to_dict()["curves"]["pass@k"]["high"] == [None] * 4
    assert "from n=8 samples of 1 prompt; an interval needs at least 2" in repr(made)
    assert "nan" not in repr(made)


def test_html_escapes_the_models_name():
    lm = FakeLM()
    lm.name = "<script>"
    page = run(lm)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_curves_as_pandas_and_as_dict():
    pytest.importorskip("pandas", reason="needs pandas")
    curves = run().curves()
    table = curves.to_pandas()
    assert list(table.columns) == ["curve", "k", "mean", "low", "high", "n", "prompts"]
    assert len(table) == 12
    as_dict = json.loads(json.dumps(curves.to_dict()))
    assert as_dict["k"] == [1, 2, 4, 8]
    assert as_dict["curves"]["pass@k"]["mean"] == table[table.curve == "pass@k"]["mean"].tolist()


# -- recorded samples ------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WIDE = [
    {"idx": 0, "score": [True, False], "pred_score": [[0.5], [2.0]], "pred": ["7", "8"]},
    {"idx": 1, "score": [True, True], "pred_score": [[0.5], [0.25]], "pred": ["1", None]},
]


def test_one_row_per_problem(tmp_path):
    made = evaluate_recorded(write(tmp_path / "wide.jsonl", WIDE))
    np.testing.assert_array_equal(made.rewards, [[1, 0], [1, 1]])
    np.testing.assert_array_equal(made.scores["pred_score"], [[0.5, 2.0], [0.5, 0.25]])
    assert made.answers == [["7", "8"], ["1", None]]
    assert [problem.id for problem in made.problems] == ["0", "1"]
    assert made.selected() == {"pred_score": 0.5, "majority": 1.0}
    assert made.summary().startswith("wide.jsonl: 2 prompts, n=2, 4 samples")


def test_one_row_per_sample_with_different_numbers_of_samples(tmp_path):
    rows = [
        {"problem": "b", "reward": 1, "score": 0.1, "pred": 4},
        {"problem": "a", "reward": 0, "score": 0.2, "pred": None},
        {"problem": "b", "reward": 0, "score": 0.3, "pred": "5"},
    ]
    made = evaluate_recorded(write(tmp_path / "long.jsonl", rows))
    np.testing.assert_array_equal(made.rewards, [[1, 0], [0, np.nan]])
    np.testing.assert_array_equal(made.scores["score"], [[0.1, 0.3], [0.2, np.nan]])
    assert made.answers == [["4", "5"], [None, None]]
    assert [problem.id for problem in made.problems] == ["b", "a"]
    curves = made.curves()
    assert (curves.n, curves.k.tolist(), curves.prompts) == (1, [1], 2)
    assert curves.mean["pass@k"].tolist() == [0.25]


@pytest.mark.parametrize("name", ["prompt", "question"])
def test_samples_of_a_problem_are_found_by_its_text(tmp_path, name):
    rows = [{name: text, "correct": correct} for text, correct in
            [("1 + 1", True), ("2 + 2", False), ("1 + 1", False)]]  # fmt: skip
    made = evaluate_recorded(write(tmp_path / "long.jsonl", rows))
    np.testing.assert_array_equal(made.rewards, [[1, 0], [0, np.nan]])
    assert [problem.id for problem in made.problems] == ["1 + 1", "2 + 2"]


def test_a_sample_without_a_score_is_chosen_last_and_counted(tmp_path):
    rows = [{"correct": [1, 0, 1], "rm": [None, -7, -9]}, {"correct": [1, 0], "rm": [None, None]}]
    made = evaluate_recorded(write(tmp_path / "rows.jsonl", rows), scores=["rm"])
    np.testing.assert_array_equal(made.scores["rm"], [[np.nan, -7, -9], [np.nan] * 3])
    assert made.chosen()["rm"].tolist() == [1, 0]
    # k = 2: of the first problem's pairs only (0, 2) is won by a right one; the second's share.
    assert made.curves().mean["best-of-k by rm"][-1] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert "3 of 5 samples have no score by rm and are chosen last\n" in made.summary()
    made = evaluate_recorded(write(tmp_path / "rows.jsonl", [rows[0] | {"rm": [1, 2, 3]}]))
    assert "no score" not in made.summary()


def test_the_right_answer_makes_rewards(tmp_path):
    rows = [{"gold_answer": "7", "all_answers": [["7", 464], ["8", 3], ["", 2], [None, 1]]}]
    made = evaluate_recorded(write(tmp_path / "gold.jsonl", rows))
    np.testing.assert_array_equal(made.rewards, [[1, 0, 0, 0]])
    assert made.answers == [["7", "8", "", None]]


def test_fields_may_be_named(tmp_path):
    rows = [{"truth": [1, 0], "rm": [1, 2], "lm": [3, 4], "vote": ["a", "b"], "right": "b"}]
    path = write(tmp_path / "named.jsonl", rows)
    made = evaluate_recorded(path, rewards="truth", scores=["rm", "lm"], answers="vote")
    assert list(made.scores) == ["rm", "lm"]
    np.testing.assert_array_equal(made.rewards, [[1, 0]])
    made = evaluate_recorded(path, answers="vote", gold="right")
    np.testing.assert_array_equal(made.rewards, [[0, 1]])


def test_an_exported_run_can_be_read_again(tmp_path):
    made = run(store=tmp_path / "run.sqlite")
    with Store(tmp_path / "run.sqlite", readonly=True) as store:
        store.export(tmp_path / "run.jsonl")
    again = evaluate_recorded(tmp_path / "run.jsonl")
    np.testing.assert_array_equal(again.rewards, made.rewards)
    np.testing.assert_array_equal(again.scores["score_likelihood"], made.scores["likelihood"])
    assert again.answers == made.answers


def test_a_store_can_be_read_again(tmp_path):
    made = run(store=tmp_path / "run.sqlite")
    again = evaluate_recorded(tmp_path / "run.sqlite")
    same(made, again)
    assert again.answers == made.answers
    assert again.complete
    assert again.curves().to_dict() == made.curves().to_dict()


def test_a_store_whose_extension_broke_off_gives_the_rewards_it_has(tmp_path):
    made = run(store=tmp_path / "run.sqlite")
    with pytest.raises(RuntimeError, match="power"):
        run(FakeLM(9, RuntimeError("power")), n=32, store=tmp_path / "run.sqlite")
    same(made, evaluate_recorded(tmp_path / "run.sqlite"))


def test_a_store_without_rewards_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="power"):
        run(FakeLM(9, RuntimeError("power")), store=tmp_path / "run.sqlite")
    with pytest.raises(ValueError, match="the store has no rewards yet"):
        evaluate_recorded(tmp_path / "run.sqlite")


def test_a_recorded_field_without_any_answer_holds_no_votes(tmp_path):
    rows = [{"id": 1, "reward": reward, "extracted_answer": None} for reward in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = evaluate_recorded(tmp_path / "rows.jsonl")
    assert made.answers is None
    assert list(made.curves().mean) == ["pass@k"]


@pytest.mark.parametrize(("text", "options", "message"), [
    ("", {}, r"bad\.jsonl: need at least one row, but the file is empty"),
    ("[1]\n", {}, "line 1: need a JSON object"),
    ('{"rewards": [1]}\n{"rew', {}, "line 2: not JSON"),
    ('{"x": [1]}\n', {}, "line 1: need a field with rewards, .* found x"),
    ('{"rewards": [1]}\n\n{"x": 1}\n', {}, "line 3: need the field 'rewards', found x"),
    ('{"rewards": [1, 0], "scores": [1]}\n', {}, "line 1: need fields with equally many samples"),
    ('{"rewards": []}\n', {}, "line 1: need fields with equally many samples, and at least one"),
    ('{"rewards": [1, null]}\n', {}, "line 1: rewards must be finite numbers, .* found None"),
    ('{"rewards": [NaN]}\n', {}, "line 1: rewards must be finite numbers, .* found nan"),
    ('{"rewards": [1' + "0" * 400 + "]}\n", {}, "line 1: rewards must be finite numbers"),
    ('{"rewards": ["1"]}\n', {}, "line 1: rewards must be finite numbers, .* found '1'"),
    ('{"rewards": [1], "pred": [{}]}\n', {}, r"line 1: pred must be text, found {}"),
    ('{"rewards": [1]}\n{"rewards": 1}\n', {}, "line 2: rewards must be a list, one entry per"),
    ('{"reward": 1}\n', {}, "line 1: one row per sample needs a field that names the problem"),
    ('{"rewards": [1]}\n', {"scores": ["rm"]}, "line 1: need the field 'rm', found rewards"),
    ("[" * 100_000, {}, "line 1: not JSON"),
], ids=range(16))  # fmt: skip
def test_a_bad_row_is_named(tmp_path, text, options, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        evaluate_recorded(tmp_path / "bad.jsonl", **options)


def test_qwen_math_figures_are_reproduced(data):
    path = data / "samples" / "qwen25math_eval_rm_maj_math_cot_100.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    made = evaluate_recorded(path)
    curves = made.curves()
    assert curves.k.tolist() == [1, 2, 4, 8]
    assert curves.mean["pass@k"][[0, -1]] == pytest.approx([0.91, 0.96], abs=1e-12)
    assert curves.mean["best-of-k by pred_score"][-1] == pytest.approx(0.94, abs=1e-12)
    # Upstream lets the first of equally frequent answers win; three problems have a tie.
    assert made.selected() == pytest.approx({"pred_score": 0.94, "majority": 0.93}, abs=1e-12)
    assert curves.mean["majority@k"][-1] == pytest.approx(0.925, abs=1e-12)
