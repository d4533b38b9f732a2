"""inspect_ai as released, with bonaware as its provider; its own `hf` provider is the oracle."""

import asyncio
from importlib.metadata import entry_points

import numpy as np
import pytest
from docs_examples import run_examples

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
pytest.importorskip("bonaware._engine", reason="the engine is not built")

import inspect_ai
from inspect_ai import Epochs, Task
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Score, pattern
from inspect_ai.scorer._reducer import create_reducers
from inspect_ai.tool import ToolInfo

import bonaware as bon
from bonaware.integrations import inspect_ai as adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

QUESTIONS = ["2 + 2?", "who?", "7 - 3?"]
LENGTH = 12


@pytest.fixture
def drawn(ascii_lm, monkeypatch):
    """Every call of the engine: its requests."""
    calls = []
    stream = ascii_lm.stream

    def watched(requests, **settings):
        calls.append(list(requests))
        return stream(requests, **settings)

    monkeypatch.setattr(ascii_lm, "stream", watched)
    return calls


def model(lm, config=None, **options):
    config = GenerateConfig(**{"max_tokens": LENGTH, **(config or {})})
    return get_model("bonaware/ascii", config=config, memoize=False, lm=lm, **options)


def evaluate(model, tmp_path, epochs=1, reducers=None, **options):
    """Samples of the log by (question, epoch), and the log."""
    task = Task(
        dataset=[Sample(input=text, target="4", id=i) for i, text in enumerate(QUESTIONS)],
        scorer=adapter.with_likelihood(pattern(r"([0-9a-zA-Z])")),
        epochs=Epochs(epochs, reducers) if reducers else epochs,
        **{name: options.pop(name) for name in ("early_stopping",) if name in options},
    )
    (log,) = inspect_ai.eval(task, model=model, display="none", log_dir=str(tmp_path),
                             **options)
    if log.status != "success":
        raise RuntimeError(log.error.message if log.error else log.status)
    return {(s.id, s.epoch): s for s in log.samples}, log


def expected(lm, n, **settings):
    """What bonaware itself draws for the chats of these questions."""
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    return lm.generate(chats, n, **{"max_new_tokens": LENGTH, "rng": 0, **settings})


# -- the same samples ------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 4])
def test_epoch_e_is_sample_e_minus_1_of_the_engine(ascii_lm, tmp_path, ahead):
    samples, _ = evaluate(model(ascii_lm, ahead=ahead), tmp_path, epochs=4)
    want = expected(ascii_lm, 4)
    for (question, epoch), sample in samples.items():
        assert sample.output.completion == want.text[question][epoch - 1]
        assert sample.output.metadata["sum_logp"] == pytest.approx(
            want.sum_logp[question, epoch - 1])


def test_greedy_texts_equal_those_of_the_hf_provider(ascii_folder, ascii_lm, tmp_path):
    pytest.importorskip("torch", reason="the oracle needs torch").set_num_threads(1)
    pytest.importorskip("transformers", reason="the oracle needs transformers")
    theirs = get_model("hf/ascii", config=GenerateConfig(max_tokens=LENGTH), memoize=False,
                       model_path=str(ascii_folder), do_sample=False,
                       tokenizer_call_args={"add_special_tokens": False})  # the template has them
    mine = model(ascii_lm, {"temperature": 0.0})
    theirs, _ = evaluate(theirs, tmp_path)
    mine, _ = evaluate(mine, tmp_path)
    assert {key: s.output.completion for key, s in mine.items()} == {
        key: s.output.completion for key, s in theirs.items()}


def test_without_chat_the_text_of_the_messages_is_continued(ascii_lm):
    want = ascii_lm.generate(["Hi"], 1, max_new_tokens=LENGTH, rng=0)
    assert ask(model(ascii_lm, chat=False)).completion == want.text[0][0]


def test_settings_reach_the_engine(ascii_lm, tmp_path):
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 5, "stop_seqs": ["a"]}
    samples, _ = evaluate(model(ascii_lm, settings, min_p=0.01), tmp_path, epochs=2)
    want = expected(ascii_lm, 2, temperature=0.7, top_p=0.9, top_k=40, rng=5, stop_strings=["a"],
                    min_p=0.01)
    assert [[samples[p, e].output.completion for e in (1, 2)] for p in range(3)] == want.text


# -- one prompt for all epochs -----------------------------------------------------


def test_epochs_that_ask_together_share_their_prompt(ascii_lm, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "QUIET", 2.0)  # together even on a machine that is busy
    evaluate(model(ascii_lm, {"max_connections": 64}), tmp_path, epochs=16)
    assert [list(request.indices) for call in drawn for request in call] == [
        list(range(16))] * 3


def test_ahead_draws_all_epochs_with_the_first(ascii_lm, drawn, tmp_path):
    evaluate(model(ascii_lm, {"max_connections": 1}, ahead=16), tmp_path, epochs=16)
    assert [list(request.indices) for call in drawn for request in call] == [
        list(range(16))] * 3


