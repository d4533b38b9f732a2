"""The command line: exit codes, what goes to which stream, and one sentence per error."""

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import Digits, FakeLM
from letters import letters_model

import bonaware
from bonaware import cli
from bonaware.samples import Samples, Stats


class FakeModel(FakeLM):
    """With LM.generate, for the command of that name."""

    def generate(self, prompts, n, *, rng, progress, **sampling):
        self.asked.append((prompts, n, rng, sampling))
        made = [
            FakeLM.sample(self, _request(p, prompt), i, 1.0, rng)
            for p, prompt in enumerate(prompts)
            for i in range(n)
        ]
        return Samples.from_list(prompts, made, n, stats=Stats(3, 4, 0.5, 0.5, 1.0))


def _request(p, prompt):
    tokens = np.frombuffer(str(prompt).encode(), np.uint8).astype(np.int32)
    return bonaware.Request(p, tokens, [0])


@pytest.fixture
def lm(monkeypatch, tmp_path):
    """A fake model behind LM.load, a task "digits", and an empty current folder."""
    model = FakeModel()
    model.loaded = []

    class Loader:
        @staticmethod
        def load(path, **options):
            model.loaded.append((path, options))
            return model

    def get(name, **options):
        if name != "digits":
            raise ValueError(f"there is no {name!r}")
        model.options = options
        return Digits()

    monkeypatch.setattr(bonaware, "LM", Loader)
    monkeypatch.setattr(bonaware.tasks, "get", get)
    monkeypatch.chdir(tmp_path)
    return model


EVALUATE = ["evaluate", "--model", "m", "--task", "digits", "--n", "8"]


def exit_code(argv):
    with pytest.raises(SystemExit) as raised:
        cli.main(argv)
    return raised.value.code


# -- evaluate ------------------------------------------------------------------


def test_evaluate_prints_the_table_to_stdout_and_the_rest_to_stderr(lm, capsys, tmp_path):
    assert cli.main(EVALUATE) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fake on digits: 6 prompts, n=8, 48 samples\n\n")
    assert re.search(r"^8   \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]   ", out, re.MULTILINE)
    assert ("settings: model fake, threads 1, task digits, split test, verifiers likelihood, "
            "n 8, seed 0, temperature 1.0, max_new_tokens 9, stop_strings ['!']\n") in err
    assert "48/48" in err
    (store,) = tmp_path.glob("*.sqlite")
    assert re.fullmatch(r"fake-digits-[0-9a-f]{8}\.sqlite", store.name)
    assert f"samples: {store.name} (a larger --n adds to it" in err


def test_the_curves_are_drawn_below_the_table(lm, capsys):
    assert cli.main(EVALUATE) == 0
    out, _ = capsys.readouterr()
    table, _, chart = out.partition("\n\nsolved (share of prompts)\n")
    assert table.startswith("fake on digits")
    assert chart.count("●") == 4 + 1  # k = 1, 2, 4, 8, and the name
    assert chart.endswith("k, samples the selector sees\n")


