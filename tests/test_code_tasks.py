"""Tasks humaneval and mbpp: programs are found in samples, and their tests run in the sandbox."""

import gzip
import json

import numpy as np
import pytest
from fakes import FakeLM

import bonaware
from bonaware import cli, sandbox, tasks
from bonaware.recorded import evaluate_recorded
from bonaware.sandbox import Sandbox
from bonaware.tasks import Problem
from bonaware.tasks._code import cut, defines, fenced

SOMEWHERE = any(sandbox._problem(name) is None for name in sandbox.ROUTES)
needs_sandbox = pytest.mark.skipif(not SOMEWHERE, reason="no sandbox works here")
MBPP_SPLITS = {"prompt": 10, "test": 500, "validation": 90, "train": 374}


def task_by(name, route=None, **options):
    """A task with one worker."""
    task = tasks.get(name, workers=1, **options)
    task._sandbox = Sandbox(task.seconds, task.memory, task.workers, by=route)
    return task


def double(prompt="import math\n\n\ndef double(x):\n"):
    """A problem like those of HumanEval."""
    answer = {"tests": "assert double(2) == 4", "names": ["double"]}
    return Problem("0", prompt, answer, {"test_list": ["assert double(2) == 4"]})


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


RECORD = {"task_id": "t/0", "prompt": "def double(x):\n", "entry_point": "double",
          "canonical_solution": "    return 2 * x\n",
          "test": "def check(candidate):\n    assert candidate(2) == 4\n"}


# -- the program in a sample -----------------------------------------------------


@pytest.mark.parametrize(("text", "blocks"), [
    ("none", []), ("```\na\n```", ["a\n"]), ("```python\na", ["a"]), ("x ```a``` y", []),
    ("```py\na\n```\nor\n```python3\nb\n\nc\n```", ["a\n", "b\n\nc\n"]), ("```\n```", [""]),
])
def test_fenced_blocks_are_found_and_an_open_one_ends_with_the_text(text, blocks):
    assert fenced(text) == blocks


@pytest.mark.parametrize(("code", "found"), [
    ("def f(x):", True), ("async  def f (x):", True), ("f = lambda x: x", True), ("class f:", True),
    ("x = 1\ndef f():", True), (" def f(x):", False), ("def ff(x):", False), ("f(3)", False),
    ("f == 3", False), ("def g(f=1):", False), ("", False),
])
def test_a_program_defines_a_name_at_the_beginning_of_a_line(code, found):
    assert defines(code, ["f"]) is found


def test_a_text_ends_before_the_first_stop_string():
    assert cut("a\nb\nc", ["\nc", "\nb"]) == "a"
    assert cut("a\nb", ["x"]) == cut("a\nb", []) == "a\nb"


@pytest.mark.parametrize(("chat", "text", "program"), [
    (False, "    return 2 * x\n\n\ndef other():", "{prompt}    return 2 * x\n\n"),
    (False, "    return 2 * x\n    # so\nprint(1)", "{prompt}    return 2 * x\n    # so"),
    (False, "    return 2\n\n\ndef double(x): x", "{prompt}    return 2\n\n"),
    (False, "def double(x):\n    return x", "{before}\ndef double(x):\n    return x"),
    (False, "import re\n\ndef double(x):\n    return x\n\nprint(1)",
     "{before}\nimport re\n\ndef double(x):\n    return x\n\nprint(1)"),
    (False, "```python\ndef double(x): pass\n```\nDone.", "{before}\ndef double(x): pass\n"),
    (False, "\n    y = '''\n```\n'''\n", "{prompt}\n    y = '''\n```\n'''\n"),
    (True, "Sure:\n```python\n    return 2 * x\n```", "{prompt}    return 2 * x\n"),
    (True, "A draft:\n```\ndef double(x): 1\n```\nBetter:\n```\ndef double(x): 2\n```\nUse:\n"
     "```\ndouble(3)\n```", "{before}\ndef double(x): 2\n"),
    (True, "    return 2 * x", "{prompt}    return 2 * x"),
])
def test_humaneval_takes_a_continuation_or_a_whole_function(chat, text, program):
    one = double()
    expected = program.format(prompt=one.prompt, before="import math\n\n\n")
    assert tasks.get("humaneval", chat=chat).program(one, text) == expected


@pytest.mark.parametrize(("chat", "text", "program"), [
    (False, "def double(x): return 2\n\nassert double(1)", "def double(x): return 2\n"),
    (False, 'def double(x): return 2\n"""\nNext', "def double(x): return 2"),
    (False, "def double(x): return 2\n```\nIt is right.", "def double(x): return 2"),
    (False, "```python\ndef double(x): return 2\n```", "def double(x): return 2\n"),
    (True, "So:\n```\ndef double(x): return 2\n```\nand\n```\ndouble(1)\n```",
     "def double(x): return 2\n"),
    (True, "```\nx\n```\n```\ny\n```", "y\n"),
])
def test_mbpp_takes_a_program(chat, text, program):
    assert tasks.get("mbpp", chat=chat).program(double(), text) == program