def test_nothing_is_kept_of_what_was_asked_for(ascii_lm, tmp_path):
    used = model(ascii_lm, ahead=4)
    evaluate(used, tmp_path, epochs=4)
    assert not used.api._samples


def test_greedy_epochs_are_one_sample(ascii_lm, drawn, tmp_path):
    samples, _ = evaluate(model(ascii_lm, {"temperature": 0.0}), tmp_path, epochs=3)
    assert len({samples[0, epoch].output.completion for epoch in (1, 2, 3)}) == 1
    assert sum(map(len, drawn)) == 3


# -- outside an evaluation -----------------------------------------------------------


def ask(used, text="Hi", config=None, **options):
    return asyncio.run(used.generate(text, config=GenerateConfig(**config or {}), **options))


def test_equal_requests_outside_an_evaluation_get_different_samples(ascii_lm):
    used = model(ascii_lm)
    assert ask(used).completion != ask(used).completion
    assert ask(model(ascii_lm)).completion == ask(model(ascii_lm)).completion


def test_choices_are_samples_of_one_prompt(ascii_lm, drawn):
    output = ask(model(ascii_lm), config={"num_choices": 3})
    want = ascii_lm.generate([[{"role": "user", "content": "Hi"}]], 3, max_new_tokens=LENGTH, rng=0)
    assert [choice.message.text for choice in output.choices] == want.text[0]
    assert len(drawn[0]) == 1


def test_an_output_says_why_it_ended_and_what_it_cost(ascii_lm):
    output = ask(model(ascii_lm), config={"logprobs": True, "max_tokens": 5})
    assert output.stop_reason == "max_tokens"
    assert output.usage.output_tokens == len(output.choices[0].logprobs.content) == 5
    assert sum(token.logprob for token in output.choices[0].logprobs.content) == pytest.approx(
        output.metadata["sum_logp"])
    assert ask(model(ascii_lm, {"max_tokens": None})).stop_reason in ("stop", "model_length")


def test_the_cache_of_inspect_tells_weights_and_arguments_apart(
        ascii_lm, ascii_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rounded = bon.LM.load(ascii_folder, dtype="bfloat16", threads=1)
    calls = []
    monkeypatch.setattr(bon.LM, "stream", lambda lm, requests, _stream=bon.LM.stream, **settings: (
        calls.append(requests), _stream(lm, requests, **settings))[1])
    for used in (model(ascii_lm), model(ascii_lm), model(rounded), model(ascii_lm, chat=False),
                 model(ascii_lm, min_p=0.1)):
        ask(used, cache=True)
    assert len(calls) == 4


def test_arguments_may_be_text_as_lighteval_passes_them(ascii_folder):
    used = get_model("bonaware/" + str(ascii_folder), memoize=False, ahead="4", threads="1",
                     chat="false", min_p="0.1").api
    assert (used.ahead, used.lm.threads, used.chat, used.min_p) == (4, 1, False, 0.1)


# -- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "words"), [
    ({"frequency_penalty": 0.5}, "no generation setting 'frequency_penalty'"),
    ({"logprobs": True, "top_logprobs": 3}, "need top_logprobs=0, got 3"),
], ids=["penalty", "top_logprobs"])
def test_what_bonaware_does_not_do_is_refused(ascii_lm, config, words):
    with pytest.raises(ValueError, match=words):
        ask(model(ascii_lm), config=config)


def test_tools_are_refused(ascii_lm):
    with pytest.raises(ValueError, match="do not call tools, but 1 are given"):
        ask(model(ascii_lm), tools=[ToolInfo(name="t", description="d")])


def test_an_error_of_the_engine_reaches_who_asked(ascii_lm):
    with pytest.raises(ValueError, match="need 0 < top_p <= 1"):
        ask(model(ascii_lm), config={"top_p": 1.5})
    with pytest.raises(ValueError, match="a prompt needs 1 to 256 tokens"):
        ask(model(ascii_lm), "long " * 100)


@pytest.mark.parametrize("ahead", [0, "four", 1.5])
def test_ahead_must_be_a_positive_whole_number(ascii_lm, ahead):
    with pytest.raises(ValueError, match=f"need ahead, a whole number >= 1, got {ahead!r}"):
        model(ascii_lm, ahead=ahead)


# -- reducers ----------------------------------------------------------------------


def scores(values, answers=None, logp=None):
    answers = answers or [None] * len(values)
    logp = logp or [0.0] * len(values)
    return [Score(value=v, answer=a, metadata={"sum_logp": x, "length": 2})
            for v, a, x in zip(values, answers, logp, strict=True)]


