"""Negative-binomial regression of many genes over few samples.

Fisher scoring with step halving (McCarthy, Chen and Smyth, Nucleic Acids Res 40:4288, 2012). Every sample of a gene may
have its own dispersion: that of donors, and that of cells divided by their number.
"""

from __future__ import annotations

from math import lgamma
from typing import NamedTuple

import numpy as np

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for

MAX_ITERATIONS = 60
_LEAST = 1e-10  # dispersions below are Poisson
_LONGEST = 4.0  # change of a linear predictor in one step


class NBFit(NamedTuple):
    """Fits of many genes; arrays of length genes unless stated."""

    coef: np.ndarray  # (genes, k), natural logarithms
    deviance: np.ndarray
    mu: np.ndarray  # (genes, samples)
    leverage: np.ndarray  # (genes, samples)
    cov: np.ndarray  # (genes, k, k), inverse Fisher information
    profile: np.ndarray  # log likelihood - half the log determinant of the information (Cox-Reid)


@compiled(inline="always")
def _unit_deviance(y, mu, phi):  # pragma: no cover (compiled)
    if phi < _LEAST:
        d = mu - y
        if y > 0:
            d += y * np.log(y / mu)
        return 2.0 * d
    size = 1.0 / phi
    d = -(y + size) * np.log((y + size) / (mu + size))
    if y > 0:
        d += y * np.log(y / mu)
    return max(2.0 * d, 0.0)


@compiled(inline="always")
def _log_density(y, mu, phi):  # pragma: no cover (compiled)
    if phi < _LEAST:
        return y * np.log(mu) - mu - lgamma(y + 1.0)
    size = 1.0 / phi
    return (
        lgamma(y + size)
        - lgamma(size)
        - lgamma(y + 1.0)
        + y * np.log(mu / (mu + size))
        - size * np.log1p(mu / size)
    )


@compiled()
def _information(design, weight, a):  # pragma: no cover (compiled)
    n, k = design.shape
    for i in range(k):
        for j in range(i + 1):
            s = 0.0
            for r in range(n):
                s += weight[r] * design[r, i] * design[r, j]
            a[i, j] = s
            a[j, i] = s


@compiled()
def _factor(a, damping, low):  # pragma: no cover (compiled)
    """Cholesky factor of ``a`` with its diagonal raised; returns the log determinant."""
    k = a.shape[0]
    logdet = 0.0
    for j in range(k):
        d = a[j, j] * (1.0 + damping) + 1e-14
        for m in range(j):
            d -= low[j, m] * low[j, m]
        d = np.sqrt(d) if d > 1e-300 else 1e-150
        low[j, j] = d
        logdet += 2.0 * np.log(d)
        for i in range(j + 1, k):
            s = a[i, j]
            for m in range(j):
                s -= low[i, m] * low[j, m]
            low[i, j] = s / d
    return logdet


@compiled()
def _solve(low, g, x):  # pragma: no cover (compiled)
    k = low.shape[0]
    for i in range(k):
        s = g[i]
        for m in range(i):
            s -= low[i, m] * x[m]
        x[i] = s / low[i, i]
    for i in range(k - 1, -1, -1):
        s = x[i]
        for m in range(i + 1, k):
            s -= low[m, i] * x[m]
        x[i] = s / low[i, i]


@compiled()
def _means(design, offset, beta, mu):  # pragma: no cover (compiled)
    for r in range(design.shape[0]):
        eta = offset[r]
        for j in range(design.shape[1]):
            eta += design[r, j] * beta[j]
        mu[r] = np.exp(min(max(eta, -35.0), 35.0))


@compiled()
def _deviance(y, mu, phi):  # pragma: no cover (compiled)
    s = 0.0
    for r in range(y.size):
        s += _unit_deviance(y[r], mu[r], phi[r])
    return s


@compiled()
def _fit_gene(y, offset, design, phi, beta, mu, weight, a, low):  # pragma: no cover (compiled)
    """One gene from the start in ``beta``; leaves means, weights and the factor; returns the deviance."""
    n, k = design.shape
    g, step, trial = np.empty(k), np.empty(k), np.empty(k)
    other = np.empty(n)
    _means(design, offset, beta, mu)
    dev = _deviance(y, mu, phi)
    damping = 0.0
    for _ in range(MAX_ITERATIONS):
        for r in range(n):
            weight[r] = mu[r] / (1.0 + phi[r] * mu[r])
        _information(design, weight, a)
        for j in range(k):
            s = 0.0
            for r in range(n):
                s += design[r, j] * (y[r] - mu[r]) / (1.0 + phi[r] * mu[r])
            g[j] = s
        better = False
        new = dev
        for _half in range(20):
            _factor(a, damping, low)
            _solve(low, g, step)
            longest = 0.0
            for r in range(n):
                s = 0.0
                for j in range(k):
                    s += design[r, j] * step[j]
                longest = max(longest, abs(s))
            # Far below the optimum a step overshoots to where all means are infinite and the deviance is flat.
            part = _LONGEST / longest if longest > _LONGEST else 1.0
            for j in range(k):
                trial[j] = beta[j] + part * step[j]
            _means(design, offset, trial, other)
            new = _deviance(y, other, phi)
            if new <= dev + 1e-12 * (abs(dev) + 1.0):
                better = True
                break
            damping = max(2.0 * damping, 0.05) if damping < 1e6 else 1e7
        if not better:
            break
        change = dev - new
        dev = new
        for j in range(k):
            beta[j] = trial[j]
        for r in range(n):
            mu[r] = other[r]
        damping *= 0.2
        if change < 1e-9 * (dev + 0.1):
            break
    for r in range(n):
        weight[r] = mu[r] / (1.0 + phi[r] * mu[r])
    _information(design, weight, a)
    return dev


