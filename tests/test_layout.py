"""Rules about the source tree that no compiler checks."""

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
FILES = sorted(CSRC.glob("*.[ch]"))
CORE = [path for path in FILES if not path.name.startswith("py_")]
ALLOCATE_NOTHING = (
    "estimators", "losses", "losses_law", "losses_sft", "losses_block", "select", "rng", "sample",
)  # fmt: skip
COMPUTE = [path for path in CORE if path.stem in ALLOCATE_NOTHING]
STUBS = sorted((ROOT / "bonaware").glob("_*.pyi"))
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "scipy", "pyarrow", "sympy")


def code_of(path: Path) -> str:
    """The text of a C file without its comments."""
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


# The core.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_says_what_it_is_for(path):
    assert path.read_text().startswith(f"/* {path.name} - ")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_does_not_know_python(path):
    assert not re.search(r"Python\.h|numpy/|\bPy_?[A-Z]\w+\(", path.read_text())


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_does_not_print_or_exit(path):
    calls = re.findall(r"\b(v?[fd]?printf|f?puts|perror|_?exit|abort|assert)\(", code_of(path))
    assert calls == []


@pytest.mark.parametrize("path", COMPUTE, ids=lambda path: path.name)
def test_compute_files_do_not_allocate(path):
    calls = re.findall(r"\b(\w*alloc\w*|posix_memalign|mmap|strdup)\(", code_of(path))
    assert calls == []


def test_one_file_alone_knows_onednn():
    assert [path.name for path in FILES if "dnnl.h" in code_of(path)] == ["onednn.c"]


# Stubs: stubtest (test_stubs.py) compares what it can see; these see to it that it sees all.


@pytest.fixture(params=STUBS, ids=lambda path: path.name)
def stub(request):
    return request.param


def test_stub_has_the_names_of_its_module(stub):
    module = importlib.import_module(f"bonaware.{stub.stem}")
    real = {name for name in vars(module) if not name.startswith("_")}
    assert stub_names(ast.parse(stub.read_text())) == real


def stub_names(tree: ast.Module) -> set[str]:
    """What a stub defines: functions, classes and annotated constants."""
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    constants = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    return {name for name in named | constants if not name.startswith("_")}


def test_functions_and_methods_in_c_have_a_signature(stub):
    module = importlib.import_module(f"bonaware.{stub.stem}")
    owners = [module, *(item for item in vars(module).values() if inspect.isclass(item))]
    missing = [
        f"{owner.__name__}.{name}"
        for owner in owners
        for name, item in vars(owner).items()
        if not name.startswith("_") and callable(item) and not inspect.isclass(item)
        if item.__text_signature__ is None
    ]
    assert missing == []


# The package.


def import_in_fresh_interpreter(count: int) -> list[tuple[float, set[str]]]:
    """Seconds of `import bonaware` and what it brought in, `count` times."""
    program = (
        "import sys, time; start = time.perf_counter(); import bonaware; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    runs = []
    for _ in range(count):
        command = [sys.executable, "-c", program]
        seconds, *modules = subprocess.check_output(command, text=True).split()
        runs.append((float(seconds), set(modules)))
    return runs


def test_import_is_light():
    runs = import_in_fresh_interpreter(5)
    assert runs[0][1].intersection(HEAVY) == set()
    assert statistics.median(seconds for seconds, _ in runs) < 0.3


def test_tests_run_against_the_package_with_its_extensions():
    import bonaware._estimators

    assert bonaware._estimators.__file__.endswith(".so")


def test_extra_dev_holds_the_build_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requires = set(project["build-system"]["requires"]) - {"numpy>=2.0"}
    dev = set(project["project"]["optional-dependencies"]["dev"])
    assert dev - requires == {"bonaware[test]"}
    assert requires <= dev


def test_readme_names_everything_at_the_top_of_the_tree():
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files comes from git, and this is not a clone")
    tracked = subprocess.check_output(["git", "-C", str(ROOT), "ls-files"], text=True)
    top = {line.split("/")[0] for line in tracked.splitlines()}
    readme = (ROOT / "README.md").read_text()
    assert [name for name in sorted(top) if name not in readme] == []
