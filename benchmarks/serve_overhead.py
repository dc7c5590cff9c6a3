"""The cost of the server: one job over HTTP next to the same call made directly, and the server's memory over many jobs.

    python -m benchmarks.serve_overhead time --data FOLDER --pairs 3 --out benchmarks/results
    python -m benchmarks.serve_overhead memory --jobs 200 --out benchmarks/results

time    ``Client.impute(adata)`` (write, send, look, queue, read, impute, write, fetch, read, delete) and ``scmamba.impute(adata)`` in
        turn, on the same 5,000 cells with the same options, in a server and a process that have both done a small job before. Seconds of
        the clock and of the processors (client, server, its looks and its worker together), for other
        work on the machine moves only the first.
memory  Resident memory of the server's process and of its worker after every tenth of many small jobs sent by four clients at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata as ad
import psutil

from benchmarks.machine import machine

REPO = Path(__file__).resolve().parents[1]
OPTIONS = {"adapt_steps": 0, "force": True, "seed": 0}


def start(folder: Path) -> Any:
    """The server of serve_fuzz with limits that are never reached."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPO / "python"), os.environ.get("PYTHONPATH")])
    )
    from benchmarks.serve_fuzz import Server

    (folder / "data").mkdir(parents=True)
    return Server(folder / "data", max_upload=4)


def processors(server: Any) -> float:
    """Processor seconds of this process, the server, its children and their ended children."""
    main = psutil.Process(server.process.pid)
    total = time.process_time()
    for process in [main, *main.children(recursive=True)]:
        used = process.cpu_times()
        total += (
            used.user
            + used.system
            + (used.children_user + used.children_system if process.pid == main.pid else 0.0)
        )
    return total


def cells(data: Path, n: int) -> ad.AnnData:
    """The first ``n`` cells of the largest available set, from all donors, with only their counts and names."""
    adata = ad.read_h5ad(data / "kang2018_ctrl_8donors_1287genes.h5ad")
    step = max(1, adata.n_obs // n)
    kept = adata[::step][:n]
    return ad.AnnData(kept.X.copy(), obs=kept.obs[[]].copy(), var=kept.var.copy())


def measure_time(a: argparse.Namespace) -> dict[str, Any]:
    import scmamba

    adata = cells(a.data, a.cells)
    runs: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as name:
        server = start(Path(name))
        client = scmamba.Client(server.url)
        try:
            small = adata[:50].copy()
            client.impute(small, verbose=False, **OPTIONS)
            scmamba.impute(small.copy(), verbose=False, **OPTIONS)
            for pair in range(a.pairs):
                for way in ("direct", "server") if pair % 2 == 0 else ("server", "direct"):
                    load, clock, used = os.getloadavg()[0], time.perf_counter(), processors(server)
                    if way == "direct":
                        scmamba.impute(adata.copy(), verbose=False, **OPTIONS)
                    else:
                        client.impute(adata, verbose=False, **OPTIONS)
                    runs.append(
                        {
                            "way": way,
                            "seconds": round(time.perf_counter() - clock, 2),
                            "processor_seconds": round(processors(server) - used, 2),
                            "load": round(load, 1),
                        }
                    )
                    print(runs[-1], file=sys.stderr, flush=True)
        finally:
            server.stop()
    report: dict[str, Any] = {
        "machine": machine(),
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "options": OPTIONS,
        "runs": runs,
    }
    for what in ("seconds", "processor_seconds"):
        each = {
            way: statistics.median(float(r[what]) for r in runs if r["way"] == way)
            for way in ("direct", "server")
        }
        report[what] = {**each, "ratio": round(each["server"] / each["direct"], 3)}
    return report


def measure_memory(a: argparse.Namespace) -> dict[str, Any]:
    import scmamba
    from scmamba.datasets import brain_cohort

    small = brain_cohort(20, n_donors=2, seed=5)[:, :2000].copy()
    taken: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        server = start(Path(name))
        main = psutil.Process(server.process.pid)
        small.write_h5ad(Path(name) / "cells.h5ad")
        client = scmamba.Client(server.url)

        def one(_: int) -> None:
            job = client.submit("embed", Path(name) / "cells.h5ad", force=True)
            client.wait(job, verbose=False)
            client.cancel(job)

        try:
            with ThreadPoolExecutor(4) as pool:
                for k, _ in enumerate(pool.map(one, range(a.jobs)), 1):
                    if k % max(1, a.jobs // 20) == 0:
                        workers = [
                            p for p in main.children() if "scmamba.serve.worker" in p.cmdline()
                        ]
                        taken.append(
                            {
                                "jobs": k,
                                "server_mb": round(main.memory_info().rss / 2**20, 1),
                                "worker_mb": round(
                                    sum(p.memory_info().rss for p in workers) / 2**20, 1
                                ),
                            }
                        )
                        print(taken[-1], file=sys.stderr, flush=True)
        finally:
            server.stop()
    half = taken[len(taken) // 2]
    growth = taken[-1]["server_mb"] - half["server_mb"]
    return {
        "machine": machine(),
        "jobs": a.jobs,
        "server_mb_first": taken[0]["server_mb"],
        "server_mb_last": taken[-1]["server_mb"],
        "server_mb_growth_second_half": round(growth, 1),
        "taken": taken,
    }


def table(report: dict[str, Any]) -> str:
    """The measurements as a page."""
    lines = [
        f"# The server beside the direct call\n\n{machine()}. `benchmarks/serve_overhead.py`\n"
    ]
    if found := report.get("time"):
        lines += [
            f"`impute`, {found['cells']:,} cells x {found['genes']:,} genes, options {json.dumps(found['options'])}; median of "
            f"{len(found['runs']) // 2}, in turn.\n",
            "| | direct | server | ratio |\n|---|---:|---:|---:|",
        ]
        for what, text in (("seconds", "seconds"), ("processor_seconds", "seconds of processors")):
            row = found[what]
            lines.append(
                f"| {text} | {row['direct']:.1f} | {row['server']:.1f} | {row['ratio']:.3f} |"
            )
        loads = [r["load"] for r in found["runs"]]
        lines.append(
            f"\nLoad of the machine meanwhile: {min(loads)} to {max(loads)} on two cores.\n"
        )
    if found := report.get("memory"):
        lines += [
            f"Memory over {found['jobs']} small jobs (MB):\n",
            "| jobs | server | worker |\n|---:|---:|---:|",
        ]
        lines += [f"| {r['jobs']} | {r['server_mb']} | {r['worker_mb']} |" for r in found["taken"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["time", "memory"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=REPO / "benchmarks" / "results")
    a = parser.parse_args()
    found = measure_time(a) if a.what == "time" else measure_memory(a)
    path = a.out / "serve_overhead.json"
    report = json.loads(path.read_text()) if path.is_file() else {}
    report[a.what] = found
    path.write_text(json.dumps(report, indent=1) + "\n")
    (a.out / "serve_overhead.md").write_text(table(report))


if __name__ == "__main__":
    main()
