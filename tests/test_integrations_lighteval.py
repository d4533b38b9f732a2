"""lighteval as released: its custom-model file, and `lighteval eval`, which runs on inspect_ai.

Its own transformers model is the oracle, and the engine itself.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from docs_examples import run_examples
from harnesses import write_model, write_rows

pytest.importorskip("lighteval", reason="lighteval is not installed")
pytest.importorskip("bonaware._engine", reason="the engine is not built")

import inspect_ai.model
from inspect_ai.log import read_eval_log
from lighteval import main_custom, main_inspect
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.models.model_loader import load_model
from lighteval.tasks.requests import Doc

import bonaware as bon
import bonaware.integrations.inspect_ai  # registers the provider
from bonaware.integrations import lighteval as adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

QUESTIONS = ["2 + 2?", "who is it?", "7 - 3? "]
LENGTH = 24


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    """Nothing is fetched: lighteval asks for a file and for data of NLTK when it lists tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setattr("requests.get", lambda *_, **__: type("Answer", (), {"status_code": 404}))
        patch.setattr("nltk.download", lambda *_, **__: False)
        yield


def model(lm, system_prompt=None, **parameters):
    return adapter.BonawareModel(adapter.BonawareConfig(
        model_name="ascii", generation_parameters=GenerationParameters(**parameters),
        system_prompt=system_prompt), lm)


def docs(n=1, size=LENGTH, **fields):
    fields = {"choices": [" yes", " no, never", "."], "gold_index": 0, "stop_sequences": ["\n"],
              "generation_size": size, "num_samples": n, "task_name": "local|0", **fields}
    return [Doc(query=text, id=str(i), **fields) for i, text in enumerate(QUESTIONS)]


def chats():
    return [[{"role": "user", "content": text}] for text in QUESTIONS]


# -- the same results as lighteval's transformers model ----------------------------


@pytest.fixture(scope="module")
def theirs(compared_folder):
    import torch
    from lighteval.models.transformers import transformers_model as peer

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "SampleCache", lambda config: None)  # it would write into it
        yield peer.TransformersModel(peer.TransformersModelConfig(
            model_name=str(compared_folder), dtype="float32", batch_size=2))
    torch.set_grad_enabled(True)  # which the peer switches off


@pytest.fixture(scope="module")
def ours(compared_folder):
    config = adapter.BonawareConfig(model_name=str(compared_folder), dtype="float32", threads=1)
    return adapter.BonawareModel(config)


def test_greedy_texts_equal_those_of_lighteval(theirs, ours):
    for asked in (docs(), docs(stop_sequences=["e", "0"]), docs(instruction="Say it. ")):
        mine, other = ours.greedy_until(asked), theirs.greedy_until(asked)
        assert [response.text for response in mine] == [response.text for response in other]
        assert all(response.text[0] for response in mine) or asked[0].stop_sequences != ["\n"]
    assert ours.greedy_until(docs())[1].input_tokens == theirs.tok_encode(
        theirs.prompt_manager.prepare_prompt(docs()[1]))


def test_a_stop_sequence_may_be_a_plain_string(ours):
    one, other = ([response.text for response in ours.greedy_until(docs(stop_sequences=stops))]
                  for stops in ("he", ["he"]))
    assert one == other


def test_a_prompt_longer_than_the_context_is_cut_as_by_lighteval_and_gets_no_text(theirs, ours):
    asked = [Doc(query="One day a dog ran. " * 200, choices=[], gold_index=0, generation_size=9,
                 stop_sequences=[])]
    ((mine,), (other,)) = ours.greedy_until(asked), theirs.greedy_until(asked)
    assert mine.input_tokens == other.input_tokens
    assert len(mine.input_tokens) == ours.max_length
    assert (mine.text, mine.output_tokens, mine.logprobs) == ([""], [[]], [0.0])


def test_log_likelihoods_equal_those_of_lighteval(theirs, ours):
    long = [Doc(query="One day a dog ran. " * 40, choices=[" The end", " no"], gold_index=0)]
    for asked in (docs(), long):
        for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
            np.testing.assert_allclose(mine.logprobs, other.logprobs, rtol=1e-5)
            assert mine.argmax_logits_eq_gold == other.argmax_logits_eq_gold


