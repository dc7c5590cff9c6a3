"""Negative-binomial tests with a dispersion of every gene: a likelihood ratio averaged over it, and a Wald test at its mode.

1. The Cox-Reid profile likelihood (Cox and Reid, J R Stat Soc B 49:1, 1987) of every gene is evaluated on a grid of
   dispersions. What cells of one donor vary beyond Poisson is measured in the cells and enters every sample divided by its
   number of cells.
2. Dispersions follow a trend along expression (McCarthy, Chen and Smyth, Nucleic Acids Res 40:4288, 2012). Around it their
   prior is a mixture of any shape, estimated from all genes (Ignatiadis and Sen, Ann Stat 53:1, 2025); 5% of it is reserved
   for genes that vary without limit, as in :mod:`scmamba.deg.variance_prior`.
3. p of the likelihood ratio is averaged over the posterior of the gene's dispersion: with few donors the tails are as heavy
   as those of a t-test, and a gene that varies much is compared by its ratios, not by its largest counts.
4. Genes that vary more between donors than others of their expression differ more often between conditions (Crow et al.,
   PNAS 116:6491, 2019). The false discovery rate is therefore weighted by that excess (Genovese, Roeder and Wasserman,
   Biometrika 93:509, 2006), which depends on residuals only, so that p of a gene without change is independent of it.

The Wald test shrinks log dispersions towards the trend by a normal prior and uses the mode (Love, Huber and Anders, Genome
Biol 15:550, 2014).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import chdtrc, ndtr, ndtri, polygamma

from .negative_binomial import NBRatios, fit_nb, likelihood_ratios
from .quasi_likelihood import PRIOR_COUNT, average_level, dispersion_trend
from .variance_prior import TAIL_SHARE

#: Dispersions at which genes are fitted.
GRID = np.exp(np.linspace(np.log(1e-3), np.log(30.0), 22))
#: Log odds of a change per log dispersion above the trend, as an exponent of the weights. Chosen on simulated cohorts of seeds
#: from 100 and on Kang et al. 2018; docs/deg.md.
WEIGHT_SLOPE = 0.6
_WEIGHT_RANGE = (-1.0, 3.0)  # of the log dispersion above the trend
_FINER = 4  # points of the interpolation per interval of the grid
_RESIDUAL = np.arange(-4.5, 5.01, 0.1)  # log dispersion above the trend
_EM_STEPS = 60
_GENES = 4000  # a prior needs no more genes than this; spread evenly over expression
_FEW = 10  # genes; a prior cannot be estimated from fewer
_LEAST_VARIANCE = 0.25  # of the normal prior of log dispersions
_INFINITE = 10.0  # standard error of a log fold change that has no finite estimate
_LEAST_P, _LEAST_Z = 1e-300, 0.1  # from which such a standard error is computed
_OUTLIER = 2.0  # standard deviations above the trend from which a dispersion is not shrunken


class DispersionFit(NamedTuple):
    """All genes of one cell type; arrays of length genes unless stated."""

    counts: np.ndarray  # (genes, samples)
    design: np.ndarray
    offset: np.ndarray
    extra: np.ndarray  # (genes, samples) dispersion between cells
    column: int
    ratios: NBRatios
    log_trend: np.ndarray
    weight: (
        np.ndarray
    )  # (genes, residuals) posterior of the log dispersion above the trend, rows sum to 1

    @property
    def excess(self) -> np.ndarray:
        """(genes,) posterior mean of the log dispersion above the trend."""
        result: np.ndarray = self.weight @ _RESIDUAL
        return result

    @property
    def dispersion(self) -> np.ndarray:
        """(genes,) dispersion between donors, geometric mean of the posterior."""
        result: np.ndarray = np.exp(self.log_trend + self.excess)
        return result

    def part(
        self, genes: np.ndarray, samples: np.ndarray, design: np.ndarray, column: int
    ) -> DispersionFit:
        """Some genes fitted to some samples; the posteriors of their dispersions stay."""
        counts = np.ascontiguousarray(self.counts[np.ix_(genes, samples)])
        extra = self.extra[np.ix_(genes, samples)]
        offset = self.offset[samples]
        ratios = likelihood_ratios(counts, design, offset, extra, GRID, column)
        return DispersionFit(
            counts, design, offset, extra, column, ratios, self.log_trend[genes], self.weight[genes]
        )


def fit_dispersions(
    counts: np.ndarray,
    design: np.ndarray,
    offset: np.ndarray,
    column: int,
    extra: np.ndarray | float = 0.0,
) -> DispersionFit:
    """Fit every gene on the grid of dispersions, and the posterior of its dispersion.

    Parameters
    ----------
    counts
        (genes, samples) sums of counts.
    design
        (samples, k) of full rank.
    offset
        (samples,) natural logarithms of the effective library sizes.
    column
        Column of the design that is tested.
    extra
        Scalar or (genes, samples): dispersion between cells divided by the number of cells.

    Returns
    -------
    DispersionFit

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.negative_binomial(5, 5 / (5 + 50), (400, 8)).astype(float)
    >>> design = np.column_stack([np.ones(8), np.arange(8) % 2])
    >>> fit = fit_dispersions(counts, design, np.zeros(8), 1)
    >>> bool(0.15 < np.median(fit.dispersion) < 0.25)
    True
    """
    more = np.broadcast_to(np.asarray(extra, dtype=np.float64), counts.shape)
    ratios = likelihood_ratios(counts, design, offset, more, GRID, column)
    level = average_level(counts, offset)
    log_trend = np.log(dispersion_trend(ratios.profile, level, GRID))
    likelihood = _at_residuals(np.exp(_relative(_finer(ratios.profile))), log_trend)
    prior = _prior(likelihood[_spread(level)])
    weight = likelihood * prior
    weight /= weight.sum(axis=1, keepdims=True)
    return DispersionFit(counts, design, offset, more, column, ratios, log_trend, weight)


def _finer(values: np.ndarray) -> np.ndarray:
    """(genes, points) values between those of the grid."""
    result: np.ndarray = CubicSpline(np.log(GRID), values, axis=1)(_points())
    return result


def _points() -> np.ndarray:
    """Log dispersions of :func:`_finer`."""
    return np.linspace(np.log(GRID[0]), np.log(GRID[-1]), (GRID.size - 1) * _FINER + 1)


def _relative(log_likelihood: np.ndarray) -> np.ndarray:
    result: np.ndarray = log_likelihood - log_likelihood.max(axis=1, keepdims=True)
    return result


def _at_residuals(values: np.ndarray, log_trend: np.ndarray) -> np.ndarray:
    """(genes, residuals) values at the trend plus every residual; those at the ends of the grid beyond it."""
    return _at(values, log_trend[:, None] + _RESIDUAL, _points())


def _at(values: np.ndarray, log_dispersion: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Linear interpolation in every row between evenly spaced points."""
    position = (log_dispersion - points[0]) / (points[1] - points[0])
    left = np.clip(np.floor(position).astype(np.intp), 0, points.size - 2)
    share = np.clip(position - left, 0.0, 1.0)
    rows = np.arange(len(values))[:, None]
    result: np.ndarray = values[rows, left] * (1 - share) + values[rows, left + 1] * share
    return result


