"""Long jobs in a few processes under one bar, stopped gently by Ctrl-C.

Each job runs in a fresh process (spawn). It says through a pipe how far it is; when the pipe
closes it is over. Ctrl-C reaches every job once, however often it is sent, so that a job that is
saving what it has is left alone.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["work"]


def work(call: Callable[..., None], jobs: Sequence[tuple[Any, ...]], sizes: Sequence[int],
         processes: int) -> list[int]:
    """Run ``call(*job, tell)`` for every job; ``tell(more, text)`` moves the bar.

    Parameters
    ----------
    call : callable
        At the top of a module, so that a fresh process finds it.
    jobs : sequence of tuples
    sizes : sequence of int
        What each job's `more` add up to.
    processes : int
        How many run at once, >= 1.

    Returns
    -------
    list of int
        Places of the jobs that failed; their errors are on the standard error stream.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, when all processes have ended.
    """
    from tqdm.auto import tqdm

    waiting, failed = list(range(len(jobs))), []
    live: dict[Connection, tuple[int, Any]] = {}
    left = list(sizes)
    with tqdm(total=sum(sizes), unit="samples", unit_scale=True, disable=not jobs) as bar:
        try:
            while waiting or live:
                while waiting and len(live) < processes:
                    place = waiting.pop(0)
                    pipe, process = _start(call, jobs[place])
                    live[pipe] = place, process
                for pipe in wait(list(live)):
                    place, process = live[pipe]
                    try:
                        more, text = pipe.recv()
                    except EOFError:
                        more, text = left[place], ""
                        process.join()
                        del live[pipe]
                        if process.exitcode:
                            failed.append(place)
                    left[place] -= more
                    over = len(jobs) - len(waiting) - len(live)
                    bar.set_postfix_str(f"{over}/{len(jobs)} runs  {text}", refresh=False)
                    bar.update(more)
        except KeyboardInterrupt:
            _stop(live)
            raise
    return failed


def _start(call: Callable[..., None], job: tuple[Any, ...]) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(call, job, theirs))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the child is ready for it
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return ours, process


def _child(call: Callable[..., None], job: tuple[Any, ...], pipe: Connection) -> None:
    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    warnings.filterwarnings("ignore", "interrupted")  # the parent says it
    try:
        call(*job, lambda more, text: pipe.send((more, text)))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def _stop(live: dict[Connection, tuple[int, Any]]) -> None:
    """End the processes and wait for them; those that cannot listen yet find their pipe closed."""
    for pipe, (_, process) in live.items():
        pipe.close()
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for _, process in live.values():
        process.join()
