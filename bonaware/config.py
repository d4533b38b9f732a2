"""What this installation computes with: versions, instruction sets, threads, routes."""

import platform
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import bonaware
from bonaware._limits import usable_threads

__all__ = ["describe", "engine", "show_config"]


def engine() -> ModuleType:
    """The C engine, or an ImportError that says in one sentence what to install."""
    try:
        from bonaware import _engine
    except ImportError as error:
        raise ImportError(
            "bonaware's engine is not available, so models cannot be loaded (estimators and "
            "selectors work without it): on Linux x86-64 with AVX2 reinstall with "
            f"`pip install --force-reinstall bonaware`, elsewhere build with ONEDNN_ROOT set; "
            f"the import said: {error}"
        ) from error
    return _engine


def describe() -> dict[str, Any]:
    """The facts that `show_config` prints, as a dict that JSON can hold."""
    import numpy

    from bonaware.routes import cached_choices, processor

    facts: dict[str, Any] = {
        "bonaware": bonaware.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "threads": usable_threads(),
    }
    try:
        built = engine().config()
    except ImportError as error:
        return facts | {"engine": None, "engine_missing": str(error)}
    return facts | {
        "engine": f"own kernels ({built['isa']}), oneDNN {built['onednn_version']} "
        f"({built['onednn_isa']})",
        "routes": built["routes"],
        "chosen": cached_choices(),
    }


def show_config(file: Any = None) -> None:
    """Print versions, instruction sets, threads, and which kernels serve which precision.

    Parameters
    ----------
    file : text stream, optional
        Where to print; standard output by default.

    Examples
    --------
    >>> show_config()  # doctest: +ELLIPSIS
    bonaware   ...
    """
    from bonaware.routes import cache_file

    file = file or sys.stdout
    facts = describe()
    routes, chosen = facts.pop("routes", {}), facts.pop("chosen", {})
    for name, value in facts.items():
        if value is not None:
            print(f"{name:<10} {value}", file=file)
    for dtype, names in routes.items():
        print(f"{dtype:<10} can be computed by {' or '.join(names)}", file=file)
    for machine, known in chosen.items():
        counts = Counter(f"{product.split()[0]} by {route}" for product, route in known.items())
        measured = ", ".join(f"{count} of {what}" for what, count in sorted(counts.items()))
        print(f"routes     {measured} ({machine})", file=file)
    if chosen:
        print(f"           measured product by product, kept in {cache_file()}", file=file)
