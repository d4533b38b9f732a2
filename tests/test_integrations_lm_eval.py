"""The lm-evaluation-harness as released, bonaware as its model; its own `hf` is the oracle."""

import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
from docs_examples import run_examples
from harnesses import write_rows

pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed")
pytest.importorskip("bonaware._engine", reason="the engine is not built")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

import bonaware as bon
from bonaware.integrations import lm_eval as adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the peer's own
]
QUESTIONS = ["Question: 2 + 2?\nAnswer:", "Question: who?\nAnswer:", "Question: 7 - 3?\nAnswer:"]
LENGTH = 24


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        # A list of all packages, by pip, in every result: seconds.
        patch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None)
        yield


@pytest.fixture
def model(ascii_lm):
    return adapter.BonawareLM(ascii_lm)


def task(name, rows, tmp_path, **config):
    """A task of local rows, as a YAML file would say it."""
    return {
        "task": name, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": write_rows(tmp_path / f"{name}.jsonl", rows)}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", **config,
    }  # fmt: skip


def solve(tmp_path, repeats=1, **config):
    """Like gsm8k: an answer is extracted from what follows the question."""
    regex = {"function": "regex", "regex_pattern": "([0-9a-zA-Z])", "group_select": 0}
    defaults = {
        "output_type": "generate_until", "repeats": repeats,
        "generation_kwargs": {"until": ["\n", "Question:"], "max_gen_toks": LENGTH,
                              "do_sample": repeats > 1, "temperature": float(repeats > 1)},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean",
                         "higher_is_better": True}],
        "filter_list": [{"name": "first", "filter": [regex, {"function": "take_first"}]}],
    }  # fmt: skip
    rows = [{"question": text, "answer": str(i)} for i, text in enumerate(QUESTIONS)]
    return task("solve", rows, tmp_path, **defaults | config)


def choose(tmp_path, endings):
    """Multiple choice; one choice of each question is what the model itself would say."""
    rows = [{"question": text, "choices": [" yes", " no, never", ending, "."], "answer": 2}
            for text, ending in zip(QUESTIONS, endings, strict=True)]
    return task("choose", rows, tmp_path, output_type="multiple_choice",
                doc_to_choice="{{choices}}", doc_to_target="answer", target_delimiter="",
                metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}])


def evaluate(model, tasks, **options):
    if isinstance(model, str):
        options = {"model_args": {"pretrained": str(options.pop("pretrained"))}, **options}
    return lm_eval.simple_evaluate(
        model=model, tasks=tasks, bootstrap_iters=0, device="cpu",
        task_manager=TaskManager(include_defaults=False), **options)


def responses(results, name):
    return [[response for request in sample["resps"] for response in request]
            for sample in results["samples"][name]]


def metrics(results):
    return {f"{name} {key}": value for name, of in results["results"].items()
            for key, value in of.items() if isinstance(value, float)}


def requests(kind, *arguments, repeats=1):
    made = [Instance(kind, {"at": at}, pair, 0, ("local", at, repeats))
            for at, pair in enumerate(arguments)]
    return [request for request in made for _ in range(repeats)]


# -- the same results as hf ------------------------------------------------------


@pytest.fixture(scope="module")
def hf(compared_folder):
    pytest.importorskip("torch", reason="the oracle needs torch").set_num_threads(1)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(compared_folder), device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def ours(compared_folder):
    return adapter.BonawareLM(bon.LM.load(compared_folder, dtype="float32", threads=1))


def test_greedy_texts_and_log_likelihoods_equal_those_of_hf(hf, ours, tmp_path):
    greedy = [str(text) for text in ours.generate_until(requests("generate_until", *[
        (question, {"max_gen_toks": 3}) for question in QUESTIONS]))]
    tasks = [solve(tmp_path), choose(tmp_path, greedy)]
    theirs, mine = (evaluate(model, tasks) for model in (hf, ours))
    assert responses(mine, "solve") == responses(theirs, "solve")
    assert any(text for row in responses(mine, "solve") for text in row)
    for a, b in zip(responses(mine, "choose"), responses(theirs, "choose"), strict=True):
        assert [is_greedy for _, is_greedy in a] == [is_greedy for _, is_greedy in b]
        np.testing.assert_allclose([x for x, _ in a], [x for x, _ in b], rtol=1e-5)
    if ours.lm.name == "ascii":  # where a text has one spelling in tokens
        assert any(row[2][1] for row in responses(mine, "choose"))
    assert metrics(mine) == metrics(theirs)


def test_texts_longer_than_the_context_are_cut_as_hf_cuts_them(hf, ours):
    long = "One day a dog ran. " * 40
    asked = requests("loglikelihood", (long, " The end"), ("", "The end"))
    for mine, theirs in zip(ours.loglikelihood(asked), hf.loglikelihood(asked), strict=True):
        assert mine == (pytest.approx(theirs[0], rel=1e-5), theirs[1])
    asked = requests("loglikelihood_rolling", (long,), ("The end",))
    np.testing.assert_allclose(ours.loglikelihood_rolling(asked), hf.loglikelihood_rolling(asked),
                               rtol=1e-5)
    asked = requests("generate_until", (long, {"max_gen_toks": 9}))
    assert ours.generate_until(asked) == hf.generate_until(asked)


