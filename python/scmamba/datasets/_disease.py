"""Published changes in disease and the variation of real controls, for the semi-synthetic cohort.

The table beside this file is written by ``benchmarks/fit_disease.py``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from ..utils.errors import DataError

#: Largest log2 fold change that a user's table may hold.
LARGEST = 15.0


@lru_cache(maxsize=1)
def disease_parameters() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table (one row per gene of the cohort, indexed by symbol) and the parameters of its ``#!`` line."""
    source = resources.files(__package__).joinpath("disease.tsv.gz")
    with source.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as text:
        header: dict[str, Any] = {}
        for line in text:
            if line.startswith("#!"):
                header = json.loads(line[2:])
            elif not line.startswith("#"):
                columns = line.rstrip("\n").split("\t")
                break
        # "NA" would be no symbol; empty cells are genes without a change.
        table = pd.read_csv(text, sep="\t", names=columns, keep_default_na=False, na_values=[""])
    return table.set_index("symbol"), header


def published_changes(
    rng: np.random.Generator,
    disease: str,
    genes: pd.DataFrame,
    types: Sequence[str],
    expressed: np.ndarray,
) -> np.ndarray:
    """(types, genes) log2 fold changes of one disease.

    Parameters
    ----------
    rng
        For the genes of a disease of which only numbers and sizes of changes come with the package.
    disease
        ``"AD"``: each gene's own change. ``"PD"``: as many genes of each type, up and down, and as large changes.
    genes
        Table of the cohort's genes, ``symbol`` among its columns.
    types
        Cell types; those without a published table do not change.
    expressed
        (types, genes) whether the type expresses the gene.
    """
    table, header = disease_parameters()
    out = np.zeros((len(types), len(genes)))
    for i, name in enumerate(types):
        column = f"{disease}_{name}"
        if column in table.columns:
            own = table[column].reindex(genes["symbol"]).to_numpy(dtype=float)
            out[i] = np.where(np.isfinite(own) & expressed[i], own, 0.0)
        elif name in header.get(disease, {}):
            known = header[disease][name]
            deciles = np.asarray(known["quantiles"])
            size = np.interp(rng.random(len(genes)), np.linspace(0.05, 0.95, deciles.size), deciles)
            sign = np.where(rng.random(len(genes)) < known["up"], 1.0, -1.0)
            changed = (rng.random(len(genes)) < known["share"]) & expressed[i]
            out[i] = np.where(changed, sign * size, 0.0)
    return out


def given_changes(
    effects: pd.DataFrame, genes: pd.DataFrame, types: Sequence[str], known: Sequence[str]
) -> np.ndarray:
    """(types, genes) log2 fold changes of a user's table.

    Parameters
    ----------
    effects
        Genes (symbols or Ensembl IDs) x cell types; missing values are no change.
    genes
        Table of the cohort's genes: ``symbol``, ``ensembl_id``.
    types
        Cell types of the cohort.
    known
        All cell types there are.

    Raises
    ------
    DataError
        No table, unknown cell types, genes twice, values that are not finite log2 fold changes, or no gene of the cohort.
    """
    if not isinstance(effects, pd.DataFrame):
        raise DataError(
            f"effects is {type(effects).__name__}; expected a DataFrame of log2 fold changes, genes x cell types."
        )
    if unknown := sorted(set(map(str, effects.columns)) - set(known)):
        raise DataError(
            f"The table of effects has columns that are no cell types: {', '.join(unknown)}. "
            f"Name its columns after {', '.join(known)}."
        )
    if effects.index.has_duplicates or effects.columns.has_duplicates:
        twice = effects.index[effects.index.duplicated()].tolist()[:3]
        raise DataError(f"The table of effects has rows or columns twice: {twice or 'columns'}.")
    try:
        values = effects.astype(float)
    except (TypeError, ValueError) as error:
        raise DataError("The table of effects holds values that are not numbers.") from error
    if (values.abs() > LARGEST).to_numpy().any():
        raise DataError(
            f"The table of effects holds a value beyond {LARGEST:g}; expected log2 fold changes."
        )
    for names in ("symbol", "ensembl_id"):
        found = values.reindex(genes[names])
        if genes[names].isin(values.index).any():
            return found.reindex(columns=list(types)).fillna(0.0).to_numpy().T
    raise DataError(
        "None of the genes of the table of effects is in the cohort. Index it by gene symbols or Ensembl IDs."
    )
