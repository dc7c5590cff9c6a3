"""Write the table of the simulated brain cohort: profiles of cell types, dispersions, donor effects, library sizes.

    python -m benchmarks.fit_cohort                   # profiles anew from the shipped reference, the rest as it is
    python -m benchmarks.fit_cohort --data FOLDER     # everything anew; FOLDER holds the public nuclei named below

writes ``python/scmamba/datasets/brain_cohort.tsv.gz``, the only thing ``scmamba.datasets.brain_cohort`` needs.

What comes from where
---------------------
Profiles : the rates of the reference "human-brain" that comes with the package (``scmamba.references()`` lists its studies),
    averaged over the cortical columns of a type, times a factor of each gene: the ratio of Velmeshev's nuclei to the
    reference, over the three types of both. The cohort thus differs from the reference as another study does.
Genes that the reference lacks (MALAT1, XIST, mitochondrial genes) : Velmeshev 2019; for the five types which that set lacks,
    times the ratio to its three types in Agarwal 2020.
Dispersion : both sets, within type and donor. Donor effects, zero inflation : Velmeshev 2019.
Library sizes : astrocytes, microglia, endothelial cells of Velmeshev 2019, the others of Agarwal 2020.
Effects of disease : sizes of the changes that Velmeshev 2019 published.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmamba.annotation.brain_reference import load_reference
from scmamba.datasets._cohort import cohort_parameters
from scmamba.genes import Vocabulary

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "python" / "scmamba" / "datasets" / "brain_cohort.tsv.gz"
TYPES = [
    "Astrocyte",
    "Microglia",
    "Oligodendrocyte",
    "OPC",
    "Excitatory",
    "Inhibitory",
    "Endothelial",
    "Pericyte",
]
HUMAN = {"Astrocyte": "astrocyte", "Microglia": "microglia", "Endothelial": "endothelial"}
#: Type -> its label in Agarwal 2020 and in the reference, where that differs.
AGARWAL = {name: name for name in TYPES} | {
    "Excitatory": "Excitatory neuron",
    "Inhibitory": "Inhibitory neuron",
    "Pericyte": "Pericyte/VLMC",
}
REFERENCE = {"Excitatory": "Excitatory neuron", "Inhibitory": "Inhibitory neuron"}
# Textbook markers that must be in the gene set whatever their level.
MARKERS = """
AQP4 GFAP SLC1A2 SLC1A3 GJA1 ALDH1L1 CSF1R CX3CR1 P2RY12 C3 APBB1IP DOCK8 MBP MOBP PLP1 MOG MAG
OPALIN PDGFRA VCAN CSPG4 OLIG1 OLIG2 SLC17A7 SATB2 CAMK2A RBFOX3 NRGN NEUROD2 GAD1 GAD2 SLC32A1 SST
PVALB VIP LAMP5 RELN CLDN5 FLT1 PECAM1 VWF CDH5 PDGFRB RGS5 ABCC9 KCNJ8 NOTCH3 DCN XIST MALAT1 APOE
TREM2 APP SNAP25 SYT1
""".split()  # noqa: SIM905
# Typical proportions in human cortex preparations; an assumption, because no set here has all eight types.
PROPORTIONS = dict(zip(TYPES, [0.13, 0.07, 0.25, 0.07, 0.26, 0.14, 0.045, 0.035]))
EPSILON = 0.2  # CP10k: levels below it are not distinguished


@dataclass
class Source:
    """One set on the vocabulary: counts (cells x genes), its measured genes, its labels."""

    counts: sp.csr_matrix
    measured: np.ndarray
    obs: pd.DataFrame

    def rates(self, cells: np.ndarray) -> np.ndarray:
        """Counts per 10,000 of the pooled cells, over the measured genes."""
        total = np.asarray(self.counts[cells].sum(axis=0), dtype=float).ravel()
        return 1e4 * total / total.sum()


def load(path: Path, genes: pd.Index) -> Source:
    """Read the good cells of one file and put its genes (summed if two map to one) in the order of ``genes``."""
    data = ad.read_h5ad(path)
    if "pass_qc" in data.obs:
        data = data[data.obs["pass_qc"].to_numpy(bool)]
    keep = data.var["ensembl_id"].isin(genes).to_numpy()
    where = genes.get_indexer(data.var["ensembl_id"][keep])
    mapping = sp.csr_matrix(
        (np.ones(keep.sum()), (np.flatnonzero(keep), where)), shape=(data.n_vars, len(genes))
    )
    measured = np.zeros(len(genes), dtype=bool)
    measured[where] = True
    return Source(sp.csr_matrix(data.X.astype(float) @ mapping), measured, data.obs)


def human_profiles(source: Source) -> dict[str, np.ndarray]:
    """Donor-averaged CP10k per human type, shrunk to the mean of the three types (weight 20,000 UMIs)."""
    grand = np.zeros(source.counts.shape[1])
    raw: dict[str, tuple[np.ndarray, float]] = {}
    for name, label in HUMAN.items():
        donors, weights = [], []
        for _, cells in (
            source.obs[source.obs.cell_type == label]
            .groupby("donor", observed=True)
            .indices.items()
        ):
            rows = np.flatnonzero((source.obs.cell_type == label).to_numpy())[cells]
            donors.append(source.rates(rows))
            weights.append(min(len(rows), 100))
        profile = np.average(donors, axis=0, weights=weights)
        raw[name] = profile, source.counts[(source.obs.cell_type == label).to_numpy()].sum()
        grand += profile / len(HUMAN)
    return {name: (p * total + grand * 2e4) / (total + 2e4) for name, (p, total) in raw.items()}


def reference_profiles(genes: pd.Index) -> pd.DataFrame:
    """Genes x types: counts per 10,000 of the shipped reference, NaN for genes that it lacks."""
    reference = load_reference().of_region("cortex")
    kind = reference.table["type"].to_numpy()
    columns = {
        name: 1e4 * reference.rates[:, kind == REFERENCE.get(name, name)].mean(axis=1)
        for name in TYPES
    }
    return pd.DataFrame(columns, index=reference.genes).reindex(genes)


def lacking_profiles(velmeshev: Source, agarwal: Source, names: pd.Series) -> pd.DataFrame:
    """Genes x types: counts per 10,000 in human nuclei, for the genes that the reference lacks.

    Types that Velmeshev's set lacks have the mean of its three types, times the ratio to these in Agarwal's set. That ratio is not
    used for mitochondrial genes and XIST: they differ between samples and sexes.
    """
    seen = human_profiles(velmeshev)
    grand = np.mean(list(seen.values()), axis=0)
    pooled = {}
    for name, label in AGARWAL.items():
        cells = np.flatnonzero((agarwal.obs["cell_type"] == label).to_numpy())
        total = agarwal.counts[cells].sum()
        pooled[name] = (agarwal.rates(cells) * total + grand * 2e4) / (total + 2e4)
    usual = np.mean([pooled[name] for name in HUMAN], axis=0)
    same = (names.str.startswith("MT-") | (names == "XIST")).to_numpy() | ~agarwal.measured
    out = {}
    for name in TYPES:
        ratio = np.clip((pooled[name] + EPSILON) / (usual + EPSILON), 1 / 32, 32)
        out[name] = seen.get(name, grand * np.where(same, 1.0, ratio))
    return pd.DataFrame(out)


def study_factor(known: pd.DataFrame, others: pd.DataFrame, shared: np.ndarray) -> np.ndarray:
    """Factor of each gene between Velmeshev's nuclei and the reference, over the three types of both; rounded as in the table."""
    ours, theirs = known[list(HUMAN)].to_numpy(), others[list(HUMAN)].to_numpy()
    ratio = np.log((theirs + EPSILON) / (ours + EPSILON))
    weight = (ours + theirs) / (ours + theirs + 10 * EPSILON)
    mean = (weight * ratio).sum(axis=1) / (weight.sum(axis=1) + 0.25)
    factor = np.where(shared, np.exp(np.clip(mean, -3, 3)), 1.0)
    return np.array([float(f"{f:.3g}") for f in factor])


