"""Prior of the variances of genes around their trend: a mixture of any shape, and p-values that average over it.

A few genes differ between donors far more than the others of their expression (genotypes of HLA genes, responses to a
treatment that only some donors had). One inverse-gamma prior (Smyth 2004) shrinks their variances to the trend and calls
them wherever their donors fall unevenly on the two groups (Phipson et al., Ann Appl Stat 10:946, 2016). Here the prior is
estimated without a shape, by nonparametric maximum likelihood on a grid (Lu and Stephens, Bioinformatics 32:3428, 2016;
Ignatiadis and Sen, Ann Stat 53:1, 2025), and a p-value averages over the posterior of each gene's variance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, ndtr

#: Prior share of genes whose variance is at least twice the trend without any limit, whatever the genes seen show.
#: Chosen on splits of the donors of Kang et al. 2018 and on simulated cohorts; docs/deg.md.
TAIL_SHARE = 0.05
_STEP = 0.2  # of the grid, natural log of the variance
_EM_STEPS = 60
_GENES = 4000  # a prior needs no more genes than this; spread evenly over the variances
_LOWEST = 0.02  # variance over its trend


class VarianceMixture(NamedTuple):
    """Posterior of the variance of every gene, on a grid."""

    scale: np.ndarray  # (grid,) variance over its trend
    trend: np.ndarray  # (genes,)
    weight: np.ndarray  # (genes, grid), rows sum to 1

    def take(self, genes: np.ndarray) -> VarianceMixture:
        """Some of the genes."""
        return self._replace(trend=self.trend[genes], weight=self.weight[genes])

    def variances(self, floor: np.ndarray | float = 0.0) -> np.ndarray:
        """(genes, grid) variances, none below the ``floor`` of its gene."""
        least = np.broadcast_to(np.asarray(floor, dtype=np.float64), self.trend.shape)
        result: np.ndarray = np.maximum(self.scale * self.trend[:, None], least[:, None])
        return result

    def summary(self, floor: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(genes,) variance and degrees of freedom whose F distribution has the same precision in mean and variance."""
        precision = 1 / self.variances(floor)
        mean = (self.weight * precision).sum(axis=1)
        spread = (self.weight * (precision - mean[:, None]) ** 2).sum(axis=1)
        return 1 / mean, np.minimum(2 * mean**2 / np.maximum(spread, 1e-12 * mean**2), 1e6)


def fit_variance_mixture(
    s2: np.ndarray, df: np.ndarray, trend: np.ndarray, prior_df: float
) -> VarianceMixture:
    """Estimate the prior from all genes and return the posterior of each.

    Parameters
    ----------
    s2
        (genes,) variances, each with ``df`` degrees of freedom.
    df
        (genes,) degrees of freedom, at least 0.
    trend
        (genes,) variance expected at the gene's expression.
    prior_df
        Degrees of freedom of the inverse-gamma prior that the estimate starts from; 0: too few genes for a
        prior, every variance is as likely as any other (on the log scale).

    Returns
    -------
    VarianceMixture

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> s2 = np.where(np.arange(2000) < 100, 30.0, 1.0) * rng.chisquare(6, 2000) / 6
    >>> found = fit_variance_mixture(s2, np.full(2000, 6.0), np.ones(2000), 5.0)
    >>> variance = found.summary()[0]
    >>> bool(np.median(variance[:100]) > 15), bool(np.median(variance[100:]) < 1.2)
    (True, True)
    """
    known = df > 0.05
    ratio = np.where(known, s2 / trend, 1.0)
    if prior_df <= 0:
        grid = np.exp(np.arange(np.log(1e-5), np.log(1e8), _STEP / 4))
        prior = np.full(grid.size, 1 / grid.size)
    else:
        use = np.flatnonzero((df > 0.25) & np.isfinite(ratio))
        if use.size > _GENES:
            order = np.argsort(ratio[use], kind="stable")
            use = use[order[np.linspace(0, use.size - 1, _GENES).astype(int)]]
        highest = np.clip(3 * ratio[use].max(initial=1.0), 50.0, 1e6)
        grid = np.exp(np.arange(np.log(_LOWEST), np.log(highest) + _STEP, _STEP))
        prior = _estimated(_likelihood(ratio[use], df[use], grid), _inverse_gamma(grid, prior_df))
        tail = np.where(grid >= 2, 1 / grid, 0.0)
        prior = (1 - TAIL_SHARE) * prior + TAIL_SHARE * tail / tail.sum()
    weight = _likelihood(ratio, np.where(known, df, 0.0), grid) * prior
    return VarianceMixture(grid, trend, weight / weight.sum(axis=1, keepdims=True))