def _spread(level: np.ndarray) -> np.ndarray:
    """Positions of at most 4,000 genes, spread evenly over expression."""
    order = np.argsort(level, kind="stable")
    chosen = np.linspace(0, order.size - 1, min(order.size, _GENES)).astype(int)
    result: np.ndarray = order[chosen]
    return result


def _prior(likelihood: np.ndarray) -> np.ndarray:
    """(residuals,) prior by expectation-maximization, with a tail; all the same where genes are few."""
    size = _RESIDUAL.size
    if len(likelihood) < _FEW:
        return np.full(size, 1 / size)
    weight = np.exp(-0.5 * (_RESIDUAL / 0.8) ** 2)
    weight = 0.999 * weight / weight.sum() + 0.001 / size
    for _ in range(_EM_STEPS):
        share = likelihood * weight
        share /= share.sum(axis=1, keepdims=True)
        weight = share.mean(axis=0) + 1e-9
        weight /= weight.sum()
    tail = np.where(np.exp(_RESIDUAL) >= 2, np.exp(-_RESIDUAL), 0.0)
    result: np.ndarray = (1 - TAIL_SHARE) * weight + TAIL_SHARE * tail / tail.sum()
    return result


class DispersionTest(NamedTuple):
    """Test of one coefficient; arrays of length genes."""

    change: np.ndarray  # natural log fold change, with a prior count
    se: np.ndarray
    statistic: (
        np.ndarray
    )  # twice the log likelihood ratio, mean over the posterior; z of the Wald test
    df: np.ndarray  # of the t distribution with the same precision in mean and variance; infinite for the Wald test
    p: np.ndarray


def average_test(fit: DispersionFit, minimum: float = 0.0) -> DispersionTest:
    """Likelihood-ratio test whose p is averaged over the posterior of the dispersion.

    Parameters
    ----------
    fit
        What :func:`fit_dispersions` returned.
    minimum
        Minimal effect (natural log): the null hypothesis is that the coefficient is not larger.
    """
    if minimum > 0:
        sign = np.sign(fit.ratios.coef[:, :1])
        near, far = (_beyond(fit, side * minimum, sign) for side in (1.0, -1.0))
        tail, ratio = ndtr(-near) + ndtr(-far), np.maximum(near, 0.0) ** 2
    else:
        ratio = _signed_root(fit, fit.ratios, 0.0) ** 2
        tail = chdtrc(1.0, ratio)
    p = np.minimum((fit.weight * tail).sum(axis=1), 1.0)
    # The spline must not leave the range of its points: with few counts it would turn negative.
    inverse = 1 / fit.ratios.var
    low, high = inverse.min(axis=1, keepdims=True), inverse.max(axis=1, keepdims=True)
    precision = _at_residuals(np.clip(_finer(inverse), low, high), fit.log_trend)
    mean = (fit.weight * precision).sum(axis=1)
    spread = (fit.weight * (precision - mean[:, None]) ** 2).sum(axis=1)
    df = np.clip(2 * mean**2 / np.maximum(spread, 1e-12 * mean**2), 1.0, 1e6)
    statistic = (fit.weight * ratio).sum(axis=1)
    change, se = prior_count_change(fit), np.sqrt(1 / mean)
    # Without counts in one group the estimate has no finite error; that of the change with a prior count follows from p.
    z = np.maximum(-ndtri(np.maximum(p, _LEAST_P) / 2), _LEAST_Z)
    se = np.where(se > _INFINITE, np.maximum(np.abs(change) - minimum, 0.1) / z, se)
    return DispersionTest(change, se, statistic, df, p)


