"""Pools of processes that can be killed: for work that may hang, crash or eat memory.

Each worker is a fresh interpreter (never a fork, and the caller's main module is not run
again), does one call at a time, and is killed and replaced when the call takes too long.
Arguments and results travel as JSON: nothing a worker writes can run code in the caller.

A worker is any command that speaks in lines: it reads its setup and answers {"value": null}
when it is ready; then it reads the arguments of each call and answers {"value": result}.
{"error": sentence} says why there is no value.
"""

import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Self

from bonaware._limits import usable_threads

__all__ = ["TOO_LONG", "Failure", "KillablePool", "Pool"]

# Imports of a worker may be slow on a loaded machine; a call's limit starts after them.
START_SECONDS = 120.0
MEMORY = 4 << 30  # bytes of address space of one worker
TOO_LONG = "took too long"
SLICE = 1.0  # seconds of one wait: a much longer one shows that this process was stopped
BOOT = """\
import json, sys
setup = json.loads(sys.stdin.buffer.readline())
sys.path[:] = setup["path"]
from bonaware._pool import serve
serve(setup)
"""


@dataclass(frozen=True)
class Failure:
    """In place of a result: why a call has none."""

    reason: str


class Pool:
    """Workers of one kind, each call with a hard time limit.

    Parameters
    ----------
    command : sequence of str
        Starts a worker.
    setup : mapping
        What each worker reads first.
    workers : int, optional
        Processes, >= 1. Default: the CPUs this process may use.
    limit : float
        Seconds of wall-clock time of one call.
    environment : mapping, optional
        Of the workers. Default: that of this process.

    Raises
    ------
    ValueError
        A bound is broken.
    """

    def __init__(
        self, command: Sequence[str], setup: Mapping[str, Any], workers: int | None = None,
        limit: float = 5.0, environment: Mapping[str, str] | None = None,
    ) -> None:
        self._pool: list[_Worker] = []
        # A worker may be bound to end with the thread that started it (PR_SET_PDEATHSIG): one
        # starts them all that lives as long as the pool.
        self._starter = ThreadPoolExecutor(1)
        self._start = partial(self._starter.submit, _Worker, command, setup, environment)
        self._lock = threading.Lock()
        self.workers = usable_threads() if workers is None else workers
        self.limit = limit
        if self.workers < 1 or not limit > 0:
            raise ValueError(f"need workers >= 1 and limit > 0, got {workers} and {limit}")

    def map(self, calls: Iterable[Sequence[Any]]) -> list[Any]:
        """What the workers answer, in the order of the calls.

        Parameters
        ----------
        calls : iterable of sequence
            The arguments of each call.

        Returns
        -------
        list
            The result of each call, or a Failure: it raised, took longer than the limit,
            or its process ended.

        Raises
        ------
        RuntimeError
            A worker cannot start.
        """
        waiting = deque(enumerate(calls))
        results: list[Any] = [None] * len(waiting)
        with self._lock:
            try:
                while waiting or any(worker.call is not None for worker in self._pool):
                    self._hand_out(waiting)
                    for call, result in self._collect():
                        results[call] = result
            except BaseException:  # Ctrl-C too: no worker may go on with a lost call
                self._kill_all()
                raise
        return results

    def close(self) -> None:
        """End the workers; the next map starts new ones."""
        with self._lock:
            self._kill_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._kill_all()

    def _kill_all(self) -> None:
        while self._pool:
            self._pool.pop().kill()

    def _hand_out(self, waiting: deque[tuple[int, Sequence[Any]]]) -> None:
        """Give each idle worker a call; start workers while there are calls for them."""
        for worker in self._pool:
            if waiting and worker.idle:
                worker.send(*waiting.popleft(), self.limit)
        starting = sum(not worker.ready for worker in self._pool)
        while len(self._pool) < self.workers and starting < len(waiting):
            self._pool.append(self._start().result())
            starting += 1

    def _collect(self) -> list[tuple[int, Any]]:
        """Wait a little for the workers; results of finished and failed calls."""
        with selectors.DefaultSelector() as selector:
            for worker in self._pool:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            before = time.monotonic()
            next_deadline = min(worker.deadline for worker in self._pool)
            most = min(max(0.0, next_deadline - before), SLICE)
            for key, _ in selector.select(most):
                key.data.read()
        waited = time.monotonic() - before
        if waited > most + SLICE:  # this process was stopped (Ctrl-Z), and its workers perhaps too
            for worker in self._pool:
                worker.deadline += waited
        done = []
        for worker in list(self._pool):
            result = worker.result()
            if result is not None:
                done.append(result)
            if worker.dead:
                self._pool.remove(worker)
        return done


