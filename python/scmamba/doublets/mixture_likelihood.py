"""Which mixture of cluster profiles explains the counts of each cell best, all mixtures in one pass.

The log likelihood of a cell's counts under a mixture is a product of the counts with a column of logarithms. Many columns are
multiplied at once: the genes that many cells have as a dense product, the others gene by gene. Columns are logarithms of ratios to the
mean profile, which are near zero, so that float32 holds them to seven digits; the best columns are then summed again in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy import sparse

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for

#: Columns of a block.
WIDTH = 192
#: Share of the cells above which a gene's product with a block is faster dense than sparse.
DENSE = 0.05


@compiled(nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _score_block(
    sums, few, indptr, genes, values, table, group, first, lo, best, which
):  # pragma: no cover (compiled)
    """Update ``best`` (cells, groups) and ``which`` with the columns of ``table`` (genes, columns), of cells from ``lo`` on.

    ``sums`` (rows, columns) holds the products with the other genes, ``few`` marks the genes still to be added. Sums in float32 are off
    by less than 1e-5 of their size: all columns so near the largest are summed in float64.
    """
    for row in range(sums.shape[0]):
        cell, own = lo + row, sums[row]
        for c in range(indptr[cell], indptr[cell + 1]):
            if few[genes[c]]:
                x, column = values[c], table[genes[c]]
                for w in range(own.size):
                    own[w] += x * column[w]
        for g in range(best.shape[1]):
            top = best[cell, g]
            for w in range(own.size):
                if group[w] == g and own[w] > top:
                    top = np.float64(own[w])
            least = top - 1e-3 - 1e-5 * abs(top)
            for w in range(own.size):
                if group[w] == g and own[w] > least:
                    exact = 0.0
                    for c in range(indptr[cell], indptr[cell + 1]):
                        exact += np.float64(values[c]) * np.float64(table[genes[c], w])
                    if exact > best[cell, g]:
                        best[cell, g] = exact
                        which[cell, g] = first + w


def ordered_pairs(n: int, share: float) -> Iterator[tuple[int, int]]:
    """Lesser and greater cluster of each mixture of two among ``n``; with equal shares each pair once."""
    for a, b in combinations(range(n), 2):
        yield a, b
        if share != 0.5:
            yield b, a


def mixture_ratios(
    counts: sparse.csr_matrix, profiles: np.ndarray, shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much better a mixture of two clusters explains the counts of each cell than one cluster does.

    Parameters
    ----------
    counts
        (r, genes) counts.
    profiles
        (clusters, genes) share of each gene in each cluster, all above zero.
    shares
        Shares of the lesser cluster in the mixture.

    Returns
    -------
    (r, shares) largest log likelihood ratio of a mixture against the best single cluster, (r, 2) greater and lesser cluster of the
    best of all mixtures, and (r,) the best single cluster. Ratios are 0 where there is one cluster.
    """
    rows, n = counts.shape[0], len(profiles)
    columns = [(0, 0.0, a, a) for a in range(n)]
    for j, share in enumerate(shares):
        columns += [(j + 1, share, *pair) for pair in ordered_pairs(n, share)]
    group, _, lesser, greater = (np.array(c) for c in zip(*columns))
    share_of = np.array([c[1] for c in columns])
    best = np.full((rows, len(shares) + 1), -np.inf)
    which = np.zeros(best.shape, dtype=np.int64)
    relative = profiles / profiles.mean(axis=0)
    values = sparse.csr_matrix(
        (counts.data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
    )
    many = np.bincount(counts.indices, minlength=counts.shape[1]) > DENSE * rows
    dense, few = np.ascontiguousarray(values[:, many].toarray()), ~many
    csr = values.indptr, values.indices, values.data

    def score(lo: int, hi: int, table: np.ndarray, first: int) -> None:
        sums = dense[lo:hi] @ table[many]
        own = group[first : first + table.shape[1]]
        _score_block(sums, few, *csr, table, own, first, lo, best, which)

    threads = threads_for(counts.nnz * len(columns) / 8)
    for first in range(0, len(columns), WIDTH):
        part = slice(first, first + WIDTH)
        mixed = relative[lesser[part]] * share_of[part, None]
        mixed += relative[greater[part]] * (1 - share_of[part, None])
        table = np.ascontiguousarray(np.log(mixed, out=mixed).astype(np.float32).T)
        run_in_threads(score, rows, threads, table, first)
    single = which[:, 0]
    if n < 2:
        return np.zeros((rows, len(shares))), np.zeros((rows, 2), dtype=np.int64), single
    ratio = best[:, 1:] - best[:, :1]
    column = which[np.arange(rows), 1 + ratio.argmax(axis=1)]
    return ratio, np.column_stack([greater[column], lesser[column]]), single