def test_a_greedy_text_is_known_to_be_one(ascii_lm):
    made = model(ascii_lm)
    text = made.greedy_until(docs(size=3, stop_sequences=[]))[0].text[0]
    (response, *_) = made.loglikelihood(docs(choices=[text, "~"]))
    assert response.argmax_logits_eq_gold == [True, False]


def test_rolling_log_likelihoods_are_those_of_the_whole_text(theirs, ours):
    """lighteval's own model fails here, so torch itself is the oracle."""
    import torch

    short, long = "One day a dog ran.", "One day a dog ran. " * 40
    asked = [Doc(query=text, choices=None, gold_index=None) for text in (short, long)]
    mine = [response.logprobs for response in ours.loglikelihood_rolling(asked)]
    for (got,), text in zip(mine, (short, long), strict=True):
        ids = theirs.tok_encode(text, add_special_tokens=False)
        ids, read, want = [theirs.tokenizer.bos_token_id, *ids], ours.max_length, 0.0
        for begin in range(1, len(ids), read):
            end = min(begin + read, len(ids))
            first = max(0, end - read - 1)
            logits = theirs.model(torch.tensor([ids[first : end - 1]])).logits[0].double()
            logp = logits.log_softmax(-1)[begin - first - 1 :]
            want += logp.gather(1, torch.tensor(ids[begin:end])[:, None]).sum().item()
        assert got == pytest.approx(want, rel=1e-5)


# -- samples -----------------------------------------------------------------------


def test_samples_of_a_document_are_one_call_over_one_prompt(ascii_lm, monkeypatch):
    calls = []
    generate = ascii_lm.generate

    def watched(*args, **options):
        calls.append(generate(*args, **options))
        return calls[-1]

    monkeypatch.setattr(ascii_lm, "generate", watched)
    responses = model(ascii_lm, temperature=1.0).greedy_until(docs(16))
    (samples,) = calls
    assert samples.valid.shape == (3, 16)
    assert [response.text for response in responses] == samples.text
    assert samples.stats.prompt_tokens == sum(len(r.input_tokens) for r in responses)
    np.testing.assert_array_equal([r.logprobs for r in responses], samples.sum_logp)
    assert [len(tokens) for tokens in responses[0].output_tokens] == samples.lengths[0].tolist()


def test_fewer_samples_are_the_first_of_more_and_seeds_change_them(ascii_lm):
    def texts(n, **parameters):
        made = model(ascii_lm, temperature=1.0, **parameters)
        return [response.text for response in made.greedy_until(docs(n))]

    assert [row[:4] for row in texts(8)] == texts(4) == texts(4, seed=0) != texts(4, seed=1)


def test_settings_and_prompts_reach_the_engine(ascii_lm):
    made = model(ascii_lm, system_prompt="Be short.", temperature=0.7, top_p=0.9, top_k=40,
                 min_p=0.01, seed=5, max_new_tokens=9, stop_tokens=["a"])
    system = {"role": "system", "content": "Be short."}
    # The chat template has written <s>, and as with lighteval's models comes a second.
    prompts = [[0, *ascii_lm.tokenizer.chat([system, *chat])] for chat in chats()]
    want = ascii_lm.generate(prompts, 2, temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, rng=5,
                             max_new_tokens=9, stop_strings=["a"])
    assert [response.text for response in made.greedy_until(docs(2))] == want.text


def test_documents_of_different_settings_keep_their_places(ascii_lm):
    asked = [docs(size=2)[0], docs(size=5)[1], docs(size=2)[2]]
    together = [response.text for response in model(ascii_lm).greedy_until(asked)]
    assert together == [model(ascii_lm).greedy_until([doc])[0].text for doc in asked]
    assert len(together[0][0]) == 2 < len(together[1][0])


def test_a_size_of_minus_one_is_no_limit(ascii_lm):
    texts = [[response.text for response in model(ascii_lm).greedy_until(docs(size=size))]
             for size in (-1, None)]
    assert texts[0] == texts[1]


