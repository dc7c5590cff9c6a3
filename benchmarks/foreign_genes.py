"""Imputed zeros of real cells: split counts, genes of other cell types, sums and depth, uncertainty; other methods beside.

    python -m benchmarks.foreign_genes --data FOLDER [--set pbmc3k ...] [--cells 400] [--seeds 3] [--peers-python PYTHON]

In each set four cell types are thinned to 7, 15, 30 and 60 cells (Velmeshev: two, to 7 and 30) among so many cells of the
others. The methods are fitted to 80% of every cell's counts, split binomially, and every entry of the rest is scored
(``gain``: share of the deviance of the gene's average that is removed). Foreign genes, which the other types have at least
ten times more of, are those of the whole counts (in the columns of split counts: of the first part); the methods are then given
the whole counts. Constants of the method were chosen on other types and seeds of ``pbmc3k`` and ``agarwal``; ``velmeshev`` (the
donors that no step of brain-mini's training saw) and ``kang`` are held out. scVI and MAGIC run with the Python named by
``--peers-python`` (``pip install scvi-tools magic-impute``); without it their rows are missing. DCA has no row: its last version,
0.3.2, imports ``keras.objectives``, which Keras removed before the first version for Python 3.9.
Tables of a set and seed are kept in ``.cache/foreign_genes``; a command that was stopped continues with the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

import scmamba
from benchmarks.machine import machine
from scmamba.evaluation import (
    RATE_METHODS,
    count_splitting,
    depth_scores,
    foreign_gene_scores,
    split_counts,
)
from scmamba.evaluation.annotation_report import markdown
from scmamba.evaluation.imputation.peers import (
    diffused_values,
    low_rank_values,
    neighbor_rates,
    regression_rates,
)
from scmamba.imputation import rate_fit

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CACHE = HERE.parent / ".cache" / "foreign_genes"
HELD_OUT = ["4341", "5403", "5864", "5958"]
#: File, cell types that are subsampled and to how many cells, types that are omitted.
SETS: dict[str, tuple[str, dict[str, int], tuple[str, ...]]] = {
    "velmeshev": (
        "velmeshev2019_pfc_3types",
        {"endothelial": 7, "astrocyte": 30},
        (),
    ),
    "kang": (
        "kang2018_ifnb_8donors_2cond",
        {"Mk": 7, "pDC": 15, "NK": 30, "B": 60},
        ("Eryth",),
    ),
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
    "agarwal": (
        "agarwal2020_substantia_nigra_cortex_2donors",
        {"Dopaminergic neuron": 7, "Microglia": 15, "OPC": 30, "Inhibitory neuron": 60},
        ("Ambiguous", "Neuron unspecified", "Vascular unspecified"),
    ),
}
TITLES = {
    "gains": "Split counts, all entries: share of the deviance of the gene's average removed",
    "types": "Foreign genes in rare types",
    "depth": "Sums and depth",
    "added": "What imputed zeros add, by depth (quarters of the cells)",
    "uncertainty": "Uncertainty: 90% intervals of the second part of split counts",
}
KEYS = {
    "gains": ["set", "method"],
    "types": ["set", "type", "values"],
    "depth": ["set", "values"],
    "added": ["set", "values", "depth"],
    "uncertainty": ["set", "entries"],
}
FILLED = ("scMamba, zeros", "scMamba, every zero")  # values that keep the observed ones
LOW_RATE = 1e-5  # average rate below which a gene is in the class of low ones
LEAST = 0.01  # counts per 10,000 for methods that give zeros, whose deviance would be infinite


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


# --- methods ------------------------------------------------------------------------------------------


def imputed(cells: ad.AnnData, **options: Any) -> sparse.csr_matrix:
    """The layer of :func:`scmamba.impute`."""
    options = {"verbose": False, "force": True, **options}
    return scmamba.impute(cells.copy(), **options).layers["scmamba"]


def scmamba_rates(cells: ad.AnnData, **options: Any) -> np.ndarray:
    """Expected rates of all genes."""
    values = imputed(cells, values="posterior", min_probability=0, min_value=0, **options)
    return np.expm1(values.toarray().astype(np.float64)) / 1e4


def scmamba_posterior(cells: ad.AnnData) -> np.ndarray:
    """The rates of ``values="posterior"``, in which improbable genes are 0, with the least rate of the other packages."""
    linear = np.maximum(np.expm1(imputed(cells, values="posterior").toarray()), LEAST)
    return linear / linear.sum(axis=1, keepdims=True)


@contextlib.contextmanager
def constants(**chosen: float) -> Iterator[None]:
    """Other constants of the imputation for a while."""
    before = {name: getattr(rate_fit, name) for name in chosen}
    for name, value in chosen.items():
        setattr(rate_fit, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(rate_fit, name, value)


def scmamba_variant(cells: ad.AnnData, **chosen: float) -> np.ndarray:
    """:func:`scmamba_rates` with other constants; the network is used as it is shipped."""
    with constants(**chosen):
        return scmamba_rates(cells, adapt_steps=0)


def peer_values(cells: ad.AnnData, method: str, python: Path, seed: int) -> np.ndarray:
    """log1p(CP10k) by a package of another Python."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cells.h5ad", Path(folder) / "out.npy"
        ad.AnnData(sparse.csr_matrix(cells.X, dtype=np.float32)).write_h5ad(source)
        program = [str(python), str(HERE / "zero_peers.py"), method, str(source), str(target)]
        subprocess.run([*program, "--seed", str(seed)], check=True, capture_output=True)
        return np.maximum(np.load(target).astype(np.float64), 0)


