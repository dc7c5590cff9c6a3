"""Time and memory of the verbs from file to file, by the number of nuclei, and how both grow.

    python -m benchmarks.file_to_file [--cells 10000 30000 100000] [--only VERB ...] [--report]

Nuclei are simulated (``scmamba.datasets.brain_cohort``: 10,000 genes, 8 types, 20 donors) and written to an ``.h5ad`` file. Each verb
runs in a separate process, as a user's command does, from its start to the written file. CPU seconds are those of all threads, memory
is the largest resident size of the process. The exponent is the slope of log CPU seconds against log cells between the smallest and the
largest number: 1 is linear. Rows are kept in ``.cache/file_to_file``; ``--report`` only writes ``results/file_to_file.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".cache" / "file_to_file"
RESULT = HERE / "results" / "file_to_file.md"
COLUMNS = ["verb", "cells", "seconds", "cpu_seconds", "memory_mib", "result_mib", "load"]

MARKERS = """
import sys
from scmamba.data.h5ad_files import open_backed
from scmamba.deg import find_all_markers
find_all_markers(open_backed(sys.argv[1]), "cell_type").to_csv(sys.argv[2])
"""


def commands(source: Path, target: Path) -> dict[str, list[str]]:
    """The command of each verb."""
    scmamba = [sys.executable, "-m", "scmamba"]
    files = [str(source), "-o", str(target)]
    return {
        "impute": [*scmamba, "impute", *files, "--quiet"],
        "embed": [*scmamba, "embed", *files, "--quiet"],
        "annotate": [*scmamba, "annotate", *files, "--quiet"],
        "find_doublets": [*scmamba, "find-doublets", *files, "--sample-key", "donor", "--quiet"],
        "find_all_markers": [sys.executable, "-c", MARKERS, str(source), str(target)],
    }


def simulated(cells: int) -> Path:
    """A file of simulated nuclei."""
    path = KEPT / f"nuclei_{cells}.h5ad"
    if not path.exists():
        code = (
            "import sys; from scmamba.datasets import brain_cohort; from scmamba.data.h5ad_files import write_h5ad; "
            "write_h5ad(brain_cohort(int(sys.argv[1]), n_donors=20, seed=3), sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, str(cells), str(path)], check=True)
    return path


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and MiB of a process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def run(verb: str, cells: int) -> None:
    """Measure one row, unless it is there."""
    kept = KEPT / f"{verb}_{cells}.json"
    if kept.exists():
        return
    target = KEPT / ("result.csv" if verb == "find_all_markers" else "result.h5ad")
    target.unlink(missing_ok=True)
    seconds, cpu, memory = measure(commands(simulated(cells), target)[verb])
    row = dict(
        zip(
            COLUMNS,
            [verb, cells, seconds, cpu, memory, target.stat().st_size / 2**20, os.getloadavg()[1]],
        )
    )
    target.unlink()
    kept.write_text(json.dumps(row))
    print(row, flush=True)


def report() -> None:
    """Write the table and the exponents."""
    rows = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["verb", "cells"])
    lines = []
    for verb, part in table.groupby("verb"):
        first, last = part.iloc[0], part.iloc[-1]
        if len(part) > 1:
            times = math.log(last["cells"] / first["cells"])
            lines.append(
                f"| {verb} | {math.log(last['cpu_seconds'] / first['cpu_seconds']) / times:.2f} "
                f"| {last['memory_mib'] / first['memory_mib']:.2f} |"
            )
    cores = len(os.sched_getaffinity(0))
    text = [
        "# From file to file",
        "",
        f"Written by `python -m benchmarks.file_to_file`. Simulated nuclei with 10,000 genes; {cores} cores, CPU only. The column "
        "*load* is the load average of five minutes at the end of the row: above the number of cores, other work ran at the same "
        "time, so that CPU seconds count and seconds on the clock do not.",
        "",
        "| verb | cells | seconds | CPU seconds | MiB | result, MiB | load |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r.verb} | {r.cells:,} | {r.seconds:.0f} | {r.cpu_seconds:.0f} | {r.memory_mib:,.0f} | {r.result_mib:,.0f} | {r.load:.1f} |"
            for r in table.itertuples()
        ),
        "",
        "| verb | exponent of the CPU seconds | memory, largest against smallest |",
        "|---|---|---|",
        *lines,
    ]
    RESULT.write_text("\n".join(text) + "\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=list(commands(Path(), Path())))
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if not given.report:
        for cells in given.cells:
            for verb in given.only or commands(Path(), Path()):
                run(verb, cells)
    report()


if __name__ == "__main__":
    main()
