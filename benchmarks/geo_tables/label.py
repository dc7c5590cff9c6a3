"""Cell types: the authors' table if it is given, else ``scmamba.prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import say

from .studies import (
    LEAST_GENES,
    LEFT_OUT,
    LEVELS,
    PREPARED,
    TYPES,
    Study,
    keep,
    made,
    note_of,
    obs_of,
    place,
    read_json,
    sha256_of,
    write_json,
)


def prepare(study: Study, options: argparse.Namespace) -> None:
    """Cells with their types as ``labelled.h5ad``: the authors' labels if given, else those of ``scmamba.prepare``.

    ``obs`` study, donor, sample, disease, ``celltype`` (as published, left-overs with their names) and for each level ``label_LEVEL``, ''
    where a cell has none.
    """
    folder = place(study, options)
    source, target = folder / "cells.h5ad", folder / "labelled.h5ad"
    if not source.is_file():
        raise ScMambaError(f"{study.name}: there is no {source}. Run the step 'read' first.")
    how = {
        "cells": read_json(note_of(source)),
        "labels": labels_of(options),
        "min_donor_cells": options.min_donor_cells,
    }
    if made(target, how):
        say(f"{study.name}: {target.name} is there", True)
        return
    cells = (
        by_table(study, ad.read_h5ad(source), options.labels)
        if options.labels
        else by_markers(source, folder / "prepare", how)
    )
    cells.obs["study"] = study.name
    for column in (
        "study",
        "donor",
        "sample",
        "disease",
        "celltype",
        *(f"label_{level}" for level in LEVELS),
    ):
        cells.obs[column] = pd.Categorical(cells.obs[column].astype(str))
    keep(cells, target, how)
    numbers = cells.obs["celltype"].value_counts()
    say(
        f"{study.name}: {cells.n_obs:,} cells: "
        + ", ".join(f"{name} {number:,}" for name, number in numbers.items()),
        True,
    )


def labels_of(options: argparse.Namespace) -> str:
    """The source of the labels, in words that change with the file."""
    if options.labels is None:
        return "scmamba.prepare"
    if not options.labels.is_file():
        raise ScMambaError(f"There is no file of labels {options.labels}.")
    return f"{options.labels.name} (SHA-256 {sha256_of(options.labels)[:16]})"


def by_markers(source: Path, folder: Path, how: dict[str, Any]) -> ad.AnnData:
    """Cell types by the paper's procedure, repeated only if cells or settings have changed; no subtypes."""
    import scmamba

    folder.mkdir(exist_ok=True)
    fresh = read_json(folder / "how.json") != how
    write_json(folder / "how.json", how)
    # The published code calls every sample a donor; two of Leng's samples are of one person.
    prepared = scmamba.prepare(
        source,
        folder=folder,
        donor_key="sample",
        min_cells_per_donor=how["min_donor_cells"],
        overwrite=fresh,
    )
    people = obs_of(source)["donor"]
    obs = prepared.obs[["sample", "disease"]].assign(
        donor=people.loc[prepared.obs_names].astype(str).to_numpy(),
        celltype=prepared.obs["scmamba_cluster_type"].astype(str).replace(PREPARED).to_numpy(),
    )
    obs = obs.assign(
        label_celltype=obs["celltype"].where(obs["celltype"].isin(TYPES), ""),
        label_subtype="",
        label_subcluster="",
    )
    return ad.AnnData(prepared.X, obs=obs, var=prepared.var[["symbol"]])


def by_table(study: Study, cells: ad.AnnData, file: Path) -> ad.AnnData:
    """Cell types, subtypes and subclusters of a table of labels; cells that are not in it are Unidentified (published code).

    Raises
    ------
    ScMambaError
        Columns are missing, no cell of the study is in the table, or types are unknown.
    """
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    if missing := {"study", "id", "celltype"} - set(table):
        raise ScMambaError(
            f"{file.name} has no column {', '.join(sorted(missing))}; it has {', '.join(table)}."
        )
    own = (
        table[table["study"].str.lower().isin(known_names(study))]
        .drop_duplicates("id")
        .set_index("id")
    )
    if not len(own):
        listed = ", ".join(table["study"].unique())
        raise ScMambaError(
            f"{file.name} has no cell of {study.name} (or {study.code}); its studies are {listed}."
        )
    ids = matching_ids(cells.obs, own.index, f"{file.name}, {study.name}")
    if strange := sorted(set(own["celltype"]) - {*TYPES, *LEFT_OUT, ""}):
        raise ScMambaError(
            f"{file.name}: unknown cell types {', '.join(strange)}. Known are {', '.join((*TYPES, *LEFT_OUT))}."
        )
    found = own.reindex(ids)
    obs = cells.obs[["donor", "sample", "disease"]].assign(
        celltype=found["celltype"].fillna("Unidentified").to_numpy()
    )
    obs["celltype"] = obs["celltype"].replace("", "Unidentified")
    fine = {
        level: found[level].fillna("").to_numpy(dtype=str)
        if level in found
        else np.full(len(found), "")
        for level in LEVELS[1:]
    }
    obs["label_celltype"] = obs["celltype"].where(obs["celltype"].isin(TYPES), "")
    for level, names in fine.items():
        undivided = obs["celltype"].isin(study.whole).to_numpy() & bool((names != "").any())
        absent = np.isin(names, ("", "doublet", "Unidentified")) | np.isin(
            fine["subtype"], ("", "doublet", "Unidentified")
        )
        divided = np.where(absent, "", obs["celltype"].to_numpy(dtype=str) + "_" + names)
        obs[f"label_{level}"] = np.where(
            undivided, obs["celltype"], np.where(obs["label_celltype"] != "", divided, "")
        )
    deep = np.diff(sparse.csr_matrix(cells.X).indptr) >= LEAST_GENES
    return ad.AnnData(cells.X[deep], obs=obs[deep], var=cells.var)


def known_names(study: Study) -> set[str]:
    return {study.name.lower(), study.code.lower(), study.accession.lower()}


def matching_ids(obs: pd.DataFrame, ids: pd.Index, what: str) -> pd.Index:
    """(n,) the cells' names in the form that the table uses; none has been published.

    Raises
    ------
    ScMambaError
        No form matches a single cell.
    """
    sample, barcode = (obs[c].astype(str).to_numpy(dtype=object) for c in ("sample", "barcode"))
    full = np.where(
        obs["accession"].astype(str) == "",
        sample,
        obs["accession"].astype(str).to_numpy(dtype=object) + "_" + sample,
    )
    bare = np.array([b.split("-")[0] for b in barcode], dtype=object)
    forms = [obs.index.to_numpy(dtype=object), barcode, bare]
    forms += [
        a + "_" + b
        for who in (sample, full)
        for word in (barcode, bare)
        for a, b in ((who, word), (word, who))
    ]
    usable = [form for form in map(pd.Index, forms) if form.is_unique]
    best = max(usable, key=lambda form: int(form.isin(ids).sum()))
    number = int(best.isin(ids).sum())
    if not number:
        raise ScMambaError(
            f"{what}: none of its {len(ids):,} ids is a cell here. Its first is '{ids[0]}'; the cells are called '{obs.index[0]}'."
        )
    say(
        f"{what}: {number:,} of {len(obs):,} cells are in it, {len(ids) - number:,} of its ids are not here",
        True,
    )
    return best
