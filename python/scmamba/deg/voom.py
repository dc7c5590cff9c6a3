"""Precision weights for log counts per million (Law, Chen, Shi and Smyth, Genome Biol 15:R29, 2014)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from .linear import squeeze


class VoomTest(NamedTuple):
    """Weighted moderated t-test of one coefficient; arrays of length genes."""

    change: np.ndarray  # log2
    se: np.ndarray
    statistic: np.ndarray
    df: float
    p: np.ndarray


def voom_weights(
    counts: np.ndarray, design: np.ndarray, library: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log2 counts per million and the weights of their mean-variance trend.

    Parameters
    ----------
    counts
        (genes, samples) sums of counts.
    design
        (samples, k) of full rank.
    library
        (samples,) effective library sizes.

    Returns
    -------
    Two (genes, samples) arrays.
    """
    from statsmodels.nonparametric.smoothers_lowess import lowess

    levels = np.log2((counts + 0.5) / (library + 1) * 1e6)
    hat = design @ np.linalg.pinv(design)
    fitted = levels @ hat
    df = design.shape[0] - design.shape[1]
    deviation = np.sqrt(((levels - fitted) ** 2).sum(axis=1) / df)
    mean = levels.mean(axis=1) + np.log2(library + 1).mean() - np.log2(1e6)
    use = counts.any(axis=1)
    trend = lowess(
        np.sqrt(deviation[use]), mean[use], frac=0.5, it=3, delta=0.01 * np.ptp(mean[use])
    )
    at, first = np.unique(trend[:, 0], return_index=True)
    counted = fitted + np.log2(library + 1) - np.log2(1e6)
    return levels, 1 / np.maximum(np.interp(counted, at, trend[first, 1]), 1e-3) ** 4


def weighted_moderated_t(
    levels: np.ndarray, weights: np.ndarray, design: np.ndarray, column: int, minimum: float = 0.0
) -> VoomTest:
    """Weighted least squares for every gene and the moderated t of one coefficient.

    Parameters
    ----------
    levels, weights
        (genes, samples).
    design
        (samples, k) of full rank.
    column
        Which coefficient is tested.
    minimum
        Minimal effect (log2); the test is that of McCarthy and Smyth (2009).
    """
    gram = np.einsum("gs,si,sj->gij", weights, design, design, optimize=True)
    cov = np.linalg.inv(gram)
    coef = np.einsum("gij,gj->gi", cov, (levels * weights) @ design)
    df = design.shape[0] - design.shape[1]
    variance = (weights * (levels - coef @ design.T) ** 2).sum(axis=1) / df
    prior_df, prior = squeeze(variance, df)
    if np.isinf(prior_df):
        posterior, total = prior, 1e12
    else:
        posterior = (prior_df * prior + df * variance) / (prior_df + df)
        total = min(prior_df + df, df * variance.size)
    change, se = coef[:, column], np.sqrt(posterior * cov[:, column, column])
    above = np.abs(change) - minimum
    p = np.minimum(stdtr(total, -above / se) + stdtr(total, -(np.abs(change) + minimum) / se), 1.0)
    return VoomTest(change, se, np.sign(change) * np.maximum(above, 0) / se, float(total), p)
