"""Non-zero imputation: hide counted values, predict them, and tell depth apart from knowledge of the cell.

After CP10k and log1p a count of one is log1p(1e4 / total), a function of the cell's depth alone, and most
counts of droplet data are ones. So pooled squared error and correlation (the paper's columns) mostly reward
knowing the depth; the deviance on counts and the within-gene correlation beyond depth do not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import gammaln, lambertw

from ..data.values import detect_value_scale
from ..neighbors.rates import NeighborRates, knn_rates, truncated_mean
from ..utils.errors import DataError
from ..utils.progress import progress, say

if TYPE_CHECKING:
    from anndata import AnnData

_LEAST_MEAN = (
    0.01  # smallest Poisson mean a prediction is credited with: ones only, truncated mean 1.005
)


@dataclass
class Hidden:
    """One group of hidden values and everything a predictor may look at.

    Attributes
    ----------
    visible
        (cells, genes) CSR float64 counts, the hidden ones absent.
    totals
        (cells,) total counts, hidden ones included.
    rows, columns
        (n,) where the hidden values are, by increasing row.
    reference, reference_totals
        Counts and totals of other cells to learn from, if there are any; otherwise the visible ones are all
        there is.
    """

    visible: sparse.csr_matrix
    totals: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    reference: sparse.csr_matrix | None
    reference_totals: np.ndarray | None
    genes: pd.Index
    k: int
    seed: int

    @property
    def pool(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts and totals that genes are learnt from."""
        if self.reference is None or self.reference_totals is None:
            return self.visible, self.totals
        return self.reference, self.reference_totals

    @cached_property
    def neighbours(self) -> NeighborRates:
        """The neighbours' rates, found once for all predictors that use them."""
        return knn_rates(
            self.visible,
            self.totals,
            self.k,
            reference=self.reference,
            reference_totals=self.reference_totals,
            seed=self.seed,
        )

    def log(self, counts: np.ndarray) -> np.ndarray:
        """log1p(CP10k) of expected counts at the hidden places."""
        return np.log1p(1e4 / self.totals[self.rows] * counts)


def _log_values(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    out = counts.copy()
    out.data = np.log1p(out.data * np.repeat(1e4 / totals, np.diff(out.indptr)))
    return out


def _one(hidden: Hidden) -> np.ndarray:
    return hidden.log(np.ones(len(hidden.rows)))


def _gene_means(hidden: Hidden) -> np.ndarray:
    """(genes,) mean log value over the non-zeros; the overall mean for genes never seen."""
    values = _log_values(*hidden.pool)
    count = np.bincount(values.indices, minlength=values.shape[1])
    total = np.bincount(values.indices, weights=values.data, minlength=values.shape[1])
    return np.where(count > 0, total / np.maximum(count, 1), values.data.mean())


def _gene_mean(hidden: Hidden) -> np.ndarray:
    return _gene_means(hidden)[hidden.columns]


def _neighbour_mean(hidden: Hidden) -> np.ndarray:
    """Mean log value over those of the neighbours that express the gene; the gene's mean where none does."""
    values = _log_values(*hidden.pool)
    present = values.copy()
    present.data = np.ones_like(present.data)
    chosen = hidden.neighbours.neighbours
    weight = sparse.csr_matrix(
        (np.ones(chosen.size), chosen.ravel(), np.arange(len(chosen) + 1) * chosen.shape[1]),
        shape=(len(chosen), values.shape[0]),
    )
    total, count = _entries(weight @ values, hidden), _entries(weight @ present, hidden)
    return np.where(count > 0, total / np.maximum(count, 1), _gene_mean(hidden))


def _entries(matrix: sparse.csr_matrix, hidden: Hidden) -> np.ndarray:
    """Values at the hidden places, through dense blocks of rows: quicker than indexing a sparse matrix."""
    out = np.empty(len(hidden.rows))
    for start in range(0, matrix.shape[0], 256):
        lo, hi = np.searchsorted(hidden.rows, [start, start + 256])
        out[lo:hi] = matrix[start : start + 256].toarray()[
            hidden.rows[lo:hi] - start, hidden.columns[lo:hi]
        ]
    return out


def _gene_rate(hidden: Hidden) -> np.ndarray:
    counts = hidden.pool[0]
    rate = np.asarray(counts.sum(axis=0)).ravel() / counts.sum()
    return hidden.log(truncated_mean(rate[hidden.columns] * hidden.totals[hidden.rows]))


def _neighbour_rate(hidden: Hidden) -> np.ndarray:
    rate = hidden.neighbours.rate_at(hidden.rows, hidden.columns)
    return hidden.log(truncated_mean(rate * hidden.totals[hidden.rows]))


def _magic(hidden: Hidden) -> np.ndarray:
    """MAGIC with its defaults on the visible log values of the cells and of the reference, if there is
    one.
    """
    import magic

    values = _log_values(hidden.visible, hidden.totals)
    if hidden.reference is not None:
        values = sparse.vstack([values, _log_values(*hidden.pool)], format="csr")
    smooth = magic.MAGIC(verbose=0, random_state=hidden.seed, n_jobs=1).fit_transform(
        values.toarray()
    )
    return np.asarray(smooth)[hidden.rows, hidden.columns]


def _scvi(hidden: Hidden) -> np.ndarray:
    """scVI's decoded rates times depth, zero-truncated like every other rate here; trained on what is
    visible.
    """
    import anndata
    import scvi

    counts, n = hidden.visible, hidden.visible.shape[0]
    if hidden.reference is not None:
        counts = sparse.vstack([counts, hidden.reference], format="csr")
    data = anndata.AnnData(counts.astype(np.float32))
    scvi.settings.seed = hidden.seed
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data)
    model.train(
        max_epochs=200,
        early_stopping=True,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
    )
    rate = np.concatenate(
        [
            model.get_normalized_expression(
                indices=np.arange(s, min(s + 512, n)), return_numpy=True
            )
            for s in range(0, n, 512)
        ]
    )
    return hidden.log(
        truncated_mean(rate[hidden.rows, hidden.columns] * hidden.totals[hidden.rows])
    )


