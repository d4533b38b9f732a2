"""bonaware.logs: what harnesses and tables hold, as recorded samples."""

import json
import sys
import zipfile

import numpy as np
import pytest

from bonaware import logs
from bonaware.logs import inspect_ai
from bonaware.recorded import evaluate_recorded
from bonaware.tasks import Problem, Task

# -- tables ----------------------------------------------------------------------

ROWS = [{"problem": "a", "correct": True, "score_rm": 0.5, "text": "one"},
        {"problem": "b", "correct": False, "score_rm": 0.1, "text": "two"},
        {"problem": "a", "correct": False, "score_rm": 0.9, "text": None}]  # fmt: skip


def write_parquet(path, rows):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path)


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(("name", "write"), [
    ("rows.jsonl", write_jsonl), ("rows.json", write_json), ("rows.parquet", write_parquet),
    ("no-suffix", write_parquet),
])  # fmt: skip
def test_rows_are_the_same_whatever_holds_them(tmp_path, name, write):
    write(tmp_path / name, ROWS)
    made = evaluate_recorded(tmp_path / name)
    np.testing.assert_array_equal(made.rewards, [[1, 0], [0, np.nan]])
    np.testing.assert_array_equal(made.scores["score_rm"], [[0.5, 0.9], [0.1, np.nan]])
    assert made.texts == [["one", None], ["two", None]]
    assert made.samples is None


def test_lines_may_be_called_json(tmp_path):
    write_jsonl(tmp_path / "rows.json", ROWS)
    np.testing.assert_array_equal(evaluate_recorded(tmp_path / "rows.json").rewards,
                                  [[1, 0], [0, np.nan]])


