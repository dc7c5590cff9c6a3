"""Shares of ambient RNA: contamination of a known share is added to real cells, and what is found.

    python -m benchmarks.ambient --data FOLDER

Of each cell, every molecule is kept with the probability 1 - s, and as many are drawn from the average of its sample as s times its
counts, so that depth stays. Real cells hold ambient RNA already (row 0%), whose true share is not known. With the share a before, the true
share afterwards is 1 - (1 - a)(1 - s); "found" is the added share s recovered from the estimates before and after, and its error is what
is stated. Parameters of the method were chosen with these tables in view (Velmeshev 2019 without four donors, and Agarwal 2020); the
rows of the four held-out donors of Velmeshev 2019 and of Kang 2018 were printed afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

HERE = Path(__file__).resolve().parent
HELD_OUT = ["4341", "5403", "5864", "5958"]
UNCLEAR = ["Ambiguous", "Neuron unspecified", "Vascular unspecified"]
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)


# --- data ---------------------------------------------------------------------------------------------
def sets(data: Path) -> dict[str, ad.AnnData]:
    """Cells with ``obs`` ``sample`` and ``label``."""
    velmeshev = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
    velmeshev.obs["sample"] = velmeshev.obs["donor"].astype(str)
    velmeshev.obs["label"] = velmeshev.obs["cell_type"].astype(str)
    out = velmeshev.obs["sample"].isin(HELD_OUT).to_numpy()
    agarwal = ad.read_h5ad(data / "agarwal2020_substantia_nigra_cortex_2donors.h5ad")
    agarwal = agarwal[agarwal.obs["pass_qc"].to_numpy(bool)].copy()
    agarwal.obs["sample"] = agarwal.obs["sample"].astype(str)
    label = agarwal.obs["cell_type"].astype(str)
    agarwal.obs["label"] = label.where(~label.isin(UNCLEAR), "Unknown")
    kang = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
    kang = kang[kang.obs["demuxlet_call"].astype(str).to_numpy() == "SNG"].copy()
    kang.obs["sample"] = kang.obs["condition"].astype(str)  # one library of eight donors each
    kang.obs["label"] = kang.obs["cell_type"].astype(str)
    return {
        "Velmeshev 2019, 15 donors": velmeshev[~out].copy(),
        "Agarwal 2020, 3 samples": agarwal,
        "Velmeshev 2019, 4 held-out donors": velmeshev[out].copy(),
        "Kang 2018 (blood), 2 libraries": kang,
    }


def contaminated(
    cells: ad.AnnData, share: float, *, spread: float = 0.0, other: bool = False, seed: int = 0
) -> tuple[ad.AnnData, sparse.csr_matrix]:
    """The cells with added ambient RNA, and (n, genes) the part of their counts that was there before.

    ``spread`` > 0: the share of each cell is drawn from a beta distribution with this standard deviation over the mean. ``other``: the
    ambient RNA has random proportions of the types instead of those of the sample.
    """
    rng = np.random.default_rng([seed, int(1000 * share), int(10 * spread), int(other)])
    x = sparse.csr_matrix(cells.X, dtype=np.int64)
    size = np.full(cells.n_obs, share)
    if spread > 0 and share > 0:
        total = (1 - share) / (share * spread**2) - 1
        size = rng.beta(share * total, (1 - share) * total, cells.n_obs)
    own = x.copy()
    own.data = rng.binomial(own.data, 1 - np.repeat(size, np.diff(own.indptr)))
    rows, genes = [], []
    for sample in np.unique(cells.obs["sample"]):
        here = np.flatnonzero((cells.obs["sample"] == sample).to_numpy())
        profile = soup(x[here], cells.obs["label"].to_numpy()[here], rng if other else None)
        number = rng.poisson(np.asarray(x[here].sum(axis=1)).ravel() * size[here])
        drawn = np.searchsorted(np.cumsum(profile), rng.random(number.sum()) * (1 - 1e-12))
        rows.append(np.repeat(here, number))
        genes.append(np.minimum(drawn, x.shape[1] - 1))
    where = np.concatenate(rows), np.concatenate(genes)
    added = sparse.csr_matrix((np.ones(len(where[0]), dtype=np.int64), where), shape=x.shape)
    made = ad.AnnData(sparse.csr_matrix(own + added), obs=cells.obs.copy(), var=cells.var)
    made.obs["added"] = size
    return made, own


def soup(x: sparse.csr_matrix, labels: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Profile of the ambient RNA: the average of the cells, or of random proportions of their types."""
    if rng is None:
        profile = np.asarray(x.sum(axis=0)).ravel().astype(float)
        return profile / profile.sum()
    kinds = np.unique(labels)
    profiles = np.array([np.asarray(x[labels == k].sum(axis=0)).ravel() for k in kinds], float)
    profiles /= profiles.sum(axis=1, keepdims=True)
    return rng.dirichlet(np.ones(len(kinds))) @ profiles