def _signed_root(fit: DispersionFit, ratios: NBRatios, value: float) -> np.ndarray:
    """(genes, residuals) root of the ratio, with the sign of the coefficient less ``value``."""
    root = np.sqrt(ratios.ratio) * np.sign(ratios.coef - value)
    return _at_residuals(_finer(root), fit.log_trend)


def _beyond(fit: DispersionFit, value: float, sign: np.ndarray) -> np.ndarray:
    """(genes, residuals) signed root towards the side of the estimate, of the hypothesis ``sign * value``."""
    out = np.empty((len(fit.counts), _RESIDUAL.size))
    for side in (-1.0, 1.0):
        own = np.flatnonzero(np.where(sign[:, 0] < 0, -1.0, 1.0) == side)
        if own.size == 0:
            continue
        some = fit._replace(log_trend=fit.log_trend[own])
        ratios = likelihood_ratios(
            fit.counts[own],
            fit.design,
            fit.offset,
            fit.extra[own],
            GRID,
            fit.column,
            side * value,
        )
        out[own] = side * _signed_root(some, ratios, side * value)
    return out


def prior_count_change(fit: DispersionFit) -> np.ndarray:
    """(genes,) log fold changes after a small count was added everywhere, so that none is infinite."""
    library = np.exp(fit.offset)
    prior = PRIOR_COUNT * library / library.mean()
    phi = fit.dispersion[:, None] + fit.extra
    raised = fit_nb(fit.counts + prior, fit.design, np.log(library + 2 * prior), phi)
    result: np.ndarray = raised.coef[:, fit.column]
    return result


def discovery_weights(fit: DispersionFit) -> np.ndarray:
    """(genes,) weights of the false discovery rate, with mean 1: higher for genes that vary more than others of their expression."""
    if len(fit.counts) < _FEW:
        return np.ones(len(fit.counts))
    weight = np.exp(WEIGHT_SLOPE * np.clip(fit.excess, *_WEIGHT_RANGE))
    result: np.ndarray = weight / weight.mean()
    return result


def mode_dispersion(fit: DispersionFit) -> np.ndarray:
    """(genes,) mode of the posterior under a normal prior of the log dispersion around the trend (Love et al. 2014).

    The variance of the prior is that of the genes' estimates around the trend, less what sampling adds. Dispersions more than
    two standard deviations above the trend are those of the gene alone.
    """
    profile, points = _finer(fit.ratios.profile), _points()
    alone = points[np.argmax(profile, axis=1)]
    above = alone - fit.log_trend
    inside = above[(alone > points[0]) & (alone < points[-1])]
    residual_df = max(fit.design.shape[0] - fit.design.shape[1], 1)
    sd = 1.4826 * float(np.median(np.abs(inside - np.median(inside)))) if inside.size else 1.0
    variance = max(sd**2 - float(polygamma(1, residual_df / 2)), _LEAST_VARIANCE)
    posterior = profile - (points - fit.log_trend[:, None]) ** 2 / (2 * variance)
    mode = points[np.argmax(posterior, axis=1)]
    result: np.ndarray = np.exp(np.where(above > _OUTLIER * sd, alone, mode))
    return result


def wald_test(fit: DispersionFit, minimum: float = 0.0) -> DispersionTest:
    """Wald test at the mode of the dispersion, with normal tails.

    Parameters
    ----------
    fit
        What :func:`fit_dispersions` returned.
    minimum
        Minimal effect (natural log): the null hypothesis is that the coefficient is not larger.
    """
    dispersion = mode_dispersion(fit)
    phi = dispersion[:, None] + fit.extra
    found = fit_nb(fit.counts, fit.design, fit.offset, phi)
    change, se = found.coef[:, fit.column], np.sqrt(found.cov[:, fit.column, fit.column])
    above = np.abs(change) - minimum
    p = np.minimum(ndtr(-above / se) + ndtr(-(np.abs(change) + minimum) / se), 1.0)
    z = np.sign(change) * np.maximum(above, 0.0) / se
    # Without counts in one group the estimate is infinite, and so is its error.
    change = np.where(se > _INFINITE, prior_count_change(fit), change)
    return DispersionTest(change, se, z, np.full(z.size, np.inf), p)


average_test.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's
wald_test.__test__ = False  # type: ignore[attr-defined]
