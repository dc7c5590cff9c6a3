"""How much memory is free, within the limits of containers and batch systems."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


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
    for folder, limit, used in _memory_groups():
        most, now = _number(folder / limit), _number(folder / used)
        if most is None or now is None or most >= 2**60:  # no limit
            continue
        free = min(free, max(most - now + _file_cache(folder), 0.0))
    return free


def _memory_groups() -> list[tuple[Path, str, str]]:
    """Folders of the control groups from the own one up, and their files of limit and use (version 2 and 1)."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, str, str]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = _GROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.strip("/")
        # In a container the path of the host may not exist; its own group is then the root.
        for folder in [own, *own.parents] if own.is_dir() else [root]:
            found.append((folder, *files))
            if folder == root:
                break
    return found


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