#: Name -> predictor: from a group of hidden values to (n,) log1p(CP10k). The package a predictor needs stands
#: beside it.
PREDICTORS: dict[str, tuple[Callable[[Hidden], np.ndarray], str | None, str]] = {
    "magic": (_magic, "magic", "MAGIC (defaults)"),
    "scvi": (
        _scvi,
        "scvi",
        "scVI (at most 200 epochs, early stopping), its rates x depth, zero-truncated Poisson mean",
    ),
    "one": (_one, None, "every masked count is one"),
    "gene_mean": (_gene_mean, None, "the gene's mean over non-zeros"),
    "neighbour_mean": (_neighbour_mean, None, "mean over neighbours that express the gene"),
    "gene_rate": (_gene_rate, None, "gene rate x cell depth, zero-truncated Poisson mean"),
    "neighbour_rate": (
        _neighbour_rate,
        None,
        "neighbours' rate (shrunk to the gene's) x depth, zero-truncated Poisson mean",
    ),
}


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
    """Hide every counted value once, predict it, and score the predictions beside simple predictors.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in ``X`` or ``layer``. To judge a trained model give cells of donors it
        never saw.
    model
        A scMamba model (name, checkpoint folder or open model), or several as ``{row name: model}``. Its row
        holds what :func:`scmamba.impute` would answer: for a model with a rate head the network adapted to what is
        visible and combined with the neighbours, with two rows more for the adapted network alone and for the masked
        predictions of the model as it is; for other models ``reconstruct``'s answer with the group masked. Values
        of genes it does not know are filled by
        ``gene_rate`` so that all rows score the same values; column ``covered`` says what share it predicted
        itself.
    predictors
        Names of :data:`PREDICTORS` (default: all whose package is installed), or ``{row name: function of a
        Hidden}`` to score your own beside them, or both in one mapping with ``None`` for known names.
    reference
        Other cells, same genes by name (e.g. the training donors): gene rates and neighbours come from these;
        by default from the visible values of the cells themselves.
    min_total, min_cells
        Cells with fewer counts, and genes found in fewer of the cells left, are taken out (totals stay those
        of all genes).
    groups
        Interleaved groups; one is hidden at a time, so a cell shows (groups - 1) / groups of its values.
    k
        Neighbours.
    min_values
        Genes with fewer hidden values in a group do not enter the within-gene columns.

    Returns
    -------
    DataFrame, one row per predictor:

    ``mse``, ``pearson`` : on log1p(CP10k), pooled over all hidden values (the paper's columns).
    ``pearson_within_gene`` : mean over genes and groups of the correlation across cells.
    ``deviance`` : zero-truncated Poisson deviance per value, on counts; lower is better.
    ``pearson_beyond_depth`` : the within-gene correlation left when both sides are freed of ``gene_rate``,
    what depth alone predicts; 0 for any function of depth that is linear in it.
    ``covered`` : share of the values the predictor predicted itself.

    ``attrs`` tells cells, genes, values and descriptions of the rows.

    Raises
    ------
    DataError
        Not raw counts, too few cells after ``min_total``, unknown predictors.
    """
    if groups < 2:
        raise DataError(f"groups is {groups}; at least 2 are needed, or nothing stays visible.")
    chosen = _choose(predictors)
    kept, counts, totals = _counts(adata, layer, min_total, min_cells)
    models = _open(model, kept, layer, batch_size)
    known, known_totals = _reference_counts(reference, layer, kept.var_names)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    group = _groups(counts, rows, groups, seed)
    predicted = {name: np.empty(counts.nnz) for name in [*chosen, *models]}
    covered = {name: 1.0 for name in chosen} | {
        name: m.covered(counts) for name, m in models.items()
    }
    depth = np.empty(counts.nnz)
    say(
        f"{counts.shape[0]} cells x {counts.shape[1]} genes, {counts.nnz} values to hide in {groups} groups",
        verbose,
    )
    with progress("Predicting hidden values", groups * len(predicted), verbose) as advance:
        for g in range(groups):
            here = np.flatnonzero(group == g)
            visible = counts.copy()
            visible.data[here] = 0
            visible.eliminate_zeros()
            hidden = Hidden(
                visible,
                totals,
                rows[here],
                counts.indices[here].astype(np.int64),
                known,
                known_totals,
                kept.var_names,
                k,
                seed,
            )
            depth[here] = _gene_rate(hidden)
            for name, function in chosen.items():
                predicted[name][here] = function(hidden)
                advance(1)
            for name, opened in models.items():
                predicted[name][here] = opened.predict(hidden, counts, group == g, depth[here])
                advance(1)
    cell = {
        name: score(
            p,
            counts.data,
            totals[rows],
            counts.indices.astype(np.int64) * groups + group,
            depth,
            min_values,
        )
        for name, p in predicted.items()
    }
    table = pd.DataFrame(cell).T
    table["covered"] = pd.Series(covered)
    table.index.name = "predictor"
    table.attrs = {
        "cells": int(counts.shape[0]),
        "genes": int(counts.shape[1]),
        "values": int(counts.nnz),
        "ones": float((counts.data == 1).mean()),
        "descriptions": {name: PREDICTORS[name][2] for name in chosen if name in PREDICTORS},
    }
    return table


