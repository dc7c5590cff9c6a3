"""Negative-binomial quasi-likelihood F-tests with moderated gene variances.

1. Dispersions follow a trend along expression, estimated by locally weighted Cox-Reid profile likelihoods (McCarthy, Chen
   and Smyth, Nucleic Acids Res 40:4288, 2012). What cells of one donor vary beyond Poisson is measured in the cells and
   enters every sample divided by its number of cells: a donor with 20 cells is less certain than one with 2,000.
2. Each gene has a quasi-dispersion of its own (Lund et al., Stat Appl Genet Mol Biol 11:8, 2012), from unit deviances
   scaled to the mean and variance that they have at small counts (Chen et al., Nucleic Acids Res 53:gkaf018, 2025).
3. Quasi-dispersions follow a trend (Smyth, Stat Appl Genet Mol Biol 3:3, 2004), fitted by maximum likelihood of their F
   distribution, so that genes with fewer effective degrees of freedom count less. Around it their prior is a mixture of
   any shape (:mod:`scmamba.deg.variance_prior`), because some genes differ between donors much more than others.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline, RegularGridInterpolator
from scipy.optimize import minimize
from scipy.special import betaln, digamma, gammaln, nctdtrinc, stdtrit

from .linear import spline_basis
from .negative_binomial import NBFit, fit_nb, profile_likelihoods
from .variance_prior import (
    VarianceMixture,
    fit_variance_mixture,
    minimal_change_of_mixture,
    p_of_change,
    p_of_deviance,
)

#: Dispersions at which profile likelihoods are evaluated.
GRID = np.exp(np.linspace(np.log(1e-3), np.log(4.0), 17))
PRIOR_COUNT = 0.5
_LOG_MU = np.linspace(np.log(1e-4), np.log(200.0), 56)
_LOG_PHI = np.linspace(np.log(1e-4), np.log(10.0), 24)


@cache
def _moment_table() -> RegularGridInterpolator:
    """Logarithms of mean and variance of the unit deviance over log mu and log dispersion, by exact sums."""
    out = np.zeros((_LOG_MU.size, _LOG_PHI.size, 2))
    for i, mu in enumerate(np.exp(_LOG_MU)):
        for j, phi in enumerate(np.exp(_LOG_PHI)):
            last = int(mu + 30 * np.sqrt(mu + phi * mu**2) + 40 * (1 + phi * mu))
            # Exact up to 2,000, then every integer of a geometric grid represents those around it.
            y = np.arange(min(last, 2000) + 1.0)
            width = np.ones_like(y)
            if last > 2000:
                edge = np.unique(np.round(np.geomspace(2001, last, 600)))
                y = np.append(y, (edge[:-1] + edge[1:] - 1) / 2)
                width = np.append(width, np.diff(edge))
            size = 1 / phi
            log_p = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
            log_p += y * np.log(mu / (mu + size)) - size * np.log1p(mu / size)
            p = np.exp(log_p) * width
            ratio = np.log(np.maximum(y, 1e-300) / mu)
            d = 2 * (np.where(y > 0, y * ratio, 0) - (y + size) * np.log((y + size) / (mu + size)))
            mean = (p * d).sum() / p.sum()
            out[i, j] = np.log(mean), np.log((p * (d - mean) ** 2).sum() / p.sum())
    return RegularGridInterpolator((_LOG_MU, _LOG_PHI), out)


def deviance_moments(mu: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the unit deviance of negative-binomial counts, at their true mean.

    Parameters
    ----------
    mu, phi
        Means and dispersions, of one shape.

    Returns
    -------
    Two arrays; 1 and 2 where counts are large and the dispersion small.
    """
    mu, phi = np.broadcast_arrays(np.asarray(mu, dtype=float), np.asarray(phi, dtype=float))
    # Beyond the table the coefficient of variation decides: 1 / mu moves into the dispersion.
    beyond = mu > 200
    phi = np.where(beyond, phi + 1 / np.maximum(mu, 1) - 1 / 200, phi)
    at = np.stack(
        [
            np.clip(np.log(np.maximum(mu, 1e-300)), _LOG_MU[0], _LOG_MU[-1]),
            np.clip(np.log(np.maximum(phi, 1e-300)), _LOG_PHI[0], _LOG_PHI[-1]),
        ],
        axis=-1,
    )
    found = np.exp(_moment_table()(at))
    return found[..., 0], found[..., 1]


