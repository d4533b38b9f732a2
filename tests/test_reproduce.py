"""The reproduction: figures and verdicts from numbers with known answers, and a run end to end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bonaware as bon

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "reproduce_bon.py"
if not SCRIPT.exists():
    pytest.skip("the reproduction comes with a clone only", allow_module_level=True)
sys.path.append(str(SCRIPT.parent))

import reproduce_bon  # noqa: E402
import reproduce_claims  # noqa: E402
import reproduce_figures  # noqa: E402
import reproduce_tables  # noqa: E402
from reproduce_figures import BEST, Change, Point, Runs  # noqa: E402

N, PROBLEMS, SEEDS = 8, 40, 3
TEMPERATURES = [0.1, 1.0, 1.5]
SETS = ("validation", "test", "heldout")
MADE = {"commit": "c", "bonaware": "0", "python": "3", "numpy": "2", "processor": "p", "cores": 2,
        "system": "s", "date": "2026-01-01"}  # fmt: skip


def point(right):
    """What is kept of problems with so many right samples: ranked first by the verifier, which is
    perfect, and last by likelihood."""
    rewards = (np.arange(N) < np.asarray(right)[:, None]).astype(float)
    place = np.broadcast_to(np.arange(float(N)), rewards.shape)
    by = {"likelihood": reproduce_figures.packed(rewards, place),
          "verifier": reproduce_figures.packed(rewards, -place)}
    return {"entropy": 2.0, "by": by}


def write_runs(out, right, **sizes):
    """Runs of arms; right(arm, seed, where, temperature) -> right samples of each problem, [P]."""
    settings = {"draws": N, "temperatures": TEMPERATURES, "steps": 2, "prompts": 3, "samples": 4,
                "test": PROBLEMS, "heldout": PROBLEMS, "validation": PROBLEMS}
    (out / "runs").mkdir(parents=True)
    (out / "settings.json").write_text(json.dumps(settings))
    for arm in sizes.pop("arms", reproduce_bon.ARMS):
        for seed in range(sizes.get("seeds", SEEDS)):
            measured = {where: {str(t): point(right(arm, seed, where, t)) for t in TEMPERATURES}
                        for where in SETS}
            (out / "runs" / f"{arm}-{seed}.json").write_text(json.dumps({
                "arm": arm, "seed": seed, "rate": 1e-4, "measured": measured, "made": MADE,
                "training": {"reward": [0.1, 0.2]},
                "cpu_seconds": {"training": 1.0, "measuring": 2.0}}))  # fmt: skip
    return out


def few(arm, seed, where, temperature):
    """base solves half of the problems with one sample of eight, bon all of them, rl a quarter."""
    solved = {"base": 20, "sft": 10, "rl": 10, "grpo": 10}.get(arm, PROBLEMS)
    return np.where(np.arange(PROBLEMS) < solved, 1, 0)


# -- per problem -----------------------------------------------------------------


def test_packed_rewards_give_the_estimates_of_the_samples_they_came_from():
    rng = np.random.default_rng(0)
    rewards, scores = (rng.random((5, 16)) < 0.4).astype(float), rng.normal(size=(5, 16))
    text = reproduce_figures.packed(rewards, scores)
    assert np.array_equal(np.sort(reproduce_figures.unpacked(text, 16)), np.sort(rewards))
    kept = {"by": {"likelihood": text, "verifier": text}}
    for selector, ranks in (("pass", None), ("verifier", scores)):
        found = reproduce_figures.value_of(kept, 16, selector, [1, 4, 16])
        assert found == pytest.approx(bon.estimators.best_of_k(rewards, [1, 4, 16], ranks))


def test_packed_keeps_the_order_drawn_where_scores_are_equal():
    text = reproduce_figures.packed(np.array([[0.0, 1, 0, 0, 0, 0, 0, 0]]), np.zeros((1, 8)))
    assert reproduce_figures.unpacked(text, 8)[0, 1] == 1


@pytest.mark.parametrize("rewards", [np.ones((2, 6)), np.full((2, 8), 0.5)], ids=["n", "values"])
def test_packed_refuses_what_bits_cannot_hold(rewards):
    with pytest.raises(ValueError, match="rewards 0 and 1 and a multiple of 8 samples"):
        reproduce_figures.packed(rewards, np.zeros(rewards.shape))


# -- differences -----------------------------------------------------------------


def test_change_is_paired_over_problems_and_averaged_over_seeds(tmp_path):
    def right(arm, seed, where, temperature):
        every = np.arange(PROBLEMS) % 5
        return every + (arm == "bon") * (1 + (seed == 0))  # one more of eight, in seed 0 two

    runs = Runs(write_runs(tmp_path, right, arms=("base", "bon")))
    found = runs.change(Point("bon"), Point("base"))
    assert found.mean == pytest.approx(1 / 6)
    assert (found.low, found.high) == pytest.approx((1 / 6, 1 / 6))  # problems differ, gaps do not
    assert found.seeds == pytest.approx((2 / 8, 1 / 8, 1 / 8))
    assert found.spread == pytest.approx(np.std([2, 1, 1], ddof=1) / 8)


def test_change_counts_only_with_its_interval_and_in_every_seed():
    assert Change(0.2, 0.1, 0.3, (0.1, 0.3)).above
    assert not Change(0.2, 0.1, 0.3, (-0.1, 0.5)).above
    assert not Change(0.2, -0.1, 0.3, (0.1, 0.3)).above
    assert Change(-0.2, -0.3, -0.1, (-0.1, -0.3)).below


def test_best_temperature_is_chosen_on_validation_problems(tmp_path):
    def right(arm, seed, where, temperature):
        best = 1.5 if where == "validation" else 0.1
        return np.full(PROBLEMS, 4 if temperature == best else 2)

    runs = Runs(write_runs(tmp_path, right, arms=("base",)))
    assert runs.best("base", "pass", 1) == 1.5
    assert runs.values(Point("base", temperature=BEST)).mean() == 2 / 8


def test_arms_without_all_seeds_are_left_out_and_named(tmp_path):
    write_runs(tmp_path, few, arms=("base", "bon"))
    (tmp_path / "runs" / "bon-1.json").unlink()
    runs = Runs(tmp_path)
    assert (list(runs.found), runs.missing) == (["base"], ["bon"])


def test_tables_know_the_order_of_all_arms():
    assert tuple(reproduce_bon.ARMS) == reproduce_figures.ORDER


def test_runs_without_base_are_refused(tmp_path):
    with pytest.raises(ValueError, match="need runs of the arm base"):
        Runs(write_runs(tmp_path, few, arms=("bon",)))


# -- claims ----------------------------------------------------------------------


def verdicts(out):
    return {each["claim"]: each["holds"] for each in reproduce_claims.claims(Runs(out))}


def test_claims_hold_where_the_numbers_say_so(tmp_path):
    found = verdicts(write_runs(tmp_path, few))
    assert len(found) == len(reproduce_claims.CLAIMS)
    fails = [claim for claim, holds in found.items() if not holds]
    # bon and bon_v are equally good; pass@N is linear in N, and the same at every T
    assert [claim.split()[0] for claim in fails] == ["another", "pass@N(T)", "and", "the"]


def test_no_claim_of_a_gain_holds_for_arms_that_are_all_alike(tmp_path):
    found = verdicts(write_runs(tmp_path, lambda *_: few("base", *_[1:])))
    assert not any(found.values())


def test_a_gain_below_four_points_is_not_the_claimed_one(tmp_path):
    def right(arm, seed, where, temperature):
        return np.where(np.arange(PROBLEMS) < 20 + (arm == "bon"), 1, 0)

    runs = Runs(write_runs(tmp_path, right))
    part = reproduce_claims.above(runs, "bon", "base", "pass", N, least=0.04)
    assert (part.change.mean, part.holds) == (pytest.approx(1 / 40), False)


def test_claims_of_arms_that_were_not_run_are_left_out(tmp_path):
    found = verdicts(write_runs(tmp_path, few, arms=("base", "sft")))
    assert [claim for claim in found if "SFT" in claim]
    assert not [claim for claim in found if "positive-only" in claim]


def test_coscaling_finds_the_best_temperature_of_easy_and_hard_problems(tmp_path):
    def right(arm, seed, where, temperature):
        easy, hard = {0.1: (8, 0), 1.0: (4, 0), 1.5: (2, 1)}[temperature]
        return np.where(np.arange(PROBLEMS) < PROBLEMS / 2, easy, hard)

    runs = Runs(write_runs(tmp_path, right, arms=("base",)))
    found = reproduce_claims.coscaling(runs, "base")
    assert found["best"] == [0.1, 0.1, 1.5, 1.5]
    assert (found["best_easy"], found["best_hard"]) == ([0.1] * 4, [1.5] * 4)
    assert all(part.holds for part in reproduce_claims.warmer(runs)[0])
    assert found["pass"][0] == [0.5] * 4
    assert found["pass"][2] == pytest.approx([3 / 16, 5 / 14, 9 / 14, 1], abs=1e-4)
    fit = bon.estimators.fit_coscaling(TEMPERATURES, [1, 2], np.array(found["pass"])[:, :2])
    ahead = np.array(found["pass"])[:, -1] - fit.predict(8, TEMPERATURES)
    assert found["ahead"] == pytest.approx(ahead, abs=1e-3)


# -- tables ----------------------------------------------------------------------


def test_tables_show_figures_changes_and_verdicts(tmp_path):
    summary = reproduce_tables.summarise(write_runs(tmp_path, few))
    bon_at_8 = summary["figures"]["test"]["1.0"]["bon"]["pass"]
    assert (bon_at_8["mean"][-1], bon_at_8["change"][-1]) == (1.0, 0.5)
    text = reproduce_tables.markdown(json.loads(json.dumps(summary)))
    assert re.search(r"\| bon \| 12\.5 \| 50\.0 \| 100\.0 \| \+50\.0 \[\d\d\.\d, \d\d\.\d\] ± 0\.0",
                     text)  # fmt: skip
    assert "**holds**" in text
    assert "**does not hold**" in text
    assert "commit c, 2026-01-01" in text


def test_docs_get_the_tables_between_their_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce_bon.py", "--out", "some/where/runs"])
    (tmp_path / "docs").mkdir()
    page = tmp_path / reproduce_tables.DOCS
    page.write_text(f"before\n{reproduce_tables.BEGIN}\nstale\n{reproduce_tables.END}\nafter\n")
    summary = reproduce_tables.summarise(write_runs(tmp_path, few))
    for _ in range(2):
        reproduce_tables.write_docs(summary, tmp_path)
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "stale" not in text
        assert text.count("### Claims") == 1
    kept = json.loads((tmp_path / reproduce_tables.SUMMARY).read_text())
    assert kept["command"] == "python benchmarks/reproduce_bon.py --out runs"
    assert kept["claims"] == json.loads(json.dumps(summary["claims"]))


def test_docs_without_marks_are_refused(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / reproduce_tables.DOCS).write_text("nothing")
    with pytest.raises(ValueError, match="must have one line"):
        reproduce_tables.write_docs(reproduce_tables.summarise(write_runs(tmp_path, few)), tmp_path)


def test_page_in_docs_has_the_marks():
    text = (ROOT / reproduce_tables.DOCS).read_text()
    assert text.count(reproduce_tables.BEGIN) == text.count(reproduce_tables.END) == 1


def test_rates_are_chosen_by_the_aim_of_the_arm(tmp_path):
    (tmp_path / "tune").mkdir()
    settings = reproduce_bon.Settings(draws=N, samples=N)
    for rate, right in ((1e-4, [8, 0]), (1e-3, [1, 1])):  # pass@1 1/2, 1/8; pass@8 1/2, 1
        for arm in ("rl", "bon_rlb"):
            (tmp_path / "tune" / f"{arm}-{rate:g}.json").write_text(json.dumps(
                {"arm": arm, "rate": rate, "measured": {"validation": {"1.0": point(right)}}}))
    found = reproduce_bon.choose_rates(tmp_path, ["rl", "bon_rlb"], settings)
    assert (found["rl"]["rate"], found["bon_rlb"]["rate"]) == (1e-4, 1e-3)
    assert found["bon_rlb"]["tried"] == {"0.0001": [0.5, 0.5, 0.5], "0.001": [1.0, 0.125, 1.0]}
    assert "| rl | pass@1 | 0.0001 |" in reproduce_tables.rates_table(found, N)


def test_cpu_seconds_are_those_of_all_processes_of_a_job(tmp_path):
    first = reproduce_bon._Spent(tmp_path / "cpu_seconds")
    first.before = 100.0
    first.keep()
    second = reproduce_bon._Spent(tmp_path / "cpu_seconds")
    assert 100 <= second.before <= first.now() < 101
    assert second.now() >= second.before
    assert [path.name for path in tmp_path.iterdir()] == ["cpu_seconds"]


# -- end to end ------------------------------------------------------------------

MICRO = ["--policy", "policy", "--verifier", "verifier", "--prompts", "3", "--samples", "4",
         "--validation", "3", "--test", "4", "--heldout", "3", "--draws", "8",
         "--temperatures", "0.1", "1", "--seeds", "1", "--out", "out"]  # fmt: skip


@pytest.fixture
def models(tmp_path):
    """A folder with a random policy and a random verifier that know Countdown's words."""
    pytest.importorskip("bonaware._engine")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<eos>", "make", "from", ":", "=", ",", "+", "*", "-", "/", *map(str, range(51))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": len(words), "hidden_size": 16,
              "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "max_position_embeddings": 64, "eos_token_id": 0}
    head = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    for name, more in (("policy", {}), ("verifier", head)):
        bon.LM.from_config(config | more, rng=0, tokenizer=tmp_path / "tokenizer.json",
                           threads=1).save(tmp_path / name)  # fmt: skip
    return tmp_path


