"""Wilcoxon's rank-sum test for sparse values, for comparison with MAST."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for


def rank_sum_p(first: sp.csr_matrix, second: sp.csr_matrix) -> np.ndarray:
    """Two-sided p (genes,) of the rank-sum test, normal approximation with tie and continuity correction.

    Both matrices are cells x genes; the zeros of a gene are one block of ties that is never written out.
    By hand: scipy's ``mannwhitneyu`` gives the same p, needs dense values and takes longer
    (benchmarks/results/library_calls.md).
    """
    n1, n2 = first.shape[0], second.shape[0]
    both = sp.vstack([first, second]).tocsc()
    genes = both.shape[1]
    sums, ties = np.empty(genes), np.empty(genes)
    csc = both.indptr, both.indices, both.data
    # Sorting takes some steps for each value.
    run_in_threads(_rank_sums, genes, threads_for(both.nnz * 30.0), *csc, n1, n2, sums, ties)
    n = n1 + n2
    statistic = sums - n1 * (n1 + 1) / 2.0 - n1 * n2 / 2.0
    variance = n1 * n2 / 12.0 * (n + 1 - ties / (n * (n - 1.0)))
    # Where all values are equal, rounding leaves a little.
    sigma = np.sqrt(np.maximum(variance, 0))
    same = ties >= float(n) ** 3 - n
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (statistic - np.sign(statistic) * 0.5) / sigma
        p = np.minimum(1.0, 2 * ndtr(-np.abs(z)))
    result: np.ndarray = np.where(same | (sigma == 0), 1.0, p)
    return result


@compiled(nogil=True)
def _rank_sums(lo, hi, indptr, cells, data, n1, n2, sums, ties):  # pragma: no cover (compiled)
    """Per gene the sum of the ranks of the first group's cells, and the sum of t^3 - t over sets of t equal values."""
    for g in range(lo, hi):
        values = data[indptr[g] : indptr[g + 1]]
        own = cells[indptr[g] : indptr[g + 1]] < n1
        order = np.argsort(values)
        size = values.size
        zeros = n1 + n2 - size
        zeros_first = n1 - own.sum()
        total, tied = 0.0, 0.0
        at, before = 0, 0
        zeros_placed = zeros == 0
        while at < size or not zeros_placed:
            if not zeros_placed and (at == size or values[order[at]] >= 0.0):
                # The zeros are one set of equal values, between negative and positive ones.
                total += zeros_first * (before + (zeros + 1) / 2.0)
                tied += np.float64(zeros) ** 3 - zeros
                before += zeros
                zeros_placed = True
                continue
            # A missing value equals no other, not even itself.
            value, end, inside = values[order[at]], at + 1, int(own[order[at]])
            while end < size and values[order[end]] == value:
                inside += own[order[end]]
                end += 1
            equal = end - at
            total += inside * (before + (equal + 1) / 2.0)
            tied += np.float64(equal) ** 3 - equal
            before += equal
            at = end
        sums[g], ties[g] = total, tied
