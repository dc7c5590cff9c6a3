"""What imputation puts into the zeros: deviance of split counts, genes of other cell types, lost markers, depth.

Masked counts are all positive, so they cannot show values that were invented. Split counts score every entry, zeros
included, and by cell type; foreign genes show what a cell type received from others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.utils.extmath import randomized_svd

from ...data.count_splitting import poisson_deviance, split_counts
from ...data.selection import select_matrix
from ...utils.columns import as_text, require_column
from ...utils.errors import DataError, OptionError
from ...utils.progress import track
from .dispersion import dispersion_within

if TYPE_CHECKING:
    from anndata import AnnData

#: A method: cells with counts in ``X`` -> (cells, genes) rates, shares of each cell's counts.
RateMethod = Callable[["AnnData"], np.ndarray]
_LEAST_RATE = 1e-5  # rates in other types below it are too rare to be called foreign
_MARKER_COUNTS = 5  # counts in its own type that a marker has at least


def count_splitting(
    adata: AnnData,
    methods: Mapping[str, RateMethod],
    *,
    layer: str | None = None,
    label_key: str | None = None,
    gene_sets: Mapping[str, Collection[str]] | None = None,
    share: float = 0.8,
    dispersion: np.ndarray | float | str = 0.0,
    min_cells: int = 5,
    seed: int = 0,
    verbose: bool = True,
) -> pd.DataFrame:
    """Fit methods to one part of the counts and score them on every entry of the other part.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in ``X`` or ``layer``.
    methods
        Functions by name: given an AnnData with the first part of the counts in ``X``, a function returns (cells,
        genes) expected rates.
    layer
        Layer with the counts. Default ``X``.
    label_key
        Column of ``obs`` with cell types; the gain is then given for each type as well, and for the markers of the
        cells' own types and for their foreign genes (:func:`foreign_genes` of the first part). Default: none.
    gene_sets
        Names of genes by the name of a set, such as housekeeping genes; the gain is then given for each set as well.
        Default: none.
    share
        Share of the counts in the first part. Default 0.8.
    dispersion
        Dispersion of over-dispersed counts, a number or one per gene (see :func:`split_counts`), or ``"fitted"``: that of
        each gene within the cell types of ``label_key`` (:func:`dispersion_within`). Default 0, Poisson.
    min_cells
        Genes counted in fewer cells are not scored. Default 5.
    seed
        Seed of the split. Default 0.
    verbose
        Show progress. Default True.

    Returns
    -------
    DataFrame
        One row per method: ``deviance``, the mean Poisson deviance per cell over all entries of the second part, and
        ``gain``, the share of the deviance of the gene's average rate that the method removes; with ``label_key`` also
        ``gain: <type>``, ``genes: own markers`` and ``genes: foreign``; with ``gene_sets`` ``genes: <set>``.

    Raises
    ------
    DataError
        Not raw counts, no such column, or a method that returns rates of another shape.
    OptionError
        ``dispersion="fitted"`` without ``label_key``.

    References
    ----------
    Neufeld et al. (2024), Biostatistics 25, 270-287.

    Examples
    --------
    >>> import numpy as np, scmamba
    >>> nuclei = scmamba.datasets.brain_cohort(60, seed=0)[:, ::8].copy()
    >>> def average(cells):
    ...     rate = np.asarray(cells.X.sum(axis=0)).ravel() / cells.X.sum()
    ...     return np.broadcast_to(rate, cells.shape)
    >>> table = scmamba.evaluation.count_splitting(nuclei, {"average": average}, verbose=False)
    >>> bool(abs(table.loc["average", "gain"]) < 0.02)
    True
    """
    counts = _raw_counts(adata, layer, integers=True)
    labels = None if label_key is None else _labels(adata, label_key)
    genes = np.bincount(counts.indices, minlength=counts.shape[1]) >= min_cells
    spread = _spread(counts, dispersion, labels, genes)
    train, test = split_counts(counts[:, genes], share, dispersion=spread, seed=seed)
    depth = np.asarray(train.sum(axis=1)).ravel()
    full = depth > 0
    train, test, depth = train[full], test[full], depth[full]
    expected_depth = depth * (1 - share) / share
    cells = adata[full][:, genes].copy()
    cells.X = train
    average = np.asarray(train.sum(axis=0)).ravel() + 0.5
    labels = None if labels is None else labels[full]
    # Of the first part: chosen by both parts, foreign genes would be rare in the second by construction.
    sets = _entry_sets(train, cells.var_names, labels, gene_sets or {})
    groups = {} if labels is None else {t: labels == t for t in np.unique(labels)}

    def deviances(rate: np.ndarray) -> dict[str, float]:
        expected = rate * expected_depth[:, None]
        each = poisson_deviance(test, expected)
        found = {"gain": each.sum()}
        found |= {f"gain: {name}": each[own].sum() for name, own in groups.items()}
        for name, entries in sets.items():
            found[f"genes: {name}"] = poisson_deviance(test, expected, entries).sum()
        return found

    null = deviances(np.broadcast_to(average / average.sum(), train.shape))
    rows = {}
    for name, method in track(methods.items(), "Scoring split counts", len(methods), verbose):
        rate = np.asarray(method(cells))
        if rate.shape != cells.shape:
            raise DataError(
                f"'{name}' returned rates of shape {rate.shape}; expected {cells.shape}."
            )
        found = deviances(rate)
        rows[name] = {"deviance": found["gain"] / len(depth)} | {
            key: 1 - value / max(null[key], 1e-12) for key, value in found.items()
        }
    return pd.DataFrame(rows).T.rename_axis("method")


def _spread(
    counts: sparse.csr_matrix,
    dispersion: np.ndarray | float | str,
    labels: np.ndarray | None,
    genes: np.ndarray,
) -> np.ndarray | float:
    """Dispersion of the genes that are scored."""
    if not isinstance(dispersion, str):
        given = np.asarray(dispersion, dtype=np.float64)
        return given[genes] if given.shape == genes.shape else given
    if dispersion != "fitted":
        raise OptionError(
            f"dispersion is '{dispersion}'; expected a number, one number per gene, or 'fitted'."
        )
    if labels is None:
        raise OptionError(
            "dispersion='fitted' is the dispersion within cell types; pass their column with label_key=..., or a number."
        )
    return dispersion_within(counts, labels)[genes]


def _entry_sets(
    counts: sparse.csr_matrix,
    names: Collection[str],
    labels: np.ndarray | None,
    gene_sets: Mapping[str, Collection[str]],
) -> dict[str, np.ndarray]:
    """(cells, genes) masks of the entries that are scored apart."""
    sets = {}
    if labels is not None:
        of_types = foreign_genes(counts, labels)
        for name, at in (("foreign", 0), ("own markers", 1)):
            sets[name] = np.stack([of_types[label][at] for label in labels])
    for name, chosen in gene_sets.items():
        mask = np.isin(np.asarray(names).astype(str), list(chosen))
        sets[name] = np.broadcast_to(mask, counts.shape)
    return sets


def foreign_genes(
    counts: sparse.csr_matrix, labels: np.ndarray, *, fold: float = 10.0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Genes that belong to other cell types, and markers of the own one.

    Parameters
    ----------
    counts
        (cells, genes) raw counts.
    labels
        (cells,) cell types.
    fold
        Ratio of the rates in the other types and in the own one, from which a gene is foreign (the other way round: a
        marker). Default 10.

    Returns
    -------
    dict
        For each type two (genes,) masks: foreign genes (at least ``fold`` times the rate in all other types together, and
        there at least 1 count in 100,000) and markers (at least 5 counts in the type).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.evaluation import foreign_genes
    >>> counts = sparse.csr_matrix(np.repeat([[100, 1], [1, 100]], 20, axis=0))
    >>> foreign, markers = foreign_genes(counts, np.repeat(["a", "b"], 20))["a"]
    >>> foreign, markers
    (array([False,  True]), array([ True, False]))
    """
    labels = np.asarray(labels).astype(str)
    every = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    found = {}
    for label in np.unique(labels):
        own = np.asarray(counts[labels == label].sum(axis=0), dtype=np.float64).ravel()
        other = every - own
        # Half a count: of a gene that a few cells did not show, the rate is not 0.
        rate = (own + 0.5) / max(own.sum(), 1.0)
        rate_other = other / max(other.sum(), 1.0)
        foreign = (rate_other >= fold * rate) & (rate_other >= _LEAST_RATE)
        markers = (rate >= fold * rate_other) & (own >= _MARKER_COUNTS)
        found[str(label)] = (foreign, markers)
    return found


