"""Expression rates pooled over nearest neighbors.

The strongest simple predictor of masked counts that we measured: rate = (the neighbors' counts of the gene + 5000 x gene rate) /
(their totals + 5000). The mean of a count known to be positive is then that of a zero-truncated Poisson.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..data.values import log1p_cp10k
from ..utils.errors import DataError
from .knn import nearest_neighbors
from .svd import principal_components

_BLOCK = 256  # cells whose dense rates (block x genes float64) are held at a time


def truncated_mean(mu: np.ndarray) -> np.ndarray:
    """Mean of a Poisson count given that it is not zero, mu / (1 - exp(-mu)); at least 1.

    Parameters
    ----------
    mu
        Poisson means, of any shape.

    Returns
    -------
    Means of the same shape.

    Examples
    --------
    >>> from scmamba.neighbors import truncated_mean
    >>> truncated_mean([0.0, 100.0]).round(6)
    array([  1., 100.])
    """
    mu = np.maximum(np.asarray(mu, dtype=np.float64), 1e-9)
    return mu / -np.expm1(-mu)


@dataclass
class NeighborRates:
    """Rates of every gene in every cell, pooled over its nearest neighbors, computed a block of cells at a time.

    Attributes
    ----------
    gene_rate
        (genes,) share of all counts that are the gene's.
    neighbors
        (cells, k) rows of the pool.
    totals
        (cells,) depth of each cell, by which a rate is multiplied.
    shrink
        Counts' worth of ``gene_rate`` mixed into every rate.
    pool, pool_totals
        (others, genes) counts that are pooled and their (others,) totals.
    """

    gene_rate: np.ndarray
    neighbors: np.ndarray
    totals: np.ndarray
    shrink: float
    pool: sparse.csr_matrix
    pool_totals: np.ndarray

    def rate(self, rows: np.ndarray | slice) -> np.ndarray:
        """(r, genes) float64: expected share of the cell's counts.

        Parameters
        ----------
        rows
            Rows of the cells.
        """
        chosen = self.neighbors[rows]
        weight = sparse.csr_matrix(
            (np.ones(chosen.size), chosen.ravel(), np.arange(len(chosen) + 1) * chosen.shape[1]),
            shape=(len(chosen), self.pool.shape[0]),
        )
        counts = (weight @ self.pool).toarray()
        counts += self.shrink * self.gene_rate
        counts /= (self.pool_totals[chosen].sum(axis=1) + self.shrink)[:, None]
        return counts

    def rate_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n,) rates of single entries.

        Parameters
        ----------
        rows, columns
            (n,) cells and genes of the entries; ``rows`` in increasing order is faster.
        """
        out = np.empty(len(rows))
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        for start in range(0, len(self.neighbors), _BLOCK):
            stop = min(start + _BLOCK, len(self.neighbors))
            lo, hi = np.searchsorted(sorted_rows, [start, stop])
            if lo < hi:
                entries = order[lo:hi]
                out[entries] = self.rate(slice(start, stop))[
                    rows[entries] - start, columns[entries]
                ]
        return out

    def log_values(self, rows: np.ndarray | slice) -> np.ndarray:
        """(r, genes) log1p(CP10k) of the counts expected where a count is known to be positive.

        Parameters
        ----------
        rows
            Rows of the cells.
        """
        totals = self.totals[rows][:, None]
        return np.log1p(1e4 / totals * truncated_mean(self.rate(rows) * totals))


def knn_rates(
    counts_visible: sparse.csr_matrix,
    totals: np.ndarray,
    k: int = 30,
    *,
    shrink: float = 5000.0,
    components: int = 50,
    reference: sparse.csr_matrix | None = None,
    reference_totals: np.ndarray | None = None,
    seed: int = 0,
) -> NeighborRates:
    """Find the nearest neighbors of all cells and pool their rates.

    Parameters
    ----------
    counts_visible
        (cells, genes) visible counts, masked ones set to 0.
    totals
        (cells,) total counts of the cells, masked ones included; they scale the log values and the predictions.
    k
        Number of neighbors, the cell itself being the first if there is no ``reference``. Default 30.
    shrink
        Counts' worth of the gene's overall rate mixed into every rate. Default 5,000.
    components
        Principal components of log1p(CP10k) in which distances are measured. Default 50.
    reference
        (others, genes) counts of other cells, on the same genes: neighbors and gene rates come from these alone.
        Default: the cells themselves.
    reference_totals
        (others,) their totals. Default: their row sums.
    seed
        Seed of the principal components. Default 0.

    Returns
    -------
    NeighborRates
        Rates of all genes in all cells; no dense matrix of cells x genes is ever held.

    Raises
    ------
    DataError
        Shapes that do not fit, or cells without counts.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.neighbors import knn_rates
    >>> counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (50, 20)))
    >>> rates = knn_rates(counts, np.asarray(counts.sum(axis=1)).ravel(), k=5, components=3)
    >>> rates.rate(slice(0, 2)).shape
    (2, 20)
    """
    visible = sparse.csr_matrix(counts_visible, dtype=np.float64)
    totals = np.asarray(totals, dtype=np.float64)
    if len(totals) != visible.shape[0]:
        raise DataError(f"{len(totals)} totals came with {visible.shape[0]} cells.")
    if (totals <= 0).any():
        raise DataError(f"{int((totals <= 0).sum())} cells have no counts; remove them first.")
    pool, pool_totals = visible, totals
    if reference is not None:
        pool = sparse.csr_matrix(reference, dtype=np.float64)
        if pool.shape[1] != visible.shape[1]:
            raise DataError(
                f"The reference has {pool.shape[1]} genes and the cells have {visible.shape[1]}."
            )
        sums = np.asarray(pool.sum(axis=1)).ravel()
        pool_totals = (
            sums if reference_totals is None else np.asarray(reference_totals, dtype=np.float64)
        )
    scores, basis = principal_components(
        log1p_cp10k(pool, pool_totals, dtype=np.float64), components, seed=seed
    )
    query = scores if reference is None else log1p_cp10k(visible, totals, dtype=np.float64) @ basis
    seen = np.asarray(pool.sum(axis=1)).ravel()
    gene_rate = np.asarray(pool.sum(axis=0)).ravel() / max(seen.sum(), 1.0)
    return NeighborRates(
        gene_rate, nearest_neighbors(query, scores, k), totals, float(shrink), pool, seen
    )