def score(
    predicted: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    gene: np.ndarray,
    depth: np.ndarray,
    min_values: int = 20,
) -> dict[str, float]:
    """The five columns of one predictor.

    Parameters
    ----------
    predicted, depth
        (n,) log1p(CP10k): the predictions, and what depth alone predicts.
    counts, totals, gene
        (n,) the hidden counts (>= 1), the totals of their cells, and a number per gene (and group) to
        correlate within.
    """
    truth = np.log1p(1e4 / totals * counts)
    within = _within(gene, min_values, predicted, truth, depth)
    return {
        "mse": float(np.mean((predicted - truth) ** 2)),
        "pearson": _correlation(predicted, truth),
        "pearson_within_gene": within[0],
        "deviance": float(np.mean(truncated_deviance(counts, np.expm1(predicted) * totals / 1e4))),
        "pearson_beyond_depth": within[1],
    }


def truncated_deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Zero-truncated Poisson deviance of counts >= 1 whose predicted mean, given that they are not zero, is
    ``expected``.

    ``expected`` = mu / (1 - exp(-mu)) is solved for mu by Lambert's W; means below 1.005 count as 1.005,
    since no Poisson has them and a mean of exactly 1 would make every 2 infinitely surprising.
    """
    counts = np.asarray(counts, dtype=np.float64)
    least = float(truncated_mean(np.array(_LEAST_MEAN)))
    return 2 * (
        _log_density(counts, _mu(np.maximum(counts, 1 + 1e-6)))
        - _log_density(counts, _mu(np.maximum(expected, least)))
    )


def _mu(mean: np.ndarray) -> np.ndarray:
    """Poisson mean whose zero-truncated mean is ``mean`` > 1: the other root of x exp(-x) = mean
    exp(-mean).
    """
    return mean + lambertw(-mean * np.exp(-mean)).real


def _log_density(counts: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return counts * np.log(mu) - mu - np.log(-np.expm1(-mu)) - gammaln(counts + 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0


def _within(
    gene: np.ndarray, least: int, predicted: np.ndarray, truth: np.ndarray, depth: np.ndarray
) -> tuple[float, float]:
    """Mean within-gene correlation, and the partial one given ``depth``; a constant prediction has 0."""
    _, code = np.unique(gene, return_inverse=True)
    size = np.bincount(code)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights=x, minlength=len(size))

    p, y, d = (v - (total(v) / size)[code] for v in (predicted, truth, depth))

    def mean_correlation(
        a: np.ndarray, b: np.ndarray, a_scale: np.ndarray, b_scale: np.ndarray
    ) -> float:
        aa, bb = total(a * a), total(b * b)
        # Rounding left over from a (partial) constant is no variation.
        varies = (aa > 1e-10 * a_scale) & (bb > 1e-10 * b_scale)
        r = np.where(varies, total(a * b) / np.sqrt(np.where(varies, aa * bb, 1.0)), 0.0)
        use = size >= least
        return float(r[use].mean()) if use.any() else float("nan")

    spread_p, spread_y, spread_d = total(predicted**2), total(truth**2), total(d * d)
    plain = mean_correlation(p, y, spread_p, spread_y)
    safe = np.where(spread_d > 0, spread_d, 1.0)
    free_p, free_y = (
        v - (np.where(spread_d > 0, total(v * d), 0) / safe)[code] * d for v in (p, y)
    )
    return plain, mean_correlation(free_p, free_y, spread_p, spread_y)


def _choose(predictors: Any) -> dict[str, Callable[[Hidden], np.ndarray]]:
    """Names to functions; by default every predictor whose package can be imported."""
    if predictors is None:
        return {
            n: f
            for n, (f, needs, _) in PREDICTORS.items()
            if needs is None or importlib.util.find_spec(needs)
        }
    if isinstance(predictors, str):
        predictors = [predictors]
    wanted = (
        dict(predictors) if isinstance(predictors, Mapping) else {name: None for name in predictors}
    )
    chosen: dict[str, Callable[[Hidden], np.ndarray]] = {}
    for name, function in wanted.items():
        if function is None and name not in PREDICTORS:
            raise DataError(
                f"There is no predictor '{name}'; choose among {', '.join(PREDICTORS)}."
            )
        needs = None if function is not None else PREDICTORS[name][1]
        if needs and not importlib.util.find_spec(needs):
            raise DataError(
                f"The predictor '{name}' needs the Python package '{needs}', which is not installed."
            )
        chosen[name] = function or PREDICTORS[name][0]
    return chosen


def _counts(
    adata: AnnData, layer: str | None, min_total: float, min_cells: int
) -> tuple[AnnData, sparse.csr_matrix, np.ndarray]:
    """The cells and genes that are scored: object, sorted CSR float64 counts, totals over all genes."""
    matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
    values = detect_value_scale(matrix)
    if values.kind != "counts":
        raise DataError(
            f"Raw counts are needed to hide and score values, but {values.sentence}. "
            "Name their layer with layer=..."
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
    matrix = sparse.csr_matrix(
        reference.X if layer is None else reference.layers[layer], dtype=np.float64
    )
    where = reference.var_names.get_indexer(genes)
    if (where >= 0).mean() < 0.5:
        raise DataError(
            f"Only {100 * (where >= 0).mean():.0f}% of the genes are in the reference; "
            "give cells whose genes are named alike."
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


def _open(
    model: Any, kept: AnnData, layer: str | None, batch_size: int | None
) -> dict[str, _ModelRow]:
    if model is None:
        return {}
    several = dict(model) if isinstance(model, Mapping) else {"scmamba": model}
    rows: dict[str, _ModelRow] = {}
    for name, value in several.items():
        row = _ModelRow(value, kept, layer, batch_size)
        if row.model.config.rates:
            rows[name] = combined = _CombinedRow(row)
            rows[f"{name} (network alone)"] = _NetworkRow(combined)
            name = f"{name} (masked, not adapted)"
        rows[name] = row
    return rows


class _ModelRow:
    """A scMamba model's masked predictions: its own genes, order and totals, moved back to the table's scale."""

    def __init__(
        self, model: Any, kept: AnnData, layer: str | None, batch_size: int | None
    ) -> None:
        from ..data.preprocess import read_cells
        from ..model import load_model
        from ..model.inference import input_positions

        self.model = load_model(model)
        self.cells = read_cells(kept, self.model.genes, layer=layer, force=True, min_coverage=0.0)
        self.where, self.genes = input_positions(self.model, self.cells)
        self.batch_size = batch_size
        # column of the data -> column of the network's input; only a gene's first row is predicted
        self.slot = np.full(kept.n_vars, -1)
        self.slot[self.cells.columns] = self.where

    def covered(self, counts: sparse.csr_matrix) -> float:
        """Share of the values that lie in genes the model knows."""
        return float((self.slot[counts.indices] >= 0).mean())

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the hidden places, in the order of ``hidden.rows``."""
        import torch

        out = fallback.copy()
        width = len(self.model.genes) if self.genes is None else len(self.genes)
        size = self.batch_size or self.model.batch_size(width)
        flags = sparse.csr_matrix(
            (masked.astype(np.int8), counts.indices, counts.indptr), shape=counts.shape
        )
        for start in range(0, counts.shape[0], size):
            stop = min(start + size, counts.shape[0])
            known, totals = self.cells.to_model(counts[start:stop])
            x = np.zeros((stop - start, width), dtype=np.float32)
            x[:, self.where] = known.toarray()
            mask = np.zeros(x.shape, dtype=bool)
            entry = flags[start:stop].tocoo()
            hit = (entry.data > 0) & (self.slot[entry.col] >= 0)
            mask[entry.row[hit], self.slot[entry.col[hit]]] = True
            answer = self.model.reconstruct(
                x, torch.from_numpy(mask), genes=self.genes, batch_size=size
            ).numpy()
            lo, hi = np.searchsorted(hidden.rows, [start, stop])
            cell, slot = hidden.rows[lo:hi] - start, self.slot[hidden.columns[lo:hi]]
            expected = np.expm1(answer[cell, slot].astype(np.float64)) * totals[cell] / 1e4
            moved = np.log1p(1e4 / hidden.totals[cell + start] * np.maximum(expected, 0))
            out[lo:hi] = np.where(slot >= 0, moved, out[lo:hi])
        return out