# --- methods: cells -> share by sample ------------------------------------------------------------------
def ours(label_key: str | None) -> Callable[[ad.AnnData], pd.DataFrame]:
    def run(cells: ad.AnnData) -> pd.DataFrame:
        import scmamba
        from scmamba.preprocessing import ambient_table

        scmamba.ambient_rna(
            cells,
            sample_key="sample",
            label_key=label_key,
            corrected_layer="own",
            overwrite=True,
            verbose=False,
        )
        return ambient_table(cells).set_index("sample")[["share", "low", "high"]]

    return run


def same_cells(cells: ad.AnnData) -> pd.DataFrame:
    """The lowest ratios of observed to ambient counts, in the cells in which they were chosen."""
    from scmamba.preprocessing.ambient_shares import unexpressed_genes

    found = {}
    for sample, rows in cells.obs.groupby("sample", observed=True).indices.items():
        x = sparse.csr_matrix(cells.X[rows], dtype=float)
        average = np.asarray(x.sum(axis=0)).ravel()
        average /= average.sum()
        labels, total, shares = cells.obs["label"].astype(str).to_numpy()[rows], 0.0, 0.0
        for kind in np.unique(labels):
            part = x[labels == kind]
            genes = unexpressed_genes(part, average) if part.shape[0] >= 10 else []
            if len(genes):
                share = part[:, genes].sum() / (part.sum() * average[genes].sum())
                shares, total = shares + share * part.sum(), total + part.sum()
        found[sample] = shares / total if total else np.nan
    return pd.DataFrame({"share": found})


METHODS: dict[str, Callable[[ad.AnnData], pd.DataFrame]] = {
    "ambient_rna, known types": ours("label"),
    "ambient_rna, without labels": ours(None),
    "lowest ratios in the same cells": same_cells,
}


# --- running ------------------------------------------------------------------------------------------
def recovered(before: pd.Series, after: pd.Series) -> pd.Series:
    """The added share that two estimates imply."""
    return 1 - (1 - after) / (1 - before)


def row(found: pd.DataFrame, before: pd.DataFrame, share: float) -> dict[str, Any]:
    """Mean of the samples, errors, and how often the 95% interval holds the true share."""
    known = found["share"].notna() & before["share"].notna()
    added = recovered(before["share"], found["share"])[known]
    error = (added - share).abs()
    line: dict[str, Any] = {
        "added": share,
        "samples": len(found),
        "not known": int((~known).sum()),
        "estimate": found["share"].mean(),
        "found": added.mean(),
        "mean error": error.mean(),
        "largest error": error.max(),
    }
    if "low" in found:
        true = (1 - (1 - before["share"]) * (1 - share))[known]
        line["within interval"] = float(
            ((found["low"][known] <= true) & (true <= found["high"][known])).mean()
        )
    return line