@compiled()
def _start(y, offset, design, pinv, beta):  # pragma: no cover (compiled)
    """Least squares of log(y + a sixth), which is close to the fit wherever there are counts."""
    n, k = design.shape
    for j in range(k):
        beta[j] = 0.0
    for r in range(n):
        z = np.log(y[r] + 1.0 / 6.0) - offset[r]
        for j in range(k):
            beta[j] += pinv[j, r] * z


@compiled(nogil=True)
def _fit_part(
    lo, hi, y, offset, design, phi, pinv, coef, dev, mus, leverages, cov, profile
):  # pragma: no cover (compiled)
    n, k = design.shape
    for gene in range(lo, hi):
        beta, mu, weight = np.zeros(k), np.empty(n), np.empty(n)
        a, low = np.zeros((k, k)), np.zeros((k, k))
        x, unit = np.empty(k), np.zeros(k)
        _start(y[gene], offset, design, pinv, beta)
        dev[gene] = _fit_gene(y[gene], offset, design, phi[gene], beta, mu, weight, a, low)
        logdet = _factor(a, 0.0, low)
        total = 0.0
        for r in range(n):
            total += _log_density(y[gene, r], mu[r], phi[gene, r])
            for j in range(k):
                unit[j] = design[r, j]
            _solve(low, unit, x)
            h = 0.0
            for j in range(k):
                h += design[r, j] * x[j]
            leverages[gene, r] = min(h * weight[r], 1.0)
        profile[gene] = total - 0.5 * logdet
        coef[gene] = beta
        mus[gene] = mu
        for j in range(k):
            unit[:] = 0.0
            unit[j] = 1.0
            _solve(low, unit, x)
            cov[gene, :, j] = x


@compiled(nogil=True)
def _profile_part(lo, hi, y, offset, design, extra, grid, pinv, out):  # pragma: no cover (compiled)
    """(genes, grid) Cox-Reid profile likelihoods; the dispersion is grid + extra."""
    n, k = design.shape
    for gene in range(lo, hi):
        beta, mu, weight = np.zeros(k), np.empty(n), np.empty(n)
        a, low, phi = np.zeros((k, k)), np.zeros((k, k)), np.empty(n)
        _start(y[gene], offset, design, pinv, beta)
        for i in range(grid.size):
            for r in range(n):
                phi[r] = grid[i] + extra[gene, r]
            _fit_gene(y[gene], offset, design, phi, beta, mu, weight, a, low)
            total = 0.0
            for r in range(n):
                total += _log_density(y[gene, r], mu[r], phi[r])
            out[gene, i] = total - 0.5 * _factor(a, 0.0, low)


@compiled(nogil=True)
def _ratio_part(
    lo,
    hi,
    y,
    offset,
    design,
    rest,
    pinv,
    rest_pinv,
    shift,
    extra,
    grid,
    column,
    profile,
    ratio,
    coef,
    var,
):  # pragma: no cover (compiled)
    """Fits with and without one column at every dispersion, each from the fit at the dispersion before."""
    n, k = design.shape
    moved = np.empty(n)
    for r in range(n):
        moved[r] = offset[r] + shift * design[r, column]
    mu, weight, phi, x, unit = np.empty(n), np.empty(n), np.empty(n), np.empty(k), np.zeros(k)
    a, low = np.zeros((k, k)), np.zeros((k, k))
    rest_a, rest_low = np.zeros((k - 1, k - 1)), np.zeros((k - 1, k - 1))
    beta, rest_beta = np.zeros(k), np.zeros(k - 1)
    unit[column] = 1.0
    for gene in range(lo, hi):
        _start(y[gene], offset, design, pinv, beta)
        _start(y[gene], moved, rest, rest_pinv, rest_beta)
        for i in range(grid.size):
            for r in range(n):
                phi[r] = grid[i] + extra[gene, r]
            without = _fit_gene(y[gene], moved, rest, phi, rest_beta, mu, weight, rest_a, rest_low)
            dev = _fit_gene(y[gene], offset, design, phi, beta, mu, weight, a, low)
            total = 0.0
            for r in range(n):
                total += _log_density(y[gene, r], mu[r], phi[r])
            profile[gene, i] = total - 0.5 * _factor(a, 0.0, low)
            ratio[gene, i] = max(without - dev, 0.0)
            _solve(low, unit, x)
            coef[gene, i], var[gene, i] = beta[column], x[column]


