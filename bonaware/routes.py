"""Which kernel computes which product: measured once per machine, kept on disk.

A route (csrc/gemm.h) is chosen per (machine, dtype, shape, phase), never by the number of rows or
of threads, so that a sample's bits depend on neither. The measurement takes
a tenth of a second per product, longer where one is large; its result is cached, because choosing
anew could choose otherwise, and two routes differ in how they round activations.
"""

import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["cached_choices", "choose", "processor", "use"]

# Rows that stand for a phase when it is measured.
ROWS = {"prefill": 128, "decode": 32}
# The default route is left only for one that is faster by this factor: a choice should not flip
# for nothing.
MARGIN = 1.1
# Others may be at work on the machine for a while, so the measurement goes round all products, at
# most so many times, and the fastest time counts. A product that has taken SECONDS is done
# after two rounds.
ROUNDS = 10
SECONDS = 0.1
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
    """Where choices are kept: $BONAWARE_CACHE, else the user's cache folder.

    Raises
    ------
    FileNotFoundError
        The user has no home.
    """
    if (folder := os.environ.get("BONAWARE_CACHE")) is not None:
        return Path(folder) / "routes.json"
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Set HOME or BONAWARE_CACHE.") from None
    return Path(base) / "bonaware" / "routes.json"


def choose(model: Any, built: dict[str, Any], dtype: str) -> dict[str, str]:
    """Set the routes of a model's matrices; returns {"qkv 2048x2048 prefill": route, ...}."""
    routes = built["routes"][dtype]
    # With the routes that were compared: a version that has others compares anew.
    machine = " | ".join((processor(), built["isa"], built["onednn_version"],
                          built["onednn_isa"], " or ".join(routes)))
    products = [
        (index, phase, name, f"{outputs}x{inputs} {phase}", outputs * inputs < SMALL)
        for index, (name, outputs, inputs) in enumerate(model.matrices())
        for phase in ROWS
    ]
    known = _read().get(machine, {})
    unknown = {
        f"{dtype} {product}": (index, ROWS[phase])
        for index, phase, _, product, small in products
        if not small and known.get(f"{dtype} {product}") not in routes
    }
    if unknown:
        known = known | _add(machine, _fastest(model, unknown, routes), routes)
    chosen = {f"{name} {product}": DEFAULT if small else known[f"{dtype} {product}"]
              for _, _, name, product, small in products}
    use(model, chosen)
    return chosen


def use(model: Any, chosen: dict[str, str]) -> None:
    """Set the routes that `choose` chose for another copy of a model."""
    for index, (name, outputs, inputs) in enumerate(model.matrices()):
        for phase in ROWS:
            model.set_route(index, phase, chosen[f"{name} {outputs}x{inputs} {phase}"])


def cached_choices() -> dict[str, dict[str, str]]:
    """Every cached choice: {machine: {"float32 2048x2048 prefill": route, ...}}."""
    return _read()


def _fastest(
    model: Any, products: dict[str, tuple[int, int]], routes: list[str]
) -> dict[str, str]:
    """The fastest route of each product, which is {key: (index of the matrix, rows)}."""
    if len(routes) == 1:
        return dict.fromkeys(products, routes[0])
    best = {key: dict.fromkeys(routes, math.inf) for key in products}
    spent = dict.fromkeys(products, 0.0)
    for turn in range(ROUNDS):
        for key, (index, rows) in products.items():
            if turn >= 2 and spent[key] > SECONDS:
                continue
            start = time.perf_counter()
            for route in routes:
                best[key][route] = min(best[key][route], model.measure(index, route, rows, 2))
            spent[key] += time.perf_counter() - start
    return {key: _least(seconds) for key, seconds in best.items()}


def _least(seconds: dict[str, float]) -> str:
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * MARGIN < seconds[DEFAULT] else DEFAULT


def _read() -> dict[str, dict[str, str]]:
    try:
        found = json.loads(cache_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(found, dict) and all(isinstance(known, dict) for known in found.values())
    return found if sound else {}


def _add(machine: str, measured: dict[str, str], routes: list[str]) -> dict[str, str]:
    """Write what was measured; returns all that is known of the machine.

    What another process has chosen in the meantime stays, and counts here too. The file is
    replaced at once; a folder that cannot be written only costs the measurement.
    """
    cache = _read()
    known = dict(cache.get(machine, {}))
    known |= {key: route for key, route in measured.items() if known.get(key) not in routes}
    cache[machine] = known
    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder, path.name)
            file.write_text(json.dumps(cache, indent=1))
            file.replace(path)
    except OSError as error:
        print(f"bonaware: routes are measured at every load: {error}", file=sys.stderr)
    return known