def correction(before: ad.AnnData, cells: ad.AnnData) -> dict[str, float]:
    """Foreign genes (less than a tenth of another type's rate) and own genes (three times every other type's), as shares of the counts.

    Mean over the types with 20 cells, before the contamination, with it, and in the corrected counts.
    """
    x = [sparse.csr_matrix(m, dtype=float) for m in (before.X, cells.X, cells.layers["own"])]
    labels = cells.obs["label"].to_numpy()
    kinds = [k for k in np.unique(labels) if k != "Unknown" and (labels == k).sum() >= 20]
    pooled = [np.array([np.asarray(m[labels == k].sum(axis=0)).ravel() for k in kinds]) for m in x]
    rates = pooled[0] / pooled[0].sum(axis=1, keepdims=True)
    line = {}
    for name, counts in zip(("before", "contaminated", "corrected"), pooled):
        foreign, own = [], []
        for i in range(len(kinds)):
            others = np.delete(rates, i, axis=0).max(axis=0)
            seen = rates.max(axis=0) > 5e-5
            foreign.append(counts[i, seen & (10 * rates[i] < others)].sum() / pooled[1][i].sum())
            own.append(counts[i, seen & (rates[i] > 3 * others)].sum() / pooled[1][i].sum())
        line |= {f"foreign, {name}": np.mean(foreign), f"own, {name}": np.mean(own)}
    excess = float((x[2] - x[1]).max())
    return {**line, "smallest": float(x[2].data.min()), "largest excess": excess}


def measure(data: Path, names: list[str]) -> dict[str, pd.DataFrame]:
    shares, cells_of, single, corrected = [], [], [], []
    for name, cells in sets(data).items():
        if not any(name.lower().startswith(wanted.lower()) for wanted in names):
            continue
        before = {method: run(contaminated(cells, 0.0)[0]) for method, run in METHODS.items()}
        for share in SHARES:
            made, _ = contaminated(cells, share)
            for method, run in METHODS.items():
                found = run(made)
                shares.append({"set": name, "method": method, **row(found, before[method], share)})
                print(shares[-1], flush=True)
                if method == "ambient_rna, known types" and share > 0:
                    corrected.append({"set": name, "added": share, **correction(cells, made)})
        known = METHODS["ambient_rna, known types"]
        made, _ = contaminated(cells, 0.2, spread=0.5)
        found = known(made)
        own_share = made.obs["scmamba_ambient"].to_numpy(float)
        kept = np.isfinite(own_share)
        cells_of.append(
            {
                "set": name,
                **row(found, before["ambient_rna, known types"], made.obs["added"].mean()),
                "r of cells": np.corrcoef(own_share[kept], made.obs["added"].to_numpy()[kept])[
                    0, 1
                ],
            }
        )
        made, _ = contaminated(cells, 0.2, other=True)
        line = row(known(made), before["ambient_rna, known types"], 0.2)
        cells_of.append({"set": f"{name}, other proportions", **line})
        largest = cells.obs.loc[cells.obs["label"] != "Unknown", "label"].value_counts().index[0]
        alone = cells[(cells.obs["label"] == largest).to_numpy()].copy()
        for method in ("ambient_rna, known types", "ambient_rna, without labels"):
            found = METHODS[method](alone.copy())
            single.append(
                {
                    "set": f"{name}, {largest} only",
                    "method": method,
                    "samples": len(found),
                    "not known": int(found["share"].isna().sum()),
                }
            )
            print(single[-1], flush=True)
    tables = {"shares": shares, "cells": cells_of, "one type": single, "corrected": corrected}
    return {key: pd.DataFrame(rows) for key, rows in tables.items()}


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ambient.md")
    parser.add_argument(
        "--set", dest="sets", nargs="*", default=[""], help="Beginnings of names of sets; all sets."
    )
    options = parser.parse_args()
    from scmamba.evaluation.annotation_report import markdown

    tables = measure(options.data, options.sets)
    titles = {
        "shares": "Added shares and the shares found (means over the samples of a set)",
        "cells": "A share of 20% that differs between cells (standard deviation half of the mean), or ambient RNA of other proportions",
        "one type": "Samples of one cell type, whose share cannot be known",
        "corrected": "Corrected counts: foreign and own genes as shares of a type's counts",
    }
    text = ["# Ambient RNA", "", "Made by `python -m benchmarks.ambient`. " + about()]
    for key, table in tables.items():
        text += ["", f"## {titles[key]}", "", markdown(table.round(4).set_index("set"))]
    options.output.write_text("\n".join(text) + "\n", encoding="utf-8")


def about() -> str:
    """The second paragraph of the module, on one line."""
    return " ".join(__doc__.split("\n\n")[2].split())


if __name__ == "__main__":
    main()