def test_best_of_equals_the_estimators():
    made = scores(["C", "I", "C", "I"], logp=[-1.0, -2.0, -5.0, -2.0])
    rewards, logp = [[1, 0, 1, 0]], [[-1.0, -2.0, -5.0, -2.0]]
    for k in (1, 2, 3, 4):
        want = bon.estimators.best_of_k(rewards, k, scores=logp)[0]
        assert adapter.best_of(k)(made).value == pytest.approx(want)
        assert adapter.best_of(k, perfect=True)(made).value == pytest.approx(
            bon.estimators.pass_at_k(4, 2, k))


def test_best_of_more_epochs_than_are_scored_has_no_value():
    made = scores(["C", float("nan"), "I"])
    assert np.isnan(adapter.best_of(3)(made).value)
    assert adapter.best_of(2)(made).value == 0.5  # both have the same score


def test_votes_are_on_answers():
    made = scores(["I", "C", "C"], ["7", "4", "4"], [-0.1, -3.0, -4.0])
    assert adapter.majority()(made).answer == "4"
    assert adapter.weighted_majority()(made).answer == "7"
    assert adapter.weighted_majority(normalize="length")(made).value == "I"


def test_a_reducer_says_what_scores_it_needs():
    with pytest.raises(ValueError, match=r"scorer=with_likelihood\(\.\.\.\)"):
        adapter.best_of(2)([Score(value="C"), Score(value="I")])


def test_reducers_work_in_an_evaluation_beside_those_of_inspect(ascii_lm, tmp_path):
    reducers = [adapter.best_of(16), *create_reducers(["pass_at_4"]), adapter.majority(),
                adapter.best_of(4, perfect=True)]
    samples, log = evaluate(model(ascii_lm, ahead=16), tmp_path, epochs=16, reducers=reducers)
    right = np.array([[samples[p, e].scores["with_likelihood"].value == "C"
                       for e in range(1, 17)] for p in range(3)], float)
    logp = np.array([[samples[p, e].output.metadata["sum_logp"] for e in range(1, 17)]
                     for p in range(3)])
    taken, passed, _, same = (score.metrics["accuracy"].value for score in log.results.scores)
    assert taken == pytest.approx(bon.estimators.best_of_k(right, 16, scores=logp).mean())
    assert passed == same == pytest.approx(
        bon.estimators.pass_at_k(np.full(3, 16), right.sum(1).astype(int), 4).mean())


@pytest.mark.parametrize("log_format", ["eval", "json"])
def test_a_log_is_read_as_recorded_samples(ascii_lm, tmp_path, log_format):
    samples, log = evaluate(model(ascii_lm, ahead=4), tmp_path, epochs=4, log_format=log_format)
    logged = bon.evaluate_recorded(log.location)
    want = expected(ascii_lm, 4)
    assert logged.texts == want.text
    for p, i in np.ndindex(logged.rewards.shape):
        score = samples[p, i + 1].scores["with_likelihood"]
        assert logged.rewards[p, i] == (score.value == "C")
        assert logged.answers[p][i] == score.answer
    np.testing.assert_allclose(logged.scores["score_likelihood"], want.sum_logp, rtol=1e-6)
    assert [problem.prompt for problem in logged.problems] == QUESTIONS
    assert logged.title.startswith("bonaware/ascii on task on ")



def test_an_installed_package_gives_names_to_provider_and_reducers(ascii_folder):
    points = entry_points(group="inspect_ai")
    if "bonaware" not in points.names:
        pytest.skip("bonaware is not installed but read from its sources")
    assert isinstance(get_model(f"bonaware/{ascii_folder}").api, adapter.BonawareAPI)
    reduce, _ = create_reducers(["bonaware/best_of_2", "bonaware/weighted_majority"])
    assert reduce(scores(["C", "I"], logp=[-1.0, -2.0])).value == 1.0


# -- the example of the docs -----------------------------------------------------------


def test_the_example_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("harnesses.md", "inspect_ai")
    plain, best, passed = (s.metrics["accuracy"].value for s in names["log"].results.scores)
    assert plain < best <= passed


# -- epochs that stop early --------------------------------------------------------


def test_epochs_stop_when_the_policy_has_seen_enough(ascii_lm, tmp_path):
    """Greedy samples agree: four votes make 0.97."""
    policy = bon.policies.get("adaptive_consistency", confidence=0.95)
    samples, log = evaluate(model(ascii_lm, {"temperature": 0.0}), tmp_path, epochs=8,
                            early_stopping=adapter.AdaptiveEpochs(policy), max_samples=1)
    answered = {p for p in range(3) if samples[p, 1].scores["with_likelihood"].answer}
    assert answered
    assert {key for key in samples if key[0] in answered} == {
        (p, e) for p in answered for e in range(1, 5)}
    assert log.results.early_stopping.metadata["skipped"] == 4 * len(answered)


def test_a_policy_that_needs_more_than_answers_is_refused():
    with pytest.raises(ValueError, match="need a policy such as adaptive_consistency, got Prune"):
        adapter.AdaptiveEpochs(bon.policies.get("prune", n=4, checkpoints=3, fractions=0.5))
