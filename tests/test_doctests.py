"""The examples in the docstrings, run against the package that is installed."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def has_examples(path: Path) -> bool:
    lines = path.read_text().splitlines()
    return any(">>> " in line and "+SKIP" not in line for line in lines)


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "bonaware").rglob("*.py"))
    if has_examples(path)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    if ".integrations." in name:
        module = pytest.importorskip(
            name, reason="its framework is not installed", exc_type=ImportError)
    else:
        module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
