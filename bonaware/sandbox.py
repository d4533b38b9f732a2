"""The sandbox: runs Python programs that nobody trusts, with tests, and says what came of each.

There are two ways to build it, and `route` takes the first that works on this machine:

- "bubblewrap": namespaces of its own for users, processes, network and files, made by the
  program `bwrap`. Nothing of the machine is there but Python and the system's libraries.
- "landlock": Landlock (Linux 5.13 or newer), where user namespaces are refused, as in many
  containers. Files other than those exist but cannot be read.

In both, each program has one process with limits of time, memory and open files, under a filter
of system calls (seccomp) that allows no other process, thread, socket, signal or change to a
file. Where neither works, nothing is run. What is inside is `bonaware._sandboxed`;
docs/code_tasks.md says what all this prevents, and what it does not.
"""

import functools
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bonaware._pool import TOO_LONG, Failure, Pool

__all__ = ["ROUTES", "WORDS", "Case", "Sandbox", "Verdict", "route"]

ROUTES = ("bubblewrap", "landlock")
WORDS = {
    "passed": "the program and all its tests ran, and no test failed",
    "failed": "an assertion of the tests does not hold",
    "error": "the program or a test raised an exception, or is not Python",
    "exited": "the program ended before its tests did",
    "timeout": "it took more time than it has",
    "memory": "it needed more memory than it has",
    "refused": "it tried what the sandbox does not allow",
    "crashed": "the interpreter was killed by a signal, such as SIGSEGV",
    "forged": "it wrote a verdict of its own",
}
INSIDE = Path(__file__).with_name("_sandboxed.py")
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
# Waiting is no computing: a program may last so many times its computing time by the clock,
# which also leaves room for a busy machine.
PATIENCE = 5
# Hashes do not depend on chance: a program that shows the order of a set is judged alike twice.
ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class Case(NamedTuple):
    """A program and its tests.

    Parameters
    ----------
    program : str
        Source text; it is run first, as a module.
    tests : str
        Source text that raises an exception, usually by `assert`, if the program is wrong. It
        sees what the program defined.
    names : sequence of str
        What the program was asked to define, where that may be the name of a built-in
        function; of all other built-in functions the tests see Python's own.
    """

    program: str
    tests: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Parameters
    ----------
    word : str
        One of WORDS.
    detail : str
        More of it, such as the assertion that failed. Written by the program in part: show
        it, but do not trust it.
    """

    word: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.word == "passed"


class Sandbox:
    """Runs cases in parallel, each within hard limits.

    Parameters
    ----------
    seconds : float
        Computing time of one program, > 0, rounded up to whole seconds; by the clock it may
        last five times that.
    memory : int
        MiB of address space of one program, >= 64.
    workers : int, optional
        Programs at a time. Default: the CPUs this process may use.
    by : str, optional
        One of ROUTES. Default: the first that works.

    Raises
    ------
    ValueError
        A bound is broken, or there is no such route.
    RuntimeError
        No route works here, or not that one; the message says why.

    Notes
    -----
    A case costs some milliseconds beside what its program computes. Workers are started when
    they are needed and end with this object.

    Examples
    --------
    >>> program = "def double(x): return 2 * x"
    >>> cases = [Case(program, "assert double(2) == 4"), Case(program, "assert double(2) == 5"),
    ...          Case("import os; os._exit(0)", "assert double(2) == 4")]
    >>> with Sandbox(workers=1) as sandbox:  # doctest: +SKIP
    ...     [verdict.word for verdict in sandbox.run(cases)]
    ['passed', 'failed', 'exited']
    """

    def __init__(self, seconds: float = 10.0, memory: int = 512, workers: int | None = None,
                 by: str | None = None) -> None:
        if not 0 < seconds < math.inf or memory < 64:
            raise ValueError(f"need seconds > 0 and memory >= 64 MiB, got {seconds} and {memory}")
        self.route = route() if by is None else by
        if problem := _problem(self.route):
            raise RuntimeError(f"the sandbox by {by} does not work here: {problem}")
        self._pool = _pool(self.route, seconds, memory, workers)

    def run(self, cases: Iterable[Case]) -> list[Verdict]:
        """Verdicts on cases, in their order; equal cases are run once.

        Raises
        ------
        RuntimeError
            No worker can be started.
        """
        cases = list(cases)
        once = list(dict.fromkeys(cases))
        verdicts = dict(zip(once, map(_verdict, self._pool.map(once)), strict=True))
        return [verdicts[case] for case in cases]

    def close(self) -> None:
        """End the workers; the next run starts others."""
        self._pool.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def route() -> str:
    """The way in which programs are confined on this machine: the first of ROUTES that works.

    Raises
    ------
    RuntimeError
        None does; the message says why.

    Notes
    -----
    What works is found by trying it, once per process.
    """
    problems = {name: _problem(name) for name in ROUTES}
    for name, problem in problems.items():
        if problem is None:
            return name
    said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    raise RuntimeError(
        "programs of a model run only in a sandbox, and none works here: install bubblewrap, or "
        f"use Linux 5.13 or newer on x86-64 with Landlock and seccomp ({said})"
    )


def _verdict(result: list[str] | Failure) -> Verdict:
    if not isinstance(result, Failure):
        return Verdict(*result)
    if result.reason == TOO_LONG:
        return Verdict("timeout", "neither ended nor computed for too long")
    return Verdict("crashed", result.reason)


# -- routes ------------------------------------------------------------------

# What must become of these before anything else is run: program, and words that will do.
PROBES = (
    ("x = 1", ("passed",)),
    ("open('/proc/self/mem', 'rb')", ("error", "refused")),
    ("import os; os.mkdir('/tmp/bonaware')", ("error", "refused")),
    ("import socket; socket.socket()", ("refused",)),
    ("import os; os.kill(os.getppid(), 0)", ("refused",)),
)


@functools.cache
def _problem(name: str) -> str | None:
    """Why a route does not work here; None if it does."""
    if name not in ROUTES:
        raise ValueError(f"a sandbox is built by {' or '.join(ROUTES)}, not {name!r}")
    if sys.platform != "linux":
        return "it needs Linux"
    if name == "bubblewrap":
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        tried = subprocess.run([*_bubblewrap(), _python(), "-c", ""], capture_output=True,
                               text=True, errors="replace", env=ENVIRONMENT, check=False)
        if tried.returncode:
            return tried.stderr.strip() or f"bwrap ended with code {tried.returncode}"
    try:
        with _pool(name, seconds=5.0, memory=512, workers=1) as pool:
            results = [_verdict(result) for result in pool.map((p, "", ()) for p, _ in PROBES)]
    except (OSError, RuntimeError) as error:
        return str(error).removeprefix("a worker process cannot start: ")
    for (program, words), verdict in zip(PROBES, results, strict=True):
        if verdict.word not in words:
            return f"`{program}` inside {verdict.word}: {verdict.detail}"
    return None


def _pool(name: str, seconds: float, memory: int, workers: int | None) -> Pool:
    confined = name == "bubblewrap"
    setup = {
        "seconds": math.ceil(seconds),
        "memory": memory << 20,
        "readable": None if confined else _readable(),
    }
    inside = [_python(), "-P", "-s", "-S", str(INSIDE)]
    command = [*_bubblewrap(), *inside] if confined else inside
    return Pool(command, setup, workers, PATIENCE * math.ceil(seconds), ENVIRONMENT)


def _bubblewrap() -> list[str]:
    """The beginning of a command that runs the rest of it in bubblewrap."""
    shown = [word for path in _readable() for word in ("--ro-bind", path, path)]
    return [
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", *shown, "--remount-ro", "/", "--chdir", "/", "--",
    ]  # fmt: skip


def _python() -> str:
    """The interpreter itself, not its link in a virtual environment, which is not shown."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _readable() -> list[str]:
    """All that can be read inside: the system's and Python's own files, no installed package."""
    python = [sysconfig.get_config_var("LIBDIR"), os.path.dirname(os.__file__)]
    paths = [*SYSTEM, *filter(None, python), _python(), str(INSIDE)]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]
