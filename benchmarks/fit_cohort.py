"""Fit the parameters of the simulated brain cohort and write its table.

    python -m benchmarks.fit_cohort --data FOLDER

reads public single-cell sets (see the README in their folder) and writes
``python/scmamba/datasets/brain_cohort.tsv.gz``, the only thing ``scmamba.datasets.brain_cohort`` needs.

What comes from where
---------------------
Astrocyte, Microglia, Endothelial : Velmeshev 2019, human nuclei: mean profiles, dispersion, donor effects,
    library sizes, zero inflation.
Inhibitory, Oligodendrocyte : Zeisel 2018, mouse cells, one-to-one orthologs; every gene is moved from mouse
    cells to human nuclei by the ratio seen in microglia, which both sets hold.
OPC, Pericyte : Marques 2016, mouse ('OPC', 'PPR' vascular); moved by the ratio seen in oligodendrocytes.
Excitatory : Paired-Tag 2021, mouse nuclei (2,000 genes) moved by the ratio seen in inhibitory neurons;
    elsewhere the inhibitory profile, and for neuronal genes the ambient RNA of the human cortical nuclei.
Genes without a one-to-one ortholog : the mean of the human types, times the mean effect of being a
    BRETIGEA marker of that class.
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
BRETIGEA = {
    "Astrocyte": "ast",
    "Microglia": "mic",
    "Oligodendrocyte": "oli",
    "OPC": "opc",
    "Excitatory": "neu",
    "Inhibitory": "neu",
    "Endothelial": "end",
    "Pericyte": "end",
}
# Textbook markers that must be in the gene set whatever their level.
MARKERS = """
AQP4 GFAP SLC1A2 SLC1A3 GJA1 ALDH1L1 CSF1R CX3CR1 P2RY12 C3 APBB1IP DOCK8 MBP MOBP PLP1 MOG MAG
OPALIN PDGFRA VCAN CSPG4 OLIG1 OLIG2 SLC17A7 SATB2 CAMK2A RBFOX3 NRGN NEUROD2 GAD1 GAD2 SLC32A1 SST
PVALB VIP LAMP5 RELN CLDN5 FLT1 PECAM1 VWF CDH5 PDGFRB RGS5 ABCC9 KCNJ8 NOTCH3 DCN XIST MALAT1 APOE
TREM2 APP SNAP25 SYT1
""".split()  # noqa: SIM905
# Typical proportions in human cortex preparations; an assumption, because no set here has all eight types.
PROPORTIONS = dict(zip(TYPES, [0.13, 0.07, 0.25, 0.07, 0.26, 0.14, 0.045, 0.035]))
EXCITATORY = [
    "SLC17A7",
    "SLC17A6",
    "SATB2",
    "NEUROD2",
    "NEUROD6",
    "TBR1",
    "CAMK2A",
    "NRGN",
    "NPTX1",
]
EPSILON = 0.2  # CP10k: levels below it are not distinguished across species and platforms


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


def load(path: Path, column: str, genes: pd.Index) -> Source:
    """Read one file and put its genes (summed if two map to one) in the order of ``genes``."""
    data = ad.read_h5ad(path)
    keep = data.var[column].isin(genes).to_numpy()
    if "ortholog_one2one" in data.var:
        keep &= data.var["ortholog_one2one"].astype(str).eq("True").to_numpy()
    where = genes.get_indexer(data.var[column][keep])
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


def moved(
    target: np.ndarray, anchor: np.ndarray, anchor_human: np.ndarray, measured: np.ndarray
) -> np.ndarray:
    """Move a mouse profile to human nuclei by the gene-wise ratio seen in an anchor type both sets hold.

    A gene that the anchor hardly expresses in mouse is no evidence about the platform (in human nuclei it is ambient
    RNA), so the log ratio counts in proportion to the anchor's level, half at 1 per 10,000.
    """
    scale = anchor_human[measured].sum() / anchor[measured].sum()
    weight = anchor * scale / (anchor * scale + 1.0)
    ratio = ((anchor_human + EPSILON) / (anchor * scale + EPSILON)) ** weight
    return np.where(measured, target * scale * np.clip(ratio, 1 / 32, 32), np.nan)


def fill(
    profile: np.ndarray, fallback: np.ndarray, marker: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Genes not measured: the fallback times the mean effect of being a marker, from measured genes."""
    seen = ~np.isnan(profile)

    def effect(group: np.ndarray) -> float:
        both = seen & group
        return float(
            np.exp(np.median(np.log((profile[both] + EPSILON) / (fallback[both] + EPSILON))))
        )

    factor = np.where(marker, effect(marker), np.where(other, min(effect(other), 1.0), 1.0))
    return np.where(seen, profile, fallback * factor)


