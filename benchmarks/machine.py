"""Words for the machine of a measurement: found out, never written by hand."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

KEPT = Path(__file__).resolve().parent / "results" / "machines.json"


def machine() -> str:
    """Cores, processor with its widest vector units, memory, graphics card, and the load average of the last minute."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
    ]
    units = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    wide = next((name for flag, name in units.items() if f" {flag} " in info), None)
    processor = names[0] if names else platform.processor() or platform.machine()
    parts = [f"{os.cpu_count()} cores of {processor}" + (f" with {wide}" if wide else "")]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    parts.append(_graphics_card() or "CPU only")
    if hasattr(os, "getloadavg"):
        parts.append(f"load average {os.getloadavg()[0]:.1f}")
    return ", ".join(parts)


def peak_memory() -> float:
    """The largest memory of this process until now, in MiB (not on Windows)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine_of(table: str, measured: bool) -> str:
    """The machine on which a table was last measured: this one, which is then kept, or the one kept before."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if measured:
        kept[table] = machine()
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return kept.get(table, "not recorded")


def _graphics_card() -> str | None:
    try:
        import torch
    except ImportError:  # the peers' Python
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