# -- problems and prompts --------------------------------------------------------


def test_humaneval_reads_plain_and_packed_files(tmp_path):
    plain = write(tmp_path / "some.jsonl", RECORD)
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed, tmp_path):
        (one,) = tasks.get("humaneval", path=path).load()
        assert (one.id, one.prompt, one.fields) == ("t/0", "def double(x):\n", RECORD)
        assert one.answer == {"tests": f"{RECORD['test']}\n\ncheck(double)\n", "names": ["double"]}


def test_broken_records_are_named(tmp_path):
    path = write(tmp_path / "h.jsonl", {**RECORD, "test": 1})
    with pytest.raises(ValueError, match=r"h\.jsonl, line 1: field 'test' must be str, got int"):
        tasks.get("humaneval", path=path).load()
    path = write(tmp_path / "m.jsonl", {"task_id": 11, "text": "x", "code": "y"})
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: need a field 'test_list' \(list\)"):
        tasks.get("mbpp", path=path).load()
    (tmp_path / "m.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"m\.json: need a list of JSON objects"):
        tasks.get("mbpp", path=tmp_path / "m.json").load()
    (tmp_path / "m.json").write_text("[")
    with pytest.raises(ValueError, match=r"m\.json: not JSON: Expecting value"):
        tasks.get("mbpp", path=tmp_path / "m.json").load()


@pytest.mark.parametrize(("options", "message"), [
    ({"dataset": "mbpp2"}, "dataset must be one of mbpp, sanitized, got 'mbpp2'"),
    ({"shots": -1}, "shots must be >= 0, got -1"),
])
def test_mbpp_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.get("mbpp", **options)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_a_chat_has_no_stop_strings_and_asks_for_a_fenced_block(name):
    base, chat = tasks.get(name), tasks.get(name, chat=True)
    assert isinstance(base.prompt(double()), str)
    assert base.stop_strings == base.plain_stop_strings != ()
    ((message),) = chat.prompt(double())
    assert chat.stop_strings == ()
    assert message["role"] == "user"
    assert "one fenced block" in message["content"]
    assert double().prompt in message["content"]


def test_humaneval_prompts_base_models_with_the_prompt_itself(data):
    task = tasks.get("humaneval", path=data / "humaneval")
    problems = task.load()
    assert len(problems) == len({problem.id for problem in problems}) == 164
    assert [problem.id for problem in task.load(limit=2)] == ["HumanEval/0", "HumanEval/1"]
    assert all(task.prompt(problem) == problem.fields["prompt"] for problem in problems)
    assert all(defines(problem.prompt, problem.answer["names"]) for problem in problems)


@pytest.mark.parametrize(("dataset", "counts"), [
    ("mbpp", MBPP_SPLITS), ("sanitized", {"prompt": 7, "test": 257, "validation": 43,
                                          "train": 120}),
])
def test_mbpp_has_the_splits_of_the_paper(data, dataset, counts):
    task = tasks.get("mbpp", path=data / "mbpp", dataset=dataset)
    assert {split: len(task.load(split)) for split in counts} == counts
    problems = task.load()
    assert problems[0].id == "11"
    assert all(problem.answer["names"] for problem in problems)
    assert task.load(limit=3)[-1].id == problems[2].id
    with pytest.raises(ValueError, match="limit must be >= 0 or None, got -1"):
        task.load(limit=-1)
    with pytest.raises(ValueError, match="has the splits prompt, test, validation, train, not"):
        task.load("dev")


def test_mbpp_shows_solved_problems_before_the_question(data):
    task = tasks.get("mbpp", path=data / "mbpp", shots=2)
    (one,) = task.load(limit=1)
    shown = task.load("prompt", limit=2)
    prompt = task.prompt(one)
    assert prompt.count('"""') == 6
    assert prompt.endswith(f'{one.fields["test_list"][2]}\n"""\n')
    code = [problem.fields["code"].replace("\r", "").rstrip() for problem in shown]
    assert all(f'"""\n{text}\n\n"""\n' in prompt for text in code)
    chat = tasks.get("mbpp", path=data / "mbpp", shots=2, chat=True).prompt(one)
    assert [message["role"] for message in chat] == ["user", "assistant"] * 2 + ["user"]
    assert fenced(chat[1]["content"]) == [f"{code[0]}\n"]


# -- reference solutions ---------------------------------------------------------


@pytest.mark.parametrize("route", sandbox.ROUTES)
def test_all_canonical_solutions_of_humaneval_pass_and_wrong_ones_do_not(data, route):
    if problem := sandbox._problem(route):
        pytest.skip(f"no sandbox by {route}: {problem}")
    task = task_by("humaneval", route, path=data / "humaneval")
    problems = task.load()
    texts = [(problem.fields["canonical_solution"], "    pass\n", "    return None, 17\n")
             for problem in problems]
    rewards = task.rewards(problems, texts)
    np.testing.assert_array_equal(rewards, [[1, 0, 0]] * 164)
    assert task.remarks().startswith("programs: ")
    assert "164 passed" in task.remarks()


@needs_sandbox
def test_canonical_solutions_of_humaneval_pass_as_fenced_blocks_too(data):
    task = task_by("humaneval", path=data / "humaneval", chat=True)
    problems = task.load()
    whole = [f"Here:\n```python\n{p.prompt}{p.fields['canonical_solution']}```\nIt works."
             for p in problems]
    assert task.rewards(problems, [[text] for text in whole]).sum() == 164


def references(task):
    """All problems, and the program that comes with each."""
    problems = [problem for split in MBPP_SPLITS for problem in task.load(split)]
    return problems, [f"```\n{problem.fields['code']}\n```" for problem in problems]


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "count"), [("mbpp", 974), ("sanitized", 427)])
def test_all_reference_solutions_of_mbpp_pass(data, dataset, count):
    task = task_by("mbpp", path=data / "mbpp", dataset=dataset)
    problems, code = references(task)
    verdicts = task.verdicts(problems, [[text] for text in code])
    assert [(problem.id, one) for problem, (one,) in zip(problems, verdicts, strict=True)
            if not one.passed] == []
    assert len(problems) == count