def _likelihood(ratio: np.ndarray, df: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(genes, grid) likelihoods of chi-squared variances, relative to the largest of each gene."""
    log = -(df / 2)[:, None] * (np.log(grid) + np.maximum(ratio, 1e-12)[:, None] / grid)
    result: np.ndarray = np.exp(log - log.max(axis=1, keepdims=True))
    return result


def _inverse_gamma(grid: np.ndarray, prior_df: float) -> np.ndarray:
    """(grid,) scaled inverse chi-squared weights, none of them zero."""
    log = -prior_df / 2 * (np.log(grid) + 1 / grid)
    weight = np.exp(log - log.max())
    result: np.ndarray = 0.999 * weight / weight.sum() + 0.001 / grid.size
    return result


def _estimated(likelihood: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights of the grid by expectation-maximization, which ends before they get ragged."""
    for _ in range(_EM_STEPS):
        share = likelihood * weight
        share /= share.sum(axis=1, keepdims=True)
        weight = share.mean(axis=0) + 1e-9
        weight /= weight.sum()
    return weight


def p_of_deviance(
    deviance: np.ndarray, mixture: VarianceMixture, floor: np.ndarray | float = 0.0
) -> np.ndarray:
    """(genes,) p of a difference of deviances with one degree of freedom, averaged over the variance.

    Parameters
    ----------
    deviance
        (genes,) differences of deviances (squared estimates over their unscaled variances).
    mixture
        Posterior of the variances.
    floor
        Scalar or (genes,): no variance is below.
    """
    tail = chdtrc(1.0, deviance[:, None] / mixture.variances(floor))
    result: np.ndarray = np.minimum((mixture.weight * tail).sum(axis=1), 1.0)
    return result


def p_of_change(
    change: np.ndarray,
    unscaled: np.ndarray,
    minimum: float,
    mixture: VarianceMixture,
    floor: np.ndarray | float = 0.0,
) -> np.ndarray:
    """(genes,) p that a change is not larger than ``minimum`` (McCarthy and Smyth 2009), averaged over the variance.

    Parameters
    ----------
    change
        (genes,) estimates.
    unscaled
        (genes,) their variances at a quasi-dispersion of 1.
    minimum
        Minimal effect.
    mixture, floor
        As for :func:`p_of_deviance`.
    """
    se = np.sqrt(mixture.variances(floor) * unscaled[:, None])
    size = np.abs(change)[:, None]
    tail = ndtr(-(size - minimum) / se) + ndtr(-(size + minimum) / se)
    result: np.ndarray = np.minimum((mixture.weight * tail).sum(axis=1), 1.0)
    return result


def minimal_change_of_mixture(
    unscaled: np.ndarray,
    mixture: VarianceMixture,
    p: float,
    floor: np.ndarray | float = 0.0,
    power: float = 0.8,
) -> np.ndarray:
    """(genes,) smallest change that is found with a given power at p.

    Parameters
    ----------
    unscaled
        (genes,) variances of the estimates at a quasi-dispersion of 1.
    mixture, floor
        As for :func:`p_of_deviance`.
    p
        Two-sided p-value at which a gene is called.
    power
        Probability to call it.
    """
    se = np.sqrt(mixture.variances(floor) * unscaled[:, None])

    def beyond(limit: np.ndarray) -> np.ndarray:
        result: np.ndarray = (mixture.weight * ndtr(-limit[:, None] / se)).sum(axis=1)
        return result

    largest = 60 * se.max(axis=1)
    limit = _bisected(lambda x: 2 * beyond(x) > p, largest)
    # Above the limit with probability 1 - beyond(change - limit).
    change: np.ndarray = limit + _bisected(lambda x: beyond(x) > 1 - power, largest)
    return change


def _bisected(more: Callable[[np.ndarray], np.ndarray], largest: np.ndarray) -> np.ndarray:
    """(genes,) where ``more`` turns false, between 0 and ``largest``."""
    low, high = np.zeros_like(largest), largest.copy()
    for _ in range(50):
        middle = (low + high) / 2
        up = more(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    result: np.ndarray = (low + high) / 2
    return result
