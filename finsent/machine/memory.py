"""How much memory there is to load a model into, and how little of it is kept for nothing."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

ARENAS = 2
_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def limit_arenas() -> bool:
    """Makes all threads of this process share ARENAS pools of memory; False without glibc.

    By default each of the page's many threads gets a pool of its own, and what it frees stays in
    that pool, so that memory which nobody uses grows with the requests answered (bench/load.py
    served). To be called before threads are started, as pools that are there stay.
    """
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, ARENAS))
    except (OSError, AttributeError):
        # musl, macOS and Windows have one pool, or manage theirs.
        return False


def available_bytes() -> int:
    """Bytes that a process may still take: of the machine, and of the container it runs in."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else _physical()
    else:
        free = _physical()
    for limit, used in zip(_LIMITS, _USED, strict=True):
        if limit.is_file() and used.is_file():
            most = limit.read_text().strip()
            if most.isdecimal():
                free = min(free, max(0, int(most) - int(used.read_text())))
    return free


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
