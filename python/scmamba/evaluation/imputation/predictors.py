"""Simple predictors of masked counts, which any model has to outperform."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ...data.values import log1p_cp10k
from ...neighbors.hierarchical import HierarchicalRates
from ...neighbors.rates import NeighborRates, knn_rates, truncated_mean
from ...utils.deprecation import warn_renamed
from ...utils.errors import DataError


@dataclass
class Hidden:
    """One group of masked counts and everything a predictor may use.

    Attributes
    ----------
    visible
        (cells, genes) CSR float64 counts, without the masked ones.
    totals
        (cells,) total counts, masked ones included.
    rows, columns
        (n,) where the masked counts are, by increasing row.
    reference, reference_totals
        Counts and totals of other cells to fit to, if there are any; by default the visible counts are used.
    genes
        (genes,) names of the columns.
    k
        Number of nearest neighbors.
    seed
        Seed of everything random.
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
        """Counts and totals that predictors are fitted to."""
        if self.reference is None or self.reference_totals is None:
            return self.visible, self.totals
        return self.reference, self.reference_totals

    @cached_property
    def neighbors(self) -> NeighborRates:
        """Rates pooled over nearest neighbors, computed once for all predictors that use them."""
        return knn_rates(
            self.visible,
            self.totals,
            self.k,
            reference=self.reference,
            reference_totals=self.reference_totals,
            seed=self.seed,
        )

    def log(self, counts: np.ndarray) -> np.ndarray:
        """Put expected counts on the log scale.

        Parameters
        ----------
        counts
            Expected count at each masked place.

        Returns
        -------
        log1p(CP10k) at these places.
        """
        return np.log1p(1e4 / self.totals[self.rows] * counts)


def _log_values(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    return log1p_cp10k(counts, totals, dtype=np.float64)


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


def _neighbor_mean(hidden: Hidden) -> np.ndarray:
    """Mean log value over the neighbors that express the gene; the gene's mean where none does."""
    values = _log_values(*hidden.pool)
    present = values.copy()
    present.data = np.ones_like(present.data)
    chosen = hidden.neighbors.neighbors
    weight = sparse.csr_matrix(
        (np.ones(chosen.size), chosen.ravel(), np.arange(len(chosen) + 1) * chosen.shape[1]),
        shape=(len(chosen), values.shape[0]),
    )
    total, count = _entries(weight @ values, hidden), _entries(weight @ present, hidden)
    return np.where(count > 0, total / np.maximum(count, 1), _gene_mean(hidden))


def _entries(matrix: sparse.csr_matrix, hidden: Hidden) -> np.ndarray:
    """Values at the masked places, through dense blocks of rows: faster than indexing a sparse matrix."""
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


def _neighbor_rate(hidden: Hidden) -> np.ndarray:
    rate = hidden.neighbors.rate_at(hidden.rows, hidden.columns)
    return hidden.log(truncated_mean(rate * hidden.totals[hidden.rows]))


def _hierarchical_rate(hidden: Hidden) -> np.ndarray:
    """What :func:`scmamba.impute` fills zeros from: rates of the neighborhoods, without the cell's own counts."""
    fitted = HierarchicalRates.fit(*hidden.pool, seed=hidden.seed)
    out = np.empty(len(hidden.rows))
    for start in range(0, hidden.visible.shape[0], _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, hidden.visible.shape[0]))
        own = rows if hidden.reference is None else None
        rate = fitted.neighborhood_rate(hidden.visible[rows], hidden.totals[rows], own)
        lo, hi = np.searchsorted(hidden.rows, [start, start + _BLOCK])
        out[lo:hi] = rate[hidden.rows[lo:hi] - start, hidden.columns[lo:hi]]
    return hidden.log(truncated_mean(out * hidden.totals[hidden.rows]))


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


_BLOCK = 64  # cells whose dense rates are held at a time

#: Name -> predictor (from a group of masked counts to (n,) log1p(CP10k)), the package it needs, and a description.
PREDICTORS: dict[str, tuple[Callable[[Hidden], np.ndarray], str | None, str]] = {
    "magic": (_magic, "magic", "MAGIC (defaults)"),
    "scvi": (
        _scvi,
        "scvi",
        "scVI (at most 200 epochs, early stopping), its rates x depth, zero-truncated Poisson mean",
    ),
    "one": (_one, None, "every masked count is one"),
    "hierarchical_rate": (
        _hierarchical_rate,
        None,
        "rate of the mutual neighbors, as scmamba.impute uses it, x depth, zero-truncated Poisson mean",
    ),
    "gene_mean": (_gene_mean, None, "the gene's mean over non-zeros"),
    "neighbor_mean": (_neighbor_mean, None, "mean over neighbors that express the gene"),
    "gene_rate": (_gene_rate, None, "gene rate x cell depth, zero-truncated Poisson mean"),
    "neighbor_rate": (
        _neighbor_rate,
        None,
        "neighbors' rate (shrunk to the gene's) x depth, zero-truncated Poisson mean",
    ),
}


#: Names of predictors before 0.2.0.
_OLD_NAMES = {"neighbour_mean": "neighbor_mean", "neighbour_rate": "neighbor_rate"}


def choose_predictors(
    predictors: Any,
) -> dict[str, Callable[[Hidden], np.ndarray]]:
    """Functions by name; by default every predictor whose package can be imported.

    Raises
    ------
    DataError
        There is no such predictor, or its package is not installed.
    """
    if predictors is None:
        return {
            n: f
            for n, (f, needs, _) in PREDICTORS.items()
            if needs is None or importlib.util.find_spec(needs)
        }
    if isinstance(predictors, str):
        predictors = [predictors]
    wanted: dict[str, Callable[[Hidden], np.ndarray] | None] = (
        dict(predictors) if isinstance(predictors, Mapping) else {name: None for name in predictors}
    )
    chosen: dict[str, Callable[[Hidden], np.ndarray]] = {}
    for name, function in wanted.items():
        if function is None and name in _OLD_NAMES:
            warn_renamed(f"predictor '{name}'", f"'{_OLD_NAMES[name]}'")
            name = _OLD_NAMES[name]
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
