"""How much memory one job may use."""

from __future__ import annotations

import os
from pathlib import Path

from .settings import Settings

_SHARE = 0.8
_LEAST = 1 << 30
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes of the machine, or of the container if that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in _CGROUPS:
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def job_memory(settings: Settings) -> int:
    """Bytes of one job: the operator's limit, or an equal share of 80 % of the memory for each worker."""
    if settings.max_memory:
        return settings.max_memory
    return max(_LEAST, int(machine_memory() * _SHARE) // max(1, settings.workers))


def resident(pid: int | str = "self") -> int:
    """Bytes a process holds in memory; 0 where unknown."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
