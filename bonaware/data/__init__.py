"""The models that come with the package: a folder here is one, found by its name.

They were made by this project; the script and the seeds that made one lie beside it.
"""

import json
from pathlib import Path

__all__ = ["available", "embedded", "policies"]

HERE = Path(__file__).parent


def available() -> tuple[str, ...]:
    """Names that `embedded` knows, sorted."""
    return tuple(sorted(path.parent.name for path in HERE.glob("*/config.json")))


def policies() -> tuple[str, ...]:
    """Those of them that samples can be drawn from: without score head, sorted."""
    return tuple(name for name in available() if not _architecture(name).endswith("Classification"))


def _architecture(name: str) -> str:
    return json.loads((HERE / name / "config.json").read_text(encoding="utf-8"))["architectures"][0]


def embedded(name: str) -> Path:
    """The folder of an embedded model.

    Raises
    ------
    FileNotFoundError
        There is none of this name; the message lists those there are.
    """
    if name not in available():
        known = ", ".join(available()) or "none in this installation"
        raise FileNotFoundError(
            f"need a folder with a model or the name of an embedded one ({known}), found neither "
            f"a folder nor an embedded model {name}"
        )
    return HERE / name