def test_the_curves_are_drawn_in_ascii_where_the_terminal_knows_nothing_else(lm, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert cli.main(EVALUATE) == 0
    stream.seek(0)
    assert re.search(r"o +o pass@k|oo? +o pass@k|o  o pass@k", stream.read())


def test_the_table_is_folded_at_the_width_of_a_terminal_only(lm, monkeypatch, capsys):
    def widest():
        assert cli.main([*EVALUATE, "--no-store"]) == 0
        out, _ = capsys.readouterr()
        return max(len(line) for line in out.splitlines() if line[:2].strip().isdigit())

    monkeypatch.setenv("COLUMNS", "60")
    assert widest() > 60
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert widest() <= 60


def test_the_report_lies_beside_the_store_or_where_it_is_wanted(lm, capsys, tmp_path):
    assert cli.main([*EVALUATE, "--json"]) == 0
    out, err = capsys.readouterr()
    (store,) = tmp_path.glob("*.sqlite")
    report = store.with_suffix(".report.html")
    assert f"report: {report.name}\n" in err
    assert json.loads(out)["report"] == report.name
    assert report.read_text().startswith("<!doctype html>")
    assert cli.main([*EVALUATE, "--report", "mine.html"]) == 0
    assert (tmp_path / "mine.html").read_text() == report.read_text()


def test_a_report_is_written_later_and_of_runs_beside_one_another(lm, capsys, tmp_path):
    assert cli.main([*EVALUATE, "--store", "run.sqlite", "--no-report"]) == 0
    assert cli.main([*EVALUATE, "--seed", "1", "--store", "other.sqlite"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "run.sqlite"]) == 0
    assert capsys.readouterr().out == "run.report.html\n"
    text = Path("run.report.html").read_text()
    assert "other.sqlite" not in text
    assert cli.main(["report", "run.sqlite", "other.sqlite", "--out", "two.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": "two.html"}
    assert "pass@k, other.sqlite" in Path("two.html").read_text()
    Path("rows.jsonl").write_text('{"ok": [1, 0], "mine": ["a", "b"], "id": "t"}')
    assert cli.main(["report", "rows.jsonl", "--rewards", "ok", "--texts", "mine"]) == 0
    assert '<pre dir="auto">b</pre>' in Path("rows.report.html").read_text()
    assert cli.main(["report", "run.sqlite", "rows.jsonl"]) == 1
    assert "need a field with rewards" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", "run.sqlite", "--out", str(tmp_path / "run.sqlite")])
    assert "the page would replace what it is made of" in capsys.readouterr().err


def test_a_table_is_written_later(lm, capsys, tmp_path):
    assert cli.main([*EVALUATE, "--store", "run.sqlite", "--export", "one.jsonl"]) == 0
    assert cli.main(["export", "run.sqlite", "two.jsonl"]) == 0
    assert "table: two.jsonl\n" in capsys.readouterr().err
    assert Path("two.jsonl").read_text() == Path("one.jsonl").read_text()
    assert cli.main(["export", "none.sqlite", "two.jsonl"]) == 1
    assert "store none.sqlite: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [
    [*EVALUATE, "--no-report"], [*EVALUATE, "--no-store"], ["evaluate", "--samples", "s.jsonl"],
], ids=["no report", "no store", "recorded"])  # fmt: skip
def test_no_report_is_written_unasked(lm, tmp_path, argv):
    (tmp_path / "s.jsonl").write_text('{"correct": [1, 0]}')
    assert cli.main(argv) == 0
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.filterwarnings("default:interrupted")
def test_the_same_command_continues_and_a_larger_n_extends(lm, capsys, tmp_path):
    lm.stop_after = 20
    assert cli.main(EVALUATE) == 1
    out, err = capsys.readouterr()
    assert "20 samples of 48: interrupted" in out
    assert "bonaware: interrupted: 20 of 48 samples are finished and kept in fake-digits" in err
    lm.stop_after = None
    assert cli.main(EVALUATE) == 0
    assert "(continued)" in capsys.readouterr().err
    assert len(lm.drawn) == 48
    assert cli.main([*EVALUATE[:-1], "16"]) == 0
    assert len(lm.drawn) == 96
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


def test_other_settings_go_to_another_store(lm, tmp_path):
    for extra in ([], ["--seed", "1"], ["--temperature", "0.5"], ["--split", "train"]):
        assert cli.main([*EVALUATE, *extra]) == 0
    assert len(list(tmp_path.glob("*.sqlite"))) == 4


def test_every_option_reaches_its_place(lm):
    options = """
        --top-k 5 --top-p 0.9 --min-p 0.1 --max-new-tokens 3 --stop A --stop B --seed 7
        --temperature 0.5 --limit 2 --dtype bfloat16 --threads 1 --memory 2G --no-store --k 1,8
        --task-option path=x.jsonl --task-option shots=4 --verifier likelihood --verifier exact
    """
    assert cli.main([*EVALUATE, *options.split()]) == 0
    assert lm.loaded == [("m", {"dtype": "bfloat16", "threads": 1, "memory": 2 << 30})]
    assert lm.options == {"path": "x.jsonl", "shots": 4}
    (requests, sampling), = lm.asked
    assert len(requests) == 2
    assert sampling == {
        "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 3,
        "stop_strings": ["A", "B"], "rng": 7,
    }  # fmt: skip


