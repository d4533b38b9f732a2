"""bonaware.store: what is committed survives, and wrong use gets one clear sentence."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

import bonaware.store
from bonaware.samples import Sample
from bonaware.store import Store, StoreError

SETTINGS = {"model": "tiny", "fingerprint": "abc", "temperature": 1.0, "stop_strings": ["\n"]}
PROBLEMS = [
    {"id": "a", "prompt": "2 + 2 =", "tokens": np.array([1, 2], np.int32), "answer": 4},
    {"id": "b", "prompt": [{"role": "user", "content": "?"}], "tokens": np.array([3], np.int32)},
]


def sample(prompt, index, length=3, text="four"):
    floats = np.linspace(-1, -0.25, length, dtype=np.float32)
    tokens = np.arange(length, dtype=np.int32) + 100 * index
    return Sample(prompt, index, tokens, floats, floats * 2, -floats, text, "eos", 1.0)


def begun(path, settings=SETTINGS, problems=PROBLEMS):
    store = Store(path)
    try:
        store.begin(settings, problems)
    except BaseException:
        store.close()
        raise
    return store


def run_python(code, *arguments):
    paths = [Path(bonaware.store.__file__).parents[1], Path(__file__).parent]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
    )  # fmt: skip


@contextlib.contextmanager
def unprivileged():
    """Root may write anywhere: give that up for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder():
    """A folder that an unprivileged user can reach; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


# -- what goes in comes out --------------------------------------------------


def test_samples_come_back_bit_for_bit(tmp_path):
    drawn = [sample(0, 0), sample(1, 5, length=0, text=None), sample(0, 3, text="nul \0 é 漢")]
    with begun(tmp_path / "run.sqlite") as store:
        for one in drawn:
            store.add(one)
        back = list(store.samples())
    assert [(s.prompt, s.index, s.text) for s in back] == [
        (0, 0, "four"), (0, 3, "nul \0 é 漢"), (1, 5, None),
    ]  # fmt: skip
    for one in drawn:
        other = next(s for s in back if (s.prompt, s.index) == (one.prompt, one.index))
        for name in ("tokens", "logp", "sampled_logp", "certainty"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == theirs.tobytes()
        assert (other.finish_reason, other.temperature) == ("eos", 1.0)


def test_reading_is_bounded_by_prompts_and_n(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        for p in range(2):
            for i in range(3):
                store.add(sample(p, i))
        assert [(s.prompt, s.index) for s in store.samples(1, 2)] == [(0, 0), (0, 1)]
        assert [(s.prompt, s.index) for s in store.samples(2, 1)] == [(0, 0), (1, 0)]
        assert store.shape() == (2, 3)


def test_rewards_scores_and_answers_come_back_and_are_replaced(tmp_path):
    rewards = np.array([[1.0, np.nan], [0.25, -np.inf]])
    with begun(tmp_path / "run.sqlite") as store:
        store.put_rewards(np.ones((2, 2)))
        store.put_rewards(rewards, [["4", None], ["5", "6"]])
        store.put_scores("likelihood", -rewards)
        store.put_scores("exact", rewards)
        values, answers = store.rewards((2, 2))
        np.testing.assert_array_equal(values, rewards)
        assert answers == [["4", None], ["5", "6"]]
        scores = store.scores((2, 2))
    assert list(scores) == ["exact", "likelihood"]
    np.testing.assert_array_equal(scores["likelihood"], -rewards)


def test_a_sample_is_committed_with_its_scores_or_not_at_all(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        store.add(sample(0, 0), {"read": 0.25, "none": np.nan})
        with pytest.raises(StoreError, match="UNIQUE"):
            store.add(sample(0, 0), {"read": 0.5})
        store._db.execute("INSERT INTO scores VALUES('read', 1, 0, 0.5)")
        with pytest.raises(StoreError, match="UNIQUE"):
            store.add(sample(1, 0), {"read": 0.75})
        assert [(s.prompt, s.index) for s in store.samples()] == [(0, 0)]
        found = store.scores((2, 1))
    assert found.keys() == {"read"}
    np.testing.assert_array_equal(found["read"], [[0.25], [0.5]])


def test_problems_and_settings_come_back(tmp_path):
    with begun(tmp_path / "run.sqlite"):
        pass
    with Store(tmp_path / "run.sqlite", readonly=True) as store:
        assert store.settings == SETTINGS
        first, second = store.problems()
    assert (first["id"], first["prompt"], first["answer"]) == ("a", "2 + 2 =", 4)
    assert second["prompt"] == PROBLEMS[1]["prompt"]
    np.testing.assert_array_equal(first["tokens"], [1, 2])


def test_a_problem_may_hold_what_json_cannot(tmp_path):
    problem = PROBLEMS[0] | {"answer": {1}, "fields": {"a": np.arange(2), "b": np.float32(2)}}
    with begun(tmp_path / "run.sqlite", problems=[problem]) as store:
        assert store.problems()[0]["fields"] == {"a": [0, 1], "b": 2.0}


def test_closing_leaves_one_self_contained_file(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        store.add(sample(0, 0))
        names = {p.name for p in tmp_path.iterdir()}
        assert names >= {"run.sqlite", "run.sqlite-wal", "run.sqlite.lock"}
    assert [p.name for p in tmp_path.iterdir()] == ["run.sqlite"]
    store.close()


def test_each_opening_for_drawing_is_a_session(tmp_path):
    path = tmp_path / "run.sqlite"
    for index in range(2):
        with Store(path) as store:
            store.begin(SETTINGS, PROBLEMS, {"threads": 2 + index})
            store.add(sample(0, index))
    db = sqlite3.connect(path)
    assert db.execute('SELECT "index", session FROM samples').fetchall() == [(0, 1), (1, 2)]
    assert [json.loads(text) for (text,) in db.execute("SELECT settings FROM sessions")] == [
        {"threads": 2}, {"threads": 3},
    ]  # fmt: skip
    db.close()


# -- killed, continued, extended ---------------------------------------------

DRAW = """
    import sys
    import test_store as t
    store = t.begun(sys.argv[1])
    for i in range(1000):
        store.add(t.sample(0, i))
        print(i, flush=True)
