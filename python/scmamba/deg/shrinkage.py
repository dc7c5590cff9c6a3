"""Shrunken fold changes with intervals (adaptive shrinkage; Stephens, Biostatistics 18:275, 2017).

The true fold changes of a cell type are taken to be a mixture of normal distributions around zero, fitted to all genes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

_EM_STEPS = 60
_BISECTIONS = 34


class Shrunken(NamedTuple):
    """Posterior of the fold changes, (genes,) each."""

    mean: np.ndarray
    low: np.ndarray  # 2.5%
    high: np.ndarray  # 97.5%


def shrink(change: np.ndarray, se: np.ndarray) -> Shrunken:
    """Posterior mean and 95% interval of every fold change.

    Parameters
    ----------
    change
        (genes,) estimates.
    se
        (genes,) their standard errors.

    Returns
    -------
    Shrunken
        On the scale of ``change``; NaN where an estimate is missing.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.r_[np.zeros(900), rng.normal(0, 2, 100)]
    >>> found = shrink(truth + rng.normal(0, 0.5, 1000), np.full(1000, 0.5))
    >>> bool(np.abs(found.mean[:900]).mean() < 0.15)
    True
    """
    use = np.isfinite(change) & np.isfinite(se) & (se > 0)
    out = np.full((3, change.size), np.nan)
    if not use.any():
        return Shrunken(*out)
    b, s2 = change[use], se[use] ** 2
    smallest = np.sqrt(np.quantile(s2, 0.05)) / 10
    largest = max(2 * np.sqrt(max((b**2 - s2).max(), 0.0)), 4 * smallest)
    sds = np.append(0.0, np.geomspace(smallest, largest, int(2 * np.log2(largest / smallest)) + 2))
    total = s2[:, None] + sds**2
    log_like = -0.5 * (np.log(total) + b[:, None] ** 2 / total)
    like = np.exp(log_like - log_like.max(axis=1, keepdims=True))
    weight = np.full(sds.size, 1 / sds.size)
    prior_counts = np.zeros(sds.size)
    prior_counts[0] = 10.0  # as many genes more at zero, so that noise alone shows no effects
    for _ in range(_EM_STEPS):
        share = like * weight
        share /= share.sum(axis=1, keepdims=True)
        weight = share.sum(axis=0) + prior_counts
        weight /= weight.sum()
    share = like * weight
    share /= share.sum(axis=1, keepdims=True)
    keep = sds**2 / total
    mean, sd = keep * b[:, None], np.sqrt(keep * s2[:, None])
    out[0, use] = (share * mean).sum(axis=1)
    for row, level in ((1, 0.025), (2, 0.975)):
        out[row, use] = _quantile(share, mean, sd, level)
    return Shrunken(*out)


def _quantile(share: np.ndarray, mean: np.ndarray, sd: np.ndarray, level: float) -> np.ndarray:
    """Quantiles of mixtures of normal distributions, a point mass at zero among them, by bisection."""
    low, high = (mean - 8 * sd).min(axis=1), (mean + 8 * sd).max(axis=1)
    low, high = np.minimum(low, -1e-9), np.maximum(high, 1e-9)
    spread = np.maximum(sd, 1e-12)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = (share * ndtr((middle[:, None] - mean) / spread)).sum(axis=1) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(np.abs(high) < 1e-6, 0.0, (low + high) / 2)
