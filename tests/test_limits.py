"""What a process may use, as control groups say."""

import os

import pytest

from bonaware import _limits

MIB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function: path of the process's group, {file below /sys/fs/cgroup: text}."""
    monkeypatch.setattr(_limits, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(_limits, "GROUP", tmp_path / "self")
    monkeypatch.setattr(_limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    4096000 kB\n")

    def write(group, files):
        (tmp_path / "self").write_text(f"1:name=systemd:/other\n0::{group}\n")
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(("quota", "threads"), [
    ("max 100000", 8), ("100000 100000", 1), ("250000 100000", 3), ("50000 100000", 1),
    ("400000 100000", 4), ("9900000 100000", 8), ("1000 100000", 1),
])
def test_threads_are_those_of_the_quota(groups, quota, threads):
    groups("/", {"cpu.max": f"{quota}\n"})
    assert _limits.usable_threads() == threads


def test_the_smallest_limit_on_the_way_up_counts(groups):
    groups("/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "600000 100000",
                    "c/cpu.max": "100000 100000", "a/memory.max": str(500 * MIB),
                    "a/memory.current": str(100 * MIB), "a/b/memory.max": "max",
                    "a/b/memory.current": "5"})
    assert _limits.usable_threads() == 3
    assert _limits.free_memory() == 400 * MIB


def test_the_page_cache_of_a_group_counts_as_free(groups):
    groups("/", {"memory.max": str(500 * MIB), "memory.current": str(450 * MIB),
                 "memory.stat": f"anon 7\ninactive_file {300 * MIB}\nactive_file 9\n"})
    assert _limits.free_memory() == 350 * MIB
    groups("/", {"memory.max": str(100 * MIB), "memory.stat": ""})
    assert _limits.free_memory() == 0


def test_without_limits_the_machine_counts(groups, tmp_path):
    groups("/gone", {})
    assert _limits.free_memory() == 4096000 * 1024
    assert _limits.usable_threads() == 8
    (tmp_path / "self").unlink()
    assert _limits.usable_threads() == 8
    (tmp_path / "meminfo").unlink()
    assert _limits.free_memory() == _limits.UNKNOWN


def test_models_are_loaded_within_these_limits(tiny, groups):
    bon = pytest.importorskip("bonaware")
    pytest.importorskip("bonaware._engine", reason="the engine is not built")
    groups("/", {"cpu.max": "100000 100000", "memory.max": str(64 * MIB), "memory.current": "0"})
    lm = bon.LM.load(tiny("counting"))
    assert (lm.threads, lm.memory) == (1, 32 * MIB)
