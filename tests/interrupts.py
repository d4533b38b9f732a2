"""Ctrl-C, pressed while something works."""

import gc
import signal
import time

import pytest

__all__ = ["seconds_to_stop"]


def seconds_to_stop(work, after):
    """Presses Ctrl-C `after` seconds into work(); how long that went on afterwards.

    In seconds of this process's processors: what others do on the machine does not count.
    """
    pressed = None

    def interrupt(*_):
        nonlocal pressed
        pressed = time.process_time()
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # an interrupt inside a callback of the collector would get lost
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        return time.process_time() - pressed
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