def test_prompts_and_texts_are_those_of_the_rows(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    write_jsonl(tmp_path / "rows.jsonl", [
        {"id": 7, "question": "2 + 2", "rewards": [1, 0], "solution": "4, of course",
         "responses": ["4", "5"]},
        {"id": 8, "question": chat, "rewards": [1, 0], "responses": ["four", None]},
    ])  # fmt: skip
    made = evaluate_recorded(tmp_path / "rows.jsonl")
    assert [problem.prompt for problem in made.problems] == ["2 + 2", chat]
    assert made.texts == [["4", "5"], ["four", None]]
    assert (made.settings["texts"], made.settings["prompt"]) == ("responses", "question")
    assert evaluate_recorded(tmp_path / "rows.jsonl", texts="rewards").texts == [
        ["1", "0"], ["1", "0"]]  # fmt: skip


def test_rows_without_texts_have_none(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"rewards": [1, 0], "texts": ["only one"]}])
    made = evaluate_recorded(tmp_path / "rows.jsonl")
    assert made.texts is None
    assert made.problems[0].prompt == ""


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.json", b"[]", "x.json: need at least one row, but the list is empty"),
    ("x.json", b"[1]", "x.json, row 1: need a JSON object, got int"),
    ("x.json", b"7", "x.json: need a JSON object, got int"),
    ("x.json", b'{"a":', "x.json: not JSON"),
    ("x.json", b"[" * 100_000, "x.json: not JSON"),
    ("x.json", b'{"a": 1}', "x.json: need a list of rows, a log of inspect_ai, or .* found an "
     "object with a"),
    ("x.json", b'[{"correct": 1, "id": 1}, {"id": 2}]', "x.json, row 2: need the field 'correct'"),
    ("x.parquet", b"PAR1nothing", "x.parquet: not a Parquet file that can be read"),
    ("x.eval", b"PK\x03\x04nothing", "x.eval: the archive is damaged"),
], ids=range(9))  # fmt: skip
def test_a_broken_file_is_named(tmp_path, name, text, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        evaluate_recorded(tmp_path / name)


def test_parquet_with_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, [{"correct": 1, "id": f"problem {i}"} for i in range(2000)])
    packed = bytearray(path.read_bytes())
    packed[4:3000] = bytes(2996)
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"x\.parquet: not a Parquet file that can be read: "):
        evaluate_recorded(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'bonaware\[arrow\]'"):
        logs.read(tmp_path / "x")


# -- lm-eval ---------------------------------------------------------------------


class Sums(Task):
    name = "sums"

    def load(self, split="test", limit=None):
        return [Problem("sums/1", "1 + 1", "2"), Problem("sums/2", "2 + 2", "4"),
                Problem("sums/3", "twice", "0"), Problem("sums/4", "twice", "0")]

    def reward(self, problem, text):
        return float(text == problem.answer)


def line(doc_id, texts, name, filtered, **metrics):
    """A line of samples_*.jsonl, as lm-eval 0.4.13 writes it."""
    return {
        "doc_id": doc_id, "doc": {"question": f"{doc_id + 1} + {doc_id + 1}"}, "target": "2",
        "arguments": {"gen_args_0": {"arg_0": f"Question: {doc_id}?", "arg_1": {"until": []}}},
        "resps": [texts], "filtered_resps": filtered, "filter": name, "metrics": list(metrics),
        **metrics,
    }  # fmt: skip


TIME = "2026-11-22T08-33-22.193877"


def write_lm_eval(folder, lines, task="sums"):
    write_jsonl(folder / f"samples_{task}_{TIME}.jsonl", lines)
    write_json(folder / f"results_{TIME}.json", {
        "results": {}, "model_name": "some/model", "lm_eval_version": "0.4.13"})
    return folder / f"samples_{task}_{TIME}.jsonl"


def test_lm_eval_metrics_of_single_responses_are_rewards_and_filters_are_told_apart(tmp_path):
    path = write_lm_eval(tmp_path, [
        line(0, ["It is 2."], "strict", ["[invalid]"], exact_match=0.0, length=8),
        line(1, ["4"], "strict", ["4"], exact_match=1.0, length=1),
        line(0, ["It is 2."], "loose", ["2"], exact_match=1.0, length=8),
        line(1, ["4"], "loose", ["4"], exact_match=1.0, length=1),
    ])  # fmt: skip
    made = evaluate_recorded(path)
    np.testing.assert_array_equal(made.rewards, [[0], [1]])
    assert made.answers == [["[invalid]"], ["4"]]
    assert made.texts == [["It is 2."], ["4"]]
    assert [problem.prompt for problem in made.problems] == ["Question: 0?", "Question: 1?"]
    assert made.title == f"some/model on sums on {path.name}"
    loose = evaluate_recorded(path, rewards="reward_exact_match,loose", answers="answer_loose")
    np.testing.assert_array_equal(loose.rewards, [[1], [1]])
    assert loose.answers == [["2"], ["4"]]
    results = f"results_{TIME}.json"
    assert evaluate_recorded(tmp_path / results).settings == made.settings | {"recorded": results}


REPEATED = [line(0, ["2", "3", "2"], "first", ["2"], exact_match=1.0),
            line(1, ["4", "2", "5"], "first", ["4"], exact_match=0.0),
            line(0, ["2", "3", "2"], "all", [["2", "3", "2"]], each=[1, 0, 1], share=0.6),
            line(1, ["4", "2", "5"], "all", [["4", "2", "5"]], each=[1, 0, 0], share=0.3)]


def test_lm_eval_repeats_are_samples_and_a_figure_of_all_is_no_reward_of_each(tmp_path):
    made = evaluate_recorded(write_lm_eval(tmp_path, REPEATED))
    np.testing.assert_array_equal(made.rewards, [[1, 0, 1], [1, 0, 0]])
    assert made.settings["rewards"] == "reward_each,all"
    path = write_lm_eval(tmp_path, REPEATED[:2])
    with pytest.raises(ValueError, match=r"line 1: need a field with rewards, .* found problem, "
                       r"prompt, texts, reference, doc\.question$"):  # fmt: skip
        evaluate_recorded(path)


def test_lm_eval_repeats_are_judged_by_a_task_or_by_their_answers(tmp_path):
    path = write_lm_eval(tmp_path, REPEATED)
    made = evaluate_recorded(path, Sums(), problem="doc.question")
    np.testing.assert_array_equal(made.rewards, [[1, 0, 1], [1, 0, 0]])
    assert [problem.id for problem in made.problems] == ["sums/1", "sums/2"]
    made = evaluate_recorded(path, answers="answer_all", gold="reference")
    np.testing.assert_array_equal(made.rewards, [[1, 0, 1], [0, 1, 0]])


def test_a_prompt_that_two_problems_have_names_neither(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"problem": "twice", "text": "0"}])
    with pytest.raises(ValueError, match="line 1: problem must be the id or the prompt of a "
                       "problem of the task, such as 'sums/1', found 'twice'"):
        evaluate_recorded(tmp_path / "rows.jsonl", Sums())


