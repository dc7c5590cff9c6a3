"""Dispersion of counts within cell types, by which over-dispersed counts are split into independent parts."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ...utils.errors import DataError

_EVIDENCE = (
    5.0  # pairs of counts expected, by which each gene's dispersion is shrunk to the average
)


def dispersion_within(counts: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Dispersion of each gene around the means of cell types: variance = mean + dispersion x mean^2.

    Moments of pairs: of y (y - 1) the mean is (1 + dispersion) mean^2, and of products of two cells of a type it is the
    product of their means, which are proportional to the cells' total counts. Both sums are without bias, also in types of a
    few cells.

    Parameters
    ----------
    counts
        (cells, genes) raw counts.
    labels
        (cells,) cell types. Differences within a type, such as subtypes, are part of the dispersion.

    Returns
    -------
    (genes,) dispersions, at least 0; those of genes with few counts are shrunk to the average of all genes.

    Raises
    ------
    DataError
        ``labels`` are not one for each cell, or no type has two cells with counts.

    References
    ----------
    Robinson and Smyth (2008), Biostatistics 9, 321-332 (moments and shrinkage of the dispersion).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.evaluation import dispersion_within
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(5 * rng.gamma(2.0, 0.5, (4000, 20)))
    >>> bool(abs(dispersion_within(sparse.csr_matrix(counts), np.repeat("a", 4000)).mean() - 0.5) < 0.1)
    True
    """
    labels = np.asarray(labels).astype(str)
    if labels.shape != (counts.shape[0],):
        raise DataError(
            f"{labels.size} labels for {counts.shape[0]} cells; expected one for each cell."
        )
    whole = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(whole.sum(axis=1)).ravel()
    twice, square = np.zeros(whole.shape[1]), np.zeros(whole.shape[1])
    for label in np.unique(labels):
        own, depth = whole[labels == label], total[labels == label]
        pairs_of_cells = depth.sum() ** 2 - (depth**2).sum()
        if pairs_of_cells <= 0:
            continue
        sums = np.asarray(own.sum(axis=0)).ravel()
        squares = np.asarray(own.multiply(own).sum(axis=0)).ravel()
        twice += squares - sums
        square += (sums**2 - squares) * (depth**2).sum() / pairs_of_cells
    if not square.any():
        raise DataError(
            "The dispersion is fitted within cell types, and no type has two cells with counts of one gene; pass a number."
        )
    average = max(twice.sum() / square.sum(), 1.0)
    found: np.ndarray = (twice + _EVIDENCE * average) / (square + _EVIDENCE) - 1
    return np.maximum(found, 0.0)
