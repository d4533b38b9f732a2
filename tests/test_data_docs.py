"""docs/data.md: samples in and out, and other programs that read them."""

import numpy as np
import pytest
from docs_examples import examples

import bonaware as bon
from bonaware.recorded import evaluate_recorded
from bonaware.store import Store


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_runs_and_duckdb_reads_what_it_wrote(files):
    pytest.importorskip("bonaware._engine", reason="the engine is not built")
    own, in_duckdb = examples("data.md", "Out")
    names = {}
    exec(compile(own, "data.md", "exec"), names)
    assert names["solved"] == pytest.approx([1 / 2, (1 + 2 / 3) / 2, 1])
    assert names["chosen"] == 0.5
    pytest.importorskip("duckdb", reason="needs duckdb")
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    exec(compile(in_duckdb, "data.md", "exec"), names)
    run = names["drawn"]
    solved = {problem.id: mean for problem, mean in
              zip(run.problems, run.rewards.mean(axis=1), strict=True)}  # fmt: skip
    assert {name: mean for name, mean, _ in names["by_prompt"]} == solved
    best = run.chosen()["likelihood"]
    chosen = {problem.id: run.samples.text[p][best[p]] for p, problem in enumerate(run.problems)}
    assert {name: text for name, _, text in names["by_prompt"]} == chosen


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_duckdb_and_bonaware_read_the_same_from_a_table(files, name):
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb")
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    from fakes import Digits, FakeLM

    drawn = bon.evaluate(FakeLM(), Digits(), 8, store="run.sqlite", progress=False)
    with Store("run.sqlite", readonly=True) as store:
        store.export(name)
    again = evaluate_recorded(name)
    np.testing.assert_array_equal(again.rewards, drawn.rewards)
    np.testing.assert_array_equal(again.scores["score_likelihood"], drawn.scores["likelihood"])
    assert again.texts == drawn.samples.text
    table = duckdb.sql(f'SELECT reward, len(tokens), "index" FROM \'{name}\' '
                       'ORDER BY prompt, "index"').fetchnumpy()  # fmt: skip
    reward, length, index = (np.asarray(values).reshape(6, 8) for values in table.values())
    np.testing.assert_array_equal(reward, drawn.rewards)
    np.testing.assert_array_equal(length, drawn.samples.lengths)
    np.testing.assert_array_equal(index, np.tile(np.arange(8), (6, 1)))
