"""A negative-binomial mixed model of cells with a random intercept for every donor.

Counts of cell j of donor i are negative-binomial with mean ``depth_ij exp(x_ij beta + b_i)`` and a dispersion between cells;
the donor effects b_i are normal. This is the model of lme4's ``glmer.nb``, and that of NEBULA (He et al., Commun Biol 4:629,
2021) with log-normal instead of gamma donors. Both variances maximize the restricted likelihood, by Laplace's approximation
over donor effects and coefficients, so that few donors do not make them too small. Cells with one set of covariates share a
log rate and enter the sum over zeros as a histogram of their depth: a gene costs as much as it has counts, not as there are
cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import fdtrc, stdtr

from ..utils.threads import run_in_threads, threads_for
from .mixed_kernel import RIDGE, fit_genes

#: Width of the bins of depth (natural log); within a bin the mean depth stands for all.
BIN_WIDTH = 0.05


class MixedFit(NamedTuple):
    """Fits of many genes; arrays of length genes unless stated."""

    coef: np.ndarray  # (genes, k), natural logarithms
    cov: np.ndarray  # (genes, k, k)
    dispersion: np.ndarray  # between the cells of one donor
    variance: np.ndarray  # of the donor effects
    effects: np.ndarray  # (genes, donors), their modes
    log_likelihood: np.ndarray  # marginal, up to a constant of the counts
    lr: np.ndarray  # likelihood ratio of the tested coefficient, both variances held
    df: float  # of its F test
    p: np.ndarray

    def se(self, column: int) -> np.ndarray:
        """(genes,) standard errors of one coefficient."""
        result: np.ndarray = np.sqrt(self.cov[:, column, column])
        return result


class Strata(NamedTuple):
    """Cells that share their donor and covariates."""

    of_cell: np.ndarray  # (cells,)
    design: np.ndarray  # (strata, k)
    donor: np.ndarray  # (strata,)


def make_strata(design: np.ndarray, donor: np.ndarray) -> Strata:
    """Group the cells.

    Parameters
    ----------
    design
        (cells, k).
    donor
        (cells,) numbers from 0.
    """
    keys = np.column_stack([donor.astype(np.float64), design])
    rows, code = np.unique(keys, axis=0, return_inverse=True)
    return Strata(code.ravel(), np.ascontiguousarray(rows[:, 1:]), rows[:, 0].astype(np.int64))


def fit_mixed(
    counts: sp.csc_matrix,
    depth: np.ndarray,
    strata: Strata,
    column: int,
    *,
    exact: bool = False,
) -> MixedFit:
    """Fit every gene and test one coefficient.

    Parameters
    ----------
    counts
        (cells, genes) raw counts.
    depth
        (cells,) expected total of a cell (its total, normalized).
    strata
        Donors and design of the cells; the first column of the design is the intercept.
    column
        Coefficient that is tested.
    exact
        Find both variances within 0.3% instead of 5%, which takes three times as long.

    Returns
    -------
    MixedFit
        ``p`` is that of F with 1 and ``df`` degrees of freedom: donors less donor-level coefficients for a
        coefficient that is constant within donors, cells less donors and coefficients otherwise.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> donor = np.repeat(np.arange(10), 60)
    >>> group = (donor % 2).astype(float)
    >>> rate = np.exp(rng.normal(0, 0.3, 10)[donor] + 1.5 * group)
    >>> counts = sp.csc_matrix(rng.negative_binomial(2, 2 / (2 + rate))[:, None])
    >>> strata = make_strata(np.column_stack([np.ones(600), group]), donor)
    >>> fit = fit_mixed(counts, np.ones(600), strata, 1)
    >>> bool(1 < fit.coef[0, 1] < 2), bool(fit.p[0] < 0.01), fit.df
    (True, True, 8.0)
    """
    counts = sp.csc_matrix(counts)
    bin_stratum, bin_depth, bin_count = _histogram(strata, depth)
    n_donors = int(strata.donor.max()) + 1
    ridge = RIDGE * strata.design[strata.of_cell].var(
        axis=0
    )  # in units of the column; none for the intercept
    work = counts.nnz + bin_depth.size * counts.shape[1]
    genes, k = counts.shape[1], strata.design.shape[1]
    coef, cov = np.zeros((genes, k)), np.zeros((genes, k, k))
    dispersion, variance, log_likelihood, lr = np.zeros((4, genes))
    effects = np.zeros((genes, n_donors))
    run_in_threads(
        fit_genes,
        genes,
        threads_for(work * 1000.0),
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int64),
        counts.data,
        strata.of_cell.astype(np.int64),
        depth.astype(np.float64),
        bin_stratum,
        bin_depth,
        bin_count,
        strata.design,
        strata.donor,
        n_donors,
        ridge,
        column,
        exact,
        coef,
        cov,
        dispersion,
        variance,
        effects,
        log_likelihood,
        lr,
    )
    df = _degrees_of_freedom(strata, column, len(depth), n_donors)
    p = fdtrc(1.0, df, lr)
    return MixedFit(coef, cov, dispersion, variance, effects, log_likelihood, lr, df, p)


def _histogram(strata: Strata, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stratum, mean depth and number of cells of every bin of depth within every stratum."""
    step = np.floor(np.log(depth) / BIN_WIDTH).astype(np.int64)
    step -= step.min()
    key = strata.of_cell * (step.max() + 1) + step
    keys, code, count = np.unique(key, return_inverse=True, return_counts=True)
    mean = np.bincount(code.ravel(), depth, keys.size) / count
    return keys // (step.max() + 1), mean, count.astype(np.float64)


def _degrees_of_freedom(strata: Strata, column: int, cells: int, donors: int) -> float:
    """Of the error that a coefficient is measured against (containment)."""
    constant = [
        all(np.ptp(strata.design[strata.donor == d, j]) == 0 for d in range(donors))
        for j in range(strata.design.shape[1])
    ]
    if constant[column]:
        return float(max(donors - sum(constant), 1))
    return float(max(cells - donors - (len(constant) - sum(constant)), 1))


def p_beyond(change: np.ndarray, se: np.ndarray, df: float, minimum: float) -> np.ndarray:
    """(genes,) p of t-tests that a change is not larger than ``minimum`` (McCarthy and Smyth 2009).

    Parameters
    ----------
    change, se
        (genes,) estimates and standard errors.
    df
        Degrees of freedom.
    minimum
        Minimal effect, on the scale of ``change``.
    """
    size = np.abs(change)
    p = stdtr(df, -(size - minimum) / se) + stdtr(df, -(size + minimum) / se)
    result: np.ndarray = np.minimum(p, 1.0)
    return result
