"""How much memory there is to load a model into."""

from __future__ import annotations

import os
import re
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_USED = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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
