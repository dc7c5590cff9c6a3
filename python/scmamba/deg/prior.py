"""Empirical-Bayes shrinkage of the genes' variances: the prior all genes share (spec of MAST, section B1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from ..utils.errors import DataError
from ..utils.threads import single_blas_thread


class Prior(NamedTuple):
    """Inverse-gamma prior (shape a, rate b) of the variance.

    Attributes
    ----------
    variance
        b / a.
    dof
        2 a.
    n_genes
        Number of genes it was estimated from.
    """

    variance: float
    dof: float
    n_genes: int = 0


NO_PRIOR = Prior(1.0, 0.0)


def estimate_prior(
    n_expressed: np.ndarray, squares: np.ndarray, scale: np.ndarray, *, relative: float = 1e-26
) -> Prior:
    """Maximise the marginal likelihood of the genes' sums of squares over the prior's shape and rate.

    Parameters
    ----------
    n_expressed
        (genes,) number of values that are not zero.
    squares
        (genes,) sum of squares of those values around their mean.
    scale
        (genes,) sum of squares of the same values as they were summed: ``squares`` not above
        ``relative * scale`` is rounding noise of a gene whose values are all the same, and is not used.
    relative
        See ``scale``.

    Returns
    -------
    Prior
        Variance, degrees of freedom, and the number of genes used.

    Raises
    ------
    DataError
        No gene varies, or the optimizer fails.

    Notes
    -----
    The optimizer and its tolerances are R's defaults, stopping rule included: an exact maximum would differ
    from MAST's by up to 1e-3.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> squares = rng.chisquare(19, 500) * 10 / rng.chisquare(10, 500)
    >>> prior = estimate_prior(np.full(500, 20.0), squares, squares)
    >>> 5 < prior.dof < 20
    True
    """
    keep = (n_expressed > 1) & (squares > relative * scale) & np.isfinite(squares)
    if not keep.any():
        raise DataError(
            "No gene has two different non-zero values, so no variance can be estimated. Check that the "
            "values are normalized and that the groups hold more than a few cells, or use ebayes=False."
        )
    # Genes with the same number of values share their Beta functions: evaluate each once.
    half, count = np.unique((n_expressed[keep] - 1.0) / 2.0, return_counts=True)
    gene_half, gene_squares = (n_expressed[keep] - 1.0) / 2.0, squares[keep].astype(np.float64)

    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = theta
        logs = np.log1p(gene_squares / (2 * b))
        log_beta = gammaln(half) + gammaln(a) - gammaln(half + a)
        value = (
            -(count * log_beta).sum() - np.log(b) * gene_half.sum() - ((gene_half + a) * logs).sum()
        )
        d_a = (count * (digamma(half + a) - digamma(a))).sum() - logs.sum()
        d_b = ((a * gene_squares - 2 * gene_half * b) / (gene_squares * b + 2 * b * b)).sum()
        return -value, np.array([-d_a, -d_b])

    eps = np.finfo(np.float64).eps
    # The optimizer solves 10 x 10 systems: a BLAS that wakes its threads for each is many times slower.
    with single_blas_thread():
        found = minimize(
            negative,
            np.array([1.0, 1.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(1e-3, None)] * 2,
            options={"ftol": 1e7 * eps, "gtol": 0.0, "maxcor": 5, "maxiter": 100},
        )
    if not found.success:
        raise DataError(
            f"The shared variance of the {int(keep.sum()):,} genes could not be estimated ({found.message}). "
            "Use ebayes=False, or more genes."
        )
    a, b = found.x
    return Prior(float(b / a), float(2 * a), int(keep.sum()))
