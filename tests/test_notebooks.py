"""Every notebook runs from top to bottom, all in minutes, and is committed without outputs."""

import gc
import json
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
IN_YOUR_HARNESS = FOLDER / "05_in_your_harness.ipynb"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALONE = [path for path in NOTEBOOKS if path != IN_YOUR_HARNESS]
LIMIT = 300  # seconds of processor time for all notebooks together


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def stopwatch():
    """Runs a function; at the end all runs together must have been short."""
    seconds = 0.0

    def run(function, *arguments):
        nonlocal seconds
        start = time.process_time()
        function(*arguments)
        seconds += time.process_time() - start

    yield run
    assert seconds < LIMIT


def execute(path: Path) -> None:
    """All cells, in one process and in order, as a notebook does."""
    names: dict = {}
    for cell in code_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    assert all(not c["outputs"] and c["execution_count"] is None for c in code_cells(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_notebook_runs(path, stopwatch, monkeypatch):
    """In its own folder, as Jupyter runs it."""
    pytest.importorskip("bonaware._engine")
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(path.parent)
    stopwatch(execute, path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harnesses' own
def test_notebook_with_harnesses_runs(stopwatch):
    pytest.importorskip("bonaware._engine")
    pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed")
    pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    stopwatch(execute, IN_YOUR_HARNESS)
    gc.collect()  # what is left open is said now, and not in another test