def peer_rates(cells: ad.AnnData, method: str, python: Path, seed: int) -> np.ndarray:
    """The same as rates; a rate of 0 has an infinite deviance, so each is at least ``LEAST``."""
    linear = np.maximum(np.expm1(peer_values(cells, method, python, seed)), LEAST)
    return linear / linear.sum(axis=1, keepdims=True)


Method = Callable[[ad.AnnData], Any]


def rate_methods(python: Path | None, seed: int) -> dict[str, Method]:
    """Name -> method that predicts the rates of all genes."""
    methods: dict[str, Method] = dict(RATE_METHODS)
    for name in ("scVI", "MAGIC") if python else ():
        methods[name] = partial(peer_rates, method=name, python=python, seed=seed)
    methods["scMamba, without neighbors"] = partial(scmamba_variant, MIN_CELLS=10**9)
    methods["scMamba, without the network"] = partial(scmamba_variant, NETWORK_MARGIN=2)
    methods["scMamba, with the network"] = partial(scmamba_variant, NETWORK_MARGIN=-np.inf)
    methods["scMamba, posterior with zeros"] = scmamba_posterior
    methods["scMamba"] = scmamba_rates
    return methods


def value_methods(python: Path | None, seed: int) -> dict[str, Method]:
    """Name -> method that gives log1p(CP10k), as a user would analyze them."""
    methods: dict[str, Method] = {
        "30 neighbors": lambda cells: np.log1p(1e4 * neighbor_rates(cells)),
        "diffusion (idea of MAGIC)": diffused_values,
        "low rank (idea of ALRA)": low_rank_values,
        "regression posterior (idea of SAVER)": lambda c: np.log1p(1e4 * regression_rates(c)),
    }
    for name in ("scVI", "MAGIC") if python else ():
        methods[name] = partial(peer_values, method=name, python=python, seed=seed)
    methods["scMamba, every zero"] = partial(imputed, min_probability=0, max_filled=1)
    methods["scMamba, zeros"] = imputed
    methods["scMamba, posterior"] = partial(imputed, values="posterior")
    return methods


# --- scores -------------------------------------------------------------------------------------------


def uncertainty(cells: ad.AnnData, seed: int) -> pd.DataFrame:
    """How often 90% intervals around the posterior, fitted to the first part of the counts, hold the second part."""
    first, second = split_counts(sparse.csr_matrix(cells.X, dtype=np.float64), seed=seed)
    part = ad.AnnData(first.astype(np.float32), obs=cells.obs, var=cells.var)
    options = dict(values="posterior", min_probability=0, to_counts=True, sd=True)
    part = scmamba.impute(part, verbose=False, force=True, **options)
    values, sds = part.layers["scmamba"], part.layers["scmamba_sd"]
    mean, sd = values.data.astype(np.float64) / 4, sds.data.astype(np.float64) / 4
    row = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    counts = second.toarray()[row, values.indices]
    seen = first.toarray()[row, values.indices] > 0
    rows = []
    for name, chosen in (
        ("counted in the first part", seen),
        ("not counted, expected count from 0.05", ~seen & (mean > 0.05)),
        ("not counted, expected count below 0.05", ~seen & (mean <= 0.05)),
    ):
        mu, y, spread = mean[chosen], counts[chosen], sd[chosen]
        size = (mu / spread) ** 2
        law = stats.nbinom(size, size / (size + mu))
        low, high = law.ppf(0.05), law.ppf(0.95)
        poisson_low, poisson_high = stats.poisson.ppf(0.05, mu), stats.poisson.ppf(0.95, mu)
        rows.append(
            {
                "entries": name,
                "share": chosen.mean(),
                "nominal": (law.cdf(high) - law.cdf(low - 1)).mean(),
                "covered": ((y >= low) & (y <= high)).mean(),
                "covered_without_sd": ((y >= poisson_low) & (y <= poisson_high)).mean(),
                "squared_error_ratio": ((y - mu) ** 2).sum() / (mu + spread**2).sum(),
                "bias": y.sum() / mu.sum() - 1,
            }
        )
    return pd.DataFrame(rows)


