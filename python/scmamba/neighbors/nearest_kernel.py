"""The smallest of many distances, kept while the distances are computed tile by tile."""

from __future__ import annotations

import numpy as np

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, single_blas_thread, threads_for

# Cells of a tile of distances, which stays in the cache of a core: queries, and cells that are searched.
_QUERIES, _SEARCHED = 256, 1024


@compiled(nogil=True)
def _keep_smallest(products, squares, first, best, found):  # pragma: no cover (compiled)
    """Insert the distances of a tile into the (queries, k) smallest so far, in order; of equal ones the first stays first."""
    k = best.shape[1]
    for i in range(products.shape[0]):
        worst = best[i, k - 1]
        for j in range(products.shape[1]):
            distance = products[i, j] + squares[first + j]
            if distance < worst:
                place = k - 1
                while place > 0 and best[i, place - 1] > distance:
                    best[i, place] = best[i, place - 1]
                    found[i, place] = found[i, place - 1]
                    place -= 1
                best[i, place] = distance
                found[i, place] = first + j
                worst = best[i, k - 1]


def nearest_in_tiles(query: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    """As :func:`scmamba.neighbors.nearest_neighbors`, for large pools: distances are never held, nor partitioned.

    Parameters
    ----------
    query
        (cells, d) coordinates.
    pool
        (others, d) coordinates of the cells that are searched.
    k
        Number of neighbors; at most all of ``pool``.

    Returns
    -------
    (cells, k) int64 indices into ``pool``, nearest first.
    """
    squares = (pool**2).sum(axis=1)
    out = np.zeros((len(query), k), dtype=np.int64)
    tiles = [pool[start : start + _SEARCHED].T for start in range(0, len(pool), _SEARCHED)]

    def search(lo: int, hi: int) -> None:
        for start in range(lo * _QUERIES, min(hi * _QUERIES, len(query)), _QUERIES):
            part = -2 * query[start : start + _QUERIES]
            best = np.full((len(part), k), np.inf)
            found = out[start : start + len(part)]
            for number, tile in enumerate(tiles):
                _keep_smallest(part @ tile, squares, number * _SEARCHED, best, found)

    parts = -(-len(query) // _QUERIES)
    threads = threads_for(float(len(query)) * len(pool))
    with single_blas_thread():
        run_in_threads(search, parts, threads)
    return out
