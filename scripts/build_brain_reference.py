"""Build python/scmamba/resources/human_brain_reference.npz (and .tsv): expected counts per gene of human brain cell types.

    scripts/build_brain_reference.py --data FOLDER [--output FILE] [--without-donors donor1 ...]

FOLDER holds the mean profiles and the real nuclei that the table COLUMNS names, as public releases gave them. The reference
holds rates (shares of a type's counts) that were computed from them, and no cell. Tables of the Allen Institute are not used.

Steps:

1. The rate of each gene in each column: back-transformed mean profiles, or summed counts of labeled nuclei.
2. Each study is brought to the scale of the base study (PsychENCODE): the factor of a gene is the weighted mean, over the
   types that both studies hold, of the log ratio of their rates.
3. Columns of one subtype are averaged, weighted by the square root of their cells; genes that a study did not measure take the
   average of the base study's columns of the same class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scmamba.genes import annotation

RESOURCES = Path(__file__).parents[1] / "python" / "scmamba" / "resources"
#: Donors of Velmeshev 2019 that every benchmark of this repository holds out.
HELD_OUT = ("4341", "5403", "5864", "5958")
BASE = "psychencode"
#: study -> citation, license or terms of the tables, cells
STUDIES = {
    "psychencode": (
        "PsychENCODE adult UMI set (Wang 2018, Lake 2018), human cortex nuclei",
        "facts derived from public data",
        27380,
    ),
    "habib2017": (
        "Habib 2017 (DroNc-seq), human hippocampus and prefrontal cortex nuclei",
        "facts derived from public data",
        14963,
    ),
    "agarwal2020": (
        "Agarwal 2020 (GSE140231), human substantia nigra and cortex nuclei",
        "facts derived from public data",
        0,
    ),
    "velmeshev2019": (
        "Velmeshev 2019 (PRJNA434002), human cortex nuclei",
        "facts derived from public data",
        0,
    ),
    "lamanno2016": (
        "La Manno 2016 (GSE76381), human fetal ventral midbrain",
        "facts derived from public data",
        1977,
    ),
    "zeisel2018": (
        "Zeisel 2018 (mousebrain.org), mouse nervous system, by orthologs",
        "facts derived from public data",
        492949,
    ),
}
EXC, INH, OLIGO = "Excitatory neuron", "Inhibitory neuron", "Oligodendrocyte"
#: (study, column of the study) -> (type, subtype); subtypes of the cortex have the names of SEA-AD's subclasses.
COLUMNS = {
    ("psychencode", "Ex1"): (EXC, "L2/3 IT"),
    ("psychencode", "Ex2"): (EXC, "L2/3 IT"),
    ("psychencode", "Ex3e"): (EXC, "L4 IT"),
    ("psychencode", "Ex4"): (EXC, "L4 IT"),
    ("psychencode", "Ex5b"): (EXC, "L5 IT"),
    ("psychencode", "Ex6a"): (EXC, "L5/6 NP"),
    ("psychencode", "Ex6b"): (EXC, "L6 CT"),
    ("psychencode", "Ex8"): (EXC, "L6 IT"),
    ("psychencode", "Ex9"): (EXC, ""),
    ("psychencode", "In1a"): (INH, "VIP"),
    ("psychencode", "In1b"): (INH, "VIP"),
    ("psychencode", "In1c"): (INH, "VIP"),
    ("psychencode", "In3"): (INH, "VIP"),
    ("psychencode", "In4a"): (INH, "LAMP5"),
    ("psychencode", "In4b"): (INH, "LAMP5"),
    ("psychencode", "In6a"): (INH, "PVALB"),
    ("psychencode", "In6b"): (INH, "PVALB"),
    ("psychencode", "In7"): (INH, "SST"),
    ("psychencode", "In8"): (INH, "SST"),
    ("psychencode", "Astro"): ("Astrocyte", ""),
    ("psychencode", "Oligo"): (OLIGO, ""),
    ("psychencode", "OPC"): ("OPC", ""),
    ("psychencode", "Microglia"): ("Microglia", ""),
    ("psychencode", "Endo"): ("Endothelial", ""),
    ("psychencode", "Per"): ("Pericyte", "*"),  # too few counts
    ("habib2017", "exPFC1"): (EXC, "*"),
    ("habib2017", "exPFC2"): (EXC, "*"),
    ("habib2017", "exCA1"): (EXC, "Hippocampal CA1"),
    ("habib2017", "exCA3"): (EXC, "Hippocampal CA3"),
    ("habib2017", "exDG"): (EXC, "Hippocampal DG"),
    ("habib2017", "GABA1"): (INH, "*"),
    ("habib2017", "GABA2"): (INH, "*"),
    ("habib2017", "ASC1"): ("Astrocyte", ""),
    ("habib2017", "ASC2"): ("Astrocyte", ""),
    ("habib2017", "ODC1"): (OLIGO, ""),
    ("habib2017", "ODC2"): (OLIGO, ""),
    ("habib2017", "OPC"): ("OPC", ""),
    ("habib2017", "MG"): ("Microglia", ""),
    ("habib2017", "END"): ("Endothelial", ""),
    ("agarwal2020", "Excitatory neuron"): (EXC, "*"),
    ("agarwal2020", "Inhibitory neuron"): (INH, "*"),
    ("agarwal2020", "Astrocyte"): ("Astrocyte", ""),
    ("agarwal2020", "Oligodendrocyte"): (OLIGO, ""),
    ("agarwal2020", "OPC"): ("OPC", ""),
    ("agarwal2020", "Microglia"): ("Microglia", ""),
    ("agarwal2020", "Endothelial"): ("Endothelial", ""),
    ("agarwal2020", "Dopaminergic neuron"): ("Dopaminergic neuron", ""),
    ("agarwal2020", "GABAergic neuron"): ("Midbrain GABAergic neuron", ""),
    ("agarwal2020", "Ependymal"): ("Ependymal", ""),
    ("velmeshev2019", "astrocyte"): ("Astrocyte", ""),
    ("velmeshev2019", "microglia"): ("Microglia", ""),
    ("velmeshev2019", "endothelial"): ("Endothelial", ""),
    ("lamanno2016", "RN"): (EXC, "*"),
    ("lamanno2016", "Gaba"): (INH, "*"),
    ("lamanno2016", "DA1"): ("Dopaminergic neuron", ""),
    ("lamanno2016", "DA2"): ("Dopaminergic neuron", ""),
    ("zeisel2018", "Tpre"): (EXC, "*"),
    ("zeisel2018", "Tpri"): (INH, "*"),
    ("zeisel2018", "Gast"): ("Astrocyte", "*"),
    ("zeisel2018", "Goli"): (OLIGO, "*"),
    ("zeisel2018", "Gopc"): ("OPC", "*"),
    ("zeisel2018", "Imgl"): ("Microglia", "*"),
    ("zeisel2018", "Vend"): ("Endothelial", "*"),
    ("zeisel2018", "Vper"): ("Pericyte", ""),
    ("zeisel2018", "Dime"): ("Midbrain glutamatergic neuron", ""),
    ("zeisel2018", "Dimi"): ("Midbrain GABAergic neuron", ""),
    ("zeisel2018", "Gepe"): ("Ependymal", ""),
    ("zeisel2018", "Vlmc"): ("VLMC", ""),
}
CLASSES = {
    EXC: "Neuron",
    INH: "Neuron",
    "Dopaminergic neuron": "Neuron",
    "Midbrain GABAergic neuron": "Neuron",
    "Midbrain glutamatergic neuron": "Neuron",
    "Astrocyte": "Glia",
    OLIGO: "Glia",
    "OPC": "Glia",
    "Ependymal": "Glia",
    "Microglia": "Immune",
    "Endothelial": "Vascular",
    "Pericyte": "Vascular",
    "VLMC": "Vascular",
}
ONTOLOGY = {
    EXC: "CL:0000679",
    INH: "CL:0000617",
    "Dopaminergic neuron": "CL:0000700",
    "Midbrain GABAergic neuron": "CL:0000617",
    "Midbrain glutamatergic neuron": "CL:0000679",
    "Astrocyte": "CL:0000127",
    OLIGO: "CL:0000128",
    "OPC": "CL:0002453",
    "Ependymal": "CL:0000065",
    "Microglia": "CL:0000129",
    "Endothelial": "CL:0000115",
    "Pericyte": "CL:0000669",
    "VLMC": "CL:0000708",
}
PROFILES = {
    "psychencode": "psychencode_adult_cortex.tsv.gz",
    "habib2017": "dronc_human_hippocampus_pfc.tsv.gz",
    "lamanno2016": "gse76381_human_fetal_midbrain.tsv.gz",
    "zeisel2018": "mousebrain_atlas_taxa39.tsv.gz",
}
CELLS = {
    "agarwal2020": "agarwal2020_substantia_nigra_cortex_2donors.h5ad",
    "velmeshev2019": "velmeshev2019_pfc_3types.h5ad",
}
#: Weight of profiles with an unknown number of cells; for labeled nuclei it is the square root of their number.
WEIGHTS = {
    "psychencode": 20.0,
    "habib2017": 20.0,
    "lamanno2016": 2.0,
    "zeisel2018": 4.0,
}
#: Types that no adult human study has with enough cells; see :func:`contrast`.
CONTRASTED = {
    ("lamanno2016", "Dopaminergic neuron"),
    ("zeisel2018", "Midbrain glutamatergic neuron"),
    ("zeisel2018", "Midbrain GABAergic neuron"),
    ("zeisel2018", "Pericyte"),
}
#: Only rates above this one are compared.
CONTRAST_FLOOR = 1e-5
#: Pseudocounts of the average profile that are added to every column.
PSEUDOCOUNTS = 500.0


def profile_rates(path: Path) -> pd.DataFrame:
    """Genes x columns: share of a type's counts, from means of log2(x + 1)."""
    table = 2 ** pd.read_csv(path, sep="\t", index_col=0) - 1
    table = table[~table.index.duplicated()]
    return table / table.sum()