@pytest.mark.parametrize(("change", "message"), [
    ({"resps": [[["-1.5", "False"]], [["-2.5", "True"]]]}, "line 1: need a task that generates"),
    ({"resps": [[["-1.5", "False"]]]}, "line 1: need a task that generates"),
    ({"filtered_resps": ["2", "3"]}, "line 1: filtered_resps must be a list of one entry"),
    ({"metrics": None}, "line 1: metrics must be a list of names, found None"),
    ({"metrics": [["a"]]}, "line 1: metrics must be a list of names"),
], ids=["choices", "one choice", "filtered", "no metrics", "metrics"])  # fmt: skip
def test_other_lm_eval_logs_are_refused(tmp_path, change, message):
    path = write_lm_eval(tmp_path, [REPEATED[0] | change])
    with pytest.raises(ValueError, match=message):
        evaluate_recorded(path)


def test_results_of_lm_eval_name_the_samples_beside_them(tmp_path):
    write_lm_eval(tmp_path, REPEATED, "one")
    write_lm_eval(tmp_path, REPEATED, "other")
    results = tmp_path / f"results_{TIME}.json"
    with pytest.raises(ValueError, match=rf"give one of samples_one_{TIME}.jsonl, samples_other_"):
        evaluate_recorded(results)
    for path in tmp_path.glob("samples_*"):
        path.unlink()
    with pytest.raises(ValueError, match="lm-eval writes them beside it with --log_samples"):
        evaluate_recorded(results)


# -- inspect_ai ------------------------------------------------------------------


def sample(name, epoch, text, **scores):
    """A sample of a log, as inspect_ai 0.3.285 writes it."""
    return {
        "id": name, "epoch": epoch, "input": f"input of {name}", "target": "x",
        "output": {"completion": text, "choices": [{"stop_reason": "stop"}],
                   "metadata": {"sum_logp": -float(epoch)}},
        "scores": {scorer: {"value": value, "answer": text.upper()}
                   for scorer, value in scores.items()},
    }  # fmt: skip


HEAD = {"version": 2, "status": "success", "eval": {
    "model": "some/model", "task": "sums", "dataset": {"sample_ids": ["b", "a"]}}}
# As they were finished: neither by epoch nor as the dataset has them.
SAMPLES = [sample("a", 10, "a10", judge="I", other="N"), sample("b", 1, "b1", judge="P", other=2),
           sample("a", 2, "a2", judge="C", other=True), sample("b", 2, "b2", judge="C", other=3),
           sample("a", 1, "a1", judge="C", other=0.5)]  # fmt: skip