def test_verifiers_take_options_and_are_called_as_they_were_given(lm, capsys):
    given = ["likelihood", "likelihood:normalize=length"]
    assert cli.main([*EVALUATE, "--json", *(f"--verifier={one}" for one in given)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made["selected"]) == [*given, "majority"]
    assert made["selected"][given[0]] != made["selected"][given[1]]


def test_options_of_a_verifier_are_parted_at_commas_that_begin_one(lm):
    args = cli._parser().parse_args(
        [*EVALUATE, "--verifier", "reward_model:model=a,b:c=d/e,f=[1, 2],g=x"])
    (found,) = args.verifier.values()
    assert found == ("reward_model", {"model": "a,b:c=d/e", "f": [1, 2], "g": "x"})


def test_a_temperature_per_sample(lm):
    assert cli.main([*EVALUATE[:-1], "3", "--temperature", "0,0.5,1"]) == 0
    assert lm.asked[0][1]["temperature"] == [0.0, 0.5, 1.0]


def test_evaluate_as_json(lm, capsys):
    assert cli.main([*EVALUATE, "--json", "--k", "2,8"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["k"] == [2, 8]
    assert (made["n"], made["prompts"], made["complete"]) == (8, 6, True)
    assert set(made["curves"]) == {"pass@k", "best-of-k by likelihood", "majority@k"}
    assert set(made["curves"]["pass@k"]) == {"mean", "low", "high"}
    assert set(made["selected"]) == {"likelihood", "majority"}
    assert made["settings"]["fingerprint"] == "f0"
    assert made["stats"]["new_tokens"] == 2


@pytest.mark.filterwarnings("default:interrupted")
def test_json_of_a_run_without_figures(lm, capsys):
    lm.stop_after = 1
    assert cli.main([*EVALUATE, "--json", "--no-store"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert (made["complete"], made["store"], "curves" in made) == (False, None, False)


def test_plot_and_export_are_written(lm, capsys, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    matplotlib.use("Agg")
    assert cli.main([*EVALUATE, "--plot", "c.png", "--export", "s.jsonl"]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 48
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


def test_recorded_samples_need_no_model(capsys, tmp_path):
    rows = [{"ok": [True, False], "rm": [0.1, 0.9]}, {"ok": [True, True], "rm": [0.1, 0.9]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["evaluate", "--samples", str(path), "--rewards", "ok", "--scores", "rm"]) == 0
    out, err = capsys.readouterr()
    assert "rows.jsonl: 2 prompts, n=2, 4 samples" in out
    assert "best-of-k by rm" in out
    assert "rewards ok, scores ('rm',)" in err


def test_qwen_math_figures_are_printed(data, capsys):
    path = data / "samples" / "qwen25math_eval_rm_maj_math_cot_100.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    assert cli.main(["evaluate", "--samples", str(path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^1 +0\.910 \[", out, re.MULTILINE)
    assert re.search(r"^8 +0\.960 \[.*\] +0\.940 \[", out, re.MULTILINE)
    assert "pred_score 0.940, majority 0.930" in out


# -- the embedded model ---------------------------------------------------------


def test_without_arguments_the_embedded_model_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--limit", "20", "--n", "16", "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    curves = {name: curve["mean"] for name, curve in made["curves"].items()}
    assert list(curves) == ["pass@k", "best-of-k by countdown-verifier", "best-of-k by likelihood",
                            "majority@k"]  # fmt: skip
    assert 0.05 < curves["pass@k"][0] < 0.5
    assert curves["pass@k"][-1] > 1.5 * curves["pass@k"][0]
    assert made["settings"]["task"] == "countdown"
    assert "model countdown," in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [made["report"], made["store"]]
    assert re.fullmatch(r"countdown-[0-9a-f]{8}\.sqlite", made["store"])


def test_threads_and_memory_are_those_of_the_verifiers_model_too():
    words = ["evaluate", "--threads", "1", "--memory", "64M", "--verifier"]
    args = cli._parser().parse_args([*words, "reward_model:model=countdown-verifier"])
    ((name, options),) = args.verifier.values()
    lm = cli._made_verifier(name, options, args).model
    assert (lm.threads, lm.memory) == (1, 64 << 20)
    assert cli._made_verifier(name, options | {"memory": 1 << 25}, args).model.memory == 1 << 25
    args = cli._parser().parse_args([*words, "likelihood:normalize=length"])
    ((name, options),) = args.verifier.values()
    assert cli._made_verifier(name, options, args).normalize == "length"


def test_a_policy_decides_what_is_drawn_of_the_embedded_model(capsys):
    options = ["--limit", "6", "--no-store", "--policy", "adaptive:threshold=1,n=4,waves=[1,2]"]
    assert cli.main(["evaluate", *options]) == 0
    out, _ = capsys.readouterr()
    assert "samples per prompt" in out
    assert "prompts by the samples they took" in out
    assert cli.main(["evaluate", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"]["waves"] == [1, 2]
    assert found["settings"]["model"] == "countdown-selfeval"
    assert 1 <= found["samples_per_prompt"] <= 4


SMALL = ["evaluate", "--model", "countdown", "--task", "countdown", "--limit", "3"]


def test_a_policy_that_needs_scores_is_guided_by_self_evaluation(capsys):
    """Which the embedded model, having no chat template, cannot give."""
    assert cli.main([*SMALL, "--no-store", "--policy", "best_of_n:n=2"]) == 1
    assert "chat template" in capsys.readouterr().err


def test_a_policy_that_votes_needs_no_verifier(capsys):
    assert cli.main([*SMALL, "--no-store", "--policy", "adaptive_consistency:n=4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["guide"] is None
    assert "verifiers likelihood, n 4, seed 0, policy AdaptiveConsistency" in err


def test_a_policys_store_is_named_by_the_policy_and_its_guide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for policy, verifier in [
        ("best_of_n:n=2", "likelihood"), ("best_of_n:n=2", "self_certainty"),
        ("best_of_n:n=3", "likelihood"),
        ("adaptive_consistency:n=2", "likelihood"), ("adaptive_consistency:n=2", "self_certainty"),
    ]:  # fmt: skip
        assert cli.main([*SMALL, "--policy", policy, "--verifier", verifier]) == 0
    assert len(list(tmp_path.glob("*.sqlite"))) == 4


def test_a_policy_that_cannot_be_is_refused_in_a_sentence(capsys):
    assert cli.main(["evaluate", "--no-store", "--policy", "adaptive:threshold=2"]) == 1
    assert "need 0 <= threshold <= 1" in capsys.readouterr().err
    prune = "prune:n=4,checkpoints=32,fractions=0.5"
    assert cli.main(["evaluate", "--no-store", "--limit", "2", "--policy", prune]) == 1
    assert "must be < max_new_tokens, which is 32, got 32" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--policy", "prune:n=4,checkpoints=9,checkpoints=18,fractions=0.5"])
    assert "checkpoints is given twice; a list stands in brackets" in capsys.readouterr().err


def test_a_policys_lists_stand_in_brackets(capsys):
    policy = "prune:n=8,checkpoints=[9,18],fractions=[0.75,0.5]"
    assert cli.main(["evaluate", "--no-store", "--limit", "4", "--json", "--policy", policy]) == 0
    out, _ = capsys.readouterr()
    policy = json.loads(out)["settings"]["policy"]
    assert (policy["checkpoints"], policy["fractions"]) == ([9, 18], [0.75, 0.5])


def test_help_names_embedded_models_that_draw(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "the name of an embedded model: countdown, countdown-selfeval --task" in out


def test_without_arguments_some_hundred_problems_are_taken():
    args = cli._parser().parse_args(["evaluate", "--n", "4"])
    cli._take_embedded(args)
    assert (args.limit, args.n) == (300, 4)
    args = cli._parser().parse_args(["evaluate", "--limit", "7"])
    cli._take_embedded(args)
    assert args.limit == 7


def test_too_little_memory_is_said_in_words_of_the_command_line_too(capsys, tmp_path):
    options = ["--memory", "1K", "--limit", "1", "--no-store"]
    assert cli.main(["evaluate", *options]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("bonaware: one sample of prompt 0 needs ")
    assert last.endswith("memory=1024 allows 0.0 MiB: give more memory or lower max_new_tokens")


# -- generate and config ---------------------------------------------------------


def test_one_sample_is_printed_alone(lm, capsys):
    assert cli.main(["generate", "--model", "m", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out in {f"{digit}\n" for digit in range(4)}
    assert "settings: model fake, threads 1, n 1, seed 0, temperature 1.0" in err
    assert "4 new tokens" in err


def test_several_samples_are_titled(lm, capsys):
    assert cli.main(["generate", "--model", "m", "--n", "2", "a", "b"]) == 0
    title = r"^--- prompt (\d), sample (\d): eos, \d tokens, log p -"
    titles = re.findall(title, capsys.readouterr().out, re.MULTILINE)
    assert titles == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]


def test_generate_as_json_lines(lm, capsys):
    assert cli.main(["generate", "--model", "m", "--n", "2", "--json", "a", "--stop", "x"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["index"]) for row in rows] == [(0, 0), (0, 1)]
    assert len(rows[0]["tokens"]) == len(rows[0]["logp"])
    assert lm.asked == [(["a"], 2, 0, {"temperature": 1.0, "stop_strings": ["x"]})]


@pytest.mark.parametrize(("flags", "prompts"), [
    ([], ["one", "two three"]),
    (["--chat"], [[{"role": "user", "content": text}] for text in ("one", "two three")]),
], ids=["text", "chat"])  # fmt: skip
def test_prompts_come_from_a_file_or_standard_input(lm, monkeypatch, tmp_path, flags, prompts):
    text = "one\n\ntwo three\n"
    (tmp_path / "prompts.txt").write_text(text)
    assert cli.main(["generate", "--model", "m", "--file", "prompts.txt", *flags]) == 0
    for extra in ([], ["--file", "-"]):
        monkeypatch.setattr("sys.stdin", (tmp_path / "prompts.txt").open())
        assert cli.main(["generate", "--model", "m", *extra, *flags]) == 0
        sys.stdin.close()
    assert [asked[0] for asked in lm.asked] == [prompts] * 3


def test_prompts_come_from_jsonl(lm, tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "two\nlines"}, {"messages": chat}, {"prompt": [1, 2]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["generate", "--model", "m", "--file", "p.jsonl"]) == 0
    assert lm.asked[0][0] == ["two\nlines", chat, [1, 2]]


def test_token_ids_as_prompts(lm):
    assert cli.main(["generate", "--model", "m", "--ids", "1 403,407"]) == 0
    assert lm.asked[0][0] == [[1, 403, 407]]


def test_a_models_text_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli._printable("a\x1b[31m\tb\n\x07é") == "a\\x1b[31m\tb\n\\x07é"


def test_config_as_text_and_as_json(capsys):
    assert cli.main(["config"]) == 0
    assert "numpy" in capsys.readouterr().out
    assert cli.main(["config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bonaware"] == bonaware.__version__


def test_config_counts_the_measured_routes_instead_of_listing_them(capsys, tmp_path, monkeypatch):
    known = {f"float32 {size}x64 decode": "tile" if size < 30 else "onednn" for size in range(40)}
    (tmp_path / "routes.json").write_text(json.dumps({"this machine": known}))
    monkeypatch.setenv("BONAWARE_CACHE", str(tmp_path))
    assert cli.main(["config"]) == 0
    out = capsys.readouterr().out
    assert "routes     10 of float32 by onednn, 30 of float32 by tile (this machine)\n" in out
    assert f"kept in {tmp_path}/routes.json" in out
    assert cli.main(["config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == {"this machine": known}


# -- errors ----------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "message"), [
    ([], "arguments are required: COMMAND"),
    (["evaluate", "--model", "m"], "--model m needs --task NAME too: .*keywords.*; with neither"),
    (["evaluate", "--task", "t"], "--task t needs --model FOLDER too: .*or a folder; with neither"),
    ([*EVALUATE, "--report", "none/x.html"], "--report none/x.html: none is no folder"),
    ([*EVALUATE, "--report", "x", "--no-report"], "not allowed with argument --report"),
    ([*EVALUATE, "--verifier", "likelihood:x"], "likelihood:x: need NAME=VALUE, got 'x'"),
    (["evaluate", "--samples", "f", "--model", "m"], "not both"),
    (["evaluate", "--samples", "f", "--export", "x.jsonl"], "it needs --model and a store"),
    (["evaluate", "--samples", "f", "--n", "8"], "--n is for drawing; --samples are drawn"),
    (["evaluate", "--samples", "f", "--policy", "best_of_n"], "--samples are drawn: see bonaware"),
    (["evaluate", "--policy", "best_of_n", "--k", "1,2"], "--k is for curves, which samples whose"),
    ([*EVALUATE, "--export", "x.csv"], "a name ending in .parquet or .jsonl, got x.csv"),
    ([*EVALUATE, "--n", "x"], "invalid int value: 'x'"),
    ([*EVALUATE, "--memory", "8X"], "--memory: need a size such as 8G, got '8X'"),
    ([*EVALUATE, "--k", "1,x"], "argument --k: invalid list of int value: '1,x'"),
    ([*EVALUATE, "--task-option", "x"], "need NAME=VALUE, got 'x'"),
    (["export", "run.sqlite", "x.csv"], "a name ending in .parquet or .jsonl, got x.csv"),
    (["report"], "arguments are required: FILE"),
    (["generate", "x"], "required: --model"),
    (["generate", "--model", "m", "--ids", "a"], "--ids needs token ids such as"),
], ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "")  # fmt: skip
def test_a_wrong_command_line_exits_with_2_and_a_sentence(lm, capsys, argv, message):
    assert exit_code(argv) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_prompt_at_a_terminal_is_a_wrong_command_line(lm, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert exit_code(["generate", "--model", "m"]) == 2
    assert "give a PROMPT, or --file FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "message"), [
    (["evaluate", "--samples", "missing.jsonl"], "missing.jsonl: No such file or directory"),
    ([*EVALUATE, "--n", "0"], "need n >= 1 samples per prompt, got n=0"),
    ([*EVALUATE, "--task", "nope"], "there is no 'nope'"),
    ([*EVALUATE, "--verifier", "nope:x=1"], "there is no 'nope' in bonaware.verifiers"),
    ([*EVALUATE, "--verifier", "likelihood:x=1"], "verifier likelihood: there is no 'x'; there"),
    ([*EVALUATE, "--verifier", "reward_model"], "verifier reward_model: 'model' is missing; there"),
    ([*EVALUATE, "--store", "missing/run.sqlite"], "missing is no folder"),
    (["generate", "--model", "m", "--file", "empty.jsonl"], "empty.jsonl holds no prompt"),
    (["generate", "--model", "m", "--file", "bad.jsonl"], "line 1: need a field 'prompt' or"),
    (["generate", "--model", "m", "--file", "none.txt"], "none.txt: No such file or directory"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")  # fmt: skip
def test_a_failure_exits_with_1_and_one_sentence(lm, capsys, tmp_path, argv, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"x": 1}\n')
    assert cli.main(argv) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("bonaware: ")
    assert message in last


@pytest.mark.parametrize(("argv", "needed"), [
    (["--plot", "c.png"], "matplotlib"),
    (["--export", "s.parquet"], "pyarrow"),
])
def test_a_missing_library_is_said_before_anything_is_drawn(lm, capsys, monkeypatch, argv, needed):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([*EVALUATE, *argv]) == 1
    assert f"need {needed}" in capsys.readouterr().err.replace("needs", "need")
    assert not lm.loaded


def test_missing_data_are_said_before_the_model_is_read(lm, capsys, monkeypatch):
    def load(task, split, limit):
        raise FileNotFoundError("task digits needs its data")

    monkeypatch.setattr(Digits, "load", load)
    assert cli.main(EVALUATE) == 1
    assert "bonaware: task digits needs its data" in capsys.readouterr().err
    assert not lm.loaded


def test_debug_shows_the_traceback(lm):
    with pytest.raises(ValueError, match="need n >= 1"):
        cli.main([*EVALUATE, "--n", "0", "--debug"])


def test_an_unexpected_error_is_named(lm, capsys, monkeypatch):
    monkeypatch.setattr(bonaware, "evaluate", lambda *a, **k: {}["x"])
    assert cli.main(EVALUATE) == 1
    assert "bonaware: KeyError: 'x'" in capsys.readouterr().err


def test_ctrl_c_elsewhere_is_one_word(lm, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bonaware, "evaluate", interrupt)
    assert cli.main(EVALUATE) == 1
    assert capsys.readouterr().err.endswith("bonaware: interrupted\n")


@pytest.mark.parametrize("command", ["", "evaluate", "generate", "train", "config"])
def test_help_says_how(capsys, command):
    assert exit_code([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: bonaware" in out
    if command in ("evaluate", "generate", "train"):
        assert "examples:" in out


def test_it_runs_as_a_module_and_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m bonaware config | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "b"
    assert done.stderr == ""


# -- train -----------------------------------------------------------------------


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A configuration file in the current folder, and its model and problems beside it."""
    letters_model(tmp_path / "tokenizer").save(tmp_path / "model")
    rows = [{"prompt": word, "answer": f"^{word[-1]}"} for word in ("ab", "ba", "ca", "cb")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run.toml").write_text(
        'model = "model"\ntask = "jsonl"\nsplit = "test"\nout = "run"\nloss = "reinforce"\n'
        "n = 8\nprompts = 4\nsteps = 2\nthreads = 1\n"
        'task_options = {path = "rows.jsonl", match = "regex", max_new_tokens = 3}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_prints_where_the_model_is_and_what_it_was_given(training, capsys):
    assert cli.main(["train", "run.toml", "--lr", "1e-4", "--steps", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 of 3 steps\n  step                     3\n  loss  ")
    assert f"model: {training / 'run' / 'step-000003'}\n".replace(f"{training}/", "") in out
    assert "figures of all steps: run/metrics.jsonl" in out
    assert 'configuration:\nmodel = "model"\n' in err
    assert "\nlr = 0.0001\n" in err
    assert "3/3" in err
    assert (training / "run" / "config.toml").read_text() in err


def test_train_takes_everything_from_the_command_line(training, capsys):
    options = ["path=rows.jsonl", "match=regex", "max_new_tokens=3"]
    argv = ["train", "--json", "--model", "model", "--task", "jsonl", "--split", "test", "--out",
            "here", "--k", "1,4", "--n", "8", "--prompts", "2", "--steps", "2", "--memory", "64M",
            "--eval-every", "1", "--eval-split", "test", "--eval-n", "2"]  # fmt: skip
    argv += [word for option in options for word in ("--task-options", option)]
    assert cli.main(argv) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["steps"], shown["model"]) == (2, "here/step-000002")
    assert {"loss", "reward", "pass@8", "eval/pass@2"} <= shown["metrics"].keys()
    written = (training / "here" / "config.toml").read_text()
    assert "\nk = [1, 4]\n" in written
    assert f"\nmemory = {64 * 2**20}\n" in written


def test_train_resumes_with_changes(training, capsys):
    assert cli.main(["train", "run.toml"]) == 0
    assert cli.main(["train", "run.toml"]) == 1
    assert "run holds a run: go on with bonaware train --resume run" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run", "--steps", "4"]) == 0
    assert "4 of 4 steps" in capsys.readouterr().out
    lines = (training / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_ctrl_c_in_train_keeps_the_last_step_and_says_so(training, capsys):
    command = [sys.executable, "-m", "bonaware", "train", "run.toml", "--steps", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = training / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    steps = int(re.search(r"interrupted: (\d+) of 1000000 steps are made and kept in", err)[1])
    assert metrics.read_text().count("\n") == steps
    assert f"model: run/step-{steps:06d}" in out
    assert cli.main(["train", "--resume", "run", "--steps", str(steps + 1)]) == 0


@pytest.mark.parametrize(("argv", "code", "sentence"), [
    (["train"], 2, "bonaware train: missing: model, out"),
    (["train", "none.toml"], 1, "none.toml: No such file or directory"),
    (["train", "--resume", "none"], 1, "none/config.toml: No such file or directory"),
    (["train", "run.toml", "--loss", "bon"], 1, "options of loss bon: 'k' is missing"),
    (["train", "run.toml", "--resume", "run"], 2, "--resume says what to go on with: give neither"),
    (["train", "--resume", "run", "--out", "x"], 2, "give neither CONFIG.toml nor --out"),
    (["train", "run.toml", "--lr", "fast"], 2, "argument --lr: invalid float value: 'fast'"),
    (["train", "run.toml", "--k", "1,x"], 2, "argument --k: invalid list of int value: '1,x'"),
    (["train", "run.toml", "--task-options", "x"], 2, "need NAME=VALUE, got 'x'"),
    (["train", "run.toml", "--stepz", "3"], 2, "unrecognized arguments: --stepz 3"),
])  # fmt: skip
def test_train_says_what_is_wrong(training, capsys, argv, code, sentence):
    assert (cli.main(argv) if code == 1 else exit_code(argv)) == code
    assert sentence in capsys.readouterr().err


def test_help_of_train_lists_every_field(capsys):
    assert exit_code(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(bonaware.TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in shown