class NBRatios(NamedTuple):
    """Fits of many genes at every dispersion of a grid; (genes, grid) each."""

    profile: np.ndarray  # Cox-Reid profile likelihood
    ratio: np.ndarray  # twice the log likelihood ratio of the tested coefficient
    coef: np.ndarray  # the coefficient, natural logarithm
    var: np.ndarray  # its variance


def fit_nb(
    counts: np.ndarray, design: np.ndarray, offset: np.ndarray, dispersion: np.ndarray
) -> NBFit:
    """Fit every gene with given dispersions.

    Parameters
    ----------
    counts
        (genes, samples) counts, not necessarily whole.
    design
        (samples, k) of full rank.
    offset
        (samples,) natural logarithms of the effective library sizes.
    dispersion
        Scalar, (genes,) or (genes, samples): variance = mu + dispersion x mu^2.

    Returns
    -------
    NBFit

    Examples
    --------
    >>> counts = np.array([[8.0, 12, 30, 50]])
    >>> design = np.column_stack([np.ones(4), [0, 0, 1, 1]])
    >>> fit = fit_nb(counts, design, np.zeros(4), 0.1)
    >>> np.exp(fit.coef).round(2).tolist()
    [[10.0, 4.0]]
    """
    y, x, phi = _arrays(counts, design, dispersion)
    (genes, n), k = y.shape, x.shape[1]
    fit = NBFit(
        coef=np.zeros((genes, k)),
        deviance=np.zeros(genes),
        mu=np.zeros((genes, n)),
        leverage=np.zeros((genes, n)),
        cov=np.zeros((genes, k, k)),
        profile=np.zeros(genes),
    )
    given = y, offset.astype(np.float64), x, phi, np.linalg.pinv(x)
    run_in_threads(_fit_part, genes, threads_for(y.size * 400.0), *given, *fit)
    return fit


def profile_likelihoods(
    counts: np.ndarray, design: np.ndarray, offset: np.ndarray, extra: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """(genes, grid) adjusted profile likelihoods (Cox and Reid 1987) of dispersions ``grid`` + ``extra``.

    Parameters
    ----------
    counts, design, offset
        As for :func:`fit_nb`.
    extra
        Scalar, (genes,) or (genes, samples): part of the dispersion that is given.
    grid
        Increasing dispersions.
    """
    y, x, more = _arrays(counts, design, extra)
    out = np.zeros((len(y), grid.size))
    given = y, offset.astype(np.float64), x, more, grid, np.linalg.pinv(x)
    run_in_threads(_profile_part, len(y), threads_for(y.size * 400.0 * grid.size), *given, out)
    return out


def likelihood_ratios(
    counts: np.ndarray,
    design: np.ndarray,
    offset: np.ndarray,
    extra: np.ndarray | float,
    grid: np.ndarray,
    column: int,
    shift: float = 0.0,
) -> NBRatios:
    """Likelihood ratios of one coefficient at dispersions ``grid`` + ``extra``.

    Parameters
    ----------
    counts, design, offset
        As for :func:`fit_nb`.
    extra
        Scalar, (genes,) or (genes, samples): part of the dispersion that is given.
    grid
        Increasing dispersions.
    column
        Column of the design that is tested.
    shift
        Value of the coefficient under the null hypothesis (natural logarithm).
    """
    y, x, more = _arrays(counts, design, extra)
    rest = np.ascontiguousarray(np.delete(x, column, axis=1))
    found = NBRatios(*(np.zeros((len(y), grid.size)) for _ in range(4)))
    given = y, offset.astype(np.float64), x, rest, np.linalg.pinv(x), np.linalg.pinv(rest)
    threads = threads_for(y.size * 800.0 * grid.size)
    run_in_threads(
        _ratio_part, len(y), threads, *given, float(shift), more, grid, int(column), *found
    )
    return found


def _arrays(
    counts: np.ndarray, design: np.ndarray, dispersion: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = np.ascontiguousarray(counts, dtype=np.float64)
    phi = np.asarray(dispersion, dtype=np.float64)
    phi = phi[:, None] if phi.ndim == 1 else phi
    return (
        y,
        np.ascontiguousarray(design, dtype=np.float64),
        np.ascontiguousarray(np.broadcast_to(phi, y.shape)),
    )
