"""Imputed zeros of real cells: split counts, genes of other cell types, depth; simple methods for comparison.

    python -m benchmarks.foreign_genes --data FOLDER [--set pbmc3k kang agarwal velmeshev] [--cells 1000] [--seeds 3]

In each set four cell types are thinned to 7, 15, 30 and 60 cells (Velmeshev: two, to 7 and 30) among so many cells of the
others. The methods are fitted to 80% of every cell's counts, split binomially, and every entry of the rest is scored
(``gain``: share of the deviance of the gene's average that is removed). Foreign genes, which the other types have at least
ten times more of, are those of the whole counts; the methods are then given the whole counts. ``velmeshev``: the donors that no step
of brain-mini's training saw; it is the only set on which no constant of the method was chosen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import scmamba
from scmamba.evaluation import RATE_METHODS, count_splitting, depth_scores, foreign_gene_scores
from scmamba.evaluation.annotation_report import markdown
from scmamba.evaluation.imputation.peers import (
    diffused_values,
    low_rank_values,
    neighbor_rates,
)

RESULTS = Path(__file__).resolve().parent / "results"
HELD_OUT = ["4341", "5403", "5864", "5958"]
#: File, cell types that are subsampled and to how many cells, types that are omitted.
SETS: dict[str, tuple[str, dict[str, int], tuple[str, ...]]] = {
    "pbmc3k": (
        "pbmc3k_10x",
        {
            "Megakaryocytes": 7,
            "Dendritic cells": 15,
            "FCGR3A+ Monocytes": 30,
            "B cells": 60,
        },
        ("unlabelled",),
    ),
    "kang": (
        "kang2018_ifnb_8donors_2cond",
        {"Mk": 7, "pDC": 15, "NK": 30, "B": 60},
        ("Eryth",),
    ),
    "agarwal": (
        "agarwal2020_substantia_nigra_cortex_2donors",
        {"Dopaminergic neuron": 7, "Microglia": 15, "OPC": 30, "Inhibitory neuron": 60},
        ("Ambiguous", "Neuron unspecified", "Vascular unspecified"),
    ),
    "velmeshev": (
        "velmeshev2019_pfc_3types",
        {"endothelial": 7, "astrocyte": 30},
        (),
    ),
}


def mixture(data: Path, name: str, cells: int, seed: int) -> ad.AnnData:
    """Rare types, subsampled, among ``cells`` cells of the others."""
    file, rare, omitted = SETS[name]
    whole = ad.read_h5ad(data / f"{file}.h5ad")
    if name == "kang":
        whole = whole[whole.obs["demuxlet_call"] == "SNG"]
    if name == "agarwal":
        whole = whole[whole.obs["pass_qc"]]
    if name == "velmeshev":
        whole = whole[whole.obs["donor"].astype(str).isin(HELD_OUT).to_numpy()]
    labels = whole.obs["cell_type"].astype(str).to_numpy()
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == t), min(n, (labels == t).sum()), replace=False)
        for t, n in rare.items()
    ]
    others = np.flatnonzero(~np.isin(labels, [*rare, *omitted]))
    chosen.append(rng.choice(others, min(cells, len(others)), replace=False))
    result = whole[np.sort(np.concatenate(chosen))].copy()
    result.X = sparse.csr_matrix(result.X).astype(np.float32)
    detected = np.asarray((result.X > 0).sum(axis=0)).ravel()
    return result[:, detected >= 3].copy()


def imputed(cells: ad.AnnData, **options: Any) -> sparse.csr_matrix:
    """The layer of :func:`scmamba.impute`."""
    options = {"verbose": False, "force": True, **options}
    return scmamba.impute(cells.copy(), **options).layers["scmamba"]


def scmamba_rates(cells: ad.AnnData) -> np.ndarray:
    """Posterior rates of all genes."""
    values = imputed(cells, values="posterior", min_value=0)
    return np.expm1(values.toarray().astype(np.float64)) / 1e4


#: Name -> values on log1p(CP10k), as a user would analyze them.
VALUES: dict[str, Callable[[ad.AnnData], Any]] = {
    "30 neighbors": lambda cells: np.log1p(1e4 * neighbor_rates(cells)),
    "diffusion (idea of MAGIC)": diffused_values,
    "low rank (idea of ALRA)": low_rank_values,
    "scMamba, every zero": lambda cells: imputed(cells, min_probability=0),
    "scMamba, zeros": imputed,
    "scMamba, posterior": lambda cells: imputed(cells, values="posterior"),
}


def measure(cells: ad.AnnData, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Gains on split counts, foreign genes by type, and depth."""
    methods = {**RATE_METHODS, "scMamba": scmamba_rates}
    gains = count_splitting(cells, methods, label_key="cell_type", seed=seed, verbose=False)
    values, seconds = {}, {}
    for name, method in VALUES.items():
        started = time.process_time()
        values[name] = method(cells)
        seconds[name] = time.process_time() - started
    foreign = foreign_gene_scores(cells, values, "cell_type")
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    raw = cells.X.multiply(1e4 / totals[:, None]).tocsr()
    raw.data = np.log1p(raw.data)
    depth = pd.DataFrame(
        {name: depth_scores(matrix, totals) for name, matrix in {"raw": raw, **values}.items()}
    ).T
    depth["filled"] = [np.mean(_dense(m) > 0) for m in (raw, *values.values())]
    depth["cpu_seconds"] = pd.Series(seconds)
    return gains.reset_index(), foreign, depth.rename_axis("values").reset_index()


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="only", nargs="*", default=list(SETS))
    parser.add_argument("--cells", type=int, default=1000, help="cells of the types not thinned")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tables: dict[str, list[pd.DataFrame]] = {"gains": [], "types": [], "depth": []}
    for name in arguments.only:
        rare = SETS[name][1]
        for seed in range(arguments.seeds):
            cells = mixture(arguments.data, name, arguments.cells, seed)
            for kind, table in zip(tables, measure(cells, seed)):
                table.insert(0, "set", name)
                table.insert(1, "seed", seed)
                if kind == "types":
                    table = table[table["type"].isin(rare)]
                if kind == "gains":
                    table = table[["set", "seed", "method", "gain", *(f"gain: {t}" for t in rare)]]
                    table.columns = [*table.columns[:4], *(f"gain of {n}" for n in rare.values())]
                tables[kind].append(table)
            print(name, seed, flush=True)
        write(tables, arguments)  # after each set, because the next one may take long


def write(tables: dict[str, list[pd.DataFrame]], arguments: argparse.Namespace) -> None:
    """Means over seeds, as one table per question and one page."""
    keys = {
        "gains": ["set", "method"],
        "types": ["set", "type", "values"],
        "depth": ["set", "values"],
    }
    titles = {
        "gains": "Split counts, all entries: share of the deviance of the gene's average removed",
        "types": "Foreign genes in rare types",
        "depth": "Sums and depth",
    }
    page = [
        "# Imputed zeros",
        f"`python -m benchmarks.foreign_genes --cells {arguments.cells} --seeds {arguments.seeds}`, means of the seeds.",
    ]
    for kind, parts in tables.items():
        mean = pd.concat(parts).groupby(keys[kind], sort=False).mean(numeric_only=True)
        mean = mean.drop(columns="seed").round(4)
        mean.to_csv(arguments.out / f"foreign_genes_{kind}.tsv", sep="\t")
        page += [f"## {titles[kind]}", markdown(mean.reset_index().set_index(keys[kind][0]))]
    (arguments.out / "foreign_genes.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
