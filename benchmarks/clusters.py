"""The effect of imputed zeros on types and donors: raw counts, scMamba, MAGIC, scVI and the neighbors' rates in one pipeline.

    python -m benchmarks.clusters --data FOLDER [--set kang velmeshev ...] [--only METHOD ...] [--seeds 3] [--report]

Every method gives log1p(CP10k) for the same cells and genes. Then, for all methods: the 2,000 most variable columns, 50 principal
components, 15 neighbors, Leiden at resolutions 0.1 to 2.0 (paper); NMI and ARI of the best clustering with the types, silhouette of the
types, and the same of donors within types. MAGIC and scVI run with the Python named by ``--peers-python``. Components of every run
are kept in ``.cache/clusters``, so the command may be run in pieces; ``--report`` makes the tables from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
HELD_OUT = ["4341", "5403", "5864", "5958"]  # donors held out from brain-mini
CELLS = 1500  # per set, so that all methods and seeds take minutes each
CROSSED = "donor and condition"  # a column for donors with both conditions, in kang
TITLES = {
    "kang": "kang2018_ifnb: 1,500 singlets, one share of every type and donor, 8 donors, 13 types, two conditions",
    "velmeshev": "velmeshev2019: 1,500 nuclei, one share of every type and donor, 19 donors (15 of them taught brain-mini), 3 types",
    "heldout": "velmeshev2019, the 4 donors held out from brain-mini: 668 nuclei, 3 types",
}
UP, DOWN = ("NMI", "ARI", "ASW"), ("NMI_donor", "ARI_donor", "ASW_donor")


# --- data ---------------------------------------------------------------------------------------------
def load(name: str, data: Path, seed: int) -> Any:
    """AnnData of counts with obs ``cell_type`` and ``donor``; ``seed`` draws the sample if the set is larger than it."""
    import anndata as ad

    if name == "kang":
        adata = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
        adata = adata[adata.obs["demuxlet_call"] == "SNG"].copy()
        adata.obs[CROSSED] = (
            adata.obs["donor"].astype(str) + " " + adata.obs["condition"].astype(str)
        )
    else:
        adata = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
        if name == "heldout":
            adata = adata[adata.obs["donor"].astype(str).isin(HELD_OUT)].copy()
    if adata.n_obs > CELLS:
        adata = adata[stratified(adata.obs, CELLS, seed)].copy()
    return adata


def stratified(obs: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """About ``n`` rows, the same share of every type of every donor, at least one of each."""
    rng = np.random.default_rng(seed)
    groups = obs.groupby(["cell_type", "donor"], observed=True).indices
    chosen = [
        rng.choice(rows, max(1, round(len(rows) * n / len(obs))), replace=False)
        for _, rows in sorted(groups.items())
    ]
    return np.sort(np.concatenate(chosen))


# --- methods: (adata, seed) -> (cells, genes) log1p(CP10k), or coordinates ------------------------------
def raw(adata: Any, seed: int) -> Any:
    from scipy import sparse

    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    counts.data = np.log1p(counts.data * np.repeat(1e4 / totals, np.diff(counts.indptr)))
    return counts


def scmamba_values(adata: Any, seed: int, **options: Any) -> Any:
    import scmamba

    return scmamba.impute(adata, seed=seed, verbose=False, **options).layers["scmamba"]


def neighbours(adata: Any, seed: int) -> Any:
    """The rate of 30 neighbors in every entry (like MAGIC and scVI: observed values are replaced too)."""
    from scipy import sparse

    from scmamba.neighbors.rates import knn_rates

    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    found = knn_rates(counts, np.asarray(counts.sum(axis=1)).ravel(), seed=seed)
    return np.log1p(1e4 * found.rate(slice(None)))


def neighbours_zeros(adata: Any, seed: int) -> Any:
    """The same in the zeros only (like scMamba: observed values stay)."""
    observed = raw(adata, seed).toarray()
    return np.where(observed > 0, observed, neighbours(adata, seed))


def magic(adata: Any, seed: int) -> Any:
    import magic as package

    return np.asarray(
        package.MAGIC(verbose=0, random_state=seed, n_jobs=1).fit_transform(
            raw(adata, seed).toarray()
        )
    )


def scvi(adata: Any, seed: int, batch: str | None = None) -> Any:
    """With a column of batches: the expected expression of each cell, averaged over all batches."""
    model = trained_scvi(adata, seed, batch)
    batches = None if batch is None else sorted(set(adata.obs[batch]))
    return np.log1p(
        1e4
        * np.asarray(model.get_normalized_expression(transform_batch=batches, return_numpy=True))
    )


def trained_scvi(adata: Any, seed: int, batch: str | None) -> Any:
    import anndata
    import scvi as package
    import torch
    from scipy import sparse

    torch.set_num_threads(1)
    package.settings.seed = seed
    data = anndata.AnnData(sparse.csr_matrix(adata.X, dtype=np.float32), obs=adata.obs)
    package.model.SCVI.setup_anndata(data, batch_key=batch)
    model = package.model.SCVI(data)
    model.train(
        max_epochs=100,
        early_stopping=True,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
    )
    return model


METHODS = {
    "raw": raw,
    "scMamba": scmamba_values,
    "scMamba, donors corrected": partial(scmamba_values, batch_key="donor"),
    "scMamba, donors and conditions corrected": partial(scmamba_values, batch_key=CROSSED),
    "scMamba, posterior": partial(scmamba_values, values="posterior"),
    "scMamba, posterior, donors corrected": partial(
        scmamba_values, values="posterior", batch_key="donor"
    ),
    "scMamba, published": partial(scmamba_values, method="masked"),
    "neighbors' rates, zeros only": neighbours_zeros,
    "neighbors' rates, all entries": neighbours,
    "MAGIC": magic,
    "scVI": scvi,
    "scVI, donors and conditions as batches": partial(scvi, batch=CROSSED),
}
ELSEWHERE = ("MAGIC", "scVI", "scVI, donors and conditions as batches")


# --- running ------------------------------------------------------------------------------------------
def run_one(table: str, set_name: str, method: str, seed: int, data: Path) -> None:
    from scmamba.evaluation.clusters import leading_components

    adata = load(set_name, data, seed)
    started = time.perf_counter()
    values = METHODS[method](adata, seed)
    seconds = time.perf_counter() - started
    points = leading_components(values, seed=seed)
    (CACHE / table).mkdir(parents=True, exist_ok=True)
    about = json.dumps(
        {"set": set_name, "method": method, "seed": seed, "seconds": round(seconds, 1)}
    )
    np.savez(kept_path(table, set_name, method, seed), points=points, about=about)
    print(f"{set_name}: {method}, seed {seed}: {seconds:.0f} s", flush=True)


def kept_path(table: str, set_name: str, method: str, seed: int) -> Path:
    return (
        CACHE
        / table
        / f"{set_name}__{''.join(c if c.isalnum() else '_' for c in method)}__{seed}.npz"
    )


def scored(path: Path, data: Path) -> dict[str, Any]:
    """Scores of one stored run, computed once; always in this environment, whichever one ran the method."""
    from scmamba.evaluation.clusters import zero_imputation_scores

    beside = path.with_suffix(".json")
    if beside.exists() and beside.stat().st_mtime > path.stat().st_mtime:
        return json.loads(beside.read_text())
    kept = np.load(path)
    about = json.loads(str(kept["about"]))
    obs = load(about["set"], data, about["seed"]).obs
    types, donors = obs["cell_type"].astype(str).to_numpy(), obs["donor"].astype(str).to_numpy()
    scores, _ = zero_imputation_scores(
        kept["points"], types, donors, embedding=True, seed=about["seed"]
    )
    beside.write_text(json.dumps(about | scores))
    return about | scores


def report(data: Path, name: str, measured: bool) -> None:
    from benchmarks.machine import machine_of  # not in the peers' Python

    rows = [scored(path, data) for path in sorted((CACHE / name).glob("*.npz"))]
    table = pd.DataFrame(rows).sort_values(["set", "method", "seed"])
    table.round(4).to_csv(
        HERE / "results" / f"{name}.tsv", sep="\t", index=False, lineterminator="\n"
    )
    text = "\n\n".join(
        section(one, table[table["set"] == one]) for one in TITLES if (table["set"] == one).any()
    )
    (HERE / "results" / f"{name}.md").write_text(
        text + f"\n\nMachine: {machine_of(name, measured)}.\n", encoding="utf-8"
    )
    print(text)


def section(name: str, table: pd.DataFrame) -> str:
    """Means over seeds, lowest and highest in brackets; the best of each column in bold."""
    columns = [*UP, *DOWN, "mixing_donor"]
    middle = table.groupby("method")[columns].mean()
    best = {c: middle[c].min() if c in DOWN else middle[c].max() for c in columns}
    lines = [
        f"### {TITLES[name]}",
        "",
        "| values | seeds | NMI type, up | ARI type, up | ASW type, up | NMI donor, down | ARI donor, down | ASW donor, down "
        "| mixing of donors, up | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        own = table[table["method"] == method]
        if own.empty:
            continue
        cells = []
        for c in columns:
            low, high = own[c].min(), own[c].max()
            value = f"{middle.loc[method, c]:.3f}"
            value = f"**{value}**" if f"{best[c]:.3f}" == value else value
            cells.append(
                f"{value} ({low:.3f}-{high:.3f})" if f"{low:.3f}" != f"{high:.3f}" else value
            )
        lines.append(
            f"| {method} | {len(own)} | " + " | ".join(cells) + f" | {own['seconds'].mean():.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--set", dest="sets", nargs="*", default=list(TITLES))
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--table", default="clusters", help="name of the tables and of the kept runs"
    )
    parser.add_argument(
        "--peers-python", type=Path, default=HERE.parent / ".cache/peers/doublets/bin/python"
    )
    parser.add_argument(
        "--one",
        nargs=3,
        metavar=("SET", "METHOD", "SEED"),
        help="internal: one run in this process",
    )
    parser.add_argument("--report", action="store_true", help="only make the tables")
    options = parser.parse_args()
    if options.one:
        run_one(options.table, options.one[0], options.one[1], int(options.one[2]), options.data)
        return
    measured = False
    for seed in range(0 if options.report else options.seeds):
        for set_name in options.sets:
            for method in options.only:
                python = options.peers_python if method in ELSEWHERE else Path(sys.executable)
                pointless = set_name != "kang" and "conditions" in method
                if (
                    kept_path(options.table, set_name, method, seed).exists()
                    or not python.exists()
                    or pointless
                ):
                    continue
                call = [
                    str(python),
                    __file__,
                    "--data",
                    str(options.data),
                    "--table",
                    options.table,
                    "--one",
                    set_name,
                    method,
                    str(seed),
                ]
                environment = os.environ | {
                    "PYTHONPATH": str(HERE.parent / "python")
                }  # the peers' Python may lack scmamba
                done = subprocess.run(call, capture_output=True, text=True, env=environment)
                measured |= done.returncode == 0
                print(
                    done.stdout.strip()
                    or f"{set_name}: {method} failed: {done.stderr.strip()[-300:]}",
                    flush=True,
                )
    report(options.data, options.table, measured)


if __name__ == "__main__":
    main()