def start(folder, *words):
    # The script finds its neighbours in its own folder, which PYTHONSAFEPATH would hide.
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.Popen([sys.executable, str(SCRIPT), *MICRO, *words], cwd=folder, text=True,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out + err


@pytest.mark.slow
def test_reproduction_runs_from_learning_rates_to_tables(models):
    words = ["--steps", "2", "--arms", "base", "bon_sft"]
    said = finish(start(models, *words, "--tune", "--rates", "0.01"))
    assert "| bon_sft | verifier@2 | 0.01 |" in said
    said = finish(start(models, *words))
    assert "pass@N(T) follows exp(a N^b)" in said
    summary = json.loads((models / "out" / "summary.json").read_text())
    assert summary["arms"] == ["base", "bon_sft"]
    runs = sorted((models / "out" / "runs").iterdir())
    assert [json.loads(path.read_text())["rate"] for path in runs] == [1e-4, 0.01]
    before = [path.stat().st_mtime_ns for path in runs]
    finish(start(models, *words))
    assert before == [path.stat().st_mtime_ns for path in runs]
    said = finish(start(models, *words, "--steps", "3"), code=1)
    assert "holds runs with other settings: steps is 2 there and 3 here" in said


@pytest.mark.slow
def test_interrupted_run_goes_on_to_the_same_numbers(models):
    words = ["--steps", "40", "--arms", "rl"]
    process = start(models, *words)
    file = models / "out" / "work" / "rl-0" / "cpu_seconds"
    while process.poll() is None and not file.exists():  # after the first step
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = finish(process, code=130)
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (models / "out" / "runs" / "rl-0.json").exists()
    spent = float(file.read_text())
    assert "run the arm base too" in finish(start(models, *words))
    assert float(file.read_text()) > spent > 0
    (models / "out").rename(models / "interrupted")
    finish(start(models, *words))
    interrupted, whole = (json.loads((models / folder / "runs" / "rl-0.json").read_text())
                          for folder in ("interrupted", "out"))
    assert interrupted["measured"] == whole["measured"]
    assert interrupted["training"] == whole["training"]
    assert interrupted["cpu_seconds"]["training"] >= round(spent, 1)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(models):
    (models / "out" / "work" / "bon-0").mkdir(parents=True)  # a folder that holds no run
    said = finish(start(models, "--steps", "2", "--arms", "bon", "base"), code=1)
    assert "bon-0 failed" in said
    assert "need the folder of a run" in said
    assert (models / "out" / "runs" / "base-0.json").exists()
