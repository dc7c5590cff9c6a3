"""How much memory is free."""

from __future__ import annotations

import os


def available_memory() -> float:
    """Memory that is free for new data.

    Returns
    -------
    Bytes (Linux and macOS; infinite where it cannot be read).
    """
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
