"""The .pyi files of the C modules, compared with the modules by mypy's stubtest."""

import os
import subprocess
import sys
from pathlib import Path

import bonaware

PACKAGE = Path(bonaware.__file__).parent


def test_stubs_agree_with_the_modules(tmp_path):
    modules = sorted(f"bonaware.{path.stem}" for path in PACKAGE.glob("_*.pyi"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *modules],
        cwd=tmp_path,
        env=os.environ | search_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def search_path() -> dict[str, str]:
    """mypy finds installed packages by itself, but not the package of a source tree."""
    if {"site-packages", "dist-packages"}.intersection(PACKAGE.parts):
        return {}
    return {"MYPYPATH": str(PACKAGE.parent)}