def all_profiles(
    sources: dict[str, Source], marker_of: dict[str, np.ndarray], names: pd.Series
) -> dict[str, np.ndarray]:
    """CP10k of the eight types (genes,), each summing to 10,000."""
    human, zeisel, marques, paired = (
        sources[k] for k in ("velmeshev", "zeisel", "marques", "paired")
    )
    out = human_profiles(human)
    grand = np.mean(list(out.values()), axis=0)
    ambient = np.min(list(out.values()), axis=0)
    any_marker = np.logical_or.reduce(list(marker_of.values()))

    def rates(source: Source, label: str, column: str = "cell_type") -> np.ndarray:
        return source.rates(np.flatnonzero((source.obs[column] == label).to_numpy()))

    def finish(name: str, profile: np.ndarray, fallback: np.ndarray) -> None:
        mine = marker_of[BRETIGEA[name]]
        filled = fill(profile, fallback, mine, any_marker & ~mine)
        out[name] = 1e4 * filled / filled.sum()

    microglia = rates(zeisel, "microglia")
    # Genes that the human file lacks (TREM2 is one) have the level of mouse microglia.
    out["Microglia"] = np.where(human.measured | ~zeisel.measured, out["Microglia"], microglia)
    for name, label in (("Inhibitory", "inhibitory"), ("Oligodendrocyte", "oligodendrocyte")):
        finish(
            name, moved(rates(zeisel, label), microglia, out["Microglia"], zeisel.measured), grand
        )
    oligo = rates(marques, "oligodendrocyte")
    for name, label, fallback in (
        ("OPC", "OPC", grand),
        ("Pericyte", "PPR_vascular", out["Endothelial"]),
    ):
        moved_profile = moved(
            rates(marques, label), oligo, out["Oligodendrocyte"], marques.measured
        )
        finish(name, moved_profile, fallback)
    excitatory = moved(
        rates(paired, "excitatory"), rates(paired, "inhibitory"), out["Inhibitory"], paired.measured
    )
    inhibitory = out["Inhibitory"]
    # The ratio of a neuron's level to its ambient level, from neuronal markers that interneurons express.
    known = marker_of["neu"] & zeisel.measured & (inhibitory > 2 * grand)
    scale = np.median((inhibitory[known] + EPSILON) / (ambient[known] + EPSILON))
    print(
        f"neuronal level over ambient level of neuronal markers: {scale:.2f} ({known.sum()} genes)"
    )
    # The ambient RNA of human cortex comes mostly from excitatory neurons: neuronal genes (markers, or
    # genes higher in interneurons than in glia) follow it; the others keep the interneurons' level.
    neuronal = marker_of["neu"] | (inhibitory > 2 * grand) | names.isin(EXCITATORY)
    ratio = np.clip((scale * ambient + EPSILON) / (inhibitory + EPSILON), 1 / 32, 32)
    lifted = np.maximum(inhibitory * ratio, scale * ambient * (ratio > 1))
    filled = np.where(paired.measured, excitatory, np.where(neuronal, lifted, inhibitory))
    out["Excitatory"] = 1e4 * filled / filled.sum()
    return {name: out[name] for name in TYPES}


