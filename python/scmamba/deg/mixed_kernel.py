"""Compiled loops of the negative-binomial mixed model: see :mod:`scmamba.deg.mixed`."""

from __future__ import annotations

from math import lgamma

import numpy as np

from ..utils.compiled_code import compiled

_PHI = (np.log(1e-4), np.log(50.0))  # natural log of the dispersion between cells
_SIGMA2 = (np.log(1e-6), np.log(9.0))  # natural log of the variance between donors
RIDGE = (
    0.01  # normal prior of standard deviation 10 on every log fold change: estimates stay finite
)
_NEWTON = 40
_GOLDEN = 0.6180339887498949


@compiled()
def _rates(
    theta, phi, strata, depth, count, nz_y, nz_s, nz_d, value
):  # pragma: no cover (compiled)
    """Log likelihood (without what only phi changes), score and information of the strata's log rates."""
    n = theta.size
    score, info = np.zeros(n), np.zeros(n)
    e = np.empty(n)
    for s in range(n):
        e[s] = np.exp(theta[s])
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


@compiled()
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


@compiled()
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


@compiled()
def _penalized(beta, b, sigma2, x, donor, ridge, likelihood):  # pragma: no cover (compiled)
    out = likelihood
    for value in b:
        out -= 0.5 * value * value / sigma2
    for j in range(beta.size):
        out -= 0.5 * ridge[j] * beta[j] ** 2
    return out


@compiled()
def _linear_predictors(beta, b, x, donor, theta):  # pragma: no cover (compiled)
    for s in range(theta.size):
        value = b[donor[s]]
        for j in range(beta.size):
            value += x[s, j] * beta[j]
        theta[s] = min(max(value, -60.0), 60.0)


@compiled()
def _equations(
    beta, b, sigma2, x, donor, ridge, score, info, g_b, h, cross, right, schur
):  # pragma: no cover (compiled)
    """Gradient of the donor effects, their diagonal information, and the equations of the coefficients without them."""
    k, n_donors = beta.size, b.size
    for d in range(n_donors):
        g_b[d] = -b[d] / sigma2
        h[d] = 1.0 / sigma2
        for j in range(k):
            cross[d, j] = 0.0
    for j in range(k):
        right[j, 0] = -ridge[j] * beta[j]
        for m in range(k):
            schur[j, m] = 0.0
        schur[j, j] = ridge[j]
    for s in range(donor.size):
        d = donor[s]
        g_b[d] += score[s]
        h[d] += info[s]
        for j in range(k):
            right[j, 0] += score[s] * x[s, j]
            cross[d, j] += info[s] * x[s, j]
            for m in range(k):
                schur[j, m] += info[s] * x[s, j] * x[s, m]
    for j in range(k):
        for d in range(n_donors):
            right[j, 0] -= cross[d, j] * g_b[d] / h[d]
        for m in range(k):
            for d in range(n_donors):
                schur[j, m] -= cross[d, j] * cross[d, m] / h[d]


@compiled()
def _mode(
    beta, b, sigma2, phi, x, donor, ridge, strata, depth, count, nz_y, nz_s, nz_d
):  # pragma: no cover (compiled)
    """Maximize over coefficients and donor effects, in place; marginal likelihood and the coefficients' covariance.

    Laplace's approximation over the donor effects (``marginal``) and over both (``restricted``). Written in loops, which numba
    compiles faster than expressions of arrays.
    """
    k, n_donors = beta.size, b.size
    theta = np.empty(donor.size)
    _linear_predictors(beta, b, x, donor, theta)
    total, score, info = _rates(theta, phi, strata, depth, count, nz_y, nz_s, nz_d, True)
    best = _penalized(beta, b, sigma2, x, donor, ridge, total)
    schur, right = np.zeros((k, k)), np.zeros((k, 1))
    g_b, h, cross = np.zeros(n_donors), np.zeros(n_donors), np.zeros((n_donors, k))
    trial_beta, trial_b, move_b = np.zeros(k), np.zeros(n_donors), np.zeros(n_donors)
    for step in range(_NEWTON + 1):
        _equations(beta, b, sigma2, x, donor, ridge, score, info, g_b, h, cross, right, schur)
        if step == _NEWTON:
            break
        move, _ = _cholesky_solve(schur, right)
        largest = 0.0
        for j in range(k):
            largest = max(largest, abs(move[j, 0]))
        for d in range(n_donors):
            move_b[d] = g_b[d]
            for j in range(k):
                move_b[d] -= cross[d, j] * move[j, 0]
            move_b[d] /= h[d]
            largest = max(largest, abs(move_b[d]))
        scale = 3.0 / largest if largest > 3.0 else 1.0
        new = best
        better = False
        for _half in range(12):
            for j in range(k):
                trial_beta[j] = beta[j] + scale * move[j, 0]
            for d in range(n_donors):
                trial_b[d] = b[d] + scale * move_b[d]
            _linear_predictors(trial_beta, trial_b, x, donor, theta)
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


@compiled()
def _golden(
    which, low, high, other, tolerance, beta, b, x, donor, ridge, bins, nz
):  # pragma: no cover (compiled)
    """Maximum of the restricted likelihood over the log of the dispersion (``which`` 0) or the donors' variance (1)."""
    at = np.array([high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)])
    found = np.zeros(2)
    new = 2  # both
    while True:
        for i in range(2):
            if new == 2 or new == i:
                phi = np.exp(at[i] if which == 0 else other)
                sigma2 = np.exp(other if which == 0 else at[i])
                found[i] = _mode(
                    beta,
                    b,
                    sigma2,
                    phi,
                    x,
                    donor,
                    ridge,
                    bins[0],
                    bins[1],
                    bins[2],
                    nz[0],
                    nz[1],
                    nz[2],
                )[1]
                if which == 0:
                    found[i] += _of_phi(nz[0], phi)
        if high - low <= tolerance:
            return (low + high) / 2.0
        if found[0] > found[1]:
            high, new = at[1], 0
            at[1], found[1] = at[0], found[0]
            at[0] = high - _GOLDEN * (high - low)
        else:
            low, new = at[0], 1
            at[0], found[0] = at[1], found[1]
            at[1] = low + _GOLDEN * (high - low)


@compiled(nogil=True)
def fit_genes(
    lo,
    hi,
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
    coef,
    cov,
    phi,
    sigma2,
    effects,
    like,
    lr,
):  # pragma: no cover (compiled)
    """Fit some genes (columns of a CSC matrix); see :func:`scmamba.deg.mixed.fit_mixed`."""
    k = x.shape[1]
    total_depth = (depth * count).sum()
    bins = (strata, depth, count)
    rest = np.array([j for j in range(k) if j != tested])
    less_x = np.ascontiguousarray(x[:, rest])
    for g in range(lo, hi):
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
            less_x,
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
