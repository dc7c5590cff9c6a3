"""Write the table of the semi-synthetic cohort: published changes in disease, and how much real controls differ.

    python -m benchmarks.fit_disease --data FOLDER

writes ``python/scmamba/datasets/disease.tsv.gz``, which ``scmamba.datasets.brain_cohort(disease=)`` needs. FOLDER holds the
public nuclei named below and ``profiles/`` with the two tables of changes.

What comes from where
---------------------
Changes in Alzheimer's disease : log2 fold changes of Mathys et al., Nature 570:332 (2019), six types, all genes (published code and
    tables of the repository they were taken from: MIT licence). The table has no errors, so of each type only genes are taken
    whose change stands out from that of genes of like expression in the cohort: BH < 5% under a normal distribution with
    the median and the MAD of the genes around them. Pericytes and endothelial cells: no table, no change.
Changes in Parkinson's disease : numbers, directions and deciles of the sizes, per type, of the genes that Smajic et al., Brain 145:964
    (2022) published for the midbrain (q < .05; natural logarithms, made log2). That table has a licence under which it cannot
    be part of this package (GPL-3), so no gene of it is: the summary is.
Donor effects : log-sd of each gene between donors within a type, by moments beyond the variation of cells, in the controls of
    Velmeshev 2019 and in the unstimulated blood cells of Kang 2018, pooled.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control, norm

from benchmarks.donor_tests import load_cells
from benchmarks.fit_cohort import Source, groups_of, load, trend
from scmamba.datasets import CELL_TYPES
from scmamba.datasets._cohort import cohort_parameters

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "python" / "scmamba" / "datasets" / "disease.tsv.gz"
MATHYS = {
    "Astrocyte": "Astro",
    "Microglia": "Micro",
    "Oligodendrocyte": "Oligo",
    "OPC": "OPC",
    "Excitatory": "Exc",
    "Inhibitory": "Inh",
}
SMAJIC = {
    "Astrocyte": "Astrocytes",
    "Microglia": "Microglia",
    "Oligodendrocyte": "Oligodendrocytes",
    "OPC": "OPCs",
    "Excitatory": "Excitatory",
    "Inhibitory": "Inhibitory",
    "Endothelial": "Endothelial",
    "Pericyte": "Pericytes",
}
MIDBRAIN = "smajic2022_GSE157783_PD_vs_control_DEG_by_midbrain_type.tsv.gz"
EXPRESSED = 0.5  # counts per 10,000, as in brain_cohort
ALPHA = 0.05


def standing_out(change: np.ndarray, level: np.ndarray) -> np.ndarray:
    """(genes,) changes less the median of genes of like expression; NaN where they do not stand out."""
    known = np.flatnonzero(np.isfinite(change))
    order = known[np.argsort(level[known], kind="stable")]
    median, spread, center = [], [], []
    for part in np.array_split(order, 20):
        middle = np.median(change[part])
        center.append(np.log(level[part]).mean())
        median.append(middle)
        spread.append(1.4826 * np.median(np.abs(change[part] - middle)))
    left = change - np.interp(np.log(level), center, median)
    p = np.ones(change.size)
    p[known] = 2 * norm.sf(np.abs(left[known]) / np.interp(np.log(level[known]), center, spread))
    called = np.zeros(change.size, dtype=bool)
    called[known] = false_discovery_control(p[known]) < ALPHA
    return np.where(called, left, np.nan)


def alzheimer(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Genes of the cohort x types: changes of Mathys et al. 2019 that stand out."""
    published = pd.read_csv(path, sep="\t", index_col="symbol", na_values=["#NAME?"])
    published = published[~published.index.duplicated(keep=False)].reindex(table["symbol"])
    out = {}
    for name, column in MATHYS.items():
        level = table[name].to_numpy()
        change = np.where(level >= EXPRESSED, published[column].to_numpy(dtype=float), np.nan)
        out[f"AD_{name}"] = standing_out(change, np.maximum(level, 1e-6))
    return pd.DataFrame(out, index=table.index)


def parkinson(path: Path, table: pd.DataFrame) -> dict[str, dict]:
    """Type -> share of the expressed genes that change, share of those that are higher, deciles of |log2 fold change|."""
    published = pd.read_csv(path, sep="\t")
    out = {}
    for name, label in SMAJIC.items():
        mine = published[(published["cell_type"] == label) & (published["q_value"] < ALPHA)]
        mine = mine[mine["ensembl_id"].isin(table["ensembl_id"][table[name] >= EXPRESSED])]
        change = mine["estimate"].to_numpy() / np.log(2)
        out[name] = {
            "share": round(len(mine) / int((table[name] >= EXPRESSED).sum()), 4),
            "up": round(float((change > 0).mean()), 3),
            "quantiles": np.quantile(np.abs(change), np.linspace(0.05, 0.95, 10)).round(3).tolist(),
        }
    return out


def midbrain_changes(data: Path) -> pd.DataFrame:
    """Genes (Ensembl IDs) x types: published log2 fold changes of Parkinson's disease, for ``brain_cohort(effects=)``."""
    published = pd.read_csv(data / "profiles" / MIDBRAIN, sep="\t")
    names = {label: name for name, label in SMAJIC.items()}
    mine = published[published["cell_type"].isin(names) & (published["q_value"] < ALPHA)]
    mine = mine.assign(
        cell_type=mine["cell_type"].map(names), change=mine["estimate"] / np.log(2)
    ).drop_duplicates(["ensembl_id", "cell_type"])
    return mine.pivot(index="ensembl_id", columns="cell_type", values="change")