def added_by_depth(
    counts: sparse.csr_matrix, values: dict[str, Any], totals: np.ndarray
) -> pd.DataFrame:
    """Entries imputed and counts per 10,000 added, per cell, from the shallowest to the deepest quarter of the cells."""
    quarter = pd.qcut(pd.Series(totals).rank(method="first"), 4, labels=False).to_numpy()
    zero = counts.toarray() == 0
    rows = []
    for name, matrix in values.items():
        imputed_zeros = np.where(zero, _dense(matrix), 0)
        share, added = (imputed_zeros > 0).mean(axis=1), np.expm1(imputed_zeros).sum(axis=1)
        for number in range(4):
            own = quarter == number
            rows.append(
                {
                    "values": name,
                    "depth": f"quarter {number + 1}",
                    "median_depth": np.median(totals[own]),
                    "entries_imputed": share[own].mean(),
                    "entries_imputed_most": share[own].max(),
                    "added_per_10000": added[own].mean(),
                }
            )
    return pd.DataFrame(rows)


def measure(
    cells: ad.AnnData, housekeeping: list[str], python: Path | None, seed: int
) -> dict[str, pd.DataFrame]:
    """Gains on split counts, foreign genes by type, depth, and coverage of intervals."""
    rate = np.asarray(cells.X.sum(axis=0)).ravel() / cells.X.sum()
    sets = {"housekeeping": housekeeping, "low": cells.var_names[rate < LOW_RATE]}
    methods = rate_methods(python, seed)
    options = dict(label_key="cell_type", gene_sets=sets, seed=seed, verbose=False)
    gains = count_splitting(cells, methods, **options)
    values, seconds = {}, {}
    for name, method in value_methods(python, seed).items():
        started = cpu_seconds()
        values[name] = method(cells)
        seconds[name] = cpu_seconds() - started
    foreign = foreign_gene_scores(cells, values, "cell_type")
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    raw = cells.X.multiply(1e4 / totals[:, None]).tocsr()
    raw.data = np.log1p(raw.data)
    depth = pd.DataFrame(
        {name: depth_scores(matrix, totals) for name, matrix in {"raw": raw, **values}.items()}
    ).T
    depth["filled"] = [np.mean(_dense(m) > 0) for m in (raw, *values.values())]
    depth["cpu_seconds"] = pd.Series(seconds)
    return {
        "gains": gains.reset_index(),
        "types": foreign,
        "depth": depth.rename_axis("values").reset_index(),
        "added": added_by_depth(cells.X, {n: m for n, m in values.items() if n in FILLED}, totals),
        "uncertainty": uncertainty(cells, seed),
    }


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


# --- tables and picture -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="only", nargs="*", default=list(SETS))
    parser.add_argument("--cells", type=int, default=400, help="cells of the types not thinned")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers-python", type=Path, help="Python with scvi-tools, magic-impute")
    parser.add_argument("--peer-seeds", type=int, default=3, help="seeds of scVI and MAGIC")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--merge", type=Path, nargs="*", help="only join the tables of other runs")
    arguments = parser.parse_args()
    if arguments.merge:
        merge(arguments.merge, arguments.out, arguments.cells)
        return
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in TITLES}
    for name in arguments.only:
        for seed in range(arguments.seeds):
            for kind, table in one_run(arguments, name, seed).items():
                tables[kind].append(table)
            print(name, seed, f"{cpu_seconds():.0f} CPU seconds", flush=True)
            write(tables, arguments)  # each time, because the next one may take long


def one_run(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, pd.DataFrame]:
    """Tables of one set and seed, measured or kept from an earlier command."""
    folder = CACHE / f"{name}_{arguments.cells}_{seed}"
    if (folder / "done").exists():
        return {kind: pd.read_csv(folder / f"{kind}.tsv", sep="\t") for kind in TITLES}
    folder.mkdir(parents=True, exist_ok=True)
    housekeeping = pd.read_csv(arguments.data / "ref_housekeeping.csv")["Gene"].tolist()
    rare = SETS[name][1]
    cells = mixture(arguments.data, name, arguments.cells, seed)
    python = arguments.peers_python if seed < arguments.peer_seeds else None
    found = measure(cells, housekeeping, python, seed)
    for kind, table in found.items():
        table.insert(0, "set", name)
        table.insert(1, "seed", seed)
        if kind == "types":
            table = table[table["type"].isin(rare)]
        found[kind] = _renamed(table, rare) if kind == "gains" else table
        found[kind].to_csv(folder / f"{kind}.tsv", sep="\t", index=False)
    (folder / "done").touch()
    return found