def foreign_gene_scores(
    adata: AnnData,
    values: Mapping[str, Any],
    label_key: str,
    *,
    layer: str | None = None,
    max_cells: int | None = 60,
    fold: float = 10.0,
) -> pd.DataFrame:
    """How much of each cell type's imputed profile belongs to other types.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in ``X`` or ``layer``.
    values
        Imputed matrices by name: (cells, genes) log1p(CP10k), sparse or dense. A row ``raw`` is added.
    label_key
        Column of ``obs`` with the cell types.
    layer
        Layer with the counts. Default ``X``.
    max_cells
        Types with more cells are omitted; ``None``: all types. Default 60.
    fold
        As for :func:`foreign_genes`. Default 10.

    Returns
    -------
    DataFrame
        One row per type and matrix: ``cells``, ``foreign_genes`` (their number), ``foreign_share`` (of the cells' summed
        profile), ``foreign_value`` (mean log1p(CP10k) over cells and foreign genes), ``false_positives`` (foreign genes
        above 0.2 per cell) and ``marker_share`` (of the profile; less than in ``raw``: lost genes).

    Raises
    ------
    DataError
        Not raw counts, no such column, or matrices of another shape.

    Examples
    --------
    >>> import numpy as np, scmamba
    >>> nuclei = scmamba.datasets.brain_cohort(60, seed=0)[:, ::8].copy()
    >>> smooth = np.full(nuclei.shape, 0.1)
    >>> table = scmamba.evaluation.foreign_gene_scores(nuclei, {"flat": smooth}, "cell_type")
    >>> sorted(set(table["values"]))
    ['flat', 'raw']
    """
    counts = _raw_counts(adata, layer)
    labels = _labels(adata, label_key)
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    raw = counts.multiply(1e4 / totals[:, None]).tocsr()
    raw.data = np.log1p(raw.data)
    rows = []
    for label, (foreign, markers) in foreign_genes(counts, labels, fold=fold).items():
        own = labels == label
        if max_cells is not None and own.sum() > max_cells:
            continue
        for name, matrix in {"raw": raw, **values}.items():
            if matrix.shape != counts.shape:
                raise DataError(f"'{name}' has the shape {matrix.shape}; expected {counts.shape}.")
            part = matrix[np.flatnonzero(own)]
            part = part.toarray() if sparse.issparse(part) else np.asarray(part)
            part = part.astype(np.float64)
            linear = np.expm1(part)
            total = max(linear.sum(), 1e-12)
            foreign_values = part[:, foreign]
            rows.append(
                {
                    "type": label,
                    "values": name,
                    "cells": int(own.sum()),
                    "foreign_genes": int(foreign.sum()),
                    "foreign_share": linear[:, foreign].sum() / total,
                    "foreign_value": foreign_values.mean() if foreign_values.size else 0.0,
                    "false_positives": (foreign_values > 0.2).sum(axis=1).mean(),
                    "marker_share": linear[:, markers].sum() / total,
                }
            )
    return pd.DataFrame(rows)


