"""Every way to build and install the package, each in a fresh environment.

Run with `pytest --network tests/test_package.py`: pip downloads what it needs.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.network]

NUMPY = "numpy>=2.0"
Done = subprocess.CompletedProcess[str]

# Prints where the pure modules and oneDNN were loaded from.
PROBE = """
import bonaware, bonaware._estimators, bonaware._select
print(bonaware._estimators.__file__)
import bonaware._engine
with open("/proc/self/maps") as maps:
    print(next(line.split()[-1] for line in maps if "libdnnl" in line))
"""

# The pure modules work; what needs the engine says so.
WITHOUT_ENGINE = """
import bonaware as bon
assert bon.estimators.pass_at_k(2, 1, 1) == 0.5
assert bon.select.best_of_n([[0.0, 2.0, 1.0]]) == [1]
try:
    bon.LM.load("folder")
except ImportError as error:
    assert "engine is not available" in str(error), error
else:
    raise AssertionError("a model was loaded without an engine")
"""


def run(*command: str | Path, **variables: str) -> Done:
    """A command that starts outside the source tree and must succeed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BON_", "PYTHON", "ONEDNN_"))}
    done = subprocess.run(
        [str(word) for word in command],
        env=env | variables,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def environment(folder: Path, **options: bool) -> Path:
    """The interpreter of a fresh virtual environment."""
    venv.create(folder, **options)
    return folder / "bin" / "python"


def pip(python: str | Path, *words: str | Path, **variables: str) -> Done:
    """The pip of the tests, at work on another environment: none needs one of its own."""
    return run(sys.executable, "-m", "pip", "--python", python, *words, **variables)


def with_numpy_alone(folder: Path) -> Path:
    """The interpreter of an environment with what the extensions need and nothing else."""
    python = environment(folder)
    pip(python, "install", "-q", NUMPY)
    return python


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """What a fresh clone holds: the files that git knows, without what builds left behind."""
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files comes from git, and this is not a clone")
    tree = tmp_path_factory.mktemp("checkout")
    names = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="session")
def builder(checkout, tmp_path_factory) -> Path:
    """The interpreter of an environment for builds without one of their own."""
    python = environment(tmp_path_factory.mktemp("builder"))
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    pip(python, "install", "-q", "build", *project["build-system"]["requires"])
    return python


@pytest.fixture(scope="session")
def dist(builder, checkout, tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that is built from the sdist, as pip builds it."""
    folder = tmp_path_factory.mktemp("dist")
    run(builder, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, checkout)
    pip(sys.executable, "wheel", "-q", "--no-deps", "-w", folder, next(folder.glob("*.tar.gz")))
    return folder


@pytest.fixture(scope="session")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


def check_installed(python: Path, package: Path, **variables: str) -> None:
    estimators, onednn = run(python, "-c", PROBE, **variables).stdout.split()
    assert Path(estimators).resolve().parent == package.resolve()
    assert Path(onednn).resolve() == (package / ".libs" / "libdnnl.so.3").resolve()
    listed = run(python, "-c", "from bonaware import data; print(*data.available())", **variables)
    assert listed.stdout.split() == ["countdown", "countdown-selfeval", "countdown-verifier"]


def site_packages(python: Path) -> Path:
    done = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))")
    return Path(done.stdout.strip())


# What is in the archives.


def test_sdist_holds_everything_that_a_build_and_the_tests_need(dist, checkout):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [checkout / name for name in ("LICENSE", "README.md", "setup.py", "Makefile")]
    for folder in ("bonaware", "csrc", "tests"):
        needed += [path for path in (checkout / folder).rglob("*") if path.is_file()]
    assert {str(path.relative_to(checkout)) for path in needed} - names == set()


def test_wheel_holds_the_package_with_onednn_and_its_licence(wheel, checkout):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = [path for path in (checkout / "bonaware").rglob("*") if path.is_file()]
    assert {str(path.relative_to(checkout)) for path in package} - names == set()
    assert {f"bonaware/.libs/{name}" for name in ("libdnnl.so.3", "LICENSE")} <= names
    assert not [name for name in names if name.startswith(("csrc", "tests", "build"))]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"bonaware"}


# Where pip can put it.


def test_wheel_works_in_a_virtual_environment(wheel, tmp_path):
    python = environment(tmp_path / "env")
    pip(python, "install", "-q", wheel)
    check_installed(python, site_packages(python) / "bonaware")
    assert "usage" in run(python.parent / "bonaware", "--help").stdout.lower()
    few = ("--limit", "2", "--n", "2", "--no-store", "--report", tmp_path / "report.html")
    done = run(python.parent / "bonaware", "evaluate", *few)
    assert "countdown on countdown: 2 prompts, n=2, 4 samples" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 5000


def test_wheel_works_with_user(wheel, tmp_path):
    python = environment(tmp_path / "env", system_site_packages=True)
    base = str(tmp_path / "base")
    pip(python, "install", "-q", "--user", "--no-deps", NUMPY, wheel, PYTHONUSERBASE=base)
    package = next(Path(base).glob("lib/python*/site-packages/bonaware"))
    check_installed(python, package, PYTHONUSERBASE=base)


def test_wheel_works_with_target(wheel, tmp_path):
    target = tmp_path / "target"
    pip(sys.executable, "install", "-q", "--no-deps", "--target", target, wheel)
    check_installed(Path(sys.executable), target / "bonaware", PYTHONPATH=str(target))


def test_editable_install_works(checkout, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree)
    python = with_numpy_alone(tmp_path / "env")
    pip(python, "install", "-q", "--no-deps", "-e", tree)
    check_installed(python, tree / "bonaware")


# Other ways to build.


def test_build_takes_onednn_from_onednn_root(builder, checkout, tmp_path):
    onednn = tmp_path / "onednn"
    # Ignoring what is installed: the environment of the tests may hold the same wheels.
    pip(sys.executable, "install", "-q", "--no-deps", "-I", "--prefix", onednn,
        "onednn-devel-cpu-gomp==2023.2.0", "onednn-cpu-gomp==2023.2.0")  # fmt: skip
    (onednn / "share" / "doc" / "onednn" / "LICENSE").write_text("of ONEDNN_ROOT")
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree)
    pip(builder, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree,
        ONEDNN_ROOT=str(onednn))  # fmt: skip
    python = with_numpy_alone(tmp_path / "env")
    pip(python, "install", "-q", "--no-deps", next(tmp_path.glob("*.whl")))
    package = site_packages(python) / "bonaware"
    check_installed(python, package)
    assert (package / ".libs" / "LICENSE").read_text() == "of ONEDNN_ROOT"


def test_package_works_without_engine(builder, checkout, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree)
    done = pip(builder, "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree,
               BON_NO_ENGINE="1")  # fmt: skip
    assert "bonaware is built without its engine: BON_NO_ENGINE is set" in done.stderr
    python = with_numpy_alone(tmp_path / "env")
    pip(python, "install", "-q", "--no-deps", next(tmp_path.glob("*.whl")))
    package = site_packages(python) / "bonaware"
    assert not (package / ".libs").exists()
    assert not list(package.glob("_engine*.so"))
    run(python, "-c", WITHOUT_ENGINE)