def _renamed(gains: pd.DataFrame, rare: dict[str, int]) -> pd.DataFrame:
    """Gains of the subsampled types by their numbers of cells, the same columns in every set."""
    columns = {"set": "set", "seed": "seed", "method": "method", "gain": "gain"}
    columns |= {c: c[7:] for c in gains.columns if c.startswith("genes: ")}
    columns |= {f"gain: {t}": f"gain of {n}" for t, n in sorted(rare.items(), key=lambda x: x[1])}
    return gains[list(columns)].rename(columns=columns)


def write(tables: dict[str, list[pd.DataFrame]], arguments: argparse.Namespace) -> None:
    """Means over seeds, one table per question; then the page and the picture."""
    means = {}
    for kind, parts in tables.items():
        groups = pd.concat(parts).groupby(KEYS[kind], sort=False)
        mean = groups.mean(numeric_only=True).assign(seeds=groups["seed"].nunique())
        file = arguments.out / f"foreign_genes_{kind}.tsv"
        means[kind] = with_other_sets(mean.drop(columns="seed").round(4), file)
        means[kind].to_csv(file, sep="\t")
    report(means, arguments.out, arguments.cells)


def report(means: dict[str, pd.DataFrame], out: Path, cells: int) -> None:
    """One page and one picture of all tables."""
    page = [
        "# Imputed zeros",
        f"`python -m benchmarks.foreign_genes --cells {cells}`, means of the seeds (their number is in the last column); "
        f"{machine()}.",
    ]
    for kind, table in means.items():
        page += [f"## {TITLES[kind]}", markdown(table.reset_index().set_index(KEYS[kind][0]))]
    text = "\n\n".join(page).replace("| nan ", "| - ")
    (out / "foreign_genes.md").write_text(text + "\n", encoding="utf-8")
    draw(means, out / "foreign_genes.png")


def merge(folders: list[Path], out: Path, cells: int) -> None:
    """Join the tables of runs of different sets, and report them."""
    means = {}
    for kind, keys in KEYS.items():
        file = f"foreign_genes_{kind}.tsv"
        parts = [pd.read_csv(folder / file, sep="\t").set_index(keys) for folder in folders]
        table = pd.concat(parts)
        means[kind] = pd.concat([table[table.index.get_level_values("set") == s] for s in SETS])
        means[kind].to_csv(out / file, sep="\t")
    report(means, out, cells)


def with_other_sets(mean: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The rows of this run and, of sets that it did not measure, those in the file; sets in the order of ``SETS``."""
    if file.exists():
        before = pd.read_csv(file, sep="\t").set_index(mean.index.names)
        before = before[~before.index.get_level_values("set").isin(mean.index.unique("set"))]
        mean = pd.concat([mean, before])
    return pd.concat([mean[mean.index.get_level_values("set") == name] for name in SETS])


def draw(means: dict[str, pd.DataFrame], path: Path) -> None:
    """Gains by method and set; foreign share of each rare type by values, beside the observed one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5))
    gains = means["gains"]["gain"].unstack("set")
    gains = gains.loc[means["gains"].index.unique("method")].drop("gene rate")
    low = -0.1  # what is worse is cut
    gains.clip(lower=low).plot.barh(ax=left, width=0.8)
    left.invert_yaxis()
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel=f"share of the deviance removed (cut at {low})", ylabel="")
    left.legend(title="", fontsize=8)
    types = means["types"].reset_index()
    wide = types.pivot_table("foreign_share", ["set", "type"], "values", sort=False)
    cells = types.groupby(["set", "type"], sort=False)["cells"].first().astype(int)
    shown = ["raw", "scMamba, zeros", "scMamba, posterior"]
    shown += [n for n in ("diffusion (idea of MAGIC)", "MAGIC", "scVI") if n in wide]
    for place, name in enumerate(shown):
        right.scatter(wide[name], np.arange(len(wide)), label=name, marker="oPsv^D"[place], s=36)
    right.set_yticks(range(len(wide)), [f"{t} ({s}, {cells[s, t]})" for s, t in wide.index])
    right.invert_yaxis()
    right.set(xscale="log", xlabel="foreign genes, share of the type's profile")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
