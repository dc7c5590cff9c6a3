"""What a cell's neighbours say about its genes: their pooled rate, shrunk to the gene's, times the cell's
depth.

The strongest simple predictor of hidden counts we know of: rate = (the neighbours' counts of the gene + 5000
x gene rate) / (their totals + 5000). The mean of a count known to be positive is then that of a
zero-truncated Poisson.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def nearest_neighbors(
    query: np.ndarray, pool: np.ndarray, k: int, *, block: int = 1024
) -> np.ndarray:
    """(cells, k) indices into ``pool`` of the cells at the smallest Euclidean distance, exact, nearest first.

    ``query`` (cells, d) and ``pool`` (others, d). A cell that stands in both is its own first neighbour.
    """
    k = min(k, len(pool))
    squares = (pool**2).sum(axis=1)
    out = np.empty((len(query), k), dtype=np.int64)
    for start in range(0, len(query), block):
        part = query[start : start + block]
        distance = squares[None, :] - 2 * (part @ pool.T)
        found = np.argpartition(distance, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distance, found, axis=1), axis=1, kind="stable")
        out[start : start + block] = np.take_along_axis(found, order, axis=1)
    return out


def log_values(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts per 10,000 of each cell's total; (n, g) sparse, (n,) totals."""
    out = counts.copy()
    out.data = np.log1p(out.data * np.repeat(1e4 / np.maximum(totals, 1e-12), np.diff(out.indptr)))
    return out
