"""What this process may use: processors and memory, with the limits of its control groups.

A container sees the whole machine in /proc; what it was given stands in its control group
(version 2) and in those above it. The smallest limit counts.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory", "usable_threads"]

ROOT = Path("/sys/fs/cgroup")
GROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 2 << 30  # bytes taken to be free where the system does not say


def _groups() -> Iterator[Path]:
    """Folders of this process's control group and of those above it."""
    try:
        lines = GROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = Path(line.removeprefix("0::/"))
            yield from (ROOT / folder for folder in (group, *group.parents))


def _words(path: Path) -> list[str]:
    """The words of a file; none where it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def usable_threads() -> int:
    """Processors that this process may use at once; a part of one counts as one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count or 1]
    for group in _groups():
        words = _words(group / "cpu.max")  # microseconds of computing time per period, or "max"
        if len(words) == 2 and words[0] != "max":
            counts.append(math.ceil(int(words[0]) / int(words[1])))
    return max(1, min(counts))


def free_memory() -> int:
    """Bytes that can still be taken; the page cache counts as free."""
    free = [_system_memory()]
    for group in _groups():
        limit, used = _words(group / "memory.max"), _words(group / "memory.current")
        if limit and used and limit[0] != "max":
            stat = dict(zip(*[iter(_words(group / "memory.stat"))] * 2, strict=False))
            free.append(int(limit[0]) - int(used[0]) + int(stat.get("inactive_file", 0)))
    return max(0, min(free))


def _system_memory() -> int:
    words = _words(MEMINFO)
    if "MemAvailable:" in words:
        return int(words[words.index("MemAvailable:") + 1]) * 1024
    return UNKNOWN
