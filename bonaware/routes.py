"""Which kernel computes which product: measured once per machine, kept on disk.

A route (csrc/gemm.h) is chosen per (machine, dtype, shape, phase), never by the number of rows or
of threads, so that a sample's bits depend on neither. The measurement takes
milliseconds per shape; its result is cached, because choosing anew could choose otherwise and
two routes may differ in the last bit.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["cached_choices", "choose", "processor"]

# Rows that stand for a phase when it is measured.
ROWS = {"prefill": 128, "decode": 32}
# The default route is left only for one that is faster by this factor: measurements on a busy
# machine are noisy, and a choice should not flip for nothing.
MARGIN = 1.1
# Products below this many multiplications take microseconds by any route.
SMALL = 1 << 18
DEFAULT = "tile"


def processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where choices are kept: $BONAWARE_CACHE, else the user's cache folder."""
    folder = os.environ.get("BONAWARE_CACHE")
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "bonaware"
    return Path(folder) / "routes.json"


def choose(model: Any, built: dict[str, Any], dtype: str) -> dict[str, str]:
    """Set the routes of a model's matrices; returns {"qkv 2048x2048 prefill": route, ...}."""
    cache = _read()
    machine = " | ".join((processor(), built["isa"], built["onednn_version"],
                          built["onednn_isa"]))
    known = cache.setdefault(machine, {})
    before = dict(known)
    chosen: dict[str, str] = {}
    for index, (name, outputs, inputs) in enumerate(model.matrices()):
        for phase, rows in ROWS.items():
            key = f"{dtype} {outputs}x{inputs} {phase}"
            if outputs * inputs < SMALL:
                route = DEFAULT
            elif key in known:
                route = known[key]
            else:
                route = known[key] = _fastest(model, index, built["routes"][dtype], rows)
            model.set_route(index, phase, route)
            chosen[f"{name} {outputs}x{inputs} {phase}"] = route
    if known != before:
        _write(cache)
    return chosen


def cached_choices() -> list[str]:
    """Every cached choice as a line of text."""
    return [
        f"{key}: {route} ({machine})"
        for machine, known in _read().items()
        for key, route in known.items()
    ]


def _fastest(model: Any, index: int, routes: list[str], rows: int) -> str:
    if len(routes) == 1:
        return routes[0]
    seconds = {route: model.measure(index, route, rows, 3) for route in routes}
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * MARGIN < seconds[DEFAULT] else DEFAULT


def _read() -> dict[str, dict[str, str]]:
    try:
        found = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(found, dict) and all(isinstance(known, dict) for known in found.values())
    return found if sound else {}


def _write(cache: dict[str, dict[str, str]]) -> None:
    """Replace the file at once; a folder that cannot be written only costs the measurement."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(cache, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        print(f"bonaware: routes are measured at every load: {error}", file=sys.stderr)
