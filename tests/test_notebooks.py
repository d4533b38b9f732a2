"""Every notebook runs from top to bottom and is committed without outputs."""

import json
from pathlib import Path

import pytest

import bonaware

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    assert all(not c["outputs"] and c["execution_count"] is None for c in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, data, monkeypatch):
    """In its own folder, as Jupyter runs it, with training cut short."""
    pytest.importorskip("bonaware._engine")
    fit = bonaware.Trainer.fit
    monkeypatch.setattr(bonaware.Trainer, "fit", lambda trainer, source, steps, **options: fit(
        trainer, source, min(steps, 2), **options))
    monkeypatch.chdir(path.parent)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setenv("BONAWARE_DATA", str(data))
    names: dict = {}
    for cell in code_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