def groups_of(
    source: Source, smallest: int, by: str = "donor"
) -> list[tuple[str, str, np.ndarray]]:
    """(type, donor, rows) of the groups with at least ``smallest`` cells."""
    found = source.obs.reset_index(drop=True).groupby(["cell_type", by], observed=True).indices
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

    Within type and donor in the human set, within subtype in the mouse sets; a gene's dispersion is thus
    mostly that of the types that express it.
    """
    above = np.zeros(len(level))
    squared = np.zeros_like(above)
    within = {"velmeshev": "donor", "zeisel": "pseudo_individual", "marques": "cell_type_original"}
    groups = [
        (sources[key], rows)
        for key, by in within.items()
        for *_, rows in groups_of(sources[key], 20, by)
    ]
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
    """Mean and sd of log(UMIs) per type; mouse types keep their ratio to a type that both sets have."""

    def log_depth(key: str, label: str) -> np.ndarray:
        source = sources[key]
        totals = np.asarray(
            source.counts[(source.obs.cell_type == label).to_numpy()].sum(axis=1)
        ).ravel()
        return np.log(totals[totals > 0])

    out = {
        name: (log_depth("velmeshev", label).mean(), log_depth("velmeshev", label).std())
        for name, label in HUMAN.items()
    }
    for name, key, label, anchor, anchor_label in (
        ("Inhibitory", "zeisel", "inhibitory", "Microglia", "microglia"),
        ("Oligodendrocyte", "zeisel", "oligodendrocyte", "Microglia", "microglia"),
        ("OPC", "marques", "OPC", "Oligodendrocyte", "oligodendrocyte"),
        ("Pericyte", "marques", "PPR_vascular", "Oligodendrocyte", "oligodendrocyte"),
        ("Excitatory", "paired", "excitatory", "Inhibitory", "inhibitory"),
    ):
        mine = log_depth(key, label)
        out[name] = (out[anchor][0] + mine.mean() - log_depth(key, anchor_label).mean(), mine.std())
    return {name: [round(float(v), 4) for v in out[name]] for name in TYPES}


def effect_quantiles(path: Path) -> list[float]:
    """Deciles of |log2 fold change between samples| of the DEGs Velmeshev 2019 published."""
    table = pd.read_csv(path)
    return (
        np.quantile(table["Sample fold change"].abs(), np.linspace(0.05, 0.95, 10))
        .round(3)
        .tolist()
    )


def fit(data: Path, n_genes: int) -> tuple[pd.DataFrame, dict]:
    vocabulary = pd.read_csv(data / "scmamba_vocab_19306.csv").dropna(subset=["symbol"])
    vocabulary = vocabulary[~vocabulary.symbol.duplicated(keep=False)]
    genes = pd.Index(vocabulary.ensembl_id)
    sources = {
        "velmeshev": load(data / "velmeshev2019_pfc_3types.h5ad", "ensembl_id", genes),
        "zeisel": load(
            data / "zeisel2018_mouse_pseudocases_27998genes.h5ad", "human_ensembl_id", genes
        ),
        "marques": load(
            data / "marques2016_mouse_oligo_lineage_8691genes.h5ad", "human_ensembl_id", genes
        ),
        "paired": load(
            data / "pairedtag2021_mouse_brain_nuclei_2000genes.h5ad", "human_ensembl_id", genes
        ),
    }
    reference = pd.read_csv(data / "ref_bretigea_human.csv")
    reference = reference[reference.groupby("cell").cumcount() < 200]  # the best 200 of each class
    marker_of = {
        c: vocabulary.symbol.isin(g.markers).to_numpy() for c, g in reference.groupby("cell")
    }
    profiles = all_profiles(sources, marker_of, vocabulary.symbol)
    level = np.maximum(np.mean([profiles[name] for name in HUMAN], axis=0), 1e-4)
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
    table = pd.DataFrame({"ensembl_id": genes, "symbol": vocabulary.symbol.to_numpy(), **profiles})
    table["dispersion"], table["donor_sd"] = dispersion, donor_sd
    highest = table[TYPES].max(axis=1)
    rank = highest.where(~table.symbol.isin(MARKERS), np.inf).rank(ascending=False, method="first")
    return table[rank <= n_genes].reset_index(drop=True), parameters


def write(table: pd.DataFrame, parameters: dict, path: Path) -> None:
    """One gzipped text file without a time stamp, so that the same fit gives the same bytes."""
    head = [
        "scMamba's SIMULATED human brain cohort: parameters, not data, from benchmarks/fit_cohort.py",
        *[line.strip() for line in (__doc__ or "").split("-\n", 1)[1].strip().splitlines()],
        "columns after symbol: counts per 10,000 by type; dispersion; log-sd of donor effects",
    ]
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in head)
    text.write(f"#! {json.dumps(parameters)}\n")
    shown = table.copy()
    for name in [*TYPES, "dispersion", "donor_sd"]:
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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=10_000)
    arguments = parser.parse_args()
    table, parameters = fit(arguments.data, arguments.genes)
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
