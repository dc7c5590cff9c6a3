"""Wilcoxon's rank-sum test for sparse values, for comparison with MAST."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr


def rank_sum_p(first: sp.csr_matrix, second: sp.csr_matrix) -> np.ndarray:
    """Two-sided p (genes,) of the rank-sum test, normal approximation with tie and continuity correction.

    Both matrices are cells x genes; the zeros of a gene are one block of ties that is never written out.
    By hand: scipy's ``mannwhitneyu`` gives the same p, needs dense values and takes longer
    (benchmarks/results/library_calls.md).
    """
    n1, n2 = first.shape[0], second.shape[0]
    both = sp.vstack([first, second]).tocsc()
    out = np.empty(both.shape[1])
    for g in range(both.shape[1]):
        lo, hi = both.indptr[g], both.indptr[g + 1]
        out[g] = _one_gene(both.data[lo:hi], both.indices[lo:hi] < n1, n1, n2)
    return out


def _one_gene(values: np.ndarray, in_first: np.ndarray, n1: int, n2: int) -> float:
    n = n1 + n2
    zeros, zeros_first = n - values.size, n1 - int(in_first.sum())
    distinct, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    below = np.searchsorted(distinct, 0.0)
    before = np.concatenate([[0], np.cumsum(ties)[:-1]]) + np.where(
        np.arange(distinct.size) >= below, zeros, 0
    )
    ranks = before + (ties + 1) / 2.0
    zero_rank = ties[:below].sum() + (zeros + 1) / 2.0
    rank_sum = ranks[inverse][in_first].sum() + zeros_first * zero_rank
    statistic = rank_sum - n1 * (n1 + 1) / 2.0 - n1 * n2 / 2.0
    tied = (ties.astype(np.float64) ** 3 - ties).sum() + float(zeros) ** 3 - zeros
    sigma = np.sqrt(n1 * n2 / 12.0 * (n + 1 - tied / (n * (n - 1.0))))
    if sigma == 0:
        return 1.0
    z = (statistic - np.sign(statistic) * 0.5) / sigma
    return float(min(1.0, 2 * ndtr(-abs(z))))
