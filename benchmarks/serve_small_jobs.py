"""Small jobs in sequence: the time saved by keeping the model open, and by reading several jobs' cells at once.

python -m benchmarks.serve_small_jobs        # writes results/serve_small_jobs.{json,md}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import torch

import scmamba
from benchmarks.machine import machine
from scmamba.datasets import brain_cohort
from scmamba.model import load_model

JOBS, ROUNDS = 4, 2


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, which depend little on other load, and the result."""
    began = time.process_time()
    answer = work()
    return time.process_time() - began, answer


def measure(cells: int) -> dict[str, Any]:
    parts = [brain_cohort(max(cells, 8), n_donors=2, seed=s)[:cells].copy() for s in range(JOBS)]
    kept = load_model("brain-mini")

    def embed(data: ad.AnnData, model: Any) -> np.ndarray:
        return np.asarray(
            scmamba.embed(data, model=model, force=True, verbose=False).obsm["X_scmamba"]
        )

    ways: dict[str, Callable[[], np.ndarray]] = {
        "model opened for each job": lambda: np.vstack(
            [embed(p.copy(), "brain-mini") for p in parts]
        ),
        "model kept open": lambda: np.vstack([embed(p.copy(), kept) for p in parts]),
        "all jobs' cells read at once": lambda: embed(ad.concat(parts, index_unique="-"), kept),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            took, answers[name] = seconds(way)
            times[name].append(took / JOBS)
    first = answers["model opened for each job"]
    return {
        "cells": cells,
        "seconds_per_job": {n: round(median(t), 3) for n, t in times.items()},
        "equal": {n: bool(np.array_equal(first, a)) for n, a in answers.items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [measure(cells) for cells in (1, 8)]
    results = Path(__file__).parent / "results"
    (results / "serve_small_jobs.json").write_text(
        json.dumps({"machine": machine(), "jobs": JOBS, "rows": rows}, indent=1) + "\n"
    )
    ways = list(rows[0]["seconds_per_job"])
    lines = [
        "# Small embedding jobs",
        "",
        f"CPU seconds a job, median of {ROUNDS} rounds of {JOBS} jobs with one thread; {machine()}.",
        "",
        f"| cells a job | {' | '.join(ways)} | same answers |",
        "|---|" + "---|" * (len(ways) + 1),
        *(
            " | ".join(
                [
                    "| " + str(r["cells"]),
                    *(str(r["seconds_per_job"][w]) for w in ways),
                    "yes |" if all(r["equal"].values()) else "no |",
                ]
            )
            for r in rows
        ),
    ]
    (results / "serve_small_jobs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
