"""Rows of one call shared among threads.

The C functions release the GIL and compute eight rows at a time on their own, so the result
does not depend on the number of threads. Threads live for one call only: nothing is left behind
that a later fork could trip over.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["for_rows"]

# Steps (about a nanosecond each) that make one more thread worth starting, and steps per
# part: few enough that all threads end at about the same time and that Ctrl-C, which waits
# for the parts at work, does not wait long.
STEPS_PER_THREAD = 4_000_000
STEPS_PER_PART = 4_000_000
ROWS_PER_PART = 32  # at least: some tables are made for every part


def for_rows(work: Callable[[int, int], None], rows: int, steps: int) -> None:
    """Calls work(start, stop) for parts of range(rows) with about `steps` steps a row.

    Where several parts fail, the first of them raises, as in a plain loop.
    """
    threads = min(_processors(), rows * steps // STEPS_PER_THREAD)
    if threads <= 1:
        work(0, rows)
        return
    wanted = math.ceil(rows * steps / STEPS_PER_PART / threads) * threads  # as many for each
    size = max(ROWS_PER_PART, math.ceil(rows / wanted / 8) * 8)  # 8 rows go side by side
    starts = range(0, rows, size)
    region = math.ceil(len(starts) / threads)
    with ThreadPoolExecutor(threads) as pool:
        try:
            # Threads that begin a region apart stay apart: two that write side by side into new
            # memory would have the system clear the same huge page twice.
            parts = {
                at: pool.submit(work, at, min(at + size, rows))
                for first in range(region)
                for at in starts[first::region]
            }
            for at in starts:
                parts[at].result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _processors() -> int:
    """Processors of this process, or OMP_NUM_THREADS where that is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
