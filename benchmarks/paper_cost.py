"""Hours and gigabytes of ``benchmarks.paper_tables``, from the time of a step on this machine and the published numbers of cells.

    python -m benchmarks.paper_cost [--cells 128] [--steps 4]      writes results/paper_cost.tsv and .md

Some steps of each task by the paper's recipe are timed on simulated nuclei of the depth of Velmeshev's, with brain-mini and with a network of
the published size (D 256 x 6, untrained), one cell at a time; an epoch costs as many cells as were published as training cells. Nothing is
measured on a GPU unless there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from benchmarks.geo_tables.studies import STUDIES, TASKS
from benchmarks.machine import machine, peak_memory

HERE = Path(__file__).resolve().parent
SIZES = {"brain-mini": None, "published size": "published"}
#: Tasks that cost the same for each step -> verb.
VERBS = {"types": "annotate", "doublets": "doublets", "imputation": "impute"}
#: Cells of a timed step.
EACH = 4
#: Bytes of a stored count: value and column, before compression.
BYTES = 8


def measure(size: str, verb: str, cells: int, steps: int) -> dict[str, float]:
    """Seconds of a cell in training, without the start, and the peak of the memory in GiB."""
    import torch

    from scmamba.datasets import brain_cohort
    from scmamba.model import Model, load_model
    from scmamba.nn import ModelConfig, ScMamba
    from scmamba.training import finetune
    from scmamba.training.config import read_settings

    start = load_model("brain-mini")
    if size != "brain-mini":
        start = Model(ScMamba(ModelConfig(n_genes=len(start.genes), name="published")), start.genes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start.network.to(device)
    nuclei = brain_cohort(cells, n_donors=4, seed=0)
    seconds = {}
    # Once before the clock counts: the first call imports and compiles.
    for number in (1, 1, 1 + steps):
        # Cell after cell: a step of 16 cells costs 16 times as much, and the memory is that of one.
        settings = {"steps": number, "min_donor_cells": 0, "batch_size": 1, "accumulate": EACH}
        chosen, _ = read_settings(verb, "paper", None, settings)
        loop = chosen.loop(cells, 1, device == "cuda")
        began = time.perf_counter()
        data = [nuclei] if verb == "impute" else _labeled(nuclei, start, verb)
        finetune(data, model=start, task=verb, loop=loop, sequence=chosen.sequence(), verbose=False)
        seconds[number] = time.perf_counter() - began
    peak = peak_memory() / 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    per_cell = (seconds[1 + steps] - seconds[1]) / steps / EACH
    return {"seconds for a cell": per_cell, "GiB": peak, "device": device}  # type: ignore[dict-item]


def _labeled(nuclei, start, verb):
    from scmamba.data import Collection

    label = "cell_type" if verb == "annotate" else None
    return Collection(
        [nuclei], vocabulary=start.genes, label_key=label, donor_key="donor", verbose=False
    )


def rows(measured: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """One row per study and size of the network: hours of all tasks, largest memory, and the counts on disk."""
    out = []
    for name, study in STUDIES.items():
        for size in SIZES:
            hours, memory = 0.0, 0.0
            for task in TASKS:
                verb = "types" if task not in ("doublets", "imputation") else task
                found = measured[size, verb]
                epochs = 10 if task in ("subtype", "subcluster") else 5
                hours += epochs * study.cells[task] * found["seconds for a cell"] / 3600
                memory = max(memory, found["GiB"])
            cells = study.cells["doublets"]
            out.append(
                {
                    "study": name,
                    "network": size,
                    "training cells": study.cells["celltype"],
                    "hours of training": round(hours, 1),
                    "GiB of memory": round(memory, 1),
                    "GB of counts": round(1.25 * cells * 2000 * BYTES / 1e9, 1),
                }
            )
    return pd.DataFrame(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "VERB"), help="internal")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.cells, options.steps)))
        return
    measured = {}
    for size in SIZES:
        for task, verb in VERBS.items():
            call = [sys.executable, "-m", "benchmarks.paper_cost", "--one", size, verb]
            call += ["--cells", str(options.cells), "--steps", str(options.steps)]
            env = os.environ | {"PYTHONPATH": str(HERE.parent / "python")}
            done = subprocess.run(
                call, capture_output=True, text=True, check=True, cwd=HERE.parent, env=env
            )
            measured[size, task] = json.loads(done.stdout.splitlines()[-1])
            print(size, task, measured[size, task], flush=True)
    table = rows(measured)
    steps = pd.DataFrame([{"network": s, "task": t, **m} for (s, t), m in measured.items()])
    steps["seconds for a cell"] = steps["seconds for a cell"].round(2)
    steps["GiB"] = steps["GiB"].round(1)
    table.to_csv(HERE / "results" / "paper_cost.tsv", sep="\t", index=False, lineterminator="\n")
    device = ", ".join(sorted(set(steps["device"])))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = "\n\n".join(
        [
            "# Hours and gigabytes of the paper's tables",
            f"Made by `python -m benchmarks.paper_cost --cells {options.cells} --steps {options.steps}`: the time of a cell in {options.steps} "
            f"steps of {EACH} cells by the paper's recipe, times the published training cells and epochs. The memory is that of one cell at a "
            f"time (`--batch-size 1 --accumulate 16`). Computed on: {device}, {cores} of the cores of {machine()}.",
            markdown(steps.drop(columns="device")),
            markdown(table),
        ]
    )
    (HERE / "results" / "paper_cost.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