def all_profiles(
    velmeshev: Source, agarwal: Source, genes: pd.Index, names: pd.Series
) -> pd.DataFrame:
    """Genes x (types, factor): counts per 10,000 on the scale of Velmeshev's nuclei, and what the rates of the reference were
    multiplied by (1: the gene does not come from the reference).
    """
    known = reference_profiles(genes)
    others = lacking_profiles(velmeshev, agarwal, names).set_index(genes)
    shared = known.notna().all(axis=1).to_numpy() & velmeshev.measured
    others *= known[shared].sum() / others[shared].sum()
    factor = study_factor(known, others, shared)
    return known.mul(factor, axis=0).fillna(others).assign(factor=factor)


def groups_of(source: Source, smallest: int) -> list[tuple[str, str, np.ndarray]]:
    """(type, donor, rows) of the groups with at least ``smallest`` cells."""
    obs = source.obs.reset_index(drop=True)
    found = obs.groupby(["cell_type", "donor"], observed=True).indices
    return [(str(t), str(d), rows) for (t, d), rows in found.items() if len(rows) >= smallest]


def trend(values: np.ndarray, weights: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Weighted mean of ``values`` in 20 bins of ``level``, interpolated: the expected value at that level."""
    order = np.argsort(level)
    bins = np.array_split(order, 20)
    centre = [float(np.log(level[b]).mean()) for b in bins]
    height = [float(max(values[b].sum() / max(weights[b].sum(), 1e-12), 0.0)) for b in bins]
    return np.interp(np.log(level), centre, height)


def dispersions(sources: dict[str, Source], level: np.ndarray) -> np.ndarray:
    """Negative-binomial dispersion per gene by moments, shrunk to its trend with level.

    Within type and donor; a gene's dispersion is thus mostly that of the types that express it.
    """
    above = np.zeros(len(level))
    squared = np.zeros_like(above)
    groups = [(source, rows) for source in sources.values() for *_, rows in groups_of(source, 20)]
    for source, rows in groups:
        counts = source.counts[rows]
        depth = np.asarray(counts.sum(axis=1)).ravel()
        rate = np.asarray(counts.sum(axis=0)).ravel() / depth.sum()
        second = np.asarray(counts.multiply(counts).sum(axis=0)).ravel()
        cross = rate * np.asarray(counts.T @ depth).ravel()
        square = rate**2 * (depth**2).sum()
        variance = (second - 2 * cross + square) * len(rows) / (len(rows) - 1)
        above += variance - rate * depth.sum()
        squared += square
    usual = trend(above, squared, level)
    prior = 5.0  # the weight of the trend, in expected squared counts
    return np.clip((above + prior * usual) / (squared + prior), 0.01, 10.0)


def donor_effects(
    source: Source, level: np.ndarray, dispersion: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Log-sd of donor effects per gene, the share common to all types, and the share common to a batch."""
    extra = np.zeros(source.counts.shape[1])
    squared = np.zeros_like(extra)
    residual: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for label in HUMAN.values():
        mine = [g for g in groups_of(source, 20) if g[0] == label]
        pooled = source.counts[np.concatenate([rows for *_, rows in mine])]
        rate = np.asarray(pooled.sum(axis=0)).ravel() / pooled.sum()
        for _, donor, rows in mine:
            counts = source.counts[rows]
            depth = np.asarray(counts.sum(axis=1)).ravel()
            expected = rate * depth.sum()
            error = np.asarray(counts.sum(axis=0)).ravel() - expected
            extra += error**2 - expected - dispersion * rate**2 * (depth**2).sum()
            squared += expected**2
            residual[label, donor] = error, expected
    usual = trend(extra, squared, level)
    prior = 200.0
    relative = np.clip((extra + prior * usual) / (squared + prior), 0.0, 4.0)
    return (
        np.sqrt(np.log1p(relative)),
        shared_by_types(residual, extra),
        shared_by_batch(residual, extra, source),
    )


def shared_by_types(residual: dict, extra: np.ndarray) -> float:
    """Mean product of the donor's errors in two types, over the mean square of the effect."""
    products, expected_square, total = 0.0, 0.0, 0.0
    for (label, donor), (error, expected) in residual.items():
        total += (expected**2).sum()
        for (other, same), (error2, expected2) in residual.items():
            if same == donor and label < other:
                products += (error * error2).sum()
                expected_square += (expected * expected2).sum()
    return float(np.clip((products / expected_square) / (extra.sum() / total), 0, 1))


def shared_by_batch(residual: dict, extra: np.ndarray, source: Source) -> float:
    """The same between different donors sequenced on the same instrument (NovaSeq or not)."""
    nova = set(source.obs.donor[source.obs["sample"].astype(str).str.contains("Nova")].astype(str))
    within, within_square, total = 0.0, 0.0, 0.0
    for (label, donor), (error, expected) in residual.items():
        total += (expected**2).sum()
        for (other, second), (error2, expected2) in residual.items():
            if other == label and donor < second and donor in nova and second in nova:
                within += (error * error2).sum()
                within_square += (expected * expected2).sum()
    return float(np.clip((within / within_square) / (extra.sum() / total), 0, 1))


def zero_inflation(source: Source, dispersion: np.ndarray) -> float:
    """Share of non-zero counts that the negative binomial expects but the nuclei lack."""
    expected = observed = 0.0
    for _, _, rows in groups_of(source, 50):
        counts = source.counts[rows]
        depth = np.asarray(counts.sum(axis=1)).ravel()
        rate = np.asarray(counts.sum(axis=0)).ravel() / depth.sum()
        mean = depth[:, None] * rate[None, :]
        expected += (1 - np.exp(-np.log1p(dispersion * mean) / dispersion)).sum()
        observed += counts.nnz
    return float(max(0.0, 1 - observed / expected))


def libraries(sources: dict[str, Source]) -> dict[str, list[float]]:
    """Mean and sd of log(UMIs) per type."""
    out = {}
    for name in TYPES:
        source = sources["velmeshev" if name in HUMAN else "agarwal"]
        mine = (source.obs["cell_type"] == HUMAN.get(name, AGARWAL[name])).to_numpy()
        depth = np.log(np.asarray(source.counts[mine].sum(axis=1)).ravel())
        out[name] = [round(float(depth.mean()), 4), round(float(depth.std()), 4)]
    return out


def effect_quantiles(path: Path) -> list[float]:
    """Deciles of |log2 fold change between samples| of the DEGs Velmeshev 2019 published."""
    table = pd.read_csv(path)
    return (
        np.quantile(table["Sample fold change"].abs(), np.linspace(0.05, 0.95, 10))
        .round(3)
        .tolist()
    )


def fit(data: Path, n_genes: int) -> tuple[pd.DataFrame, dict]:
    """The table and the parameters of its header, from public nuclei and the shipped reference."""
    vocabulary = pd.DataFrame(
        {"ensembl_id": Vocabulary.published().ensembl_ids, "symbol": Vocabulary.published().symbols}
    )
    vocabulary = vocabulary[~vocabulary["symbol"].duplicated(keep=False)]
    genes, names = pd.Index(vocabulary["ensembl_id"]), vocabulary["symbol"].reset_index(drop=True)
    sources = {
        "velmeshev": load(data / "velmeshev2019_pfc_3types.h5ad", genes),
        "agarwal": load(data / "agarwal2020_substantia_nigra_cortex_2donors.h5ad", genes),
    }
    profiles = all_profiles(sources["velmeshev"], sources["agarwal"], genes, names)
    level = np.maximum(profiles[list(HUMAN)].mean(axis=1).to_numpy(), 1e-4)
    dispersion = dispersions(sources, level)
    donor_sd, shared_types, shared_batch = donor_effects(sources["velmeshev"], level, dispersion)
    parameters = {
        "library": libraries(sources),
        "proportions": PROPORTIONS,
        "zero_inflation": round(zero_inflation(sources["velmeshev"], dispersion), 4),
        "donor_shared_by_types": round(shared_types, 3),
        "donor_shared_by_batch": round(shared_batch, 3),
        "effect_quantiles": effect_quantiles(data / "ref_velmeshev_deg.csv"),
    }
    table = profiles.rename_axis("ensembl_id").reset_index()
    table.insert(1, "symbol", names)
    table["dispersion"], table["donor_sd"] = dispersion, donor_sd
    table["factor"] = table.pop("factor")
    highest = table[TYPES].max(axis=1)
    rank = highest.where(~table.symbol.isin(MARKERS), np.inf).rank(ascending=False, method="first")
    return table[rank <= n_genes].reset_index(drop=True), parameters


def refreshed() -> tuple[pd.DataFrame, dict]:
    """The shipped table with the profiles of the shipped reference; the rest stays."""
    table, parameters = cohort_parameters()
    known = reference_profiles(pd.Index(table["ensembl_id"])).reset_index(drop=True)
    return table.assign(**known.mul(table["factor"], axis=0).fillna(table[TYPES])), parameters


def write(table: pd.DataFrame, parameters: dict, path: Path) -> None:
    """One gzipped text file without a time stamp, so that the same fit gives the same bytes."""
    head = [
        "scMamba's SIMULATED human brain cohort: parameters, not data, from benchmarks/fit_cohort.py",
        *[line.strip() for line in (__doc__ or "").split("-\n", 1)[1].strip().splitlines()],
        "columns after symbol: counts per 10,000 by type; dispersion; log-sd of donor effects; factor",
    ]
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in head)
    text.write(f"#! {json.dumps(parameters)}\n")
    shown = table.copy()
    for name in [*TYPES, "dispersion", "donor_sd", "factor"]:
        shown[name] = [f"{v:.3g}" for v in shown[name]]
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
    parser.add_argument("--data", type=Path)
    parser.add_argument("--genes", type=int, default=10_000)
    arguments = parser.parse_args()
    table, parameters = fit(arguments.data, arguments.genes) if arguments.data else refreshed()
    write(table, parameters, TARGET)
    report = table.set_index("symbol")
    print(f"{len(table)} genes, {TARGET.stat().st_size / 1e3:.0f} kB")
    print(json.dumps(parameters, indent=1))
    print(report[["dispersion", "donor_sd"]].describe().round(3).to_string())
    print(report.loc[[m for m in MARKERS if m in report.index], TYPES].round(2).to_string())
    log = np.log2(report[TYPES] + EPSILON)
    for name in TYPES:
        margin = log[name] - log.drop(columns=name).max(axis=1)
        print(f"{name:16s} most specific:", " ".join(margin.nlargest(15).index))


if __name__ == "__main__":
    main()
