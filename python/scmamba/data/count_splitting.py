"""Count splitting: two independent sets of counts from one, to score a prediction on every entry, zeros included."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import xlogy

from ..utils.errors import DataError, OptionError


def split_counts(
    counts: sparse.csr_matrix,
    share: float = 0.8,
    *,
    dispersion: np.ndarray | float = 0.0,
    seed: int = 0,
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts into two independent parts with the same expected profile.

    Parameters
    ----------
    counts
        (cells, genes) raw counts.
    share
        Expected share of the counts in the first part. Default 0.8.
    dispersion
        Dispersion of the counts around their means, one or (genes,): variance = mean + dispersion x mean^2. 0 (default):
        Poisson counts, split binomially. Above 0: negative binomial counts, split by a beta-binomial, so that the parts
        are independent negative binomials.
    seed
        Seed of the split. Default 0.

    Returns
    -------
    The first part and the rest, CSR float64; their sum is ``counts``.

    Raises
    ------
    OptionError
        ``share`` is not between 0 and 1.
    DataError
        Values that are not counts.

    References
    ----------
    Neufeld et al. (2024), Biostatistics 25, 270-287 (count splitting); Neufeld et al. (2023), arXiv 2307.12985 (negative
    binomial).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.evaluation import split_counts
    >>> counts = sparse.csr_matrix(np.array([[5, 0, 2], [0, 7, 1]]))
    >>> train, test = split_counts(counts, 0.8)
    >>> bool(((train + test) != counts).nnz == 0)
    True
    """
    if not 0 < share < 1:
        raise OptionError(f"share is {share}; expected a number between 0 and 1 (exclusive).")
    whole = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    whole.sum_duplicates()
    if (whole.data < 0).any() or (whole.data != np.rint(whole.data)).any():
        raise DataError("Only raw counts can be split; the values are negative or not integers.")
    rng = np.random.default_rng(seed)
    probability: np.ndarray | float = share
    if np.any(np.asarray(dispersion) > 0):
        spread = np.broadcast_to(np.maximum(dispersion, 1e-8), whole.shape[1])[whole.indices]
        probability = rng.beta(share / spread, (1 - share) / spread)
    first = whole.copy()
    first.data = rng.binomial(whole.data.astype(np.int64), probability).astype(np.float64)
    rest = sparse.csr_matrix(whole - first)
    first.eliminate_zeros()
    rest.eliminate_zeros()
    return first, rest


def poisson_deviance(
    counts: sparse.csr_matrix, expected: np.ndarray, where: np.ndarray | None = None
) -> np.ndarray:
    """Poisson deviance of each cell, over all genes or over some of its entries.

    Parameters
    ----------
    counts
        (cells, genes) counts.
    expected
        (cells, genes) expected counts.
    where
        (cells, genes) the entries that count. Default: all.

    Returns
    -------
    (cells,) deviances, 2 sum(y log(y / mu) - y + mu).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.evaluation import poisson_deviance
    >>> poisson_deviance(sparse.csr_matrix([[1, 0]]), np.array([[1.0, 0.5]]))
    array([1.])
    """
    mu = np.maximum(np.asarray(expected, dtype=np.float64), 1e-12)
    own = sparse.csr_matrix(counts, dtype=np.float64).tocoo()
    at = mu[own.row, own.col]
    terms = xlogy(own.data, own.data / at) - own.data
    if where is not None:
        mu, terms = np.where(where, mu, 0), terms * where[own.row, own.col]
    deviance: np.ndarray = 2 * (
        mu.sum(axis=1) + np.bincount(own.row, weights=terms, minlength=len(mu))
    )
    return deviance
