"""Which values are masked: at random in training, in interleaved groups at inference."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def interleaved_groups(hidden: np.ndarray, groups: int) -> np.ndarray:
    """Number the True positions of each row 0, 1, ..., groups-1, 0, 1, ... from left to right.

    Every group of a row is spread over its whole length (published inference rule).

    Parameters
    ----------
    hidden
        (B, L) bool.
    groups
        Number of groups.

    Returns
    -------
    (B, L) number of the group; -1 where ``hidden`` is False.

    Examples
    --------
    >>> import numpy as np
    >>> interleaved_groups(np.array([[True, False, True, True]]), 2).tolist()
    [[0, -1, 1, 0]]
    """
    rank = np.cumsum(hidden, axis=1, dtype=np.int64) - 1
    return np.where(hidden, rank % groups, -1)


def interleaved_values(
    counts: sparse.csr_matrix, groups: int, seed: int = 0
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Mask one stored value in ``groups``, interleaved along each row from a start drawn per row.

    Parameters
    ----------
    counts
        (n, m) CSR.
    groups
        One value in this many is masked.
    seed
        Seed of the starts.

    Returns
    -------
    The visible and the masked values, two matrices of the same shape.

    Examples
    --------
    >>> from scipy import sparse
    >>> visible, masked = interleaved_values(sparse.csr_matrix([[1, 2, 3, 4]]), 2)
    >>> visible.nnz, masked.nnz, int((visible + masked).sum())
    (2, 2, 10)
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