def test_ctrl_c_ends_the_harness(ascii_lm, monkeypatch):
    generate = ascii_lm.generate

    def interrupted(prompts, n, **options):
        samples = generate(prompts, n, **options)
        samples.finish_reason[0, 0] = "aborted"
        return samples

    monkeypatch.setattr(ascii_lm, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(ascii_lm).greedy_until(docs())


# -- errors ------------------------------------------------------------------------


def test_several_samples_at_temperature_zero_are_refused(ascii_lm):
    with pytest.raises(ValueError, match=r"local\|0 asks for 4 samples of a document, which at "
                                         "temperature 0 are one"):
        model(ascii_lm).greedy_until(docs(4))


def test_a_setting_that_bonaware_does_not_know_is_named(ascii_lm):
    with pytest.raises(ValueError, match="no generation setting 'presence_penalty'"):
        model(ascii_lm, presence_penalty=0.5).greedy_until(docs())
    with pytest.raises(ValueError, match="device"):
        adapter.BonawareConfig.read("model_name=ascii,device=cuda")


def test_images_are_refused(ascii_lm):
    with pytest.raises(ValueError, match=r"reads text only, but a document of local\|0 has images"):
        model(ascii_lm).greedy_until(docs(images=["picture"]))


@pytest.mark.parametrize("choices", [[], None])
def test_log_likelihoods_of_no_choices_are_refused(ascii_lm, choices):
    with pytest.raises(ValueError, match=r"log-likelihoods need choices, but document 0 of "
                                         rf"local\|0 has choices={re.escape(repr(choices))}"):
        model(ascii_lm).loglikelihood(docs(choices=choices))


# -- the custom-model file -----------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["own", "ours"])
def test_the_file_of_a_custom_model_is_a_line_or_ours(ascii_folder, tmp_path, own):
    file = Path(adapter.__file__)
    if own:
        file = tmp_path / "mine.py"
        file.write_text("from bonaware.integrations.lighteval import BonawareModel\n")
    name = f"model_name={ascii_folder},threads=1,generation_parameters={{temperature:0.5,seed:7}}"
    loaded = load_model(CustomModelConfig(model_name=name, model_definition_file_path=str(file)))
    assert type(loaded).__name__ == "BonawareModel"
    assert (loaded.config.model_name, loaded.lm.threads) == (str(ascii_folder), 1)
    assert loaded.config.generation_parameters.seed == 7
    # lighteval's cache would lie there.
    assert not [path for path in ascii_folder.iterdir() if path.is_dir()]


def test_settings_may_stand_in_a_file(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text("model_parameters: {model_name: here, generation_parameters: {top_p: 0.5}}")
    config = adapter.BonawareConfig.read(str(file))
    assert (config.model_name, config.generation_parameters.top_p) == ("here", 0.5)
    assert adapter.BonawareConfig.read("here").model_name == "here"
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert adapter.BonawareConfig.read(str(folder)).model_name == str(folder)


TASKS = '''
from lighteval.metrics.metrics_sample import PassAtK
from lighteval.metrics.metrics import Metrics
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod
import numpy as np

def vowel(doc, model_response):
    return float("e" in model_response.final_text[0])

passed = SampleLevelMetric(
    metric_name="passed", sample_level_fn=PassAtK(k=4, n=8, sample_scoring_function=vowel),
    category=SamplingMethod.GENERATIVE, corpus_level_fn=np.mean, higher_is_better=True)

def local(name, metrics, choices):
    return LightevalTaskConfig(
        name=name, hf_repo={folder!r}, hf_subset="default", evaluation_splits=["test"],
        prompt_function=lambda line, task: Doc(
            query=line["question"], choices=choices, gold_index=0),
        metrics=metrics, generation_size=24, stop_sequence=["\\n"])

TASKS_TABLE = [
    local("drawn", [passed], ["e"]),
    local("chosen", [Metrics.loglikelihood_acc], [" yes", "."]),
    local("read", [Metrics.bits_per_byte], []),
]
'''


def test_the_command_evaluates_a_local_task(ascii_folder, ascii_lm, tmp_path):
    write_rows(tmp_path / "test.jsonl", [{"question": text} for text in QUESTIONS])
    (tmp_path / "tasks.py").write_text(TASKS.replace("{folder!r}", repr(str(tmp_path))))
    name = f"model_name={ascii_folder},threads=1,generation_parameters={{temperature:1.0,seed:7}}"
    found = main_custom.custom(name, adapter.__file__, "drawn|0,chosen|0,read|0",
                               custom_tasks=str(tmp_path / "tasks.py"),
                               output_dir=str(tmp_path / "out"), save_details=True)["results"]
    tokenizer = ascii_lm.tokenizer
    samples = ascii_lm.generate([[0, *tokenizer.chat(chat)] for chat in chats()], 8, rng=7,
                                max_new_tokens=LENGTH)
    right = np.array([["e" in text for text in row] for row in samples.text], int).sum(1)
    assert 0 < right.sum() < 24
    (passed,) = (value for key, value in found["drawn:0"].items() if "stderr" not in key)
    assert passed == pytest.approx(bon.estimators.pass_at_k(np.full(3, 8), right, 4).mean())
    bits = -sum(ascii_lm.logp([[0]], [[tokenizer.encode(text)[1:]]])[0][0].sum()
                for text in QUESTIONS)
    assert found["read:0"]["bits_per_byte"] == pytest.approx(
        bits / np.log(2) / sum(map(len, QUESTIONS)), rel=1e-5)
    assert found["chosen:0"]["acc"] == 0  # "." is likelier
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config_general"]["model_name"] == str(ascii_folder)


# -- lighteval eval, on inspect_ai -----------------------------------------------------


@pytest.fixture
def strict(monkeypatch):
    """lighteval 0.13.0 gives inspect three settings that it never had; since 0.3.221 that is an
    error, whatever the model (huggingface/lighteval#1327). Without them the rest is tested."""
    known, start = inspect_ai.model.GenerateConfig.model_fields, main_inspect.inspect_ai_eval_set
    unknown = {"frequence_penalty", "log_probs", "response_format"} - known.keys()

    def evaluate(tasks, **options):
        assert [options.pop(name) for name in unknown] == [None] * 3
        return start(tasks, **options)

    monkeypatch.setattr(main_inspect, "inspect_ai_eval_set", evaluate)


@pytest.mark.usefixtures("strict")
def test_lighteval_eval_runs_a_task_of_its_own_on_the_provider(tmp_path, monkeypatch, capsys):
    """Its gsm8k, read from a folder of that name; epoch e is sample e - 1 of the engine."""
    folder = write_model(tmp_path / "ascii", max_position_embeddings=512)
    rows = [{"question": text, "answer": "so #### 4"} for text in QUESTIONS]
    data = tmp_path / "openai" / "gsm8k"
    data.mkdir(parents=True)
    write_rows(data / "test.jsonl", rows)
    (data / "README.md").write_text(
        "---\nconfigs:\n- {config_name: main, data_files: [{split: test, path: test.jsonl}]}\n---")
    monkeypatch.chdir(tmp_path)
    calls, stream = [], bon.LM.stream

    def watched(lm, requests, **settings):
        calls.append(list(requests))
        return stream(lm, requests, **settings)

    monkeypatch.setattr(bon.LM, "stream", watched)
    main_inspect.eval([f"bonaware/{folder}"], "gsm8k", model_args="ahead=4,threads=1", seed=7,
                      epochs=4, epochs_reducer="pass_at_2", max_tokens=LENGTH, display="none",
                      log_dir="logs", retry_on_error=0, max_connections=4)
    (log,) = map(read_eval_log, Path("logs").glob("*.eval"))
    lm = bon.LM.load(folder, threads=1)
    assert len(log.samples) == 12
    for sample in log.samples:
        prompt = [{"role": "user", "content": sample.messages[0].text}]
        want = lm.generate([prompt], 4, rng=7, max_new_tokens=LENGTH)
        assert sample.output.completion == want.text[0][sample.epoch - 1]
    assert sorted(list(r.indices) for call in calls[:-12] for r in call) == [[0, 1, 2, 3]] * 3
    assert f"|bonaware/{folder}|" in capsys.readouterr().out.replace(" ", "")
    logged = bon.evaluate_recorded(next(Path("logs").glob("*.eval")))
    assert logged.rewards.shape == (3, 4)


# -- the example of the docs -----------------------------------------------------------


def test_the_example_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("harnesses.md", "lighteval")
    found = names["found"]
    assert found["one"] < found["likeliest"] < found["any"]
