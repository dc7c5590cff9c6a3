"""The table of masked counts: mask every counted value once, predict it, score the predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ...data.selection import select_matrix
from ...utils.errors import DataError
from ...utils.progress import progress, say
from .metrics import score
from .predictors import PREDICTORS, Hidden, choose_predictors

if TYPE_CHECKING:
    from anndata import AnnData

    from .model_rows import ModelRow


def nonzero_imputation(
    adata: AnnData,
    model: Any = None,
    *,
    predictors: Sequence[str] | Mapping[str, Callable[[Hidden], np.ndarray]] | None = None,
    layer: str | None = None,
    reference: AnnData | None = None,
    min_total: float = 2000,
    min_cells: int = 10,
    groups: int = 5,
    k: int = 30,
    min_values: int = 20,
    batch_size: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> pd.DataFrame:
    """Mask every counted value once, predict it, and score the predictions beside simple predictors.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in ``X`` or ``layer``. To evaluate a trained model pass cells of donors it was not
        trained on.
    model
        A scMamba model (name, checkpoint folder or open model), or several as ``{row name: model}``. Rows of a model
        with a rate head: a gated ensemble of network and neighbors (as in 0.1.0), weighted by a gating network fitted to the visible
        counts; the adapted network alone; the masked predictions of the model as it is. Row of other models: masked
        prediction. (:func:`scmamba.impute` fills zeros from ``hierarchical_rate``, with the network where it pays.)
        Values of genes outside a model's gene list are predicted by ``gene_rate``, so that all rows score the same
        values; column ``covered`` is the share it predicted itself. Default: no model.
    predictors
        Names of :data:`PREDICTORS` (default: all whose package is installed), or ``{row name: function of a Hidden}``
        to score your own beside them, or both in one mapping with ``None`` for known names.
    layer
        Layer with the counts. Default ``X``.
    reference
        Other cells with the same genes by name (such as the training donors): gene rates and neighbors come from these.
        Default: the visible values of the cells themselves.
    min_total
        Cells with fewer counts are not scored. Default 2,000.
    min_cells
        Genes counted in fewer of the remaining cells are not scored (totals stay those of all genes). Default 10.
    groups
        Number of interleaved groups; one is masked at a time, so a cell shows (groups - 1) / groups of its values.
        Default 5, as in the paper.
    k
        Number of nearest neighbors. Default 30.
    min_values
        Genes with fewer masked values in a group do not enter the within-gene columns. Default 20.
    batch_size
        Cells that a model reads at once. Default: chosen by memory.
    seed
        Seed of the groups and of the predictors. Default 0.
    verbose
        Print messages and progress. Default True.

    Returns
    -------
    DataFrame
        One row per predictor. ``mse``, ``pearson``: on log1p(CP10k), pooled over all masked values (the paper's
        columns). ``pearson_within_gene``: mean over genes and groups of the correlation across cells. ``deviance``:
        zero-truncated Poisson deviance per value, on counts; lower is better. ``pearson_beyond_depth``: the
        within-gene correlation that remains when ``gene_rate``, what depth alone predicts, is regressed out of both
        sides; 0 for any function of depth that is linear in it. ``covered``: share of the values the predictor
        predicted itself. ``attrs`` holds the numbers of cells, genes and values, and descriptions of the rows.

    Raises
    ------
    DataError
        Not raw counts, too few cells after ``min_total``, unknown predictors.

    References
    ----------
    Oh, Choi, Jin, Jung, Ye (2025), arXiv 2502.19429, "Imputation" (``mse``, ``pearson``).

    Examples
    --------
    >>> import scmamba
    >>> nuclei = scmamba.datasets.brain_cohort(80, seed=0)[:, ::4].copy()
    >>> table = scmamba.evaluation.nonzero_imputation(
    ...     nuclei, predictors=["one", "gene_rate"], min_total=0, verbose=False
    ... )
    >>> bool(table.loc["gene_rate", "deviance"] < table.loc["one", "deviance"])
    True
    """
    if groups < 2:
        raise DataError(
            f"groups is {groups}; expected at least 2, so that some values stay visible."
        )
    chosen = choose_predictors(predictors)
    kept, counts, totals = _counts(adata, layer, min_total, min_cells)
    models: Mapping[str, ModelRow] = {}
    if model is not None:
        from .model_rows import model_rows  # torch is imported with it

        models = model_rows(model, kept, layer, batch_size)
    known = _reference_counts(reference, layer, kept.var_names)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    group = _groups(counts, rows, groups, seed)
    say(
        f"{counts.shape[0]} cells x {counts.shape[1]} genes, {counts.nnz} values to mask in {groups} groups",
        verbose,
    )
    predicted: dict[str, np.ndarray] = {}
    covered = dict.fromkeys(chosen, 1.0) | {name: m.covered(counts) for name, m in models.items()}
    work = groups * len(covered)
    with progress("Predicting masked values", work, verbose) as advance:
        for g in range(groups):
            here = np.flatnonzero(group == g)
            hidden = _mask(counts, totals, rows, here, known, kept.var_names, k, seed)
            answers = {name: function(hidden) for name, function in chosen.items()}
            depth = PREDICTORS["gene_rate"][0](hidden)
            advance(len(chosen))
            for name, row in models.items():
                answers[name] = row.predict(hidden, counts, group == g, depth)
                advance(1)
            for name, values in (answers | {"": depth}).items():
                predicted.setdefault(name, np.empty(counts.nnz))[here] = values
    gene = counts.indices.astype(np.int64) * groups + group
    depth = predicted.pop("")
    table = pd.DataFrame(
        {
            name: score(values, counts.data, totals[rows], gene, depth, min_values)
            for name, values in predicted.items()
        }
    ).T
    table["covered"] = pd.Series(covered)
    table.index.name = "predictor"
    table.attrs = _about(counts, chosen)
    return table


def _mask(
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    rows: np.ndarray,
    here: np.ndarray,
    known: tuple[sparse.csr_matrix | None, np.ndarray | None],
    genes: pd.Index,
    k: int,
    seed: int,
) -> Hidden:
    """The counts without the values ``here``, and where these are."""
    visible = counts.copy()
    visible.data[here] = 0
    visible.eliminate_zeros()
    columns = counts.indices[here].astype(np.int64)
    return Hidden(visible, totals, rows[here], columns, *known, genes, k, seed)


def _about(counts: sparse.csr_matrix, chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cells": int(counts.shape[0]),
        "genes": int(counts.shape[1]),
        "values": int(counts.nnz),
        "ones": float((counts.data == 1).mean()),
        "descriptions": {name: PREDICTORS[name][2] for name in chosen if name in PREDICTORS},
    }


def _counts(
    adata: AnnData, layer: str | None, min_total: float, min_cells: int
) -> tuple[AnnData, sparse.csr_matrix, np.ndarray]:
    """The cells and genes that are scored: object, sorted CSR float64 counts, totals over all genes."""
    selected = select_matrix(adata, layer)
    values = selected.detect()
    matrix = selected.rows(slice(None))
    if values.kind != "counts":
        raise DataError(
            f"Raw counts are needed to mask and score values, but {values.sentence}. "
            "Pass the layer that holds them with layer=..."
        )
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    deep = totals >= min_total
    if deep.sum() < 50:
        raise DataError(
            f"{int(deep.sum())} of {len(totals)} cells have at least {min_total:g} counts "
            f"(median {np.median(totals):.0f}); at least 50 are needed. Lower min_total, "
            "and compare tables only at the same min_total."
        )
    genes = np.bincount(matrix[deep].indices, minlength=matrix.shape[1]) >= min_cells
    kept = adata[deep][:, genes]
    counts = sparse.csr_matrix(matrix[deep][:, genes], dtype=np.float64)
    counts.eliminate_zeros()
    counts.sort_indices()
    filled = np.diff(counts.indptr) > 0
    return kept[filled], counts[filled], totals[deep][filled]


def _reference_counts(
    reference: AnnData | None, layer: str | None, genes: pd.Index
) -> tuple[sparse.csr_matrix | None, np.ndarray | None]:
    """The reference's counts on the scored genes, by name (0 where it lacks one), and its totals over all
    genes.
    """
    if reference is None:
        return None, None
    selected = select_matrix(reference, layer)
    values = selected.detect()
    if values.kind != "counts":
        raise DataError(f"Raw counts are needed of the reference, but {values.sentence}.")
    matrix = selected.rows(slice(None))
    where = reference.var_names.get_indexer(genes)
    if (where >= 0).mean() < 0.5:
        raise DataError(
            f"Only {100 * (where >= 0).mean():.0f}% of the genes are in the reference; "
            "pass cells with the same gene names."
        )
    found = np.flatnonzero(where >= 0)
    gather = sparse.csr_matrix(
        (np.ones(len(found)), (where[found], found)), shape=(matrix.shape[1], len(genes))
    )
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.csr_matrix(matrix @ gather)[totals > 0], totals[totals > 0]


def _groups(counts: sparse.csr_matrix, rows: np.ndarray, groups: int, seed: int) -> np.ndarray:
    """Number each cell's values 0, 1, ... from left to right, from a start drawn per cell."""
    start = np.random.default_rng(seed).integers(0, groups, counts.shape[0])
    return (np.arange(counts.nnz) - counts.indptr[rows] + start[rows]) % groups
