"""Shared by the speed benchmarks: interleaved timing, peak memory in a separate process, the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: dict[str, int],
    processor: dict[str, float] | None = None,
) -> dict[str, float]:
    """Shortest seconds of each function; rounds alternate, so that other load on the machine affects all.

    ``processor`` gets the least processor seconds (user and system, all threads; other work on the machine does not count): set
    OMP_WAIT_POLICY=PASSIVE before torch is imported, or waiting threads count too.
    """
    best = dict.fromkeys(functions, float("inf"))
    if processor is not None:
        processor.update(best)
    for function in functions.values():
        function()  # compile, allocate, warm up
    for turn in range(max(rounds.values())):
        for name, function in functions.items():
            if turn < rounds[name]:
                start, used = time.perf_counter(), time.process_time()
                function()
                best[name] = min(best[name], time.perf_counter() - start)
                if processor is not None:
                    processor[name] = min(processor[name], time.process_time() - used)
    return best


def peak_memory(module: str, *arguments: str) -> float:
    """MB by which ``python -m module arguments`` grew at its peak; it prints what ``grown`` returns."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    return float(done.stdout.strip().splitlines()[-1])


def grown(function: Callable[[], object]) -> float:
    """MB by which the process's peak exceeds its memory before ``function`` (Linux)."""
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # reset the peak; rusage would include the parent's
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def machine() -> dict[str, Any]:
    """The processor, the software and the load of the machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
    ]
    wide = [flag for flag in ("avx2", "avx512f", "amx_tile") if f" {flag} " in info]
    return {
        "processor": names[0] if names else platform.processor(),
        "vector_units": wide,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average_1_min": os.getloadavg()[0],
    }


def save(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def write_table(name: str, table: str) -> None:
    """Replace the part of docs/scan.md between the markers of ``name``."""
    page = DOCS / "scan.md"
    text = page.read_text()
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    page.write_text(before + begin + "\n" + table.strip() + "\n" + end + rest.split(end)[1])