"""


def test_every_added_sample_survives_sigkill(tmp_path):
    path = tmp_path / "run.sqlite"
    with run_python(DRAW, path) as child:
        lines = [child.stdout.readline() for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout  # what it printed in the meantime
    assert child.returncode == -signal.SIGKILL
    with begun(path) as store:
        indices = [s.index for s in store.samples()]
    # Killed between commit and print: one more may be stored than was said.
    assert indices in ([*range(len(lines))], [*range(len(lines) + 1)])


def test_a_killed_store_can_be_read_before_it_is_continued(tmp_path):
    path = tmp_path / "run.sqlite"
    with run_python(DRAW, path) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    with Store(path, readonly=True) as store:
        assert next(store.samples()).index == 0


def test_a_store_can_be_read_while_another_connection_draws(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        store.add(sample(0, 0))
        with Store(tmp_path / "run.sqlite", readonly=True) as reader:
            assert len(list(reader.samples())) == 1
            store.add(sample(0, 1))
            assert len(list(reader.samples())) == 2


def test_a_sample_cannot_be_stored_twice(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        store.add(sample(0, 0))
        with pytest.raises(StoreError, match="UNIQUE"):
            store.add(sample(0, 0))


def test_problems_can_be_added_at_the_end_and_left_out(tmp_path):
    path = tmp_path / "run.sqlite"
    begun(path, problems=PROBLEMS[:1]).close()
    begun(path).close()
    with begun(path, problems=PROBLEMS[:1]) as store:
        assert [p["id"] for p in store.problems()] == ["a", "b"]


def test_temperatures_can_be_extended_and_shortened(tmp_path):
    path = tmp_path / "run.sqlite"
    for schedule in ([0.0, 0.5], [0.0, 0.5, 0.75], [0.0]):
        begun(path, SETTINGS | {"temperature": schedule}).close()
    with Store(path, readonly=True) as store:
        assert store.settings["temperature"] == [0.0, 0.5, 0.75]
    with pytest.raises(ValueError, match=r"temperature is \[0.0, 0.5, 0.75\] there and \[0.1\]"):
        begun(path, SETTINGS | {"temperature": [0.1]})


@pytest.mark.parametrize(("change", "message"), [
    ({"temperature": 0.5}, r"settings: temperature is 1\.0 there and 0\.5 here; give the same"),
    ({"temperature": [1.0]}, r"temperature is 1\.0 there and \[1\.0\] here"),
    ({"stop_strings": ["\n", "Q:"]}, r'stop_strings is \["\\n"\] there and \["\\n", "Q:"\] here'),
    ({"model": "big", "fingerprint": "def"},
     'model is "tiny" there and "big" here; fingerprint is "abc" there and "def" here'),
    ({"min_p": 0.1}, r"min_p is null there and 0\.1 here"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_other_settings_are_refused_and_each_is_named(tmp_path, change, message):
    path = tmp_path / "run.sqlite"
    begun(path).close()
    with pytest.raises(ValueError, match=message):
        begun(path, SETTINGS | change)
    begun(path).close()


def test_a_renamed_model_is_the_same_model(tmp_path):
    begun(tmp_path / "run.sqlite").close()
    begun(tmp_path / "run.sqlite", SETTINGS | {"model": "renamed"}).close()


@pytest.mark.parametrize(("change", "message"), [
    ({"id": "c"}, "prompt 1 is 'b' with 1 tokens there and 'c' with 1 tokens here; give"),
    ({"tokens": np.array([7])}, "'b' with 1 tokens there and 'b' with 1 tokens here, not the same"),
])  # fmt: skip
def test_other_prompts_are_refused(tmp_path, change, message):
    path = tmp_path / "run.sqlite"
    begun(path).close()
    with pytest.raises(ValueError, match=message):
        begun(path, problems=[PROBLEMS[0], PROBLEMS[1] | change])


# -- two processes -----------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_store(tmp_path):
    path = tmp_path / "run.sqlite"
    with begun(path) as store:
        child = run_python("import sys, test_store as t; t.Store(sys.argv[1])", path)
        error = child.communicate()[1]
        assert f"run.sqlite: in use by process {os.getpid()}; wait until" in error
        store.add(sample(0, 0))
    Store(path).close()


def test_the_second_opening_in_one_process_is_refused_too(tmp_path):
    with begun(tmp_path / "run.sqlite"), pytest.raises(RuntimeError, match="in use by process"):
        Store(tmp_path / "run.sqlite")


def test_a_lock_file_left_behind_by_a_killed_process_does_not_lock(tmp_path):
    (tmp_path / "run.sqlite.lock").write_text("12345\n")
    begun(tmp_path / "run.sqlite").close()


# -- bad files ---------------------------------------------------------------


def test_a_full_disk_is_said_and_the_samples_before_survive(tmp_path):
    path = tmp_path / "run.sqlite"
    with begun(path) as store:
        store._db.execute("PRAGMA max_page_count=20")
        with pytest.raises(StoreError, match=r"run\.sqlite: the disk is full") as raised:
            [store.add(sample(0, index, length=500)) for index in range(1000)]
        stored = len(list(store.samples()))
        assert 0 < stored < 1000
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
    with begun(path) as store:
        assert len(list(store.samples())) == stored
        store.add(sample(0, stored, length=500))


def test_a_failed_replacement_keeps_the_old_rewards(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        store.put_rewards(np.ones((2, 2)))
        store._db.execute("PRAGMA max_page_count=1")
        with pytest.raises(StoreError, match="the disk is full"):
            store.put_rewards(np.zeros((200, 200)))
        assert store.rewards((2, 2))[0].sum() == 4


def test_a_read_only_folder_is_said(open_folder):
    begun(open_folder / "run.sqlite").close()
    with unprivileged():
        with pytest.raises(StoreError, match="need to write in its folder, but Permission denied"):
            Store(open_folder / "run.sqlite")
        with Store(open_folder / "run.sqlite", readonly=True) as store:
            assert store.settings == SETTINGS


def test_a_read_only_file_is_said(open_folder):
    begun(open_folder / "run.sqlite").close()
    open_folder.chmod(0o777)
    (open_folder / "run.sqlite").chmod(0o444)
    with unprivileged(), pytest.raises(StoreError, match="it is read-only; a run needs a store"):
        begun(open_folder / "run.sqlite")


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_not_sqlite_is_left_untouched(tmp_path, readonly):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n" * 200)
    with pytest.raises(StoreError, match="not an SQLite file, so it is left untouched"):
        Store(path, readonly=readonly)
    assert path.read_text() == "dear diary\n" * 200
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_another_programs_sqlite_file_is_left_untouched(tmp_path):
    path = tmp_path / "other.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine(x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="an SQLite file, but not one of bonaware's stores"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    begun(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="need schema 1 or older, but a newer bonaware wrote"):
        Store(path)


def test_a_truncated_store_is_called_damaged(tmp_path):
    path = tmp_path / "run.sqlite"
    with begun(path) as store:
        for index in range(200):
            store.add(sample(0, index))
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(StoreError, match="damaged"), Store(path, readonly=True) as store:
        list(store.samples())


@pytest.mark.parametrize(("name", "message"), [
    ("missing/run.sqlite", "need a file in an existing folder, but .*missing is no folder"),
    (".", "need a file in an existing folder, but it is a folder"),
], ids=["no folder", "a folder"])  # fmt: skip
def test_a_path_that_cannot_be_a_store_is_refused(tmp_path, name, message):
    with pytest.raises(StoreError, match=message):
        Store(tmp_path / name)


def test_reading_needs_a_store_with_something_in_it(tmp_path):
    with pytest.raises(StoreError, match="there is no such file"):
        Store(tmp_path / "run.sqlite", readonly=True)
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(StoreError, match="it is empty"):
        Store(tmp_path / "run.sqlite", readonly=True)


# -- export ------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    with begun(tmp_path / "run.sqlite") as store:
        for p, i in [(0, 0), (0, 1), (1, 0)]:
            store.add(sample(p, i, text="“four”"))
        store.put_rewards(np.array([[1.0, 0.0], [0.5, np.nan]]), [["4", None], ["5", None]])
        store.put_scores("likelihood", np.array([[-1.0, -2.0], [-3.0, np.nan]]))
        store.put_scores('odd "name"', np.array([[1.0, np.nan], [np.nan, np.nan]]))
        yield store


def test_jsonl_has_one_row_per_sample(finished, tmp_path):
    finished.export(tmp_path / "run.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text("utf-8").splitlines()]
    assert [(r["problem"], r["prompt"], r["index"]) for r in rows] == [
        ("a", 0, 0), ("a", 0, 1), ("b", 1, 0),
    ]  # fmt: skip
    assert [r["reward"] for r in rows] == [1.0, 0.0, 0.5]
    assert [r["extracted_answer"] for r in rows] == ["4", None, "5"]
    assert [r["score_likelihood"] for r in rows] == [-1.0, -2.0, -3.0]
    assert [r['score_odd "name"'] for r in rows] == [1.0, None, None]
    assert rows[0]["tokens"] == [0, 1, 2]
    assert rows[0]["logp"] == [-1.0, -0.625, -0.25]
    assert rows[0]["text"] == "“four”"


def test_parquet_holds_the_same_rows_as_jsonl(finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    finished.export(tmp_path / "run.parquet")
    finished.export(tmp_path / "run.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text("utf-8").splitlines()]
    assert parquet.read_table(tmp_path / "run.parquet").to_pylist() == rows


def test_export_replaces_a_file_only_when_it_succeeds(finished, tmp_path, monkeypatch):
    target = tmp_path / "run.jsonl"
    target.write_text("old")
    monkeypatch.setattr("bonaware.store._write_jsonl", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finished.export(target)
    assert target.read_text() == "old"
    assert not list(tmp_path.glob(".run.jsonl*"))


def test_export_refuses_other_endings(finished, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.jsonl, got '.*run\.csv'"):
        finished.export(tmp_path / "run.csv")