def cell_rates(
    path: Path, study: str, excluded: set[str]
) -> tuple[pd.DataFrame, dict[str, tuple[int, float]]]:
    """Genes x labels: share of the summed counts; and cells and counts of each label."""
    cells = ad.read_h5ad(path)
    keep = np.ones(cells.n_obs, dtype=bool)
    if "donor" in cells.obs:
        keep &= ~cells.obs["donor"].astype(str).isin(excluded).to_numpy()
    if "pass_qc" in cells.obs:
        keep &= cells.obs["pass_qc"].to_numpy(bool)
    cells = cells[keep]
    ids = cells.var["ensembl_id"].astype(str).to_numpy()
    rates, sizes = {}, {}
    for column in (c for s, c in COLUMNS if s == study):
        own = (cells.obs["cell_type"] == column).to_numpy()
        if own.sum() < 5:
            continue
        sums = np.asarray(cells.X[own].sum(axis=0)).ravel().astype(float)
        rates[column] = pd.Series(sums, index=ids)[lambda s: s.index != ""].groupby(level=0).sum()
        sizes[column] = (int(own.sum()), float(sums.sum()))
    table = pd.DataFrame(rates)
    return table / table.sum(), sizes


def to_base(table: pd.DataFrame, study: str, base: pd.DataFrame) -> pd.DataFrame:
    """Divide by the factor of each gene between this study and the base, over the types that both have.

    Neurons and other cells have factors of their own: maturity and species change the genes of one and not of the other.
    """
    genes = table.index.intersection(base.index)
    out = table.loc[genes].copy()
    for neurons in (True, False):
        own = [c for c in table if (CLASSES[COLUMNS[study, c][0]] == "Neuron") == neurons]
        if own:
            out[own] = out[own].div(
                study_factor(table.loc[genes], study, base.loc[genes], own), axis=0
            )
    out = out / out.sum()
    for column in out:
        kind = COLUMNS[study, column][0]
        if (study, kind) not in CONTRASTED:
            continue
        compared = contrast(table.loc[genes], study, base.loc[genes], column)
        # The pericytes of the mouse set contain RNA of endothelial cells: only their difference from these is used.
        out[column] = compared if kind == "Pericyte" else (out[column] + compared) / 2
    return out / out.sum()


