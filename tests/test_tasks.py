"""bonaware.tasks: problems, prompts, rewards; and the pool of processes that can be killed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bonaware import tasks
from bonaware._pool import Failure, KillablePool
from bonaware.tasks import Problem
from bonaware.tasks._boxed import last_boxed
from bonaware.tasks.gsm8k import last_number
from bonaware.tasks.keywords import forms
from bonaware.tasks.math import plain_latex

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


def problem(answer, prompt="?", **fields):
    return Problem(id="0", prompt=prompt, answer=answer, fields=fields)


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- lookup ------------------------------------------------------------------


def test_every_task_file_is_available_and_loads(monkeypatch):
    names = tasks.available()
    assert {"gsm8k", "jsonl", "keywords", "math"} <= set(names)
    assert not any(name.startswith("_") for name in names)
    for name in names:
        options = {"path": "file.jsonl"} if name == "jsonl" else {}
        assert tasks.get(name, **options).name == name


def test_an_unknown_task_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no 'gsm9k' in bonaware\.tasks; there are: aime, "):
        tasks.get("gsm9k")
    with pytest.raises(TypeError, match=r"need a name in bonaware\.tasks as a str, got int"):
        tasks.get(8)


@pytest.mark.parametrize("name", ["_compare", "../os", "gsm8k.re", ""])
def test_private_modules_and_paths_are_no_tasks(name):
    with pytest.raises(ValueError, match="there is no"):
        tasks.get(name)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="task keywords: there is no 'colour'; there are: path"):
        tasks.get("keywords", colour="red")
    with pytest.raises(TypeError, match="jsonl: 'path' is missing; there are: path, prompt_field"):
        tasks.get("jsonl", match="exact")


def test_importing_tasks_imports_no_verifier():
    code = ("import sys, bonaware.tasks; bonaware.tasks.get('gsm8k');"
            "print({'math_verify', 'sympy', 'pandas', 'torch'} & set(sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# -- what all tasks share ----------------------------------------------------


def test_rewards_are_an_array_with_nan_for_missing_texts():
    task = tasks.get("keywords")
    two = [problem(["sun"]), problem(["moon"])]
    rewards = task.rewards(two, [["sun", "x", None], ["moon", None, "sun"]])
    assert rewards.dtype == np.float64
    np.testing.assert_array_equal(rewards, [[1, 0, np.nan], [1, np.nan, 0]])


def test_equal_texts_of_a_problem_are_judged_once(monkeypatch):
    task, judged = tasks.get("keywords"), []
    reward = task.reward
    monkeypatch.setattr(task, "reward", lambda p, text: judged.append(text) or reward(p, text))
    rewards = task.rewards([problem(["sun"]), problem(["moon"])], [["sun", "x", "sun"]] * 2)
    np.testing.assert_array_equal(rewards, [[1, 0, 1], [0, 0, 0]])
    assert judged == ["sun", "x"] * 2


@pytest.mark.parametrize(("problems", "texts", "shape"), [
    ([], [], (0, 0)), ([problem(["a"])], [[]], (1, 0)), ([problem(["a"])], [[None]], (1, 1)),
])
def test_rewards_of_nothing_have_a_shape(problems, texts, shape):
    assert tasks.get("keywords").rewards(problems, texts).shape == shape


@pytest.mark.parametrize("texts", [[["a"]], [["a"], ["a", "b"]], [["a"], ["b"], ["c"]]])
def test_rewards_refuse_rows_that_do_not_fit(texts):
    with pytest.raises(ValueError, match="need one row of texts per problem, all equally long"):
        tasks.get("keywords").rewards([problem(["a"]), problem(["b"])], texts)


def test_a_split_that_a_task_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="task keywords has the splits test, not 'train'"):
        tasks.get("keywords").load("train")


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_missing_data_say_what_to_set(name, monkeypatch, tmp_path):
    monkeypatch.delenv("BONAWARE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"pass path=, or set .* BONAWARE_DATA .*{name}/"):
        tasks.get(name).load()
    monkeypatch.setenv("BONAWARE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/{name} does not exist"):
        tasks.get(name).load()


def test_limit_takes_the_first_problems_and_none_takes_all():
    task = tasks.get("keywords")
    every = task.load()
    assert [p.id for p in task.load(limit=3)] == [p.id for p in every[:3]]
    assert task.load(limit=0) == []
    assert len(task.load(limit=10**6)) == len(every)
    with pytest.raises(ValueError, match="limit must be >= 0 or None, got -1"):
        task.load(limit=-1)


# -- jsonl -------------------------------------------------------------------


def test_jsonl_reads_the_named_fields(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", {"q": "2+2?", "a": 4, "id": 17},
                       {"q": [{"role": "user", "content": "Hi"}], "a": ["x", "y"]})
    with path.open("a") as file:
        file.write("\n")
    first, second = tasks.get("jsonl", path=path, prompt_field="q", answer_field="a").load()
    assert (first.id, first.prompt, first.answer) == ("17", "2+2?", 4)
    assert (second.id, second.answer) == ("2", ["x", "y"])
    assert second.prompt == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(("match", "answer", "right", "wrong"), [
    ("exact", "New York", ['"new  york."', "NEW\nYORK"], ["New York City", "york", ""]),
    ("exact", 4, ["4", " 4. "], ["44", "4.0"]),
    ("exact", ["a", "b"], ["A", "b!"], ["c", "ab"]),
    ("contains", "cat", ["The Cat sat.", "cat"], ["category", "concat", ""]),
    ("contains", "c++", ["I like C++.", "c++"], ["c", "c+"]),
    ("regex", r"^\d+$", ["42"], ["x42", "a"]),
])
def test_jsonl_matches(tmp_path, match, answer, right, wrong):
    task = tasks.get("jsonl", path=tmp_path, match=match)
    assert [task.reward(problem(answer), text) for text in right] == [1.0] * len(right)
    assert [task.reward(problem(answer), text) for text in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(("extract", "text", "vote"), [
    (r"answer is (\w+)", "answer is a, no: the answer is B.", "b"),
    (r"\d+", "1, 2, then 3.", "3"),
    (r"answer is (\w+)", "no idea", None),
    (r"is( \w+)?", "it is", None),
    (None, " Yes! ", "yes"),
])
def test_jsonl_votes_with_what_it_extracts(tmp_path, extract, text, vote):
    task = tasks.get("jsonl", path=tmp_path, extract=extract)
    assert task.answer(problem("x"), text) == vote
    assert task.reward(problem(vote or "x"), text) == float(vote is not None)


@pytest.mark.parametrize(("line", "message"), [
    ("{", "p.jsonl, line 2: not JSON: Expecting property name enclosed in double quotes, "
          "at character"),
    ("[" * 100_000, "p.jsonl, line 2: not JSON"),
    ("[1]", "p.jsonl, line 2: need a JSON object, got list"),
    ('{"answer": "a"}', r"line 2: need a field 'prompt' \(str or list\); there are answer; "
     "another is named by prompt_field=NAME, in the terminal --task-option prompt_field=NAME"),
    ('{"question": "x"}', "there are question; another is named by prompt_field=question"),
    ('{"prompt": "x", "gold": "a"}', "are prompt, gold; another is named by answer_field=gold"),
    ('{"prompt": 1, "answer": "a"}', "line 2: field 'prompt' must be str or list, got int"),
    ('{"prompt": "x", "answer": null}', "line 2: field 'answer' must be str or int .*NoneType"),
    ('{"prompt": "x", "answer": "("}', "line 2: field 'answer': not a regular expression"),
])
def test_jsonl_says_where_a_record_is_broken(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x", "answer": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        tasks.get("jsonl", path=path, match="regex").load()


def test_jsonl_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        tasks.get("jsonl", path=tmp_path / "nothing.jsonl").load()


def test_jsonl_refuses_unknown_matches_and_broken_expressions():
    with pytest.raises(ValueError, match="match must be one of exact, contains, regex, got 'fuzz'"):
        tasks.get("jsonl", path="p", match="fuzz")
    with pytest.raises(ValueError, match="extract: not a regular expression"):
        tasks.get("jsonl", path="p", extract="(")


# -- gsm8k -------------------------------------------------------------------


@pytest.mark.parametrize(("text", "number"), [
    ("#### 18", "18"), ("1 + 1 = 2\nA: 18", "18"), ("$1,234,567.00!", "1234567"),
    ("1,2", "2"), ("10 - 5", "5"), ("3-4", "4"), ("x=-4", "-4"), ("(-4)", "-4"), ("-$5.50", "-5.5"),
    ("\N{MINUS SIGN}7", "-7"), ("-0", "0"), ("0.50", "0.5"), (".5", "0.5"), ("007", "7"),
    ("5.", "5"), ("50%", "50"), ("1" * 60, "1" * 60), ("none", None), ("", None), ("-", None),
    ("1234,567", "567"),
])
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(("text", "vote"), [
    ("1 #### 2 \n 3", "2"), ("#### 1\n#### $2,000", "2000"), ("#### none\n7", "7"),
    (r"\boxed{8} eggs of 9", "8"), (r"\boxed{x}, 9", "9"), (r"#### 1 \boxed{2}", "1"),
    ("#### 18 eggs at $2", "18"), ("#### Step 2\n7", "7"), ("####-$3", "-3"),
    ("9 apples", "9"), ("apples", None),
])
def test_gsm8k_looks_for_the_mark_then_the_box_then_the_last_number(text, vote):
    task = tasks.get("gsm8k")
    assert task.answer(problem("1"), text) == vote
    assert task.reward(problem(vote or "1"), text) == float(vote is not None)


def test_gsm8k_reads_both_splits_and_every_gold_solution_is_right(data):
    task = tasks.get("gsm8k", path=data / "gsm8k")
    problems = task.load()
    assert (len(problems), len(task.load("train"))) == (1319, 7473)
    assert all(re.fullmatch(r"-?\d+", p.answer) for p in problems)
    assert all(task.reward(p, p.fields["answer"]) == 1.0 for p in problems)


def test_gsm8k_gives_back_the_marks_of_recorded_solutions(data):
    problems = tasks.get("gsm8k", path=data / "gsm8k").load()
    records = read_jsonl(data / "gsm8k" / "example_model_solutions.jsonl")
    for model, share in [("6b_finetuning", 0.21683), ("6b_verification", 0.39045),
                         ("175b_finetuning", 0.34723), ("175b_verification", 0.56255)]:
        rewards = tasks.get("gsm8k").rewards(problems, [[r[model]["solution"]] for r in records])
        assert rewards[:, 0].tolist() == [float(r[model]["is_correct"]) for r in records]
        assert rewards.mean() == pytest.approx(share, abs=5e-6)


@pytest.fixture
def two_shots(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", *(
            {"question": f"{split} {i}?", "answer": f"it is\n#### {i}"} for i in range(3)))
    return lambda **options: tasks.get("gsm8k", path=tmp_path, **options)


def test_gsm8k_shows_solved_problems_as_text(two_shots):
    task = two_shots(shots=2)
    assert task.prompt(task.load()[2]) == (
        "Question: train 0?\nAnswer: it is\n#### 0\n\nQuestion: train 1?\nAnswer: it is\n#### 1\n\n"
        "Question: test 2?\nAnswer:")
    assert task.stop_strings == ("Question:",)


def test_gsm8k_shows_solved_problems_as_a_chat(two_shots):
    task = two_shots(shots=1, chat=True)
    messages = task.prompt(task.load()[2])
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"].startswith("train 0?")
    assert messages[1]["content"] == "it is\n#### 0"
    assert messages[2]["content"].startswith("test 2?")
    assert task.stop_strings == ()


def test_gsm8k_refuses_golds_without_a_number_and_negative_shots(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", {"question": "?", "answer": "#### many"})
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: no number behind ####"):
        tasks.get("gsm8k", path=tmp_path).load()
    with pytest.raises(ValueError, match="shots must be >= 0, got -1"):
        tasks.get("gsm8k", shots=-1)


# -- keywords ----------------------------------------------------------------


def test_keywords_ships_problems_with_different_prompts_and_lower_case_words():
    problems = tasks.get("keywords").load()
    assert len(problems) == 64 == len({p.prompt for p in problems}) == len({p.id for p in problems})
    for p in problems:
        assert 1 <= len(p.answer) <= 2
        assert all(re.fullmatch("[a-z]+", word) for word in p.answer)
        assert tasks.get("keywords").reward(p, p.prompt) == 0.0


@pytest.mark.parametrize(("word", "text", "reward"), [
    ("dance", "a DANCE.", 1), ("dance", "dancing", 1), ("dance", "danced!", 1),
    ("dance", "dancer", 0), ("dance", "abundance", 0), ("dance", "dance_floor", 0),
    ("blur", "blurred", 1), ("tapestry", "tapestries", 1), ("play", "played", 1),
    ("play", "plaied", 0), ("echo", "echoes", 1), ("brush", "brushes", 1), ("fox", "foxes", 1),
    ("fix", "fixxed", 0), ("hum", "humming", 1), ("c", "vitamin c", 1), ("a.b", "axb", 0),
    ("sun", "", 0),
])
def test_keywords_takes_whole_words_in_simple_inflections(word, text, reward):
    assert tasks.get("keywords").reward(problem([word]), text) == reward


def test_keywords_needs_every_word():
    task, both = tasks.get("keywords"), problem(["sun", "moon"])
    texts = ["the sun and the moon", "moons, suns", "sun sun", "moon", "sunmoon"]
    assert [task.reward(both, text) for text in texts] == [1, 1, 0, 0, 0]


def test_keywords_forms_are_lower_case_and_begin_with_the_word():
    assert forms("Edge") == ("edge", "edges", "edged", "edging")
    assert forms("echo")[:2] == ("echo", "echoes")


def test_keywords_reads_a_file_of_ones_own(tmp_path):
    path = write_jsonl(tmp_path / "k.jsonl", {"prompt": "Once", "words": ["sun"]})
    (only,) = tasks.get("keywords", path=path).load()
    assert (only.id, only.prompt, only.answer) == ("1", "Once", ["sun"])
    write_jsonl(path, {"prompt": "Once", "words": "sun"})
    with pytest.raises(ValueError, match=r"k\.jsonl, line 1: field 'words' must be list, got str"):
        tasks.get("keywords", path=path).load()
    for words in ([], [""], [1]):
        write_jsonl(path, {"prompt": "Once", "words": words})
        with pytest.raises(ValueError, match=r"k.jsonl, line 1: words must be one str or more"):
            tasks.get("keywords", path=path).load()


# -- math --------------------------------------------------------------------


@pytest.mark.parametrize(("text", "content"), [
    (r"\boxed{1} then \boxed{ 2 }", "2"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\fbox{3}", "3"), (r"\framebox{204} minutes", "204"), (r"\boxed 5$.", "5"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{\text{a}} x}", r"\text{a}"), (r"\boxed{}", ""),
    (r"\boxed{\\}", r"\\"),
    (r"\boxed{1", None), ("boxed{1}", None), ("", None), (r"\boxed", None), (r"\boxedx{1}", None),
    (r"\boxed{1} \boxed{2", None),
])
def test_last_boxed_counts_braces(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(("one", "other"), [
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"), (r"10\!,\!000", "10,000"),
    (r"\text{(A)}.", "(A)"), ("$x$", "x"), (r"1\ 2", "12"),
])
def test_plain_latex_takes_layout_away(one, other):
    assert plain_latex(one) == plain_latex(other)


@pytest.mark.parametrize(("one", "other"), [
    (r"\leftarrow", "arrow"), (r"\frac12", "12"), ("-1", "1"), (r"\rightarrow x", "x"),
])
def test_plain_latex_keeps_mathematics(one, other):
    assert plain_latex(one) != plain_latex(other)


@needs_math_verify
def test_math_reads_its_three_data_sets(data):
    for dataset, count in [("math500", 500), ("math5000", 5000), ("aime24", 30)]:
        problems = tasks.get("math", dataset=dataset, path=data / "math").load()
        assert len(problems) == count == len({p.id for p in problems})
        assert all(p.answer for p in problems)
    task = tasks.get("math", path=data / "math" / "math500.jsonl")
    assert task.prompt(task.load(limit=1)[0]).startswith("Problem:\nConvert the point $(0,3)$")
    assert tasks.get("math", chat=True).prompt(problem("1"))[0]["content"].endswith(r"\boxed{}.")


@pytest.fixture(scope="module")
def compare():
    """One pool for tests that are not about it: a worker imports for seconds."""
    with KillablePool("bonaware.tasks._compare:compare", limit=60.0) as pool:
        yield pool


@needs_math_verify
def test_math_gold_solutions_are_right_and_other_problems_answers_wrong(data, compare):
    task = tasks.get("math", path=data / "math")
    task._pool = compare
    problems = task.load()
    solutions = [p.fields["solution"] for p in problems]
    assert task.rewards(problems, [[s] for s in solutions]).min() == 1.0
    some = [(p, s) for p, s in zip(problems[::25], solutions[1::25], strict=True)]
    same = [p.answer == last_boxed(s) for p, s in some]
    rewards = task.rewards([p for p, _ in some], [[s] for _, s in some])[:, 0]
    assert [bool(r) for r in rewards] == same


@needs_math_verify
@pytest.mark.slow
def test_math_verify_itself_finds_every_gold_equal_to_itself(data, compare):
    golds = [p.answer for p in tasks.get("math", path=data / "math").load()]
    assert compare.map([(gold, gold) for gold in golds]) == [True] * 500


@needs_math_verify
def test_math_agrees_with_recorded_marks(data, compare):
    records = read_jsonl(data / "samples" / "qwen25math_eval_rm_maj_math_cot_100.jsonl")
    problems = [problem(r["gt"]) for r in records]
    task = tasks.get("math")
    task._pool = compare
    rewards = task.rewards(problems, [r["code"] for r in records])
    marks = np.array([r["score"] for r in records], float)
    # The one difference: gold 10{,}000 against \boxed{10000}, which is right.
    ((row, column),) = np.argwhere(rewards != marks)
    assert (records[row]["gt"], records[row]["pred"][column]) == ("10{,}000", "10000")


@needs_math_verify
def test_math_compares_mathematics_and_not_strings():
    task = tasks.get("math", workers=1)
    texts = [r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{1/2}", r"\boxed{5}", "0.5",
             r"\boxed{}", r"\boxed{\frac{}{}}", None, r"\boxed{\frac12"]
    rewards = task.rewards([problem(r"\frac{1}{2}")], [texts])
    np.testing.assert_array_equal(rewards, [[1, 1, 1, 0, 0, 0, 0, np.nan, 0]])
    assert task.reward(problem("x^2+2x+1"), r"\boxed{(x+1)^2}") == 1.0
    assert task.answer(problem("1"), r"\boxed{ \dfrac{1}{2}. }") == r"\frac{1}{2}"
    assert task.answer(problem("1"), r"\boxed{}") is task.answer(problem("1"), "1") is None


@needs_math_verify
def test_math_warns_of_answers_that_take_too_long_and_counts_them_wrong():
    task = tasks.get("math")
    task._pool = KillablePool("hostile_calls:compare", workers=1, limit=0.5)
    texts = [r"\boxed{sleep}", r"\boxed{a}", r"\boxed{b}", "", r"\boxed{c}"]
    with pytest.warns(UserWarning, match="1 of 5 answers .* count as wrong; .*'sleep' took too l"):
        rewards = task.rewards([problem("b")], [texts])
    assert rewards.tolist() == [[0.0, 1.0, 1.0, 0.0, 1.0]]


@needs_math_verify
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*could not be compared")
def test_math_survives_hostile_latex():
    task = tasks.get("math", limit=1.0)  # the right one takes a millisecond
    hostile = [r"\sqrt{" * 2000 + "2" + "}" * 2000, "9^{9^{9^{99}}}", r"10^{10^{10}}!", "(" * 5000,
               r"\sum_{n=1}^{10^9} \frac1n", r"\int_0^1 x^{x^{x^x}} dx", "\0", "\ud800"]
    texts = [rf"\boxed{{{latex}}}" for latex in [*hostile, "7.0"]]
    rewards = task.rewards([problem("7")], [texts])
    assert rewards.tolist() == [[0.0] * len(hostile) + [1.0]]


def test_math_names_its_extra_when_math_verify_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bonaware\[math\]'"):
        tasks.get("math")


@needs_math_verify
def test_math_refuses_unknown_data_sets_and_problems_without_answer(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of math500, aime24, math5000, got"):
        tasks.get("math", dataset="math501")
    path = write_jsonl(tmp_path / "m.jsonl", {"problem": "?", "solution": "no box"})
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: need a field 'answer' \(str\), or"):
        tasks.get("math", path=path).load()


# -- the pool ----------------------------------------------------------------

MISBEHAVE = {
    "sleep": "took too long", "loop": "took too long", "stdin": "took too long",
    "exit": "the worker ended with code 3", "sys.exit": "the worker ended with code 4",
    "crash": "the worker ended with code -11", "memory": "MemoryError",
    "recursion": "RecursionError", "set": "TypeError",
}


def test_pool_gives_results_in_order_whatever_some_calls_do():
    asked = [word for pair in zip("abcdefghi", MISBEHAVE, strict=True) for word in pair]
    with KillablePool("hostile_calls:call", workers=2, limit=0.5) as pool:
        start = time.monotonic()
        results = pool.map([(word,) for word in asked])
        seconds = time.monotonic() - start
    assert results[::2] == list("abcdefghi")
    for word, result in zip(MISBEHAVE, results[1::2], strict=True):
        assert isinstance(result, Failure), word
        assert result.reason.startswith(MISBEHAVE[word]), word
    assert seconds < 60


def test_pool_output_of_a_call_does_not_get_into_the_results():
    with KillablePool("hostile_calls:call", workers=1) as pool:
        assert pool.map([("noise",), ("a",)]) == ["noise", "a"]


def test_pool_carries_large_arguments_and_results():
    text = "x" * 3_000_000
    with KillablePool("hostile_calls:call", workers=1) as pool:
        assert pool.map([(text,)]) == [text]


def test_pool_keeps_its_workers_between_maps_and_starts_no_more_than_needed():
    with KillablePool("hostile_calls:process_id", workers=2) as pool:
        assert pool.map([]) == []
        (first,) = pool.map([()])
        assert pool.map([()]) == [first]
        assert len(set(pool.map([()] * 50))) <= 2


def test_pool_close_ends_its_processes_and_a_later_map_starts_others():
    pool = KillablePool("hostile_calls:process_id", workers=1)
    (first,) = pool.map([()])
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert pool.map([()]) != [first]
    pool.close()


def test_pool_workers_end_with_their_caller(tmp_path):
    code = ("import os, signal; from bonaware._pool import KillablePool\n"
            "print(*KillablePool('hostile_calls:process_id', workers=1).map([()]), flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    worker = int(run.stdout)
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_pool_works_in_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bonaware._pool import KillablePool\n"
        "print(KillablePool('operator:add', workers=1).map([(1, 2)]))\n")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (run.stdout, run.stderr) == ("[3]\n", "")


def test_pool_interrupted_by_ctrl_c_can_be_used_again():
    code = ("import signal, time; from bonaware._pool import KillablePool\n"
            "pool = KillablePool('hostile_calls:call', workers=1, limit=100)\n"
            "pool.map([('a',)])\n"
            "signal.signal(signal.SIGALRM, signal.default_int_handler); signal.alarm(1)\n"
            "start = time.monotonic()\n"
            "try: pool.map([('sleep',)])\n"
            "except KeyboardInterrupt: print(time.monotonic() - start < 10, pool.map([('b',)]))\n")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (run.stdout, run.stderr) == ("True ['b']\n", "")


def test_pool_time_in_which_the_caller_was_stopped_does_not_count():
    code = ("from bonaware._pool import KillablePool\n"
            "pool = KillablePool('hostile_calls:call', workers=1, limit=4)\n"
            "pool.map([('a',)])\n"
            "print(pool._pool[0].process.pid, flush=True)\n"
            "print(pool.map([('work',)]))\n")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as caller:
        worker = int(caller.stdout.readline())
        for name in (signal.SIGSTOP, signal.SIGCONT):
            time.sleep(0.2 if name == signal.SIGSTOP else 6)
            os.kill(worker, name)
            os.kill(caller.pid, name)
        assert caller.stdout.read() == "['work']\n"


@pytest.mark.parametrize(("function", "reason"), [
    ("no_such_module:name", "ModuleNotFoundError"), ("os:no_such_name", "AttributeError"),
])
def test_pool_says_when_no_worker_can_import_the_function(function, reason):
    with KillablePool(function, workers=1) as pool, pytest.raises(
        RuntimeError, match=f"a worker process cannot start: {reason}"
    ):
        pool.map([()])


@pytest.mark.parametrize("function", ["name", ":name", "module:", ""])
def test_pool_needs_a_module_and_a_name(function):
    with pytest.raises(ValueError, match="function must be 'module:name', got"):
        KillablePool(function)


@pytest.mark.parametrize("options", [{"workers": 0}, {"limit": 0.0}, {"limit": float("nan")}])
def test_pool_refuses_bounds_that_make_no_sense(options):
    with pytest.raises(ValueError, match="need workers >= 1 and limit > 0"):
        KillablePool("operator:add", **options)


# -- aime ----------------------------------------------------------------------


@pytest.mark.parametrize(("text", "answer"), [
    (r"so \boxed{025}.", "25"), (r"\boxed{ 7 }", "7"), (r"\boxed{\text{ 70}}", "70"),
    (r"\boxed{\textbf{(073) }}", "73"), (r"\boxed{\mathbf{127} }", "127"),
    (r"\boxed{$000$}", "0"), (r"\boxed{12} or rather \boxed{34}", "34"), (r"\boxed{1234}", None),
    (r"\boxed{12.5}", None), (r"\boxed{-3}", None), ("The answer is 025.", "25"),
    ("The answer is 7. No: the final answer: **073**", "73"), ("Answer: $204$", "204"),
    ("the answer is 1204", None), ("the answer is 20.5", None), ("the answer is 1,204", None),
    ("2 + 2 = 4", None), ("The answer is 5, so \\boxed{x}", None), ("", None),
    ("**Answer**: 7.", "7"), ("we answer 7 questions", None), ("the answer is 25/3", None),
    ("the answer is 2^5", None), ("the answer is 3x", None), (r"the answer is 5\sqrt{2}", None),
    ("The answer is 7. No: the answer is 7.5", None),
], ids=repr)  # fmt: skip
def test_aime_takes_the_boxed_or_stated_whole_number(text, answer):
    task = tasks.get("aime")
    problem = Problem("1", "?", answer or "25")
    assert task.answer(problem, text) == answer
    assert task.reward(problem, text) == float(answer is not None)


def test_aime_reads_long_texts_in_the_time_that_their_length_takes():
    """Spaces that could belong to several parts of a pattern took hours."""
    task, problem = tasks.get("aime"), Problem("1", "?", "7")
    for text in ("answer" + " " * 50_000 + "x", "answer: " * 10_000 + "x",
                 "answer: " + "0" * 50_000 + "x", "answer: " + "1," * 25_000 + "x",
                 r"\boxed{5" + " " * 50_000 + "x}"):  # fmt: skip
        assert task.answer(problem, text) is None


def test_aime_reads_rows_and_parquet_and_writes_answers_plainly(tmp_path):
    rows = [{"problem": "one?", "answer": "025", "id": 60}, {"problem": "two?", "answer": 7}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = tasks.get("aime", path=tmp_path / "a.jsonl")
    assert [(p.id, p.prompt, p.answer) for p in task.load()] == [
        ("60", "one?", "25"), ("2", "two?", "7")]  # fmt: skip
    assert [p.id for p in task.load(limit=1)] == ["60"]
    assert task.prompt(task.load()[0]) == "Problem:\none?\n\nSolution:"
    (message,) = tasks.get("aime", chat=True).prompt(task.load()[0])
    assert message["content"].startswith("one?\nPlease")
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist([rows[1]]), tmp_path / "a.parquet")
    assert [p.answer for p in tasks.get("aime", path=tmp_path / "a.parquet").load()] == ["7"]


@pytest.mark.parametrize(("row", "message"), [
    ({"answer": "7"}, "a.jsonl, line 1: need a field 'problem' .*; there are answer"),
    ({"problem": "?", "answer": "1000"}, "need a field 'answer', a whole number from 0 to 999"),
    ({"problem": "?", "answer": "x"}, "from 0 to 999, found 'x'"),
    ({"problem": "?"}, "from 0 to 999, found None"),
])
def test_aime_refuses_other_rows(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        tasks.get("aime", path=tmp_path / "a.jsonl").load()


def test_aime_2024_has_30_problems(data, monkeypatch):
    monkeypatch.setenv("BONAWARE_DATA", str(data))
    problems = tasks.get("aime").load()
    assert len(problems) == 30
    assert all(0 <= int(problem.answer) <= 999 for problem in problems)
    assert len({problem.id for problem in problems}) == 30
    solutions = [[problem.fields["solution"]] for problem in problems]
    assert tasks.get("aime").rewards(problems, solutions).all()
