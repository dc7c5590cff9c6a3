"""Pseudobulk: one value per donor, so that donors and not cells are the unit of the test.

Counts are summed over the cells of each donor and group, put on log2 counts per million with a prior count,
and compared by a linear model whose gene variances are shrunken towards a common one (the moderated t-test of
Smyth, Stat Appl Genet Mol Biol 3:3, 2004). Tests over cells count every cell as a new person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..utils.columns import require_adata
from ..utils.deprecation import renamed_parameters
from .columns import as_list
from .linear import moderated_t
from .markers import two_groups
from .options import PseudobulkOptions
from .samples import (
    Samples,
    require_two,
    sample_design,
    sample_table,
    sum_cells,
    warn_notes,
    without_empty,
)
from .values import Scale, layer_source

PRIOR_COUNT = 2.0


@renamed_parameters(groupby="condition_key", donor="donor_key", latent_vars="covariates")
def pseudobulk(
    adata: Any,
    condition_key: str,
    donor_key: str,
    group1: str | Sequence[str],
    group2: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    scale: Scale = "auto",
    covariates: str | Sequence[str] | None = None,
    paired: bool | None = None,
    moderate: bool = True,
    min_cells: int = 10,
    min_total: float = 10.0,
) -> pd.DataFrame:
    """Test the difference between two groups with the donor as the unit.

    :func:`scmamba.deg.compare` does the same for every cell type, with observation weights and a report.

    Parameters
    ----------
    adata
        AnnData with raw counts in X (or ``layer``). Log values are averaged per donor after expm1 instead.
    condition_key
        Column of ``obs`` with the condition.
    donor_key
        Column of ``obs`` with the donors. A donor with cells in both groups gives one sample in each.
    group1
        Value of ``condition_key``, the condition of interest; several are one group.
    group2
        What it is compared with; None: all other cells with a value.
    layer
        Layer with the values; None: X.
    scale
        ``"counts"`` or ``"log"`` overrides what the values are taken for.
    covariates
        Columns of ``obs`` that are constant within a sample (age, sex, batch), added to the model.
    paired
        Compare within donors. Default (None): yes if every donor has both groups.
    moderate
        Shrink variances over genes; False gives ordinary t-tests.
    min_cells
        Samples with fewer cells are omitted.
    min_total
        Genes with a smaller sum over the samples are omitted (counts only).

    Returns
    -------
    DataFrame indexed by gene, sorted by p: ``log2FC`` (group 1 over group 2), ``mean_log2`` expression,
    ``t``, ``df``, ``p_val``, ``p_val_adj`` (Benjamini-Hochberg). ``attrs["samples"]`` is the table of
    samples, ``attrs["notes"]`` lists which donors were omitted and why.

    Raises
    ------
    DataError
        A group has fewer than two samples, or a covariate is missing, infinite, or varies within a sample.
    OptionError
        An option is outside of its range.

    Examples
    --------
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=800, n_genes=200, seed=1)
    >>> table = deg.pseudobulk(adata, "disease", "donor", "AD", "Control")
    >>> list(table.columns)
    ['log2FC', 'mean_log2', 't', 'df', 'p_val', 'p_val_adj']
    """
    PseudobulkOptions.from_mapping(
        {
            "condition_key": condition_key,
            "donor_key": donor_key,
            "group1": group1,
            "group2": group2,
            "layer": layer,
            "scale": scale,
            "covariates": covariates,
            "paired": paired,
            "moderate": moderate,
            "min_cells": min_cells,
            "min_total": min_total,
        }
    )
    require_adata(adata, "pseudobulk()")
    group = two_groups(adata.obs, condition_key, group1, group2)
    table, code, names = sample_table(adata.obs, group, donor_key, as_list(covariates), min_cells)
    source = layer_source(adata, layer, scale)
    kind = "log" if source.totals is None else "counts"
    samples = Samples(table, np.zeros((len(table), 0)), names)
    require_two(samples, min_cells)
    sums = sum_cells(source.matrix, code, len(table), logs=kind != "counts")
    samples, notes = without_empty(Samples(table, sums, names))
    require_two(samples, min_cells)
    levels, kept = sample_levels(samples, kind, min_total)
    design, column = sample_design(samples, paired)
    result = moderated_t(levels, design.matrix, column, moderate=moderate)
    result.index = pd.Index(np.asarray(source.genes)[kept], name="gene")
    result = result.sort_values("p_val", kind="stable")
    warn_notes(notes)
    result.attrs["samples"] = samples.table
    result.attrs["values"] = source.values
    result.attrs["notes"] = tuple(notes)
    return result


def sample_levels(samples: Samples, kind: str, min_total: float) -> tuple[np.ndarray, np.ndarray]:
    """(genes, samples) log2 levels and the genes kept."""
    sums = samples.sums
    if kind == "counts":
        library = sums.sum(axis=1)
        kept = np.flatnonzero((sums.sum(axis=0) >= min_total) & ((sums > 0).sum(axis=0) > 1))
        prior = PRIOR_COUNT * library / library.mean()
        return np.log2(
            (sums[:, kept] + prior[:, None]) / (library + 2 * prior)[:, None] * 1e6
        ).T, kept
    means = sums / samples.table["cells"].to_numpy()[:, None]
    kept = np.flatnonzero((means > 0).sum(axis=0) > 1)
    return np.log2(means[:, kept] * 100.0 + PRIOR_COUNT).T, kept