def contrast(table: pd.DataFrame, study: str, base: pd.DataFrame, column: str) -> pd.Series:
    """The common rates of all related types of the base, times the ratio between a type and the related types of its study.

    Neurons are compared with the other neurons, pericytes with endothelial cells. Immature or mouse cells differ from adult human
    ones in many genes; what sets their types apart differs less.
    """
    kind = COLUMNS[study, column][0]
    related = ("Endothelial",) if kind == "Pericyte" else (EXC, INH)
    means = [
        base[[c for c in base if COLUMNS[BASE, c][0] == other]].mean(axis=1) for other in related
    ]
    shared = np.minimum.reduce(means)
    neurons = [t for t, c in CLASSES.items() if c == "Neuron" and t != kind]
    others = [
        c for c in table if COLUMNS[study, c][0] in (related if kind == "Pericyte" else neurons)
    ]
    ratio = (table[column] + CONTRAST_FLOOR) / (table[others].mean(axis=1) + CONTRAST_FLOOR)
    out = shared * np.clip(ratio, np.exp(-4), np.exp(4))
    return out / out.sum()


def study_factor(
    table: pd.DataFrame, study: str, base: pd.DataFrame, columns: list[str]
) -> np.ndarray:
    """Factor of each gene, from the types of these columns that the base has too; 1 if there is none."""
    logs, weights, floor = [], [], 1e-5
    for kind in sorted({COLUMNS[study, c][0] for c in columns} - {"Pericyte"}):
        theirs = [c for c in columns if COLUMNS[study, c][0] == kind]
        ours = [c for c in base if COLUMNS[BASE, c][0] == kind]
        if ours:
            a, b = table[theirs].mean(axis=1), base[ours].mean(axis=1)
            logs.append(np.log((a + floor) / (b + floor)))
            weights.append(((a + b) / (a + b + 10 * floor)).to_numpy())
    if not logs:
        return np.ones(len(table))
    weight = np.array(weights)
    shift = (np.array(logs) * weight).sum(axis=0) / (weight.sum(axis=0) + 0.25)
    return np.exp(np.clip(shift, -3, 3))