def blood(path: Path, genes: pd.Index, symbols: pd.Series) -> Source:
    """Kang's unstimulated cells on the genes of the cohort."""
    whole = load_cells(path, None, None)
    where = pd.Index(symbols).get_indexer(whole.var_names)
    keep = np.flatnonzero(where >= 0)
    mapping = sp.csr_matrix(
        (np.ones(keep.size), (keep, where[keep])), shape=(whole.n_vars, len(genes))
    )
    measured = np.zeros(len(genes), dtype=bool)
    measured[where[keep]] = True
    obs = whole.obs.assign(cell_type=whole.obs["type"])
    return Source(sp.csr_matrix(whole.X.astype(float) @ mapping), measured, obs)


def moments(source: Source, dispersion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) squared errors of donors beyond the variation of their cells, and squared expectations."""
    extra, squared = np.zeros((2, source.counts.shape[1]))
    groups = groups_of(source, 20)
    for label in sorted({g[0] for g in groups}):
        mine = [rows for kind, _, rows in groups if kind == label]
        if len(mine) < 3:
            continue
        pooled = source.counts[np.concatenate(mine)]
        rate = np.asarray(pooled.sum(axis=0)).ravel() / pooled.sum()
        for rows in mine:
            counts = source.counts[rows]
            depth = np.asarray(counts.sum(axis=1)).ravel()
            expected = rate * depth.sum()
            error = np.asarray(counts.sum(axis=0)).ravel() - expected
            above = error**2 - expected - dispersion * rate**2 * (depth**2).sum()
            # The rate is estimated from the same donors.
            extra += above * len(mine) / (len(mine) - 1)
            squared += expected**2
    return extra, squared


def control_sd(data: Path, table: pd.DataFrame) -> np.ndarray:
    """(genes,) log-sd between control donors, shrunken to its trend along expression."""
    genes = pd.Index(table["ensembl_id"])
    brain = load(data / "velmeshev2019_pfc_3types.h5ad", genes)
    controls = (brain.obs["condition"].astype(str) == "Control").to_numpy()
    brain = Source(brain.counts[controls], brain.measured, brain.obs[controls])
    dispersion = table["dispersion"].to_numpy()
    extra, squared = moments(brain, dispersion)
    other = blood(data / "kang2018_ctrl_8donors_1287genes.h5ad", genes, table["symbol"])
    more = moments(other, dispersion)
    extra, squared = extra + more[0], squared + more[1]
    level = np.maximum(
        table[["Astrocyte", "Microglia", "Endothelial"]].mean(axis=1).to_numpy(), 1e-4
    )
    usual = trend(extra, squared, level)
    prior = 200.0  # the weight of the trend, as in fit_cohort
    relative = np.clip((extra + prior * usual) / (squared + prior), 0.0, 4.0)
    result: np.ndarray = np.sqrt(np.log1p(relative))
    return result


def write(table: pd.DataFrame, parameters: dict, path: Path) -> None:
    """One gzipped text file without a time stamp, so that the same fit gives the same bytes."""
    head = [
        "scMamba's SEMI-SYNTHETIC cohort: parameters, not data, from benchmarks/fit_disease.py",
        *[line.strip() for line in (__doc__ or "").split("-\n", 1)[1].strip().splitlines()],
        "columns after symbol: log-sd of donor effects in controls; log2 fold changes by disease and type",
    ]
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in head)
    text.write(f"#! {json.dumps(parameters)}\n")
    shown = table.copy()
    for name in shown.columns[1:]:
        shown[name] = ["" if np.isnan(v) else f"{v:.3g}" for v in shown[name]]
    shown.to_csv(text, sep="\t", index=False)
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
    ):
        packed.write(text.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    table = cohort_parameters()[0]
    profiles = data / "profiles"
    changes = alzheimer(profiles / "mathys2019_AD_vs_control_log2FC_by_type.tsv.gz", table)
    parameters = {"PD": parkinson(profiles / MIDBRAIN, table)}
    out = changes.copy()
    out.insert(0, "donor_sd", control_sd(data, table))
    out.insert(0, "symbol", table["symbol"])
    write(out, parameters, TARGET)
    print(f"{len(out)} genes, {TARGET.stat().st_size / 1e3:.0f} kB")
    print(
        "log-sd of donors, deciles: controls", out["donor_sd"].quantile(DECILES).round(3).tolist()
    )
    print("  all donors of Velmeshev 2019", table["donor_sd"].quantile(DECILES).round(3).tolist())
    for name in CELL_TYPES:
        if f"AD_{name}" in changes:
            own = changes[f"AD_{name}"].dropna()
            sizes = own.abs().quantile(DECILES).round(2).tolist()
            of = int((table[name] >= EXPRESSED).sum())
            print(f"AD {name}: {len(own)} of {of} expressed genes, {(own > 0).sum()} up, {sizes}")
        print(f"PD {name}: {parameters['PD'][name]}")


DECILES = [0.1, 0.5, 0.9]

if __name__ == "__main__":
    main()