def write_eval(path, samples, method=zipfile.ZIP_DEFLATED, head="header.json"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("_journal/summaries/1.json", "[]")
        for one in samples:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        archive.writestr(head, json.dumps(HEAD))
    return path


def write_log(folder, kind, samples=SAMPLES):
    path = folder / f"log.{kind}"
    if kind == "eval":
        return write_eval(path, samples)
    path.write_text(json.dumps(HEAD | {"samples": samples}, indent=2))
    return path


@pytest.fixture(params=["eval", "json"])
def log(request, tmp_path):
    return write_log(tmp_path, request.param)


def test_inspect_epochs_are_samples_in_order(log):
    made = evaluate_recorded(log)
    assert [problem.id for problem in made.problems] == ["b", "a"]
    assert made.texts == [["b1", "b2", None], ["a1", "a2", "a10"]]
    np.testing.assert_array_equal(made.rewards, [[0.5, 1, np.nan], [1, 1, 0]])
    np.testing.assert_array_equal(made.scores["score_likelihood"], [[-1, -2, np.nan],
                                                                   [-1, -2, -10]])
    assert made.answers == [["B1", "B2", None], ["A1", "A2", "A10"]]
    assert made.problems[0].prompt == "input of b"
    assert made.title == f"some/model on sums on {log.name}"


def test_inspect_scorers_are_told_apart(log):
    made = evaluate_recorded(log, rewards="reward_other")
    np.testing.assert_array_equal(made.rewards, [[2, 3, np.nan], [0.5, 1, 0]])
    with pytest.raises(ValueError, match=r"need the field 'third', found .*reward_judge"):
        evaluate_recorded(log, rewards="third")


def test_several_values_of_an_inspect_scorer_are_fields(tmp_path):
    path = write_log(tmp_path, "json", [
        sample("a", 1, "x", judge={"form": "C", "sense": 0.25}, other=["I", 3])])  # fmt: skip
    for field, value in {"reward_judge.form": 1, "reward_judge.sense": 0.25, "reward_other.0": 0,
                         "reward_other.1": 3}.items():  # fmt: skip
        assert evaluate_recorded(path, rewards=field).rewards == [[value]]


def test_inspect_samples_that_failed_are_left_out_and_counted(tmp_path):
    failed = sample("a", 3, "", judge="I") | {"error": {"message": "no answer"}}
    path = write_log(tmp_path, "json", [*SAMPLES, failed | {"scores": {}}])
    with pytest.warns(UserWarning, match=r"log.json: 1 of 6 samples failed and are left out"):
        made = evaluate_recorded(path)
    assert made.texts[1] == ["a1", "a2", "a10"]
    assert evaluate_recorded(write_log(tmp_path, "json", [*SAMPLES, failed])).n == 4
    with pytest.raises(ValueError, match="need at least one sample that ended, but 1 failed"):
        evaluate_recorded(write_log(tmp_path, "json", [failed | {"scores": {}}]))


def test_inspect_texts_may_be_in_parts_messages_or_kept_apart(tmp_path):
    one = sample("a", 1, "", judge="C") | {
        "input": [{"role": "system", "content": "attachment://5f"},
                  {"role": "user", "content": [{"type": "text", "text": "2 + "},
                                               {"type": "image", "image": "data:"},
                                               {"type": "text", "text": "2"}]}],
        "output": {"choices": [{"message": {"content": [{"text": "it is "}, {"text": "4"}]}}]},
        "attachments": {"5f": "be brief"},
    }  # fmt: skip
    made = evaluate_recorded(write_log(tmp_path, "json", [one]))
    assert made.texts == [["it is 4"]]
    assert made.problems[0].prompt == [{"role": "system", "content": "be brief"},
                                       {"role": "user", "content": "2 + 2"}]
    assert made.scores == {}


@pytest.mark.parametrize(("change", "text"), [
    ({"output": {"choices": {"a": 1}}}, None), ({"output": {"choices": 7}}, None),
    ({"output": {"completion": "attachment://5f"}, "attachments": {"5f": 7}}, "attachment://5f"),
    ({"output": {"completion": [{"text": [{"text": "deep"}]}, {"text": "x"}]}}, "x"),
], ids=range(4))  # fmt: skip
def test_inspect_samples_of_another_shape_have_the_text_that_can_be_read(tmp_path, change, text):
    path = tmp_path / "log.json"
    head = {"eval": {"dataset": {"sample_ids": 7}}}
    write_json(path, head | {"samples": [sample("a", 1, "", judge="C") | change]})
    made = evaluate_recorded(path)
    assert (made.rewards, made.texts[0][0] if made.texts else None) == ([[1]], text)


def test_an_inspect_log_that_is_under_way_is_read(tmp_path):
    path = write_eval(tmp_path / "x.eval", SAMPLES, head="_journal/start.json")
    assert evaluate_recorded(path).n == 3


@pytest.mark.parametrize(("samples", "message"), [
    ([{"id": "a"}], "sample 1: need a sample with an id and the number of its epoch"),
    ([7], "sample 1: need a sample with an id"), (7, "log.json: need a log with samples, found"),
    ([], "need at least one sample that ended, but 0 failed"),
    ([sample("a", 1, "x") | {"scores": {"judge": 1}}], "score 'judge' must be an object with a"),
    ([sample("a", 1, "x", judge="maybe")], "sample 1: reward_judge must be finite numbers, .* "
     "found 'maybe'"),
], ids=range(6))  # fmt: skip
def test_broken_inspect_logs_are_named(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        evaluate_recorded(write_log(tmp_path, "json", samples))


def test_an_archive_that_is_no_log_is_refused(tmp_path):
    path = write_eval(tmp_path / "x.eval", SAMPLES, head="other.json")
    with pytest.raises(ValueError, match=r"x\.eval: need a log of inspect_ai, but the archive has"):
        evaluate_recorded(path)


def test_a_folder_of_an_archive_is_no_sample(tmp_path):
    path = write_eval(tmp_path / "x.eval", SAMPLES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("samples")
    assert evaluate_recorded(path).n == 3


def test_a_damaged_file_of_an_archive_is_named_whatever_packed_it(tmp_path):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = write_eval(tmp_path / "x.eval", SAMPLES[:1], method)
        packed = bytearray(path.read_bytes())
        start = packed.index(b"samples/a_epoch_10.json") + len(b"samples/a_epoch_10.json")
        packed[start + 10 : start + 20] = b"\xff" * 10
        path.write_bytes(packed)
        with pytest.raises(ValueError, match=r"x\.eval, samples/a_epoch_10\.json: the archive is"):
            evaluate_recorded(path)


def with_every(packed, mark, place, value):
    """The bytes of an archive with one byte of each of its headers replaced."""
    packed, start = bytearray(packed), packed.find(mark)
    while start >= 0:
        packed[start + place] = value
        start = packed.find(mark, start + 1)
    return bytes(packed)


def test_an_archive_that_is_locked_or_packed_otherwise_says_so(tmp_path):
    path = write_eval(tmp_path / "x.eval", SAMPLES)
    whole = path.read_bytes()
    locked = with_every(with_every(whole, b"PK\1\2", 8, 1), b"PK\3\4", 6, 1)
    path.write_bytes(locked)
    with pytest.raises(ValueError, match=r"header\.json: the archive is damaged or locked: "):
        evaluate_recorded(path)
    path.write_bytes(with_every(with_every(whole, b"PK\1\2", 10, 9), b"PK\3\4", 8, 9))
    with pytest.raises(ValueError, match=r"header\.json: packed in a way that Python cannot "):
        evaluate_recorded(path)


def test_a_file_of_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = write_eval(tmp_path / "x.eval", SAMPLES)
    monkeypatch.setattr(inspect_ai, "MOST", 400)
    with pytest.raises(ValueError, match="need at most 400 bytes, but it unpacks to "):
        evaluate_recorded(write_eval(path, [sample("a", 1, "x" * 1000, judge="C")]))


ZSTANDARD = 93  # method in a zip archive


def test_an_archive_by_zstandard_is_read(tmp_path):
    if sys.version_info < (3, 14):
        pytest.importorskip("zipfile_zstd", reason="needs zipfile-zstd")
    path = write_eval(tmp_path / "x.eval", SAMPLES, ZSTANDARD)
    assert evaluate_recorded(path).texts == [["b1", "b2", None], ["a1", "a2", "a10"]]


def test_without_zstandard_an_archive_by_it_says_what_to_install(tmp_path, monkeypatch):
    def refuse(method):
        raise NotImplementedError("That compression method is not supported")

    path = write_eval(tmp_path / "x.eval", SAMPLES)
    packed = with_every(path.read_bytes(), b"PK\1\2", 10, ZSTANDARD)
    path.write_bytes(with_every(packed, b"PK\3\4", 8, ZSTANDARD))
    monkeypatch.setitem(sys.modules, "zipfile_zstd", None)
    monkeypatch.setattr(zipfile, "_get_decompressor", refuse)
    with pytest.raises(ImportError, match=r"x\.eval is packed by Zstandard, .* pip install "
                       r"'bonaware\[logs\]'"):  # fmt: skip
        evaluate_recorded(path)


# -- AlpacaEval ------------------------------------------------------------------


def annotation(instruction, preference, **fields):
    return {"instruction": instruction, "output_1": "theirs", "output_2": "ours", "dataset": "set",
            "generator_1": "reference", "generator_2": "model", "annotator": "judge",
            "preference": preference, **fields}  # fmt: skip


def test_preferences_are_rewards_and_answers_to_one_instruction_its_samples(tmp_path):
    path = tmp_path / "annotations.json"
    write_json(path, [annotation("a", 2, score_rm=1), annotation("b", 0, score_rm=3),
                      annotation("a", 1.25, score_rm=2), annotation("b", 1.0, score_rm=4),
                      annotation("c", None, score_rm=0)])  # fmt: skip
    with pytest.warns(UserWarning, match="1 of 5 annotations have no preference and are left out"):
        made = evaluate_recorded(path)
    np.testing.assert_array_equal(made.rewards, [[1, 0.25], [0.5, 0]])
    assert made.curves().mean["max@k"].tolist() == [1.75 / 4, 0.75]
    assert made.curves().mean["best-of-k by score_rm"].tolist() == [1.75 / 4, 0.125]
    assert made.texts[0] == ["ours", "ours"]
    assert made.title == "model on AlpacaEval on annotations.json"


@pytest.mark.parametrize("preference", [3, 0.5, "2", False])
def test_other_preferences_are_refused(tmp_path, preference):
    write_json(tmp_path / "x.json", [annotation("a", 2), annotation("b", preference)])
    with pytest.raises(ValueError, match="row 2: preference must be from 1"):
        evaluate_recorded(tmp_path / "x.json")
    write_json(tmp_path / "x.json", [annotation("a", 2), {"instruction": "b"}])
    with pytest.raises(ValueError, match=r"row 2: need the fields .*preference, found instruction"):
        evaluate_recorded(tmp_path / "x.json")
    write_json(tmp_path / "x.json", [annotation("a", None)])
    with pytest.raises(ValueError, match="need at least one annotation with a preference, found 1"):
        evaluate_recorded(tmp_path / "x.json")


def test_published_win_rates_are_reproduced(data):
    folder = data / "alpaca_eval" / "results" / "gemma-7b-it" / "weighted_alpaca_eval_gpt4_turbo"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    made = evaluate_recorded(folder / "annotations.json")
    curves = made.curves()
    assert made.rewards.shape == (805, 1)
    assert 100 * curves.mean["max@k"][0] == pytest.approx(6.937294379, abs=1e-8)
    low, high = (100 * bound["max@k"][0] for bound in (curves.low, curves.high))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.786966573, rel=0.1)  # the published error