@needs_sandbox
@pytest.mark.slow
def test_no_solution_of_another_problem_of_mbpp_passes(data):
    task = task_by("mbpp", path=data / "mbpp")
    problems, code = references(task)
    verdicts = task.verdicts(problems, [[text] for text in [*code[1:], code[0]]])
    assert not any(one.passed for (one,) in verdicts)


@needs_sandbox
def test_reference_solutions_of_mbpp_are_not_cut_short(data):
    """What the stop strings would cut from them is nothing that their tests need."""
    base = task_by("mbpp", path=data / "mbpp")
    problems = [problem for split in MBPP_SPLITS for problem in base.load(split)]
    texts = [problem.fields["code"].replace("\r", "") for problem in problems]
    cuts = [(p, t) for p, t in zip(problems, texts, strict=True) if base.program(p, t) != t]
    verdicts = base.verdicts([p for p, _ in cuts], [[t] for _, t in cuts])
    assert all(row[0].passed for row in verdicts)


# -- judging ---------------------------------------------------------------------


@needs_sandbox
def test_rewards_are_one_for_programs_that_pass_and_equal_programs_run_once(monkeypatch):
    task = task_by("humaneval", seconds=1)
    runs = []
    run = task._sandbox._pool.map
    monkeypatch.setattr(task._sandbox._pool, "map", lambda cases: runs.extend(cases) or run(cases))
    right, wrong = "    return 2 * x", "    return x"
    rewards = task.rewards([double(), double()], [
        [right, wrong, None, f"{right}\nprint(1)"], [wrong, right, "    while True: pass", "?"],
    ])
    np.testing.assert_array_equal(rewards, [[1, 0, np.nan, 1], [0, 1, 0, 0]])
    assert len(runs) == len(set(runs)) == 4
    assert task.remarks() == "programs: 3 passed, 2 failed, 1 timeout, 1 error"
    assert task.reward(double(), right) == 1.0
    assert task.answer(double(), right) is None
    verdicts = task.verdicts([double()], [[wrong, None]])
    assert [verdict and verdict.word for verdict in verdicts[0]] == ["failed", None]


@needs_sandbox
def test_settings_say_how_programs_are_confined():
    said = tasks.get("mbpp", seconds=2.5, memory=128).settings()
    assert said == {"sandbox": f"{sandbox.route()}, 2.5 s and 128 MiB per program"}


class Coder(FakeLM):
    """Every other sample is right."""

    def sample(self, request, index, temperature, seed):
        sample = super().sample(request, index, temperature, seed)
        sample.text = f"    return {index % 2 + 1} * x"
        return sample


@needs_sandbox
def test_evaluate_measures_programs_of_a_model(tmp_path):
    path = write(tmp_path / "h.jsonl", RECORD, {**RECORD, "task_id": "t/1"})
    task = tasks.get("humaneval", path=path, workers=1)
    run = bonaware.evaluate(Coder(), task, n=4, store=tmp_path / "run.sqlite", verifiers=["exact"])
    np.testing.assert_array_equal(run.rewards, [[0, 1, 0, 1]] * 2)
    np.testing.assert_allclose(run.curves().mean["pass@k"], [1 / 2, 5 / 6, 1])
    again = evaluate_recorded(tmp_path / "run.sqlite")
    np.testing.assert_array_equal(again.rewards, run.rewards)