def test_ids_and_chats_equal_those_of_hf(hf, ours):
    for text in ("a  b", "<s>a", ""):
        assert ours.tok_encode(text) == hf.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == hf.tok_encode(
            text, add_special_tokens=False)
    assert (ours.prefix_token_id, ours.eot_token_id) == (hf.prefix_token_id, hf.eot_token_id)
    assert (ours.max_length, ours.max_gen_toks) == (hf.max_length, hf.max_gen_toks)
    if hf.tokenizer.chat_template:
        assert ours.chat_template(True) == hf.chat_template(True)
        chat = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "I think "}]
        for start in (True, False):
            assert ours.apply_chat_template(chat, start) == hf.apply_chat_template(chat, start)


def test_hf_has_no_chat_template_and_neither_have_we(ours):
    assert ours.chat_template(False) is None


# -- repeats ---------------------------------------------------------------------


def test_repeats_are_one_call_over_one_prompt(model, ascii_lm, tmp_path, monkeypatch):
    drawn = []
    generate = ascii_lm.generate

    def watched(*args, **options):
        drawn.append(generate(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(ascii_lm, "generate", watched)
    texts = responses(evaluate(model, [solve(tmp_path, repeats=16)]), "solve")
    (samples,) = drawn
    assert samples.valid.shape == (3, 16)
    assert samples.stats.prompt_tokens == sum(len(model.tok_encode(text)) for text in QUESTIONS)
    assert texts == [list(row) for row in samples.text]
    assert all(len(set(row)) > 8 for row in texts)


def test_fewer_repeats_are_the_first_of_more(model, tmp_path):
    four, eight = (responses(evaluate(model, [solve(tmp_path, repeats=n)]), "solve")
                   for n in (4, 8))
    assert [row[:4] for row in eight] == four


def test_equal_questions_get_different_samples(model):
    settings = {"temperature": 1.0, "max_gen_toks": LENGTH}
    first, second = model.generate_until(requests(
        "generate_until", ("Q", settings), ("Q", settings)))
    assert first != second


def test_repeats_at_temperature_zero_are_one_sample(model, caplog):
    with caplog.at_level(logging.WARNING):
        texts = model.generate_until(requests("generate_until", ("Q", {"max_gen_toks": 4}),
                                              ("R", {"max_gen_toks": 4}), repeats=3))
    assert len(texts) == 6
    assert len(set(texts[:3])) == len(set(texts[3:])) == 1
    assert "3 repeats at temperature 0 are one sample" in caplog.text


def test_requests_of_different_settings_keep_their_places(model):
    asked = requests("generate_until", ("Q", {"max_gen_toks": 2}), ("R", {"max_gen_toks": 5}),
                     ("S", {"max_gen_toks": 2}))
    together = model.generate_until(asked)
    assert together == [model.generate_until([request])[0] for request in asked]
    assert [len(text) for text in together] == [2, 5, 2]


# -- seeds -----------------------------------------------------------------------


def test_the_seed_of_the_harness_reaches_the_samples(ascii_folder, tmp_path):
    def texts(**seeds):
        return responses(evaluate("bonaware", [solve(tmp_path, repeats=2)], pretrained=ascii_folder,
                                  **seeds), "solve")

    assert texts(numpy_random_seed=5) == texts(numpy_random_seed=5)
    assert texts(numpy_random_seed=5) != texts(numpy_random_seed=6)


def test_making_a_model_does_not_advance_the_generator_of_the_harness(ascii_folder):
    np.random.seed(3)  # noqa: NPY002 - what the harness does
    model = adapter.BonawareLM.create_from_arg_string(f"pretrained={ascii_folder},threads=1")
    after = np.random.randint(2**31)  # noqa: NPY002
    assert model._seed == after
    given = adapter.BonawareLM.create_from_arg_obj({"pretrained": ascii_folder, "seed": 4})
    assert given._seed == 4


def test_the_seed_of_a_request_wins(model):
    def text(**more):
        settings = {"temperature": 1.0, "max_gen_toks": LENGTH, **more}
        return model.generate_until(requests("generate_until", ("Q", settings)))

    assert text() == text(seed=0) != text(seed=1)


# -- filters ---------------------------------------------------------------------


def filters(*names):
    regex = {"function": "regex", "regex_pattern": "([0-9a-zA-Z])", "group_select": 0}
    return [{"name": name, "filter": [regex, {"function": name, "normalize": "length"},
                                      {"function": "take_first"}]} for name in names]


def test_filters_select_by_the_scores_of_the_samples(model, ascii_lm, tmp_path):
    names = "bonaware_best_of_n", "bonaware_weighted_majority"
    results = evaluate(model, [solve(tmp_path, repeats=8, filter_list=filters(*names))])
    taken = {name: {s["doc_id"]: s["filtered_resps"][0] for s in results["samples"]["solve"]
                    if s["filter"] == name} for name in names}
    samples = ascii_lm.generate([model.tok_encode(text) for text in QUESTIONS], 8, rng=0,
                                max_new_tokens=LENGTH, stop_strings=["\n", "Question:"])
    scores = samples.sum_logp / samples.lengths
    for p, row in enumerate(samples.text):
        answers = [next((c for c in text if c.isalnum()), "[invalid]") for text in row]
        assert taken["bonaware_best_of_n"][p] == answers[scores[p].argmax()]
        votes = {answer: sum(math.exp(score) for a, score in zip(answers, scores[p], strict=True)
                             if a == answer) for answer in set(answers) - {"[invalid]"}}
        assert taken["bonaware_weighted_majority"][p] == max(votes, key=votes.get)


def test_filters_say_that_they_need_samples_of_bonaware():
    with pytest.raises(ValueError, match=r"document 0 has 1 responses and 0 samples: use --model"):
        adapter.BestOfN().apply([["a"]], [{}])


# -- errors ----------------------------------------------------------------------


def test_a_setting_that_bonaware_does_not_know_is_named(model):
    with pytest.raises(ValueError, match="no generation setting 'length_penalty'"):
        model.generate_until(requests("generate_until", ("Q", {"length_penalty": 2})))


def test_a_length_that_leaves_no_room_for_the_prompt_is_refused(model):
    with pytest.raises(ValueError, match=r"max_gen_toks=256 leaves no room .* max_length=256"):
        model.generate_until(requests("generate_until", ("Q", {})))


def test_a_continuation_longer_than_the_context_is_refused(model):
    with pytest.raises(ValueError, match="a continuation may have 256 tokens at most, got 300"):
        model.loglikelihood(requests("loglikelihood", ("Q", "a" * 300)))


def test_max_length_must_fit_the_model(ascii_lm):
    with pytest.raises(ValueError, match="need 1 <= max_length <= 256"):
        adapter.BonawareLM(ascii_lm, max_length=257)


def test_ctrl_c_ends_the_harness(model, ascii_lm, monkeypatch):
    generate = ascii_lm.generate

    def interrupted(prompts, n, **options):
        samples = generate(prompts, n, **options)
        samples.finish_reason[0, 0] = "aborted"
        return samples

    monkeypatch.setattr(ascii_lm, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate_until(requests("generate_until", ("Q", {"max_gen_toks": 2})))


# -- the command line ------------------------------------------------------------

# `python -m bonaware`, without what takes seconds and is not ours: a list of all packages, and
# the tasks of the harness.
COMMAND = """
import functools, runpy
import lm_eval.evaluator, lm_eval.tasks
lm_eval.evaluator.add_env_info = lambda *_: None
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("bonaware", run_name="__main__", alter_sys=True)
"""


def test_the_launcher_runs_the_harness_with_our_model_and_filters(ascii_folder, tmp_path):
    config = solve(tmp_path, repeats=4, filter_list=filters("bonaware_best_of_n"))
    (tmp_path / "solve.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-c", COMMAND, "lm-eval", "run", "--model", "bonaware",
               "--model_args", f"pretrained={ascii_folder},threads=1", "--tasks", "solve",
               "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json"),
               "--log_samples"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    (results,) = tmp_path.rglob("out*.json")
    written = json.loads(results.read_text())
    assert "exact_match,bonaware_best_of_n" in written["results"]["solve"]
    assert written["config"]["model_dtype"] == "float32"
    (samples,) = tmp_path.rglob("samples_solve*.jsonl")
    texts = [json.loads(line)["resps"][0] for line in samples.read_text().splitlines()]
    for log in (samples, results):
        logged = bon.evaluate_recorded(log, Echo(), problem="doc.question")
        assert logged.texts == texts
        assert logged.rewards.shape == (3, 4)
        assert logged.title == f"{ascii_folder} on solve on {log.name}"
    with pytest.raises(ValueError, match="need a field with rewards"):  # the metric saw one of 4
        bon.evaluate_recorded(samples)


def test_a_log_of_single_responses_has_the_metrics_as_rewards(ascii_folder, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    results = evaluate("bonaware", [solve(tmp_path)], pretrained=ascii_folder, log_samples=True)
    tracker = EvaluationTracker(str(tmp_path / "out"))
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    tracker.save_results_samples("solve", samples["solve"])
    results["samples"] = samples
    (samples,) = tmp_path.rglob("samples_solve*.jsonl")
    logged = bon.evaluate_recorded(samples)
    assert logged.texts == responses(results, "solve")
    assert logged.rewards.mean() == results["results"]["solve"]["exact_match,first"]


class Echo(bon.tasks.Task):
    """Problems of `solve`; what one gives is not looked at."""

    name = "solve"

    def load(self, split="test", limit=None):
        return [bon.tasks.Problem(str(at), text, None) for at, text in enumerate(QUESTIONS)]

    def reward(self, problem, text):
        return 0.0


# -- the example of the docs -----------------------------------------------------------


def test_the_example_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("harnesses.md", "lm-evaluation-harness")
    solved = names["results"]["results"]["countdown"]
    assert solved["solved,first"] < solved["solved,best-of-16"]
