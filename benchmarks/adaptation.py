"""Does adapting the model to the user's cells before imputation help? On eight data sets, with and without.

    python -m benchmarks.adaptation --data FOLDER [--cells 800] [--seeds 2] [--model brain-mini]

A fifth of every cell's counts is masked in all steps. Errors are squared, on log1p(CP10k), of masked counts in cells on which the
weights of the combination were not fitted: the network alone, and network and neighbors combined.
Sets the model was trained on are marked; mouse genes are read through one-to-one orthologs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.machine import machine
from scmamba.data.preprocess import read_cells
from scmamba.evaluation.imputation.gated_ensemble import GeneMap, fit_gated_ensemble
from scmamba.model import load_model

RESULTS = Path(__file__).resolve().parent / "results"
HELD_OUT = ["4341", "5403", "5864", "5958"]
#: File -> how the model's training used it.
SETS = {
    "velmeshev2019_pfc_3types": "other donors",
    "camp2015_human_fetal_neocortex": "yes",
    "allen_acc_visp_nuclei_2023genes": "no",
    "kang2018_ifnb_8donors_2cond": "no",
    "stoeckius2018_celllines_hashing_2000genes": "no",
    "zeisel2018_mouse_pseudocases_27998genes": "yes",
    "marques2016_mouse_oligo_lineage_8691genes": "no",
    "pairedtag2021_mouse_brain_nuclei_2000genes": "no",
}


def cells_of(data: Path, name: str, number: int) -> ad.AnnData:
    """Some cells; of the Velmeshev set, those of the held-out donors."""
    cells = ad.read_h5ad(data / f"{name}.h5ad")
    if name.startswith("velmeshev"):
        cells = cells[cells.obs["donor"].astype(str).isin(HELD_OUT).to_numpy()].copy()
    if "ortholog_one2one" in cells.var:
        single = cells.var["ortholog_one2one"].astype(str).isin(["True", "1"]).to_numpy()
        cells = cells[
            :, single & (cells.var["human_ensembl_id"].astype(str) != "").to_numpy()
        ].copy()
        cells.var_names = cells.var["human_ensembl_id"].astype(str)
        cells = cells[:, ~cells.var_names.duplicated()].copy()
    chosen = np.random.default_rng(0).choice(cells.n_obs, min(number, cells.n_obs), replace=False)
    return cells[np.sort(chosen)].copy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="brain-mini")
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    started, model, rows = time.perf_counter(), load_model(arguments.model), []
    for name, seen in SETS.items():
        cells = read_cells(cells_of(arguments.data, name, arguments.cells), model.genes, force=True)
        counts, totals = cells.counts(np.arange(len(cells)))
        counts, totals = counts[totals > 0], totals[totals > 0]
        for seed in range(arguments.seeds):
            row = {
                "set": name.split("_")[0],
                "trained on": seen,
                "cells": len(totals),
                "seed": seed,
            }
            for adapt in (0, 300):
                report = fit_gated_ensemble(
                    model,
                    counts,
                    totals,
                    GeneMap.of(cells),
                    adapt_steps=adapt,
                    seed=seed,
                    verbose=False,
                ).report
                word = "adapted" if adapt else "as it is"
                row |= {
                    f"network {word}": report["network"],
                    f"combined, {word}": report["combined"],
                }
                if adapt:
                    row |= {
                        "neighbors": report["neighbors"],
                        "used": report["adapt"]["used"],
                        "seconds": report["adapt"]["seconds"],
                    }
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows)
    mean = (
        table.groupby(["set", "trained on", "cells"], sort=False)
        .mean(numeric_only=False)
        .drop(columns="seed")
        .astype(float)
    )
    print(mean.round(4).to_string())
    head = f"# {arguments.model}, mean of {arguments.seeds} seeds, squared error; {time.perf_counter() - started:.0f} s; {machine()}\n"
    (RESULTS / "adaptation.tsv").write_text(head + mean.round(4).to_csv(sep="\t"))


if __name__ == "__main__":
    main()