class KillablePool(Pool):
    """Calls a function in worker processes, each call with a hard time limit.

    Parameters
    ----------
    function : str
        "module:name"; takes and returns what JSON can hold. Only the workers import it.
    workers, limit : optional
        As in Pool.

    Raises
    ------
    ValueError
        The function is not named like that, or a bound is broken.

    Examples
    --------
    >>> with KillablePool("operator:truediv", workers=1) as pool:
    ...     pool.map([(1, 2), (1, 0)])
    [0.5, Failure(reason='ZeroDivisionError: division by zero')]
    """

    def __init__(
        self, function: str, workers: int | None = None, limit: float = 5.0
    ) -> None:
        module, colon, name = function.partition(":")
        setup = {"module": module, "name": name, "limit": limit, "path": sys.path}
        super().__init__([sys.executable, "-P", "-c", BOOT], setup, workers, limit)
        if not (module and colon and name):
            raise ValueError(f"function must be 'module:name', got {function!r}")


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a worker process has no pipes")
    return process.stdin, process.stdout


class _Worker:
    """One process: starting, then idle or in a call, then dead."""

    def __init__(self, command: Sequence[str], setup: Mapping[str, Any],
                 environment: Mapping[str, str] | None) -> None:
        self.process = subprocess.Popen(
            command, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is the caller's, not ours
        )
        self.input, self.output = _pipes(self.process)
        self.ready = self.dead = False
        self.call: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self._buffer = b""
        self._write(dict(setup))

    @property
    def idle(self) -> bool:
        return self.ready and self.call is None and not self.dead

    def send(self, call: int, arguments: Sequence[Any], limit: float) -> None:
        self.call = call
        self._write(list(arguments))
        self.deadline = time.monotonic() + limit

    def read(self) -> None:
        """Take what has come; the end of the pipe is the end of the process."""
        data = os.read(self.output.fileno(), 1 << 16)
        self._buffer += data
        self.dead = not data

    def result(self) -> tuple[int, Any] | None:
        """(call, result or Failure) if the call is over, else None."""
        if self._buffer.endswith(b"\n"):
            message, self._buffer = json.loads(self._buffer), b""
            return self._take(message)
        reason = None
        if self.dead:
            reason = f"the worker ended with code {self.kill()}"
        elif time.monotonic() >= self.deadline:
            reason = TOO_LONG
            self.kill()
        if reason is None:
            return None
        if not self.ready:
            raise RuntimeError(f"a worker process cannot start: {reason}")
        return None if self.call is None else (self.call, Failure(reason))

    def _take(self, message: dict[str, Any]) -> tuple[int, Any] | None:
        if not self.ready:
            if "error" in message:
                raise RuntimeError(f"a worker process cannot start: {message['error']}")
            self.ready, self.deadline = True, float("inf")
            return None
        call, self.call, self.deadline = self.call, None, float("inf")
        if call is None:
            raise RuntimeError("a worker process answered without being asked")
        return call, Failure(message["error"]) if "error" in message else message["value"]

    def _write(self, value: Any) -> None:
        with suppress(BrokenPipeError):  # a dead process shows when it is read
            self.input.write(json.dumps(value).encode() + b"\n")
            self.input.flush()

    def kill(self) -> int:
        """End the process at once; its exit code."""
        if self.dead:  # it closed its pipe: let it say how it ended
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1.0)
        self.dead = True
        self.process.kill()
        code = self.process.wait()
        with suppress(BrokenPipeError):
            self.input.close()
        self.output.close()
        return code


def serve(setup: dict[str, Any]) -> None:
    """The life of a worker: import the function, then one line in, one line out."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what the function prints must not get into the answers

        def answer(message: dict[str, Any]) -> None:
            out.write(json.dumps(message).encode() + b"\n")
            out.flush()

        try:
            function = getattr(importlib.import_module(setup["module"]), setup["name"])
        except Exception as error:
            return answer({"error": f"{type(error).__name__}: {error}"})
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        answer({"value": None})
        for line in sys.stdin.buffer:
            # Should the caller be killed, nobody kills us: so much CPU time, then SIGPROF.
            signal.setitimer(signal.ITIMER_PROF, 2 * setup["limit"] + 1)
            try:
                answer({"value": function(*json.loads(line))})
            except Exception as error:
                answer({"error": f"{type(error).__name__}: {error}"})
