"""The full robustness report on real data, raw against imputed: Kang (IFN-beta) and Velmeshev (autism).

    python -m benchmarks.deg_real --data FOLDER [--set kang velmeshev] [--permutations 100]
        [--nulls 20] [--combinations 200] [--cell-types ...] [--adapt] [--layer smooth] [--out benchmarks/results]

``--layer scmamba`` (the default) imputes with ``scmamba.impute`` and the shipped model; ``--layer smooth`` puts a
low-rank approximation of the log values into the zeros instead, a stand-in that needs no model. What was run is
written into the results: ``deg_real_<set>_<layer>/`` with all tables and figures, and one line per set and cell
type in ``deg_real_<set>_<layer>.md``.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.machine import machine
from scmamba.deg import RobustnessResult, robustness

HERE = Path(__file__).resolve().parent
SETS = {
    "kang": {"file": "kang2018_ifnb_8donors_2cond.h5ad", "group1": "stim", "group2": "ctrl"},
    "velmeshev": {"file": "velmeshev2019_pfc_3types.h5ad", "group1": "ASD", "group2": "Control"},
}


def read(name: str, data: Path) -> ad.AnnData:
    adata = ad.read_h5ad(data / SETS[name]["file"])
    if name == "kang":
        adata = adata[adata.obs["demuxlet_call"] == "SNG"].copy()
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    return adata


def smooth(adata: ad.AnnData, components: int = 30, seed: int = 0) -> sp.csr_matrix:
    """Log values with zeros imputed from a truncated SVD of all cells; observed values stay."""
    from scipy.sparse.linalg import svds

    from scmamba.data.values import log1p_cp10k

    logs = log1p_cp10k(sp.csr_matrix(adata.X))
    u, s, v = svds(logs, k=components, rng=np.random.default_rng(seed))
    parts = []
    for start in range(0, logs.shape[0], 500):
        seen = logs[start : start + 500].toarray()
        guess = (u[start : start + 500] * s) @ v
        parts.append(
            sp.csr_matrix(np.where(seen > 0, seen, np.maximum(guess, 0)).astype(np.float32))
        )
    return sp.vstack(parts, format="csr")


def fill(adata: ad.AnnData, layer: str, adapt: bool) -> ad.AnnData:
    if layer == "smooth":
        adata.layers["smooth"] = smooth(adata)
        return adata
    import scmamba

    return scmamba.impute(adata, adapt_steps=300 if adapt else 0)


def lines(result: RobustnessResult) -> pd.DataFrame:
    """One row per cell type and layer: DEGs, overlap at 50%, donors, matched overlap, false positives."""
    base = result.settings["layers"][0]
    runs, full = result.runs, result.full
    keys = ["cell_type", "layer"]
    half = runs[(runs["kind"] == "cells") & np.isclose(runs["ratio"], 0.5)]
    donors = runs[runs["kind"] == "donors"]
    possible = full.assign(
        pseudobulk_degs=full["pseudobulk_degs"].where(full["pseudobulk_degs"] >= 0)
    )  # -1: too few donors
    table = possible.groupby(keys)[["n_degs", "pseudobulk_degs"]].sum(min_count=1)
    table["n_degs"] = table["n_degs"].astype(int)
    table["overlap 50%"] = half.groupby(keys)["overlap"].mean()
    table["matched 50%"] = half.groupby(keys)["overlap_matched"].mean()
    table["overlap donors"] = donors.groupby(keys)["overlap"].mean()
    table["matched donors"] = donors.groupby(keys)["overlap_matched"].mean()
    table[f"also in full {base}"] = half.groupby(keys)["precision_reference"].mean()
    false = result.false_positives()
    for kind, short in (("null_cells", "shuffled"), ("null_donors", "split donors")):
        part = false[false["kind"] == kind].set_index(keys) if len(false) else pd.DataFrame()
        if len(part):
            table[f"{short}: p<.05"] = part["rate_nominal"]
            table[f"{short}: called"] = part["mean_called"]
    if len(false):
        table["split donors, per donor: p<.05"] = false[false["kind"] == "null_donors"].set_index(
            keys
        )["pseudobulk_rate"]
    return table.reset_index()


def markdown(table: pd.DataFrame) -> str:
    def cell(value: object) -> str:
        if isinstance(value, float):
            if np.isnan(value):
                return ""
            return (
                f"{value:.0f}"
                if value.is_integer() and value >= 2
                else f"{value:.3f}"
                if abs(value) < 1
                else f"{value:.1f}"
            )
        return str(value)

    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell(v) for v in row) + " |" for row in rows)


def report(name: str, args: argparse.Namespace) -> None:
    adata = read(name, args.data)
    cell_types = args.cell_types or sorted(adata.obs["cell_type"].astype(str).unique())
    adata = adata[adata.obs["cell_type"].isin(cell_types)].copy()
    if args.max_cells:
        rng = np.random.default_rng(0)
        kinds = adata.obs["cell_type"].astype(str).to_numpy()
        kept = [rng.permutation(np.flatnonzero(kinds == t))[: args.max_cells] for t in cell_types]
        adata = adata[np.sort(np.concatenate(kept))].copy()
    started = time.perf_counter()
    adata = fill(adata, args.layer, args.adapt)
    filled = time.perf_counter() - started
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = robustness(
            adata,
            "condition",
            "donor",
            "cell_type",
            group1=SETS[name]["group1"],
            group2=SETS[name]["group2"],
            layers=("counts", args.layer),
            ratios=args.ratios,
            permutations=args.permutations,
            max_combinations=args.combinations,
            null_permutations=args.nulls,
            resume=args.resume,
        )
    tested = time.perf_counter() - started
    target = args.out / f"deg_real_{name}_{args.layer}"
    args.out.mkdir(parents=True, exist_ok=True)
    result.save(target)
    for big in ("runs.csv", "nulls.csv"):  # thousands of rows; the summaries remain
        pd.read_csv(target / big).to_csv(target / f"{big}.gz", index=False)
        (target / big).unlink()
    page = (
        f"# {name}: {SETS[name]['group1']} v {SETS[name]['group2']}, counts v {args.layer}\n\n"
        f"{adata.n_obs:,} cells x {adata.n_vars:,} genes, {adata.obs['donor'].nunique()} donors"
        f"{f' (a random {args.max_cells} cells of each type)' if args.max_cells else ''}; "
        f"{args.permutations} subsamples per ratio, at most {args.combinations} donor combinations (3v3), "
        f"{args.nulls} null runs. Layer {args.layer}"
        f"{' (adapted to these cells)' if args.layer == 'scmamba' and args.adapt else ''}: {filled:.0f} s; "
        f"robustness: {tested:.0f} s on {args.machine}.\n\n"
    )
    page += markdown(lines(result)) + "\n\n"
    page += "\n".join(f"* {w}" for w in [*result.warnings, *result.notes]) + "\n"
    (args.out / f"deg_real_{name}_{args.layer}.md").write_text(page)
    if args.resume is not None:
        shutil.rmtree(args.resume, ignore_errors=True)
    print(page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--layer", default="scmamba", choices=["scmamba", "smooth"])
    parser.add_argument(
        "--adapt", action="store_true", help="Adapt the model to the data before imputing."
    )
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.1, 0.2, 0.35, 0.5, 0.75, 0.9])
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--combinations", type=int, default=200)
    parser.add_argument("--cell-types", nargs="*")
    parser.add_argument(
        "--max-cells", type=int, help="At random at most so many cells of each type."
    )
    parser.add_argument("--resume", type=Path, help="Keep finished work here; removed at the end.")
    parser.add_argument("--machine", default=machine())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    for name in args.set:
        report(name, args)


if __name__ == "__main__":
    main()
