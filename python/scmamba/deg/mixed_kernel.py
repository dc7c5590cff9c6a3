"""Compiled loops of the negative-binomial mixed model: see :mod:`scmamba.deg.mixed`."""

from __future__ import annotations

from math import lgamma

import numpy as np
from numba import njit, prange

_PHI = (np.log(1e-4), np.log(50.0))  # natural log of the dispersion between cells
_SIGMA2 = (np.log(1e-6), np.log(9.0))  # natural log of the variance between donors
RIDGE = (
    0.01  # normal prior of standard deviation 10 on every log fold change: estimates stay finite
)
_NEWTON = 40
_GOLDEN = 0.6180339887498949


@njit(cache=True)
def _rates(
    theta, phi, strata, depth, count, nz_y, nz_s, nz_d, value
):  # pragma: no cover (compiled)
    """Log likelihood (without what only phi changes), score and information of the strata's log rates."""
    n = theta.size
    score, info = np.zeros(n), np.zeros(n)
    e = np.exp(theta)
    total = 0.0
    for r in range(depth.size):
        s = strata[r]
        m = depth[r] * e[s]
        q = 1.0 / (1.0 + phi * m)
        score[s] -= count[r] * m * q
        info[s] += count[r] * m * q * q
        if value:
            total -= count[r] * np.log1p(phi * m) / phi
    for i in range(nz_y.size):
        s = nz_s[i]
        m = nz_d[i] * e[s]
        q = 1.0 / (1.0 + phi * m)
        y = nz_y[i]
        score[s] += y * q  # y - phi y m / (1 + phi m)
        info[s] += phi * y * m * q * q
        if value:
            total += y * np.log(m * q)
    return total, score, info


@njit(cache=True)
def _of_phi(nz_y, phi):  # pragma: no cover (compiled)
    """The part of the log likelihood that only the dispersion changes (lgamma of y + 1 is omitted)."""
    total = 0.0
    size = 1.0 / phi
    for y in nz_y:
        if y <= 12.0 and y == np.floor(y):
            for t in range(1, int(y)):
                total += np.log1p(phi * t)
        else:
            total += lgamma(y + size) - lgamma(size) + y * np.log(phi)
    return total


@njit(cache=True)
def _cholesky_solve(a, b):  # pragma: no cover (compiled)
    """Solution and log determinant of a small positive definite system."""
    k = a.shape[0]
    low = np.zeros((k, k))
    logdet = 0.0
    for j in range(k):
        d = a[j, j]
        for m in range(j):
            d -= low[j, m] ** 2
        low[j, j] = np.sqrt(max(d, 1e-12))
        logdet += 2.0 * np.log(low[j, j])
        for i in range(j + 1, k):
            s = a[i, j]
            for m in range(j):
                s -= low[i, m] * low[j, m]
            low[i, j] = s / low[j, j]
    x = b.copy()
    for c in range(x.shape[1]):
        for i in range(k):
            for m in range(i):
                x[i, c] -= low[i, m] * x[m, c]
            x[i, c] /= low[i, i]
        for i in range(k - 1, -1, -1):
            for m in range(i + 1, k):
                x[i, c] -= low[m, i] * x[m, c]
            x[i, c] /= low[i, i]
    return x, logdet


@njit(cache=True)
def _penalized(beta, b, sigma2, x, donor, ridge, likelihood):  # pragma: no cover (compiled)
    out = likelihood
    for value in b:
        out -= 0.5 * value * value / sigma2
    for j in range(beta.size):
        out -= 0.5 * ridge[j] * beta[j] ** 2
    return out


@njit(cache=True)
def _mode(
    beta, b, sigma2, phi, x, donor, ridge, strata, depth, count, nz_y, nz_s, nz_d
):  # pragma: no cover (compiled)
    """Maximize over coefficients and donor effects, in place; marginal likelihood and the coefficients' covariance.

    Laplace's approximation over the donor effects (``marginal``) and over both (``restricted``).
    """
    k, n_donors, n = beta.size, b.size, donor.size
    theta = x @ beta
    for s in range(n):
        theta[s] += b[donor[s]]
    total, score, info = _rates(theta, phi, strata, depth, count, nz_y, nz_s, nz_d, True)
    best = _penalized(beta, b, sigma2, x, donor, ridge, total)
    schur, h, cross = np.zeros((k, k)), np.zeros(n_donors), np.zeros((n_donors, k))
    trial_beta, trial_b = beta.copy(), b.copy()
    for step in range(_NEWTON + 1):
        g_b = -b / sigma2
        h[:] = 1.0 / sigma2
        cross[:] = 0.0
        g_beta = -ridge * beta
        schur[:] = 0.0
        for j in range(k):
            schur[j, j] = ridge[j]
        for s in range(n):
            d = donor[s]
            g_b[d] += score[s]
            h[d] += info[s]
            for j in range(k):
                g_beta[j] += score[s] * x[s, j]
                cross[d, j] += info[s] * x[s, j]
                for m in range(k):
                    schur[j, m] += info[s] * x[s, j] * x[s, m]
        right = np.zeros((k, 1))
        for j in range(k):
            right[j, 0] = g_beta[j]
            for d in range(n_donors):
                right[j, 0] -= cross[d, j] * g_b[d] / h[d]
            for m in range(k):
                for d in range(n_donors):
                    schur[j, m] -= cross[d, j] * cross[d, m] / h[d]
        if step == _NEWTON:
            break
        move = _cholesky_solve(schur, right)[0][:, 0].copy()
        move_b = np.empty(n_donors)
        for d in range(n_donors):
            move_b[d] = (g_b[d] - cross[d] @ move) / h[d]
        scale = 1.0
        largest = max(np.abs(move).max(), np.abs(move_b).max())
        if largest > 3.0:
            scale = 3.0 / largest
        new = best
        better = False
        for _half in range(12):
            trial_beta[:] = beta + scale * move
            trial_b[:] = b + scale * move_b
            theta = x @ trial_beta
            for s in range(n):
                theta[s] = min(max(theta[s] + trial_b[donor[s]], -60.0), 60.0)
            total, new_score, new_info = _rates(
                theta, phi, strata, depth, count, nz_y, nz_s, nz_d, True
            )
            new = _penalized(trial_beta, trial_b, sigma2, x, donor, ridge, total)
            if new >= best - 1e-10 * (abs(best) + 1.0):
                better = True
                break
            scale *= 0.5
        if not better:
            break
        beta[:] = trial_beta
        b[:] = trial_b
        score, info = new_score, new_info
        gain = new - best
        best = new
        if gain < 1e-8 and scale * largest < 1e-5:
            break
    cov, logdet = _cholesky_solve(schur, np.eye(k))
    marginal = best
    for d in range(n_donors):
        marginal -= 0.5 * np.log(sigma2 * h[d])
    return marginal, marginal - 0.5 * logdet, cov


