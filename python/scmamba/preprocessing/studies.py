"""Reading studies: Ensembl IDs as genes, one ``study`` and ``donor`` column."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.h5ad_files import open_backed
from ..data.selection import select_matrix
from ..data.storage import stem
from ..genes import Vocabulary, annotation, match_adata
from ..utils.columns import require_column
from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


#: Donor of the cells that have none, which are not kept; no donor has an empty name.
NO_DONOR = ""


def read_studies(data: Any, donor_key: str) -> list[AnnData]:
    """Each study with Ensembl IDs as genes (summed where several rows are one gene), ``obs`` ``study`` and ``donor``, and what its values are in ``uns["values"]``."""
    import anndata

    several = list(data) if isinstance(data, (list, tuple)) else [data]
    if not several:
        raise DataError("There is nothing to prepare: no study was given.")
    known = annotation()
    vocabulary = Vocabulary.from_ids(
        list(known.ensembl_id[known.chromosome != "Y"]), list(known.symbol[known.chromosome != "Y"])
    )
    studies = []
    names = _names(several)
    for number, item in enumerate(several):
        name = names[number]
        study = item if isinstance(item, anndata.AnnData) else open_backed(item).to_memory()
        require_column(study.obs, donor_key, f"of {name}")
        values = select_matrix(study).detect()
        if values.kind != "counts":
            raise DataError(f"{name}: raw counts are needed, but {values.sentence}.")
        studies.append(_ensembl(study, name, donor_key, vocabulary, len(several) > 1))
        studies[-1].uns["values"] = values.sentence
    return studies


def _ensembl(
    study: AnnData, name: str, donor: str, vocabulary: Vocabulary, several: bool
) -> AnnData:
    import anndata

    match = match_adata(study, vocabulary)
    if (is_gene := select_matrix(study).is_gene) is not None:
        match.ignore(~is_gene)
    match.check(min_coverage=0)
    rows = match.matched
    genes, place = np.unique(match.positions[rows], return_inverse=True)
    gather = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, place)), shape=(study.n_vars, len(genes))
    )
    counts = sparse.csr_matrix(
        sparse.csr_matrix(study.X, dtype=np.float64) @ gather, dtype=np.float32
    )
    obs = study.obs.copy()
    known = obs[donor].notna().to_numpy()
    obs["study"] = name
    obs["donor"] = np.where(
        known, (f"{name}:" if several else "") + obs[donor].astype(str), NO_DONOR
    )
    obs.index = [f"{name}:{cell}" for cell in obs.index] if several else obs.index
    var = pd.DataFrame(
        {"symbol": [vocabulary.symbols[g] for g in genes]}, index=[vocabulary[g] for g in genes]
    )
    return anndata.AnnData(counts, obs=obs, var=var)


def _names(several: list[Any]) -> list[str]:
    """A name for each study: of the file, with folders if file names are equal; objects are numbered."""
    given = [
        None if not isinstance(item, (str, PathLike)) else Path(item).expanduser().resolve()
        for item in several
    ]
    names = [f"study{i}" if path is None else stem(path) for i, path in enumerate(given, start=1)]
    for i, path in enumerate(given):
        if path is not None and names.count(names[i]) > 1:
            names[i] = f"{path.parent.name}/{names[i]}"
    return [n if names.count(n) == 1 else f"{n}#{i}" for i, n in enumerate(names, start=1)]