@pytest.fixture
def no_sandbox(monkeypatch):
    monkeypatch.setattr(sandbox, "_problem", lambda name: "it is missing")


@pytest.mark.usefixtures("no_sandbox")
def test_without_a_sandbox_nothing_is_drawn_and_nothing_runs(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "h.jsonl", RECORD)
    task, lm = tasks.get("humaneval", path=path), Coder()
    said = "programs of a model run only in a sandbox, and none works here"
    with pytest.raises(RuntimeError, match=said):
        bonaware.evaluate(lm, task, n=2)
    assert lm.drawn == []
    with pytest.raises(RuntimeError, match=said):
        task.rewards(task.load(), [["    return 2 * x"]])
    monkeypatch.setattr(bonaware, "LM", None)  # no model is loaded either
    assert cli.main(["evaluate", "--model", "m", "--task", "humaneval", "--task-option",
                     f"path={path}"]) == 1
    assert said in capsys.readouterr().err


# -- recorded samples ------------------------------------------------------------


@needs_sandbox
def test_recorded_toy_samples_are_judged_in_the_sandbox(data, capsys):
    """One of them tries to delete files, one sleeps, one asks; three are right."""
    folder = data / "humaneval"
    code = cli.main([
        "evaluate", "--samples", str(folder / "example_samples.jsonl"), "--task", "humaneval",
        "--task-option", f"path={folder / 'example_problem.jsonl'}", "--task-option", "seconds=1",
        "--task-option", "workers=1", "--json",
    ])
    out, err = capsys.readouterr()
    assert code == 0
    assert json.loads(out)["curves"]["pass@k"]["mean"][0] == pytest.approx(0.5)
    assert "sandbox " in err
    assert "programs: 3 passed, 1 refused, 1 timeout, 1 error" in err


ROWS = [{"task_id": "t/0", "completion": "    return 2 * x", "score": 0.1},
        {"task_id": "t/0", "completion": "    return x", "score": 0.2},
        {"task_id": "t/1", "completion": "    return x + x", "score": 0.3}]


@needs_sandbox
def test_recorded_programs_are_judged_per_sample_or_per_problem(tmp_path):
    path = write(tmp_path / "h.jsonl", RECORD, {**RECORD, "task_id": "t/1"}, {**RECORD,
                 "task_id": "t/2"})  # fmt: skip
    task = tasks.get("humaneval", path=path, workers=1)
    long = evaluate_recorded(write(tmp_path / "long.jsonl", *ROWS), task)
    np.testing.assert_array_equal(long.rewards, [[1, 0], [1, np.nan]])
    np.testing.assert_array_equal(long.scores["score"], [[0.1, 0.2], [0.3, np.nan]])
    assert [problem.prompt for problem in long.problems] == ["def double(x):\n"] * 2
    assert long.settings["task"] == "humaneval"
    wide = evaluate_recorded(write(tmp_path / "wide.jsonl", {
        "task_id": "t/1", "mine": ["    return x", None, "    return 2 * x"],
    }), task, texts="mine")
    np.testing.assert_array_equal(wide.rewards, [[0, np.nan, 1]])


def test_recorded_texts_can_be_judged_by_any_task(tmp_path):
    gsm8k = tmp_path / "test.jsonl"
    write(gsm8k, {"question": "1 + 1?", "answer": "#### 2"})
    rows = write(tmp_path / "rows.jsonl", {"id": "gsm8k/test/1", "text": ["2", "It is 3.", "2."]})
    run = evaluate_recorded(rows, tasks.get("gsm8k", path=tmp_path))
    np.testing.assert_array_equal(run.rewards, [[1, 0, 1]])
    assert run.answers == [["2", "3", "2"]]
    assert run.selected() == {"majority": 1.0}


@pytest.mark.parametrize(("row", "options", "message"), [
    ({"task_id": "t/9", "completion": "x"}, {}, r"r\.jsonl, line 1: task_id must be the id or "
     r"the prompt of a problem of the task, such as 't/0', found 't/9'"),
    ({"task_id": "t/0", "word": "x"}, {}, "need a field with texts; name it, or call it texts"),
    ({"completion": ["x"]}, {}, "a task needs a field that names the problem"),
    ({"task_id": "t/0", "completion": 1.5}, {"texts": "code"}, "need the field 'code', found"),
    ({"task_id": "t/0", "completion": "x"}, {"rewards": "completion"}, "give rewards or gold with"),
])
def test_recorded_rows_that_a_task_cannot_judge_are_named(tmp_path, row, options, message):
    task = tasks.get("humaneval", path=write(tmp_path / "h.jsonl", RECORD))
    with pytest.raises(ValueError, match=message):
        evaluate_recorded(write(tmp_path / "r.jsonl", row), task, **options)