class Squeezed(NamedTuple):
    """Prior of the quasi-dispersions."""

    prior_df: float
    prior: np.ndarray  # (genes,)
    posterior: np.ndarray  # (genes,)


def squeeze_by_likelihood(s2: np.ndarray, df: np.ndarray, level: np.ndarray) -> Squeezed:
    """Shrink variances with unequal degrees of freedom towards a trend.

    Parameters
    ----------
    s2
        (genes,) variances, each ``df`` degrees of freedom.
    df
        (genes,) degrees of freedom, above 0, not necessarily whole.
    level
        (genes,) log expression that the trend follows.

    Returns
    -------
    Squeezed
        Prior degrees of freedom d0, prior and posterior variances: s2 / prior ~ F(df, d0).
    """
    use = (df > 0.25) & np.isfinite(s2)
    if use.sum() < 10:
        return Squeezed(0.0, np.ones_like(s2), s2)
    x, d = s2[use], df[use]
    basis = spline_basis(level, level[use]) if use.sum() >= 50 else np.ones((level.size, 1))
    # Orthogonal columns, so that one step size fits all coefficients.
    scale = np.linalg.qr(basis[use])[1] / np.sqrt(use.sum())
    basis = np.linalg.solve(scale.T, basis.T).T
    own = basis[use]

    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        half0 = np.exp(theta[0]) / 2
        log_s = own @ theta[1:]
        half = d / 2
        ratio = half * x / (half0 * np.exp(log_s))
        value = half * (np.log(half / half0) - log_s) - betaln(half, half0)
        value -= (half + half0) * np.log1p(ratio)
        share = ratio / (1 + ratio)
        d_log_s = -half + (half + half0) * share
        d_half0 = -half / half0 - digamma(half0) + digamma(half + half0) - np.log1p(ratio)
        d_half0 += (half + half0) * share / half0
        grad = np.concatenate([[(d_half0 * half0).sum()], own.T @ d_log_s])
        return -value.sum() / x.size, -grad / x.size

    start = np.zeros(1 + own.shape[1])
    start[0] = np.log(8.0)
    start[1] = np.log(max((x * d).sum() / d.sum(), 1e-6)) / own[0, 0]
    bounds = [(np.log(0.2), np.log(500.0))] + [(None, None)] * own.shape[1]
    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    d0, prior = float(np.exp(found[0])), np.exp(basis @ found[1:])
    return Squeezed(d0, prior, (d0 * prior + df * s2) / (d0 + df))


