"""What calls leave in memory."""

import contextlib
import tracemalloc

__all__ = ["bytes_kept"]


def bytes_kept(call, times):
    """Bytes that `times` calls leave allocated, whether they fail or not.

    The least of three tries: other threads of the process, the test runner's among them,
    allocate now and then, whereas a leak is there every time.
    """

    def repeat(times):
        for _ in range(times):
            with contextlib.suppress(ValueError, TypeError):
                call()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        tries = []
        for _ in range(3):
            before = repeat(3)
            tries.append(repeat(times) - before)
    finally:
        tracemalloc.stop()
    return min(tries)
