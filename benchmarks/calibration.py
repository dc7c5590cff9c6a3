"""Calibration across studies: the real error where 5% is stated, and the share of absent cell types that is refused.

    python -m benchmarks.calibration --data FOLDER [--set NAME ...] [--part development] [--again]
    python -m benchmarks.calibration --report

Every query set comes from another study than its reference. Each is annotated with the whole reference and then once with each of
its cell types removed from the reference. A row is kept in results/calibration.tsv; rows that are there are not measured again
(``--again`` does), so an interrupted run continues.

Split, written before any number was seen. DEVELOPMENT: ``kang-pbmc3k``, ``velmeshev-agarwal``, ``agarwal-marques``, ``agarwal-pbmc3k``
and, without labels, ``brain-agarwal``, ``brain-marques``, ``brain-pbmc3k``; choices of the method are made on these alone. HELD OUT:
``pbmc3k-kang``, ``agarwal-velmeshev``, ``agarwal-zeisel``, ``agarwal-pairedtag``, ``agarwal-trem2``, ``velmeshev-kang`` and, without
labels, ``brain-velmeshev``, ``brain-zeisel``, ``brain-pairedtag``, ``brain-trem2``, ``brain-kang``. No cell of a held-out query set is
annotated in development (Kang's and Velmeshev's are references there). The reference without labels is built again without the study
that is annotated (``scripts/build_brain_reference.py``); of Velmeshev 2019 and Zeisel 2018 nothing is left in it then. The shipped
method of ``human-brain`` was developed earlier with Velmeshev's, Agarwal's and pbmc3k's cells (``benchmarks/brain_types.py``), so of
the rows without labels those of mouse sets and of Kang are the only ones with unseen cells.

``error`` is the share of wrong calls among all assigned cells, ``error, known types`` among the assigned cells whose type the
reference holds; ``coverage`` is the share of the latter that is assigned; ``refused`` is the share ``Unassigned`` among cells whose
type the reference lacks. Names are compared after the mapping below, which merges types that one of the two sets does not separate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.brain_types import UNCLEAR, builder

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "calibration.tsv"
UNASSIGNED = "Unassigned"
#: Types with fewer cells in the query are not removed in turn.
FEWEST = 10
STATED = 0.05
KEYS = ["set", "method", "removed"]

BLOOD = {
    "B cells": "B",
    "B Activated": "B",
    "CD4 Memory T": "CD4 T",
    "CD4 Naive T": "CD4 T",
    "T activated": "CD4 T",
    "CD4 T cells": "CD4 T",
    "CD8 T cells": "CD8 T",
    "CD14+ Monocytes": "CD14 Mono",
    "FCGR3A+ Monocytes": "CD16 Mono",
    "NK cells": "NK",
    "Dendritic cells": "DC",
    "Megakaryocytes": "Mk",
}
BRAIN = {
    "astrocyte": "Astrocyte",
    "astrocytes": "Astrocyte",
    "microglia": "Microglia",
    "endothelial": "Endothelial",
    "oligodendrocyte": "Oligodendrocyte",
    "excitatory": "Excitatory neuron",
    "inhibitory": "Inhibitory neuron",
    "ependymal": "Ependymal",
    "GABAergic neuron": "Inhibitory neuron",
    "Midbrain GABAergic neuron": "Inhibitory neuron",
    "Glutamatergic neuron": "Excitatory neuron",
    "Midbrain glutamatergic neuron": "Excitatory neuron",
    "VLMC": "Pericyte/VLMC",
    "Pericyte": "Pericyte/VLMC",
    "PPR_vascular": "Pericyte/VLMC",
    "COP": "OPC",
}


def kang(data: Path) -> ad.AnnData:
    """Unstimulated blood cells of eight donors."""
    cells = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
    keep = (cells.obs["demuxlet_call"] == "SNG") & (cells.obs["condition"] == "ctrl")
    return named(cells[keep.to_numpy()].copy(), BLOOD)


def pbmc3k(data: Path) -> ad.AnnData:
    """Labeled blood cells of one donor."""
    cells = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    return named(cells[(cells.obs["cell_type"] != "unlabelled").to_numpy()].copy(), BLOOD)


def velmeshev(data: Path) -> ad.AnnData:
    """Nuclei of the human cortex, three types."""
    return named(ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad"), BRAIN)


def agarwal(data: Path) -> ad.AnnData:
    """Nuclei of the human substantia nigra and cortex whose type is clear."""
    cells = ad.read_h5ad(data / "agarwal2020_substantia_nigra_cortex_2donors.h5ad")
    keep = cells.obs["pass_qc"].to_numpy(bool) & ~cells.obs["cell_type"].isin(UNCLEAR).to_numpy()
    return named(cells[keep].copy(), BRAIN)


def mouse(name: str) -> Callable[[Path], ad.AnnData]:
    """A mouse set through one-to-one orthologs."""

    def read(data: Path) -> ad.AnnData:
        from scmamba.genes import mouse_to_human

        return named(mouse_to_human(ad.read_h5ad(data / f"{name}.h5ad")), BRAIN)

    return read


def named(cells: ad.AnnData, names: dict[str, str]) -> ad.AnnData:
    """With the common names of the types in ``obs["kind"]``."""
    cells.obs["kind"] = cells.obs["cell_type"].astype(str).replace(names).to_numpy()
    return cells


ZEISEL = mouse("zeisel2018_mouse_pseudocases_27998genes")
MARQUES = mouse("marques2016_mouse_oligo_lineage_8691genes")
PAIREDTAG = mouse("pairedtag2021_mouse_brain_nuclei_2000genes")
TREM2 = mouse("trem2_mouse_wt_ko_7274genes")


@dataclass
class Pair:
    """A query set and its reference: ``None`` is the reference that comes with the package."""

    part: str
    reference: Callable[[Path], ad.AnnData] | None
    query: Callable[[Path], ad.AnnData]
    donors: list[str] = field(default_factory=list)  # not in the reference that is built
    profiles: list[str] = field(default_factory=list)  # studies that are not in it


DEV, OUT = "development", "held out"
ALL_DONORS = ["all"]
PAIRS = {
    "kang-pbmc3k": Pair(DEV, kang, pbmc3k),
    "velmeshev-agarwal": Pair(DEV, velmeshev, agarwal),
    "agarwal-marques": Pair(DEV, agarwal, MARQUES),
    "agarwal-pbmc3k": Pair(DEV, agarwal, pbmc3k),
    "brain-agarwal": Pair(DEV, None, agarwal, ALL_DONORS),
    "brain-marques": Pair(DEV, None, MARQUES),
    "brain-pbmc3k": Pair(DEV, None, pbmc3k),
    "pbmc3k-kang": Pair(OUT, pbmc3k, kang),
    "agarwal-velmeshev": Pair(OUT, agarwal, velmeshev),
    "agarwal-zeisel": Pair(OUT, agarwal, ZEISEL),
    "agarwal-pairedtag": Pair(OUT, agarwal, PAIREDTAG),
    "agarwal-trem2": Pair(OUT, agarwal, TREM2),
    "velmeshev-kang": Pair(OUT, velmeshev, kang),
    "brain-velmeshev": Pair(OUT, None, velmeshev, ALL_DONORS),
    "brain-zeisel": Pair(OUT, None, ZEISEL, profiles=["zeisel2018"]),
    "brain-pairedtag": Pair(OUT, None, PAIREDTAG),
    "brain-trem2": Pair(OUT, None, TREM2),
    "brain-kang": Pair(OUT, None, kang),
}


#: Names of the methods in the table: as shipped, and by the threshold and novelty of held-out donors alone (as in 0.1).
#: Rows by labeled cells, with calls refused that do not fit and by default, and rows without labels.
STRICT = "annotate(reference=, across_studies=True)"
DEFAULT, FREE = "annotate(reference=)", 'annotate(reference="human-brain")'


def by_labels(known: ad.AnnData, query: ad.AnnData, cache: str | None) -> dict[str, np.ndarray]:
    """Calls with labeled cells: as shipped, and without what takes the shift between studies into account.

    Both come from one fit, which is kept in a cache.
    """
    import tempfile

    import scmamba

    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (STRICT, DEFAULT):
            found = scmamba.annotate(
                query,
                reference=known,
                label_key="kind",
                donor_key="donor" if "donor" in known.obs else None,
                error_rate=STATED,
                across_studies=name == STRICT,
                cache=cache or folder,
                return_result=True,
                force=True,
                verbose=False,
            )
            calls[name] = found.labels().astype(str)
    return calls


def built_reference(pair: Pair, data: Path, query: ad.AnnData) -> Any:
    """The reference of the brain without the study that is annotated."""
    from scmamba.annotation.brain_reference import BrainReference

    module = builder()
    for study in pair.profiles:
        del module.PROFILES[study]
    without = set(query.obs["donor"].astype(str)) if pair.donors else set()
    genes, rates, table = module.build(data, without)
    return BrainReference(genes, rates / rates.sum(axis=0), table)


def without_type(reference: Any, name: str) -> Any:
    """The reference without the columns of a type."""
    from scmamba.annotation.brain_reference import BrainReference

    kinds = reference.table["type"].replace(BRAIN).to_numpy(str)
    keep = kinds != name
    return BrainReference(
        reference.genes, reference.rates[:, keep], reference.table[keep].reset_index(drop=True)
    )


def by_brain(reference: Any, query: ad.AnnData) -> dict[str, np.ndarray]:
    """Calls without labels."""
    import scmamba
    import scmamba.annotation._label_free as module

    load = module.load_reference
    module.load_reference = lambda *_: reference
    try:
        found = scmamba.annotate(
            query, reference="human-brain", return_result=True, force=True, verbose=False
        )
    finally:
        module.load_reference = load
    return {FREE: pd.Series(found.labels().astype(str)).replace(BRAIN).to_numpy(str)}


def scores(truth: np.ndarray, calls: np.ndarray, types: set[str]) -> dict[str, float]:
    """Errors, coverage and refusals of one annotation by a reference of ``types``."""
    known, given = np.isin(truth, list(types)), calls != UNASSIGNED
    wrong = given & (calls != truth)
    nan = float("nan")
    return {
        "cells": len(truth),
        "known": int(known.sum()),
        "absent": int((~known).sum()),
        "error": wrong.sum() / given.sum() if given.any() else 0.0,
        "error, known types": wrong[known].sum() / given[known].sum()
        if given[known].any()
        else nan,
        "coverage": given[known].mean() if known.any() else nan,
        "refused": (~given[~known]).mean() if (~known).any() else nan,
    }


def measure(name: str, data: Path, done: set[str], cache: str | None, full_only: bool) -> Any:
    """Rows of a set that are not done yet, one at a time."""
    pair = PAIRS[name]
    query = pair.query(data)
    truth = query.obs["kind"].to_numpy(str)
    if pair.reference is None:
        reference = built_reference(pair, data, query)
        types = set(reference.table["type"].replace(BRAIN))
    else:
        known = pair.reference(data)
        types = set(known.obs["kind"])
    kinds, numbers = np.unique(truth, return_counts=True)
    removable = [k for k, n in zip(kinds, numbers) if k in types and n >= FEWEST]
    for removed in ["", *([] if full_only else removable)]:
        if removed in done or len(types - {removed}) < 2:
            continue
        start = time.process_time()
        if pair.reference is None:
            found = by_brain(without_type(reference, removed), query.copy())
        else:
            slim = known[(known.obs["kind"] != removed).to_numpy()].copy()
            found = by_labels(slim, query.copy(), cache)
        seconds = time.process_time() - start
        for method, calls in found.items():
            row = {"set": name, "method": method, "part": pair.part, "removed": removed}
            row |= scores(truth, calls, types - {removed})
            if removed:
                own = calls[truth == removed]
                taken = pd.Series(own[own != UNASSIGNED]).value_counts()
                row |= {
                    "removed cells": len(own),
                    "refused, removed": np.mean(own == UNASSIGNED),
                    "called": taken.index[0] if len(taken) else "",
                }
            yield row | {"CPU seconds": seconds}


def read_table() -> pd.DataFrame:
    """The rows that were measured."""
    if not TABLE.exists():
        return pd.DataFrame(columns=KEYS)
    return pd.read_csv(TABLE, sep="\t", keep_default_na=True).fillna({"removed": "", "called": ""})


def keep(row: dict[str, Any]) -> None:
    """Write one row, in place of an earlier one; several runs may write to the table."""
    import fcntl
    import tempfile

    with open(Path(tempfile.gettempdir()) / "scmamba_calibration.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _replace(row)


def _replace(row: dict[str, Any]) -> None:
    """Write one row, in place of an earlier one."""
    table = read_table()
    same = np.ones(len(table), dtype=bool)
    for key in KEYS:
        same &= (table[key].astype(str) == str(row[key])).to_numpy()
    empty = {"removed cells": np.nan, "refused, removed": np.nan, "called": ""}
    table = pd.concat([table[~same], pd.DataFrame([empty | row])], ignore_index=True)
    order = {name: i for i, name in enumerate(PAIRS)}
    table = table.sort_values(
        KEYS, key=lambda c: c.map(order) if c.name == "set" else c, kind="stable"
    )
    table.round(4).to_csv(TABLE, sep="\t", index=False, lineterminator="\n")


def summary(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """One row per set: the whole reference, and the refusals over the types that were removed in turn."""
    rows = []
    for name, pair in PAIRS.items():
        own = table[(table["set"] == name) & (table["method"] == method)]
        whole = own[own["removed"] == ""]
        if not len(whole):
            continue
        first, parts = whole.iloc[0], own[own["removed"] != ""]
        sizes = parts["removed cells"].to_numpy(float) if len(parts) else np.zeros(0)
        refused = parts["refused, removed"].to_numpy(float) if len(parts) else np.zeros(0)
        rows.append(
            {
                "set": name,
                "part": pair.part,
                "known cells": first["known"],
                "error": first["error"],
                "error, known types": first["error, known types"],
                "coverage": first["coverage"],
                "absent cells": first["absent"],
                "refused": first["refused"],
                "types removed": len(parts),
                "refused, mean of types": refused.mean() if len(parts) else np.nan,
                "refused, of cells": np.average(refused, weights=sizes) if len(parts) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def report() -> None:
    """Markdown from the table."""
    from scmamba.evaluation.annotation_report import markdown

    table = read_table()
    paragraphs = __doc__.split("\n\n")
    parts = [
        "# Calibration across studies",
        "Made by `python -m benchmarks.calibration`. "
        + " ".join(" ".join(p.split()) for p in paragraphs[2:]),
    ]
    for method in table["method"].unique():
        rows = summary(table, method).round(3).astype(object)
        parts += [f"## {method}", markdown(rows.where(rows.notna(), "").set_index("set"))]
        single = table[(table["method"] == method) & (table["removed"] != "")]
        if not len(single):
            continue
        columns = ["set", "removed", "removed cells", "refused, removed", "called", "coverage"]
        single = single[columns].round(3).astype({"removed cells": int})
        parts += [f"### {method}: each type removed in turn", markdown(single.set_index("set"))]
    (TABLE.parent / "calibration.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is not there yet, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", nargs="*", choices=list(PAIRS))
    parser.add_argument("--part", choices=[DEV, OUT])
    parser.add_argument("--cache", help="folder for fitted references")
    parser.add_argument("--full", action="store_true", help="only with the whole reference")
    parser.add_argument("--again", action="store_true", help="measure rows that are there again")
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.report:
        for name in options.set or list(PAIRS):
            if options.part and PAIRS[name].part != options.part:
                continue
            table = read_table()
            own = table[(table["set"] == name) & table["method"].isin([STRICT, FREE])]
            done = set() if options.again else set(own["removed"].astype(str))
            for row in measure(name, options.data, done, options.cache, options.full):
                keep(row)
                print(
                    {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()},
                    flush=True,
                )
    report()


if __name__ == "__main__":
    main()
