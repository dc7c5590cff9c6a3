"""Which values are hidden from the model: at random in training, in interleaved groups at inference (spec)."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def interleaved_groups(hidden: np.ndarray, groups: int) -> np.ndarray:
    """Number the True positions of each row 0, 1, ..., groups-1, 0, 1, ... from left to right; -1 elsewhere.

    ``hidden`` (B, L) bool. Every group of a row spreads over its whole length (published inference rule).
    """
    rank = np.cumsum(hidden, axis=1, dtype=np.int64) - 1
    return np.where(hidden, rank % groups, -1)


def interleaved_values(
    counts: sparse.csr_matrix, groups: int, seed: int = 0
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Hide one stored value in ``groups``, interleaved along each row from a start drawn per row.

    ``counts`` (n, m) CSR. Returns the visible and the hidden values, two matrices of the same shape.
    """
    counts = sparse.csr_matrix(counts, copy=True)
    counts.eliminate_zeros()
    counts.sort_indices()
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    start = np.random.default_rng(seed).integers(0, groups, counts.shape[0])
    hide = (np.arange(counts.nnz) - counts.indptr[rows] + start[rows]) % groups == 0

    def part(keep: np.ndarray) -> sparse.csr_matrix:
        indptr = np.concatenate(
            [[0], np.cumsum(np.bincount(rows[keep], minlength=counts.shape[0]))]
        )
        return sparse.csr_matrix(
            (counts.data[keep], counts.indices[keep], indptr), shape=counts.shape
        )

    return part(~hide), part(hide)
