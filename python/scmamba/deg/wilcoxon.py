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
    group = np.repeat([0, 1], [first.shape[0], second.shape[0]])
    result: np.ndarray = rank_sum_of_groups(sp.vstack([first, second]), group, 2)[0]
    return result


def rank_sum_of_groups(values: sp.csr_matrix, group: np.ndarray, groups: int) -> np.ndarray:
    """The p of :func:`rank_sum_p` (groups, genes) of each group against all other cells, which are ranked once.

    Parameters
    ----------
    values
        (cells, genes) matrix.
    group
        (cells,) number of the group of each cell.
    groups
        Number of groups.
    """
    csc = values.tocsc()
    cells, genes = csc.shape
    sums, ties = np.zeros((genes, groups)), np.empty(genes)
    given = csc.indptr, csc.indices, csc.data, group, np.bincount(group, minlength=groups)
    # Sorting takes some steps for each value.
    run_in_threads(_rank_sums, genes, threads_for(csc.nnz * 30.0), *given, sums, ties)
    n, n1 = cells, np.bincount(group, minlength=groups)[:, None].astype(np.float64)
    statistic = sums.T - n1 * (n1 + 1) / 2.0 - n1 * (n - n1) / 2.0
    variance = n1 * (n - n1) / 12.0 * (n + 1 - ties / (n * (n - 1.0)))
    # Where all values are equal, rounding leaves a little.
    sigma = np.sqrt(np.maximum(variance, 0))
    same = ties >= float(n) ** 3 - n
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (statistic - np.sign(statistic) * 0.5) / sigma
        p = np.minimum(1.0, 2 * ndtr(-np.abs(z)))
    result: np.ndarray = np.where(same | (sigma == 0), 1.0, p)
    return result


@compiled(nogil=True)
def _rank_sums(
    lo, hi, indptr, cells, data, group, sizes, sums, ties
):  # pragma: no cover (compiled)
    """Per gene the sums of the ranks of each group's cells, and the sum of t^3 - t over sets of t equal values."""
    n = group.size
    for g in range(lo, hi):
        values = data[indptr[g] : indptr[g + 1]]
        owner = group[cells[indptr[g] : indptr[g + 1]]]
        order = np.argsort(values)
        size = values.size
        zeros = n - size
        tied = 0.0
        at, before = 0, 0
        zeros_placed = zeros == 0
        while at < size or not zeros_placed:
            if not zeros_placed and (at == size or values[order[at]] >= 0.0):
                # The zeros are one set of equal values, between negative and positive ones.
                rank = before + (zeros + 1) / 2.0
                for k in range(sizes.size):
                    sums[g, k] += sizes[k] * rank
                for k in owner:
                    sums[g, k] -= rank
                tied += np.float64(zeros) ** 3 - zeros
                before += zeros
                zeros_placed = True
                continue
            # A missing value equals no other, not even itself.
            value, end = values[order[at]], at + 1
            while end < size and values[order[end]] == value:
                end += 1
            equal = end - at
            for i in range(at, end):
                sums[g, owner[order[i]]] += before + (equal + 1) / 2.0
            tied += np.float64(equal) ** 3 - equal
            before += equal
            at = end
        ties[g] = tied