def dispersion_trend(
    profiles: np.ndarray, level: np.ndarray, grid: np.ndarray = GRID
) -> np.ndarray:
    """(genes,) dispersions along expression: the maximum of locally averaged profile likelihoods.

    Parameters
    ----------
    profiles
        (genes, grid) profile likelihoods.
    level
        (genes,) log expression.
    grid
        Dispersions of the columns, evenly spaced on the log scale.
    """
    genes = level.size
    order = np.argsort(level, kind="stable")
    window = int(min(genes, max(200, genes // 6)))
    centers = np.unique(np.linspace(0, genes - 1, 25).astype(int))
    log_grid = np.log(grid)
    fine = np.linspace(log_grid[0], log_grid[-1], 400)
    best = np.empty(centers.size)
    relative = profiles - profiles.max(axis=1, keepdims=True)
    for i, c in enumerate(centers):
        first = int(np.clip(c - window // 2, 0, genes - window))
        near = order[first : first + window]
        distance = np.abs(level[near] - level[order[c]])
        weight = (1 - np.minimum(distance / (distance.max() * 1.001 + 1e-12), 1) ** 3) ** 3
        curve = weight @ relative[near]
        best[i] = fine[np.argmax(CubicSpline(log_grid, curve)(fine))]
    result: np.ndarray = np.exp(np.interp(level, level[order[centers]], best))
    return result


class QLFit(NamedTuple):
    """Everything the tests of one cell type need; arrays of length genes unless stated."""

    counts: np.ndarray  # (genes, samples)
    design: np.ndarray
    offset: np.ndarray
    dispersion: np.ndarray  # (genes, samples)
    nb: NBFit
    df: np.ndarray  # effective residual degrees of freedom
    s2: np.ndarray  # quasi-dispersions before shrinking
    variance: VarianceMixture  # posterior of the quasi-dispersions
    level: np.ndarray  # log2 counts per million

    @property
    def floor(self) -> np.ndarray:
        """(genes,) quasi-dispersion of Poisson sampling alone: no gene varies less."""
        result: np.ndarray = 1 / np.mean(1 + self.dispersion * self.nb.mu, axis=1)
        return result

    def part(self, genes: np.ndarray, samples: np.ndarray, design: np.ndarray) -> QLFit:
        """Some genes fitted to some samples; their quasi-dispersions stay."""
        return self._replace(
            counts=np.ascontiguousarray(self.counts[np.ix_(genes, samples)]),
            design=design,
            offset=self.offset[samples],
            dispersion=self.dispersion[np.ix_(genes, samples)],
            df=self.df[genes],
            s2=self.s2[genes],
            variance=self.variance.take(genes),
            level=self.level[genes],
        ).refitted()

    def refitted(self) -> QLFit:
        """Fitted again after counts or samples were replaced; quasi-dispersions stay."""
        return self._replace(nb=fit_nb(self.counts, self.design, self.offset, self.dispersion))


def average_level(counts: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """(genes,) log2 counts per million over all samples, with a prior count."""
    library = np.exp(offset)
    total = counts.sum(axis=1) + PRIOR_COUNT * counts.shape[1]
    result: np.ndarray = np.log2(total / (library.sum() + counts.shape[1]) * 1e6)
    return result


def fit_quasi_likelihood(
    counts: np.ndarray,
    design: np.ndarray,
    offset: np.ndarray,
    extra: np.ndarray | float = 0.0,
) -> QLFit:
    """Fit the model to all genes of one cell type.

    Parameters
    ----------
    counts
        (genes, samples) sums of counts.
    design
        (samples, k) of full rank.
    offset
        (samples,) natural logarithms of the effective library sizes.
    extra
        Scalar or (genes, samples): dispersion between cells divided by the number of cells.

    Returns
    -------
    QLFit
    """
    level = average_level(counts, offset)
    some = np.arange(counts.shape[0])
    if some.size > 4000:  # a trend needs no more genes than this; spread evenly over expression
        some = np.argsort(level, kind="stable")[np.linspace(0, some.size - 1, 4000).astype(int)]
    more = np.broadcast_to(np.asarray(extra, dtype=np.float64), counts.shape)
    profiles = profile_likelihoods(counts[some], design, offset, more[some], GRID)
    trend = dispersion_trend(profiles, level[some])
    order = np.argsort(level[some], kind="stable")
    phi = np.interp(level, level[some][order], trend[order])[:, None] + more
    nb = fit_nb(counts, design, offset, phi)
    deviance, df = adjusted_deviance(counts, nb, phi)
    with np.errstate(divide="ignore", invalid="ignore"):
        s2 = np.where(df > 0, deviance / df, 0.0)
    squeezed = squeeze_by_likelihood(s2, df, level)
    variance = fit_variance_mixture(s2, df, squeezed.prior, squeezed.prior_df)
    return QLFit(counts, design, offset, phi, nb, df, s2, variance, level)


def adjusted_deviance(
    counts: np.ndarray, nb: NBFit, phi: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) residual deviances and degrees of freedom whose ratio is 1 on average, also at small counts."""
    mean, variance = deviance_moments(nb.mu, phi)
    size = 1 / np.maximum(phi, 1e-10)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where(counts > 0, counts * np.log(counts / nb.mu), 0)
    d = np.maximum(2 * (d - (counts + size) * np.log((counts + size) / (nb.mu + size))), 0)
    scale = 2 * mean / variance
    return (scale * d).sum(axis=1), (scale * mean * (1 - nb.leverage)).sum(axis=1)


class QLTest(NamedTuple):
    """Test of one coefficient; arrays of length genes."""

    change: np.ndarray  # natural log fold change, with a prior count
    se: np.ndarray
    statistic: np.ndarray  # F, or t with a minimal effect
    df: np.ndarray  # of the F distribution closest to the posterior of the variance
    p: np.ndarray  # averaged over that posterior


def test_coefficient(fit: QLFit, column: int, minimum: float = 0.0) -> QLTest:
    """F-test that one coefficient is zero, or a t-test that it is not larger than ``minimum``.

    Parameters
    ----------
    fit
        What :func:`fit_quasi_likelihood` returned.
    column
        Column of the design.
    minimum
        Minimal effect (natural log); above 0 the test is that of McCarthy and Smyth (Bioinformatics 25:765, 2009).
    """
    rest = np.delete(np.arange(fit.design.shape[1]), column)
    null = fit_nb(fit.counts, fit.design[:, rest], fit.offset, fit.dispersion)
    floor = fit.floor
    posterior, total = fit.variance.summary(floor)
    deviance = np.maximum(null.deviance - fit.nb.deviance, 0.0)
    change, unscaled = prior_count_change(fit, column)
    se = np.sqrt(posterior * unscaled)
    if minimum > 0:
        p = p_of_change(change, unscaled, minimum, fit.variance, floor)
        statistic = np.sign(change) * np.maximum(np.abs(change) - minimum, 0) / se
    else:
        p = p_of_deviance(deviance, fit.variance, floor)
        statistic = deviance / posterior
    return QLTest(change, se, statistic, total, p)


def prior_count_change(fit: QLFit, column: int) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) log fold changes after a small count was added everywhere, and their variances at quasi-dispersion 1."""
    library = np.exp(fit.offset)
    prior = PRIOR_COUNT * library / library.mean()
    raised = fit_nb(fit.counts + prior, fit.design, np.log(library + 2 * prior), fit.dispersion)
    return raised.coef[:, column], raised.cov[:, column, column]


def minimal_quasi_change(fit: QLFit, se: np.ndarray, p: float, genes: np.ndarray) -> np.ndarray:
    """Smallest log fold change that is found with 80% power in some genes.

    Parameters
    ----------
    fit
        What :func:`fit_quasi_likelihood` returned.
    se
        (genes,) standard errors of :func:`test_coefficient`.
    p
        Two-sided p-value at which a gene is called.
    genes
        Positions of the genes.
    """
    variance, floor = fit.variance.take(genes), fit.floor[genes]
    unscaled = se[genes] ** 2 / variance.summary(floor)[0]
    return minimal_change_of_mixture(unscaled, variance, p, floor)


test_coefficient.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def cell_dispersion(
    sums: np.ndarray, squares: np.ndarray, cross: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """(genes,) dispersion of cells within their donor, by moments, shrunken towards its trend.

    Parameters
    ----------
    sums, squares, cross
        (samples, genes) sums over cells of y, y^2 and depth x y.
    depth
        (samples, 2) sums over cells of the depth and of its square.

    Returns
    -------
    (genes,) dispersions; 0 where cells vary no more than Poisson counts.
    """
    rate = sums / depth[:, :1]
    expected = rate**2 * depth[:, 1:]
    above = (squares - 2 * rate * cross + expected - sums).sum(axis=0)
    weight = expected.sum(axis=0)
    level = np.log(np.maximum(weight, 1e-12))
    order = np.argsort(level, kind="stable")
    window = min(max(order.size // 10, 50), order.size)
    kernel = np.ones(window)
    smooth_above = np.convolve(above[order], kernel, mode="same")
    smooth_weight = np.convolve(weight[order], kernel, mode="same")
    trend = np.empty_like(above)
    trend[order] = smooth_above / np.maximum(smooth_weight, 1e-12)
    result: np.ndarray = np.clip((above + 5.0 * trend) / (weight + 5.0), 0.0, 20.0)
    return result


def minimal_change(se: np.ndarray, df: np.ndarray, p: float, power: float = 0.8) -> np.ndarray:
    """(genes,) smallest fold change (log) that is found with a given power at p.

    Parameters
    ----------
    se
        (genes,) standard errors of the log fold changes.
    df
        (genes,) their degrees of freedom.
    p
        Two-sided p-value at which a gene is called.
    power
        Probability to call it.
    """
    limit = -stdtrit(df, p / 2)
    result: np.ndarray = nctdtrinc(df, 1 - power, limit) * se
    return result
