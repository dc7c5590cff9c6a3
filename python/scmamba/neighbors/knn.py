"""Exact nearest neighbors in principal components."""

from __future__ import annotations

import numpy as np
from scipy import sparse

_DISTANCES = 2**20  # held at a time
# From this many cells on, for no more neighbors than this, the smallest distances are kept tile by tile.
_LARGE, _FEW = 4096, 200


def nearest_neighbors(
    query: np.ndarray, pool: np.ndarray, k: int, *, block: int = 1024
) -> np.ndarray:
    """Indices of the nearest neighbors by Euclidean distance, exact.

    Parameters
    ----------
    query
        (cells, d) coordinates.
    pool
        (others, d) coordinates of the cells that are searched. A cell that is in both is its own first neighbor.
    k
        Number of neighbors; at most all of ``pool``.
    block
        Most cells whose distances to the whole pool are held at a time. Default 1,024; fewer where the pool is large.

    Returns
    -------
    (cells, k) int64 indices into ``pool``, nearest first.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.neighbors import nearest_neighbors
    >>> nearest_neighbors(np.array([[0.9]]), np.array([[0.0], [4.0], [1.0]]), 2)
    array([[2, 0]])
    """
    # By hand: scikit-learn's NearestNeighbors gives the same, no faster, and slower in float32 (benchmarks/results/library_calls.md).
    k = min(k, len(pool))
    if len(pool) >= _LARGE and k <= _FEW:
        from .nearest_kernel import nearest_in_tiles  # numba takes a moment to import

        return nearest_in_tiles(query, pool, k)
    squares = (pool**2).sum(axis=1)
    out = np.empty((len(query), k), dtype=np.int64)
    # Few distances at a time stay in the cache between the steps below.
    block = max(1, min(block, _DISTANCES // max(len(pool), 1)))
    for start in range(0, len(query), block):
        part = query[start : start + block]
        distance = (-2 * part) @ pool.T
        distance += squares
        found = np.argpartition(distance, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distance, found, axis=1), axis=1, kind="stable")
        out[start : start + block] = np.take_along_axis(found, order, axis=1)
    return out


def sqrt_values(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Square roots of the shares of each cell's counts; (n, g) sparse, (n,) totals."""
    out = counts.copy()
    out.data = np.sqrt(out.data * np.repeat(1 / np.maximum(totals, 1e-12), np.diff(out.indptr)))
    return out