@njit(cache=True)
def _objective(
    which, value, other, beta, b, x, donor, ridge, bins, nz
):  # pragma: no cover (compiled)
    phi = np.exp(value) if which == 0 else np.exp(other)
    sigma2 = np.exp(value) if which == 1 else np.exp(other)
    found = _mode(
        beta, b, sigma2, phi, x, donor, ridge, bins[0], bins[1], bins[2], nz[0], nz[1], nz[2]
    )
    return found[1] + (_of_phi(nz[0], phi) if which == 0 else 0.0)


@njit(cache=True)
def _golden(
    which, low, high, other, tolerance, beta, b, x, donor, ridge, bins, nz
):  # pragma: no cover (compiled)
    """Maximum of the restricted likelihood over the log of one of the two variances."""
    c, d = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    fc = _objective(which, c, other, beta, b, x, donor, ridge, bins, nz)
    fd = _objective(which, d, other, beta, b, x, donor, ridge, bins, nz)
    while high - low > tolerance:
        if fc > fd:
            high, d, fd = d, c, fc
            c = high - _GOLDEN * (high - low)
            fc = _objective(which, c, other, beta, b, x, donor, ridge, bins, nz)
        else:
            low, c, fc = c, d, fd
            d = low + _GOLDEN * (high - low)
            fd = _objective(which, d, other, beta, b, x, donor, ridge, bins, nz)
    return (low + high) / 2.0


@njit(cache=True, parallel=True)
def fit_genes(
    indptr,
    cells,
    values,
    stratum,
    cell_depth,
    strata,
    depth,
    count,
    x,
    donor,
    n_donors,
    ridge,
    tested,
    exact,
):  # pragma: no cover (compiled)
    """Fit every gene (columns of a CSC matrix); see :func:`scmamba.deg.mixed.fit_mixed`."""
    genes, k = indptr.size - 1, x.shape[1]
    coef, cov = np.zeros((genes, k)), np.zeros((genes, k, k))
    phi, sigma2, like = np.zeros(genes), np.zeros(genes), np.zeros(genes)
    lr = np.zeros(genes)
    effects = np.zeros((genes, n_donors))
    total_depth = (depth * count).sum()
    bins = (strata, depth, count)
    rest = np.array([j for j in range(k) if j != tested])
    for g in prange(genes):
        first, last = indptr[g], indptr[g + 1]
        y = values[first:last].astype(np.float64)
        own = cells[first:last]
        nz = (y, stratum[own], cell_depth[own])
        beta, b = np.zeros(k), np.zeros(n_donors)
        beta[0] = np.log((y.sum() + 0.5) / total_depth)
        at_phi, at_s = np.log(0.5), np.log(0.1)
        wide = 1.5
        at_phi = _golden(0, _PHI[0], _PHI[1], at_s, 0.3, beta, b, x, donor, ridge, bins, nz)
        at_s = _golden(1, _SIGMA2[0], _SIGMA2[1], at_phi, 0.3, beta, b, x, donor, ridge, bins, nz)
        for turn in range(3 if exact else 1):
            tolerance = 0.003 if turn == 2 else 0.05
            low, high = max(at_phi - wide, _PHI[0]), min(at_phi + wide, _PHI[1])
            at_phi = _golden(0, low, high, at_s, tolerance, beta, b, x, donor, ridge, bins, nz)
            low, high = max(at_s - wide, _SIGMA2[0]), min(at_s + wide, _SIGMA2[1])
            at_s = _golden(1, low, high, at_phi, tolerance, beta, b, x, donor, ridge, bins, nz)
            wide = 0.6
        phi[g], sigma2[g] = np.exp(at_phi), np.exp(at_s)
        marginal, _, cov[g] = _mode(
            beta, b, sigma2[g], phi[g], x, donor, ridge, strata, depth, count, nz[0], nz[1], nz[2]
        )
        coef[g], effects[g] = beta, b
        like[g] = marginal + _of_phi(y, phi[g])
        less, b0 = beta[rest].copy(), b.copy()
        null, _, _ = _mode(
            less,
            b0,
            sigma2[g],
            phi[g],
            np.ascontiguousarray(x[:, rest]),
            donor,
            ridge[rest],
            strata,
            depth,
            count,
            nz[0],
            nz[1],
            nz[2],
        )
        lr[g] = max(2.0 * (marginal - null), 0.0)
    return coef, cov, phi, sigma2, effects, like, lr