def depth_scores(values: Any, totals: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """How far imputed values depend on the depth of the cell.

    Parameters
    ----------
    values
        (cells, genes) log1p(CP10k), sparse or dense.
    totals
        (cells,) total counts.
    seed
        Seed of the principal components. Default 0.

    Returns
    -------
    dict
        ``sum_5``, ``sum_50``, ``sum_95``: quantiles of the cells' sums, counts per 10,000; Spearman correlations with
        the depth of the sums, of the number of values above 0.2, and the largest absolute one of the first three
        principal components: ``sum_depth``, ``number_depth``, ``component_depth``.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.evaluation import depth_scores
    >>> values = np.log1p(np.random.default_rng(0).gamma(1.0, 50.0, (40, 200)))
    >>> depth_scores(values, np.arange(1, 41))["sum_50"] > 9000
    True
    """
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    dense = dense.astype(np.float64)
    sums = np.expm1(dense).sum(axis=1)
    centered = dense - dense.mean(axis=0)
    left, size, _ = randomized_svd(centered, min(3, min(dense.shape) - 1), random_state=seed)
    components = [_spearman(left[:, i] * size[i], totals) for i in range(left.shape[1])]
    low, middle, high = np.quantile(sums, [0.05, 0.5, 0.95])
    return {
        "sum_5": float(low),
        "sum_50": float(middle),
        "sum_95": float(high),
        "sum_depth": _spearman(sums, totals),
        "number_depth": _spearman((dense > 0.2).sum(axis=1), totals),
        "component_depth": float(np.max(np.abs(components))),
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where one side does not vary beyond rounding."""
    if np.ptp(a) <= 1e-5 * np.abs(a).max() or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _raw_counts(adata: AnnData, layer: str | None, *, integers: bool = False) -> sparse.csr_matrix:
    selected = select_matrix(adata, layer)
    found = selected.detect()
    if found.kind != "counts" or (integers and not found.integer):
        raise DataError(
            f"Raw counts are needed to score imputed zeros, but {found.sentence}. Pass their layer with layer=..."
        )
    return selected.rows(slice(None))


def _labels(adata: AnnData, label_key: str) -> np.ndarray:
    return as_text(require_column(adata.obs, label_key))
