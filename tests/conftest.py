"""What all tests share."""

import fcntl
import gc
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from harnesses import write_model
from tiny import cached_checkpoint

import bonaware

ROOT = Path(__file__).parents[1]

# Python processes that a test starts import the same package as the test: never the sources in
# the working directory, unless these are what is tested (`python -m pytest`, see Makefile).
os.environ["PYTHONSAFEPATH"] = "1"
if Path(bonaware.__file__).parents[1] == ROOT:
    os.environ["PYTHONPATH"] = str(ROOT)

# Nothing is fetched; where there is no network, the Hugging Face libraries try for a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests press Ctrl-C, which is ignored in what a shell runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of recorded data (BONAWARE_DATA, or ../shared/data). Its files are untrusted."""
    path = Path(os.environ.get("BONAWARE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no recorded data: {path} is not a folder; set BONAWARE_DATA")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function: name of a model of tiny.py and options -> its folder, written once."""
    return partial(cached_checkpoint, tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def ascii_folder(tmp_path_factory) -> Path:
    """For harnesses: a checkpoint of random weights, one token per character, with a chat template.
    """
    return write_model(tmp_path_factory.mktemp("harnesses") / "ascii")


@pytest.fixture(scope="session")
def ascii_lm(ascii_folder):
    """The model in it."""
    return bonaware.LM.load(ascii_folder, threads=1)


@pytest.fixture(scope="module", params=["ascii", "recorded"])
def compared_folder(request, ascii_folder) -> Path:
    """Where a harness's own model is the oracle: that one, and a trained one without a template."""
    if request.param == "ascii":
        return ascii_folder
    return request.getfixturevalue("data") / "ckpt" / "aidreams260K"


@pytest.fixture
def by_route(monkeypatch, tmp_path):
    """A function: route, dtype -> models loaded from now on use it where they can, or a skip."""
    from bonaware import config, routes

    def use(route, dtype):
        if route not in config.engine().config()["routes"][dtype]:
            pytest.skip(f"this machine has no route {route} for {dtype}")
        monkeypatch.setenv("BONAWARE_CACHE", str(tmp_path))
        monkeypatch.setattr(routes, "SMALL", 0)
        monkeypatch.setattr(routes, "_fastest", lambda model, products, _: {
            key: route if np.isfinite(model.measure(index, route, 1, 1)) else "tile"
            for key, (index, _) in products.items()})

    return use


@pytest.fixture(autouse=True)
def turn(request, tmp_path_factory):
    """Lets a test that measures time run alone, where several processes (pytest-xdist) test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent  # of all of them
    alone = request.node.get_closest_marker("clock") is not None
    with open(folder / "door", "w") as door, open(folder / "room", "w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # nobody enters while one waits for an empty room
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def _leaves_things_open():
    """Whether a harness or Ray is imported."""
    return bool({"inspect_ai", "lighteval", "ray"} & set(sys.modules))


def pytest_sessionfinish():
    if _leaves_things_open():  # and what of it is still there: pytest itself would not forgive it
        with warnings.catch_warnings(action="ignore"):
            gc.collect()


def pytest_addoption(parser):
    parser.addoption("--network", action="store_true", help="also run tests that download packages")


def pytest_collection_modifyitems(config, items):
    # What they leave open is found by the collector in whatever test comes later. Where they are
    # not installed, as in the stage `pytest` of CI, our own must be closed.
    if _leaves_things_open():
        config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
    if config.getoption("--network"):
        return
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.skip(reason="downloads packages; run with --network"))