def region_of(kind: str, subtype: str) -> str:
    """Region outside of which a column is not expected; empty: everywhere."""
    if kind.startswith("Midbrain") or kind == "Dopaminergic neuron":
        return "midbrain"
    if kind == EXC:
        return "hippocampus" if subtype.startswith("Hippocampal") else "cortex"
    return ""


def build(data: Path, without: set[str]) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Ensembl IDs, (genes, columns) rates and the table of the columns."""
    base = profile_rates(data / "profiles" / PROFILES[BASE])
    tables, sizes = {BASE: base}, {}
    for study, name in PROFILES.items():
        if study != BASE:
            table = profile_rates(data / "profiles" / name)
            tables[study] = table[[c for c in table if (study, c) in COLUMNS]]
    for study, name in CELLS.items():
        tables[study], sizes[study] = cell_rates(data / name, study, without | set(HELD_OUT))
    known = set(annotation()["ensembl_id"])
    genes = pd.Index([g for g in base.index if g in known])
    base = base.loc[genes]
    parts: dict[tuple[str, str], list[tuple[float, pd.Series, str, int]]] = {}
    for study, table in tables.items():
        own = table if study == BASE else to_base(table, study, base)
        for column in own:
            kind, subtype = COLUMNS[study, column]
            if subtype == "*":  # used for the comparison of studies only
                continue
            cells, _ = sizes.get(study, {}).get(column, (0, 0.0))
            weight = np.sqrt(cells) if cells else WEIGHTS.get((study, kind), WEIGHTS[study])
            # Subtypes of the cortex stay separate by their column, so that each keeps its own profile.
            key = (kind, f"{subtype}|{column}" if subtype and study == BASE else subtype)
            parts.setdefault(key, []).append((weight, own[column].reindex(genes), study, cells))
    rates, rows = [], []
    for (kind, subtype), own in parts.items():
        total = pd.concat([r for _, r, _, _ in own], axis=1).to_numpy()
        weight = np.array([w for w, _, _, _ in own])[None, :] * np.isfinite(total)
        mean = np.nansum(np.nan_to_num(total) * weight, axis=1) / np.maximum(
            weight.sum(axis=1), 1e-9
        )
        fallback = base[[c for c in base if CLASSES[COLUMNS[BASE, c][0]] == CLASSES[kind]]].mean(
            axis=1
        )
        rates.append(np.where(weight.sum(axis=1) > 0, mean, fallback))
        studies = [s for _, _, s, _ in own]
        rows.append(
            {
                "class": CLASSES[kind],
                "type": kind,
                "subtype": subtype.split("|")[0],
                "column": subtype.split("|")[-1] or kind,
                "ontology_id": ONTOLOGY[kind],
                "cells": sum(c for _, _, _, c in own),
                "studies": "; ".join(STUDIES[s][0] for s in studies),
                "licence": "; ".join(dict.fromkeys(STUDIES[s][1] for s in studies)),
                "region": region_of(kind, subtype.split("|")[0]),
            }
        )
    table = np.array(rates).T
    table /= table.sum(axis=0)
    average = table.mean(axis=1, keepdims=True)
    return (
        genes.to_numpy(str),
        (table * 1e5 + PSEUDOCOUNTS * average) / (1e5 + PSEUDOCOUNTS),
        pd.DataFrame(rows),
    )


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESOURCES / "human_brain_reference.npz")
    parser.add_argument("--without-donors", nargs="*", default=[])
    options = parser.parse_args()
    genes, rates, table = build(options.data, set(options.without_donors))
    # log2 rates as 16-bit numbers: three decimals, a relative error below 0.1%.
    coded = np.rint(np.log2(np.maximum(rates, 1e-9)) * 1000).astype(np.int16)
    numbers = np.array([int(g.removeprefix("ENSG")) for g in genes], dtype=np.int64)
    np.savez_compressed(options.output, genes=numbers, log2_rates=coded)
    table.to_csv(options.output.with_suffix(".tsv"), sep="\t", index=False)
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {len(genes):,} genes x {len(table)} columns, {size:.2f} MiB")


if __name__ == "__main__":
    main()