class _CombinedRow(_ModelRow):
    """What :func:`scmamba.impute` does by default: the network adapted to the visible counts, combined with the neighbours."""

    def __init__(self, row: _ModelRow) -> None:
        from ..imputation.rate_ensemble import GeneMap

        self.model, self.cells, self.slot, self.batch_size = (
            row.model,
            row.cells,
            row.slot,
            row.batch_size,
        )
        self.map = GeneMap.of(row.cells)
        self._learnt: tuple[Hidden, Any] | None = None

    def covered(self, counts: sparse.csr_matrix) -> float:
        """Neighbours speak for genes the network does not know."""
        return 1.0

    def learn(self, hidden: Hidden) -> Any:
        """The combination learnt on what is visible, kept for the other row that asks for it."""
        from ..imputation.rate_ensemble import fit_rate_ensemble

        if self._learnt is None or self._learnt[0] is not hidden:
            counts, totals = hidden.visible, hidden.totals
            if hidden.reference is not None and hidden.reference_totals is not None:
                counts = sparse.vstack([counts, hidden.reference], format="csr")
                totals = np.concatenate([totals, hidden.reference_totals])
            self._learnt = (
                hidden,
                fit_rate_ensemble(
                    self.model, counts, totals, self.map, seed=hidden.seed, verbose=False
                ),
            )
        return self._learnt[1]

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the hidden places: the value expected of a count that is known not to be zero."""
        learnt = self.learn(hidden)

        def value(rows: slice) -> np.ndarray:
            own = np.arange(rows.start, rows.stop)
            return learnt.expect(hidden.visible[rows], hidden.totals[rows], own).value

        return _by_block(hidden, value)


class _NetworkRow(_ModelRow):
    """The adapted network without the neighbours; genes it does not know are filled by depth and gene average."""

    def __init__(self, combined: _CombinedRow) -> None:
        self.combined, self.slot = combined, combined.slot

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the hidden places."""
        from ..imputation.rate_ensemble import value_if_counted

        sources = self.combined.learn(hidden).sources

        def value(rows: slice) -> np.ndarray:
            log_rate = sources.network(hidden.visible[rows], hidden.totals[rows]) + sources.base
            return value_if_counted(log_rate, hidden.totals[rows][:, None])

        return np.where(self.slot[hidden.columns] >= 0, _by_block(hidden, value), fallback)


def _by_block(
    hidden: Hidden, function: Callable[[slice], np.ndarray], size: int = 64
) -> np.ndarray:
    """Entries at the hidden places of dense blocks of rows."""
    out = np.empty(len(hidden.rows))
    for start in range(0, hidden.visible.shape[0], size):
        rows = slice(start, min(start + size, hidden.visible.shape[0]))
        lo, hi = np.searchsorted(hidden.rows, [rows.start, rows.stop])
        out[lo:hi] = function(rows)[hidden.rows[lo:hi] - rows.start, hidden.columns[lo:hi]]
    return out
