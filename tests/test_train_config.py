"""TrainConfig: names, kinds, TOML in and out, and the parts that it makes."""

import dataclasses
import fcntl
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import letters_model

import bonaware as bon
from bonaware import losses
from bonaware.cli import main
from bonaware.train import LoRA
from bonaware.training import Evaluation, Labels, Rollouts, Texts, config
from bonaware.training.config import TrainConfig, kind_of

LEAST = {"model": "m", "out": "o", "task": "jsonl"}


def made(**changes):
    return TrainConfig.of(LEAST | changes)


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, problems, texts and labels."""
    letters_model(tmp_path).save(tmp_path / "model")
    rows = [{"prompt": word, "answer": f"^{word[-1]}", "completion": word[-1], "label": 1}
            for word in ("ab", "ba", "ca", "cb")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def real(folder, **changes):
    """A configuration that can be run."""
    task = {"path": str(folder / "rows.jsonl"), "match": "regex", "max_new_tokens": 3}
    values = {"model": str(folder / "model"), "out": str(folder / "run"), "task": "jsonl",
              "task_options": task, "split": "test", "eval_split": "test", "threads": 1, "n": 8,
              "prompts": 4, "loss": "reinforce", "lr": 0.01, "steps": 3}
    return TrainConfig.of(values | changes)


# -- values ----------------------------------------------------------------------


def test_defaults_are_those_of_the_parts():
    found = made()
    assert found._optimizer() == bon.AdamW()
    assert found._lora() is None
    assert dataclasses.replace(found, lora_rank=LoRA().rank)._lora() == LoRA()


def test_toml_holds_what_the_dataclass_holds(tmp_path):
    path = tmp_path / "config.toml"
    full = made(task_options={"path": 'a "quoted"\\ \x7f line\n', "deep": {"x": [1, 2.5, True]}},
                k=[1, 16], lr=1, betas=[0.5, 0.75], threads=2, max_norm=float("inf"),
                limit=7, lora_targets=["q_proj"], verifier="likelihood")  # fmt: skip
    path.write_text(full.to_toml(), encoding="utf-8")
    assert TrainConfig.read(path) == full
    assert TrainConfig.read(path, lr=2.0).lr == 2.0
    assert "\nlimit = " not in made(limit=None).to_toml()


@given(st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans()
       | st.floats(allow_nan=False) | st.lists(st.text())
       | st.dictionaries(st.text(), st.text() | st.integers(0, 9)))
def test_any_value_survives_toml(value):
    assert tomllib.loads(f"value = {config._toml(value)}")["value"] == value


def test_one_number_is_a_list_of_one():
    assert made(k=16).k == (16,)
    assert made(lora_targets="q_proj").lora_targets == ("q_proj",)


def test_every_field_has_a_group_and_a_help():
    for one in dataclasses.fields(TrainConfig):
        assert one.metadata.keys() == {"group", "help"}
        assert kind_of(one.name)[0] in (str, int, float, tuple, dict)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"lr_": 1, "stepz": 3}, "unknown: lr_, stepz; known are model, tokenizer, dtype, threads, "),
    ({"lr": "fast"}, "lr must be a number, got 'fast'"),
    ({"lr": True}, "lr must be a number, got True"),
    ({"steps": 1.5}, "steps must be an integer, got 1.5"),
    ({"task": 3}, "task must be a text, got 3"),
    ({"k": [1, "x"]}, "k must be an integer, got 'x'"),
    ({"k": [1, 2, 3]}, r"need one k, or two for annealing, got \[1, 2, 3\]"),
    ({"task_options": "x"}, "task_options must be a table, got 'x'"),
    ({"task": None}, "need something to learn from: task, texts or labels; tasks are aime,"),
    ({"verifier_options": {"a": 1}}, "verifier_options are of a verifier, but none is given"),
    ({"tokenizer": "t"}, "a tokenizer is for the config.json of a new model, but m is none"),
    ({"labels": "b", "loss": "bon"}, "labels are learned by cross-entropy: need no loss"),
    ({"labels": "b", "k": 3}, "need no k"),
    ({"labels": "b", "verifier": "exact"}, "need no verifier"),
    ({"texts": "a", "labels": "b"}, "give texts or labels, not both"),
    ({"labels": "a", "eval_every": 1}, "eval_every draws samples: it needs a task"),
    ({"texts": "a", "task": None, "eval_every": 1}, "eval_every draws samples"),
], ids=str)  # fmt: skip
def test_wrong_values_are_named(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(**values)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="missing: model, out"):
        TrainConfig.of({"task": "jsonl"})


@pytest.mark.parametrize(("text", "sentence"), [
    ("lr = ", r"x\.toml: Invalid value"),
    ("stepz = 3", r"x\.toml: unknown: stepz"),
    ("steps = 3", r"x\.toml: missing: model, out"),
])
def test_errors_name_the_file(tmp_path, text, sentence):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        TrainConfig.read(path)
    with pytest.raises(FileNotFoundError):
        TrainConfig.read(tmp_path / "none.toml")


# -- parts -----------------------------------------------------------------------


def test_losses_by_default_and_by_name():
    assert made(k=4)._loss() == losses.get("bon")(k=4)
    assert made(k=[2, 8])._loss() == losses.get("bon")(k=2)
    assert made(texts="x")._loss() == losses.get("sft")()
    assert made(labels="x")._loss() is None
    assert made(loss="reinforce", loss_options={"baseline": "none"})._loss().baseline == "none"
    with pytest.raises(TypeError, match="options of loss bon: 'k' is missing; there are: k, base"):
        made()._loss()
    with pytest.raises(TypeError, match="options of loss sft: there is no 'k'; there are: none"):
        made(loss="sft", k=2)._loss()
    with pytest.raises(ValueError, match="there is no 'ppo' in bonaware"):
        made(loss="ppo")._loss()


def test_sources_are_what_the_fields_say(folder):
    source = real(folder, temperature=0.5, seed=3, limit=2, verifier="likelihood",
                  verifier_options={"normalize": "length"}, max_new_tokens=5).source()
    assert isinstance(source, Rollouts)
    assert (source.n, source.prompts, source.temperature, source.seed) == (8, 4, 0.5, 3)
    assert (len(source.problems), source.max_new_tokens) == (2, 5)
    assert source.verifier == bon.verifiers.get("likelihood", normalize="length")
    rows = str(folder / "rows.jsonl")
    assert isinstance(real(folder, texts=rows).source(), Texts)
    assert isinstance(real(folder, labels=rows, loss=None).source(), Labels)
    alone = real(folder, expert="completion", n=0, limit=3, loss=None)
    assert alone.source().rows[0] == ("ab", "b")
    assert len(alone.source().rows) == 3
    assert alone._loss() == losses.get("sft")()


def test_evaluation_takes_the_verifier_along(folder):
    assert real(folder).evaluation() is None
    found = real(folder, eval_every=2, eval_n=4, verifier="likelihood").evaluation()
    assert isinstance(found, Evaluation)
    assert (found.n, found.split, found.verifiers) == (4, "test", ("likelihood",))
    options = {"normalize": "length"}
    found = real(folder, eval_every=2, verifier="likelihood", verifier_options=options).evaluation()
    assert found.verifiers == (bon.verifiers.get("likelihood", **options),)


def test_a_verifiers_model_runs_as_the_run_says(folder):
    options = {"model": "countdown-verifier"}
    made = real(folder, verifier="reward_model", verifier_options=options, threads=1,
                memory=1 << 26)
    judge = made.source().verifier.model
    assert (judge.threads, judge.memory) == (1, 1 << 26)
    own = dataclasses.replace(made, verifier_options=options | {"memory": 1 << 25})
    assert own.source().verifier.model.memory == 1 << 25


def test_the_trainer_has_model_reference_and_optimiser(folder):
    trainer = real(folder, kl=0.1, lr=0.5, betas=[0.5, 0.6], schedule="cosine",
                   dtype="bfloat16").trainer()
    assert trainer.lm.dtype == "bfloat16"
    assert trainer.loss.kl == 0.1
    assert trainer.optimizer == bon.AdamW(lr=0.5, betas=(0.5, 0.6), schedule="cosine")
    given = real(folder, reference=str(folder / "model")).trainer()
    assert given.reference.name == "model"


def test_a_config_json_begins_with_random_weights(folder):
    path = folder / "model" / "config.json"
    trainers = [real(folder, model=str(path), tokenizer=str(folder), seed=seed).trainer()
                for seed in (1, 1, 2)]
    prints = [trainer.lm.fingerprint for trainer in trainers]
    assert prints[0] == prints[1] != prints[2]
    assert trainers[0].lm.tokenizer is not None


# -- runs ------------------------------------------------------------------------


def test_a_run_writes_its_configuration_and_resumes(folder):
    found = real(folder, save_every=1)
    trainer = config.train(found, progress=False)
    assert trainer.steps == 3
    assert TrainConfig.read(folder / "run" / "config.toml") == found
    longer = dataclasses.replace(found, steps=5)
    with pytest.raises(FileExistsError, match="holds a run: go on with bonaware train --resume"):
        config.train(longer, progress=False)
    assert TrainConfig.read(folder / "run" / "config.toml") == found
    assert config.train(longer, resume=True, progress=False).steps == 5
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    with pytest.raises(FileNotFoundError, match="found neither in"):
        config.train(dataclasses.replace(found, out=str(folder / "new")), resume=True)


def test_the_configuration_of_a_run_under_way_is_not_touched(folder, monkeypatch):
    found, run = real(folder, save_every=1), folder / "run"
    config.train(found, progress=False)
    longer = dataclasses.replace(found, steps=5)
    with (run / "metrics.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another process trains in"):
            config.train(longer, resume=True, progress=False)
    assert TrainConfig.read(run / "config.toml") == found
    written = Path.write_text

    def killed(path, text, **options):
        written(path, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        config.train(longer, resume=True, progress=False)
    monkeypatch.undo()
    assert TrainConfig.read(run / "config.toml") == found
    assert config.train(longer, resume=True, progress=False).steps == 5
    assert TrainConfig.read(run / "config.toml") == longer
    assert not list(run.glob("config.toml.*"))


@pytest.mark.parametrize(("wrong", "sentence"), [
    ({"loss": "bon", "k": 9}, "needs at least 9 samples of every prompt, but there are 8"),
    ({"eval_every": 1, "eval_split": "nope"}, "nope"),
    ({"eval_every": 1, "eval_limit": 0}, "need at least one problem"),
    ({"eval_every": 1, "eval_n": 0}, "need eval_n >= 1, got 0"),
], ids=str)  # fmt: skip
def test_a_run_that_can_not_be_leaves_no_folder(folder, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.train(real(folder, **wrong), progress=False)
    assert not (folder / "run").exists()


def test_the_command_fails_where_the_last_evaluation_is_missing(folder, monkeypatch, capsys):
    (folder / "run.toml").write_text(real(folder, steps=2, eval_every=2, eval_n=2).to_toml())
    measure, calls = Evaluation.__call__, []

    def interrupted(self, lm):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, lm)

    monkeypatch.setattr(Evaluation, "__call__", interrupted)
    assert main(["train", str(folder / "run.toml")]) == 1
    assert main(["train", "--resume", str(folder / "run")]) == 0
    assert "eval/pass@2" in capsys.readouterr().out
    assert len(calls) == 3


def test_texts_with_a_task_to_measure_on(folder):
    found = real(folder, texts=str(folder / "rows.jsonl"), loss=None, lr=0.003, steps=40,
                 eval_every=40, eval_n=4, prompts=4)
    config.train(found, progress=False)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["eval/pass@1"] > records[0]["eval/pass@1"] + 0.3
    assert records[-2]["nats_per_token"] < records[1]["nats_per_token"]
