"""How much memory is free, within the limits of containers and batch systems."""

from __future__ import annotations

import os
from pathlib import Path

from .control_groups import group_folders

_MEMINFO = Path("/proc/meminfo")
#: Files of the limit and the use of memory, by version of the control groups.
_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def available_memory() -> float:
    """Memory that is free for new data: of the machine, and of the control group (Docker, Slurm) if it has a limit.

    Returns
    -------
    Bytes (Linux and macOS; infinite where it cannot be read).

    Examples
    --------
    >>> available_memory() > 0
    True
    """
    return min(_of_machine(), _of_control_groups())


def _of_machine() -> float:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def _of_control_groups() -> float:
    """What the limits of the own control group and of those above it leave; cached files can be given back."""
    free = float("inf")
    for folder, version in group_folders("memory"):
        limit, used = _FILES[version]
        most, now = _number(folder / limit), _number(folder / used)
        if most is None or now is None or most >= 2**60:  # no limit
            continue
        free = min(free, max(most - now + _file_cache(folder), 0.0))
    return free


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _file_cache(folder: Path) -> float:
    """Inactive file cache of a group, which the kernel frees on demand."""
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return float(value)
    except (OSError, ValueError):
        pass
    return 0.0
