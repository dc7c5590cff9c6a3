"""The discrete part: is the gene expressed? Logistic regression with Gaussian priors (MAST spec, B3).

Two kernels run the same iterations. Where many cells share a row of the design (factors only) the sums run
over the distinct rows with their counts; otherwise over cells, in blocks that the compiler can vectorise.
Both take Newton steps in an orthogonal basis of the design, which are the iteratively reweighted least
squares of R rewritten: with e = exp(eta), w = e/(1+e)^2, b' = b + (Q'WQ + P)^-1 (Q'(y - mu) - P b).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for

EPS = float(np.finfo(np.float64).eps)
MAX_ITERATIONS = 25
TOLERANCE = 1e-8
_BLOCK = (
    256  # rows per block: 16 products of 16 factors, each factor at most 1/eps, stay below overflow
)
_LANES = 16


class DiscreteFit(NamedTuple):
    """Per gene; arrays of length genes unless stated. NaN coefficients where the fit did not converge."""

    converged: np.ndarray
    iterations: np.ndarray  # -1 where nothing was fitted
    deviance: np.ndarray
    log_lik: np.ndarray  # 0 where not converged
    coef: np.ndarray  # (genes, k)
    cov: np.ndarray  # (genes, k, k), weights of the last solve


def prior_scales(design: np.ndarray) -> np.ndarray:
    """(k,) prior standard deviations: 10 for the (centered) intercept, 2.5 / scale for each slope."""
    sd = np.empty(design.shape[1])
    sd[0] = 10.0
    for j in range(1, design.shape[1]):
        column = design[:, j]
        distinct = np.unique(column)
        scale = (
            1.0
            if distinct.size == 1
            else np.ptp(column)
            if distinct.size == 2
            else 2 * column.std(ddof=1)
        )
        sd[j] = max(2.5 / max(scale, 1e-300), 1e-12)
    return sd


def penalty(design: np.ndarray) -> np.ndarray:
    """(k, k) P'P of the prior rows: the identity, first row replaced by the column means, over the sds."""
    rows = np.eye(design.shape[1])
    rows[0] = design.mean(axis=0)
    rows /= prior_scales(design)[:, None]
    return rows.T @ rows


@compiled()
def _cholesky_step(a, g, k, step):  # pragma: no cover (compiled)
    """Solve a step = g in place of ``a`` (lower triangle used)."""
    for j in range(k):
        d = a[j, j]
        for m in range(j):
            d -= a[j, m] * a[j, m]
        d = np.sqrt(d) if d > 0 else 1e-150
        a[j, j] = d
        for i in range(j + 1, k):
            s = a[i, j]
            for m in range(j):
                s -= a[i, m] * a[j, m]
            a[i, j] = s / d
    for i in range(k):
        s = g[i]
        for m in range(i):
            s -= a[i, m] * step[m]
        step[i] = s / a[i, i]
    for i in range(k - 1, -1, -1):
        s = step[i]
        for m in range(i + 1, k):
            s -= a[m, i] * step[m]
        step[i] = s / a[i, i]


@compiled()
def _start(gram, qty, qt1, pen, k, a, g):  # pragma: no cover (compiled)
    """First weighted least squares: mu = .75 where expressed and .25 elsewhere, eta = +-ln 3."""
    w = 0.1875
    z = np.log(3.0) + 0.25 / w
    for i in range(k):
        g[i] = w * z * (2.0 * qty[i] - qt1[i])
        for j in range(k):
            a[i, j] = w * gram[i, j] + pen[i, j]


@compiled()
def _finish_step(a, g, b, pen, k):  # pragma: no cover (compiled)
    for i in range(k):
        for j in range(k):
            g[i] -= pen[i, j] * b[j]
            a[i, j] += pen[i, j]


@compiled()
def has_converged(iteration, dev, old, bayes):  # pragma: no cover (compiled)
    """R's rule: the relative change of the deviance, from the second step on where there is a prior."""
    if bayes and iteration == 1:
        return False
    return abs(dev - old) / (0.1 + abs(dev)) < TOLERANCE


class _Fits(NamedTuple):
    """What the kernels fill in: as :class:`DiscreteFit`, in the basis of the design."""

    coef: np.ndarray
    info: np.ndarray
    deviance: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    @classmethod
    def empty(cls, genes: int, k: int) -> _Fits:
        return cls(
            np.zeros((genes, k)),
            np.zeros((genes, k, k)),
            np.zeros(genes),
            np.full(genes, -1, np.int64),
            np.zeros(genes, np.bool_),
        )


@compiled(nogil=True)
def _fit_grouped(
    lo, hi, expressed, sizes, rows, gram, qt1, pen, bayes, maxit, coef, info, dev_out, its, ok
):  # pragma: no cover (compiled)
    """Expressed: (genes, u) counts per distinct row; sizes (u,); rows (u, k) of the basis."""
    u_rows, k = rows.shape
    n = sizes.sum()
    for gene in range(lo, hi):
        total = 0.0
        qty = np.zeros(k)
        for u in range(u_rows):
            total += expressed[gene, u]
            for i in range(k):
                qty[i] += expressed[gene, u] * rows[u, i]
        if total == 0:
            continue
        a = np.empty((k, k))
        g = np.empty(k)
        b = np.zeros(k)
        step = np.zeros(k)
        odds = np.empty(u_rows)
        dev = -2.0 * n * np.log(0.75)
        for iteration in range(1, maxit + 1):
            if iteration == 1:
                _start(gram, qty, qt1, pen, k, a, g)
            else:
                a[:, :] = 0.0
                g[:] = 0.0
                for u in range(u_rows):
                    e = odds[u]
                    w = sizes[u] * e / ((1.0 + e) * (1.0 + e))
                    # y - mu summed without cancellation: expressed/(1+e) - (rest) e/(1+e)
                    r = (expressed[gene, u] - (sizes[u] - expressed[gene, u]) * e) / (1.0 + e)
                    for i in range(k):
                        g[i] += r * rows[u, i]
                        for j in range(i + 1):
                            a[i, j] += w * rows[u, i] * rows[u, j]
                for i in range(k):
                    for j in range(i):
                        a[j, i] = a[i, j]
                _finish_step(a, g, b, pen, k)
            info[gene] = a
            _cholesky_step(a, g, k, step)
            old, dev = dev, 0.0
            b += step
            for u in range(u_rows):
                eta = 0.0
                for i in range(k):
                    eta += rows[u, i] * b[i]
                e = EPS if eta < -30 else 1.0 / EPS if eta > 30 else np.exp(eta)
                odds[u] = e
                if expressed[gene, u] > 0:
                    dev += 2.0 * expressed[gene, u] * np.log1p(1.0 / e)
                if sizes[u] > expressed[gene, u]:
                    dev += 2.0 * (sizes[u] - expressed[gene, u]) * np.log1p(e)
            its[gene] = iteration
            if has_converged(iteration, dev, old, bayes):
                ok[gene] = True
                break
        coef[gene] = b
        dev_out[gene] = dev


@compiled(inline="always")
def _exp(x):  # pragma: no cover (compiled)
    """exp for |x| <= 30 to a few ulp, without a call, so that loops over it vectorise."""
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10
    p = 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)


@compiled(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _sweep(basis, b, k, n, a, g, odds, weight, mean):  # pragma: no cover (compiled)
    """One pass over the cells: Q'WQ into a (lower), -Q'mu into g; returns sum log(1+e), was eta clamped."""
    a[:, :] = 0.0
    g[:] = 0.0
    log_sum = 0.0
    clamped = False
    product = np.empty(_LANES)
    for lo in range(0, n, _BLOCK):
        m = min(_BLOCK, n - lo)
        for i in range(m):
            odds[i] = 0.0
        for j in range(k):
            column, bj = basis[j, lo : lo + m], b[j]
            for i in range(m):
                odds[i] += bj * column[i]
        highest = 0.0
        for i in range(m):
            highest = max(highest, abs(odds[i]))
        for i in range(m):
            odds[i] = _exp(min(max(odds[i], -30.0), 30.0))
        if highest > 30.0:
            clamped = True
            for i in range(m):
                eta = 0.0
                for j in range(k):
                    eta += b[j] * basis[j, lo + i]
                if eta > 30.0:
                    odds[i] = 1.0 / EPS
                elif eta < -30.0:
                    odds[i] = EPS
        for i in range(m):
            inverse = 1.0 / (1.0 + odds[i])
            mean[i] = odds[i] * inverse
            weight[i] = mean[i] * inverse
        for i in range(m, _BLOCK):
            odds[i] = 0.0
        for lane in range(_LANES):
            product[lane] = 1.0 + odds[lane]
        for first in range(_LANES, _BLOCK, _LANES):
            for lane in range(_LANES):
                product[lane] *= 1.0 + odds[first + lane]
        for lane in range(_LANES):
            log_sum += np.log(product[lane])
        for i in range(k):
            ci = basis[i, lo : lo + m]
            s = 0.0
            for c in range(m):
                s += mean[c] * ci[c]
            g[i] -= s
            for j in range(i + 1):
                cj = basis[j, lo : lo + m]
                s = 0.0
                for c in range(m):
                    s += weight[c] * ci[c] * cj[c]
                a[i, j] += s
    return log_sum, clamped


@compiled(nogil=True)
def _fit_cells(
    lo, hi, indptr, cells, basis, gram, qt1, pen, bayes, maxit, coef, info, dev_out, its, ok
):  # pragma: no cover (compiled)
    """Basis: (k, cells). The gene's expressing cells are ``cells[indptr[g]:indptr[g+1]]``."""
    k, n = basis.shape
    for gene in range(lo, hi):
        first, last = indptr[gene], indptr[gene + 1]
        if last == first:
            continue
        qty = np.zeros(k)
        for c in range(first, last):
            for i in range(k):
                qty[i] += basis[i, cells[c]]
        a, next_a = np.empty((k, k)), np.empty((k, k))
        g, b, step = np.empty(k), np.zeros(k), np.zeros(k)
        odds, weight, mean = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
        dev = -2.0 * n * np.log(0.75)
        _start(gram, qty, qt1, pen, k, next_a, g)
        for iteration in range(1, maxit + 1):
            a[:, :] = next_a
            info[gene] = a
            _cholesky_step(a, g, k, step)
            b += step
            log_sum, clamped = _sweep(basis, b, k, n, next_a, g, odds, weight, mean)
            fit = 0.0
            if clamped:
                for c in range(first, last):
                    eta = 0.0
                    for i in range(k):
                        eta += b[i] * basis[i, cells[c]]
                    fit += -np.log(EPS) if eta > 30 else np.log(EPS) if eta < -30 else eta
            else:
                for i in range(k):
                    fit += b[i] * qty[i]
            old, dev = dev, 2.0 * (log_sum - fit)
            its[gene] = iteration
            if has_converged(iteration, dev, old, bayes):
                ok[gene] = True
                break
            for i in range(k):
                g[i] += qty[i]
                for j in range(i):
                    next_a[j, i] = next_a[i, j]
            _finish_step(next_a, g, b, pen, k)
        coef[gene] = b
        dev_out[gene] = dev


def _finished(raw: _Fits, back: np.ndarray) -> DiscreteFit:
    """Coefficients and covariance back from the orthogonal basis (``beta = back @ b``)."""
    coef, info, deviance, iterations, converged = raw
    k = back.shape[0]
    info[~converged] = np.eye(k)
    cov = back @ np.linalg.inv(info) @ back.T
    beta = coef @ back.T
    beta[~converged] = np.nan
    cov[~converged] = np.nan
    return DiscreteFit(
        converged, iterations, deviance, np.where(converged, -deviance / 2, 0.0), beta, cov
    )


@compiled()
def _table_deviance(k1, k2, n1, n2, e1, e2):  # pragma: no cover (compiled)
    out = 0.0
    if k1 > 0:
        out += 2.0 * k1 * np.log1p(1.0 / e1)
    if n1 > k1:
        out += 2.0 * (n1 - k1) * np.log1p(e1)
    if k2 > 0:
        out += 2.0 * k2 * np.log1p(1.0 / e2)
    if n2 > k2:
        out += 2.0 * (n2 - k2) * np.log1p(e2)
    return out


@compiled()
def _clamped_exp(eta):  # pragma: no cover (compiled)
    return EPS if eta < -30 else 1.0 / EPS if eta > 30 else np.exp(eta)


@compiled()
def _fit_table(k1, k2, n1, n2, bayes, maxit):  # pragma: no cover (compiled)
    """~ group on one 2 x 2 table, in the basis of the groups' log odds: deviance, or -1 if not converged."""
    n = n1 + n2
    p11 = p22 = p12 = 0.0
    if bayes:
        a, b = n1 / n / 10.0, n2 / n / 10.0
        p11, p22, p12 = a * a + 0.16, b * b + 0.16, a * b - 0.16
    z = np.log(3.0) + 0.25 / 0.1875
    w1, w2 = 0.1875 * n1, 0.1875 * n2
    g1, g2 = 0.1875 * z * (2.0 * k1 - n1), 0.1875 * z * (2.0 * k2 - n2)
    b1 = b2 = 0.0
    dev = -2.0 * n * np.log(0.75)
    for iteration in range(1, maxit + 1):
        a11, a22 = w1 + p11, w2 + p22
        det = a11 * a22 - p12 * p12
        b1 += (a22 * g1 - p12 * g2) / det
        b2 += (a11 * g2 - p12 * g1) / det
        e1, e2 = _clamped_exp(b1), _clamped_exp(b2)
        old, dev = dev, _table_deviance(k1, k2, n1, n2, e1, e2)
        if has_converged(iteration, dev, old, bayes):
            return dev
        i1, i2 = 1.0 / (1.0 + e1), 1.0 / (1.0 + e2)
        w1, w2 = n1 * e1 * i1 * i1, n2 * e2 * i2 * i2
        g1 = (k1 - (n1 - k1) * e1) * i1 - p11 * b1 - p12 * b2
        g2 = (k2 - (n2 - k2) * e2) * i2 - p12 * b1 - p22 * b2
    return -1.0


@compiled()
def _fit_margin(k, n, bayes, maxit):  # pragma: no cover (compiled)
    """~ 1 on the margin of the table: deviance, or -1 if not converged."""
    pen = 0.01 if bayes else 0.0
    z = np.log(3.0) + 0.25 / 0.1875
    w, g, b = 0.1875 * n, 0.1875 * z * (2.0 * k - n), 0.0
    dev = -2.0 * n * np.log(0.75)
    for iteration in range(1, maxit + 1):
        b += g / (w + pen)
        e = _clamped_exp(b)
        old, dev = dev, _table_deviance(k, 0.0, n, 0.0, e, 1.0)
        if has_converged(iteration, dev, old, bayes):
            return dev
        inverse = 1.0 / (1.0 + e)
        w = n * e * inverse * inverse
        g = (k - (n - k) * e) * inverse - pen * b
    return -1.0


@compiled(nogil=True)
def _table_tests(lo, hi, k1, k2, n1, n2, bayes, maxit, lam, ok):  # pragma: no cover (compiled)
    for i in range(lo, hi):
        if k1[i] + k2[i] == 0:
            continue
        full = _fit_table(k1[i], k2[i], n1[i], n2[i], bayes, maxit)
        null = _fit_margin(k1[i] + k2[i], n1[i] + n2[i], bayes, maxit)
        if full >= 0 and null >= 0:
            lam[i] = null - full
            ok[i] = True


def table_tests(
    first: np.ndarray, second: np.ndarray, n1: np.ndarray, n2: np.ndarray, *, bayes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Likelihood-ratio statistics of 2 x 2 tables expressed/not by group, and where they can be tested.

    ``first``, ``second``: cells of each group that express the gene; ``n1``, ``n2``: cells of each group; all
    of the same length. The same fits as :func:`fit_discrete` on ``~ group``, one table at a time.
    """
    k1, k2, m1, m2 = (np.ascontiguousarray(x, dtype=np.float64) for x in (first, second, n1, n2))
    lam, ok = np.zeros(k1.size), np.zeros(k1.size, np.bool_)
    given = k1, k2, m1, m2, bayes, MAX_ITERATIONS
    run_in_threads(_table_tests, k1.size, threads_for(k1.size * 500), *given, lam, ok)
    return lam, ok


def fit_discrete(
    indptr: np.ndarray, cells: np.ndarray, design: np.ndarray, *, bayes: bool
) -> DiscreteFit:
    """Fit every gene; ``cells[indptr[g]:indptr[g+1]]`` express gene g; ``design`` is (cells, k)."""
    n, k = design.shape
    distinct, member, sizes = np.unique(design, axis=0, return_inverse=True, return_counts=True)
    if (
        len(distinct) == k
    ):  # saturated: in the basis of the cell means the weights make a diagonal matrix
        back = np.linalg.inv(distinct)
    else:
        back = np.linalg.inv(np.linalg.qr(design, mode="r") / np.sqrt(n))
    prior = penalty(design) if bayes else np.zeros((k, k))
    pen = np.ascontiguousarray(back.T @ prior @ back)
    genes = indptr.size - 1
    fits = _Fits.empty(genes, k)
    if len(distinct) * 8 <= n or n < 64:
        rows, weights = np.ascontiguousarray(distinct @ back), sizes.astype(np.float64)
        threads = threads_for(cells.size + genes * len(distinct) * 300)
        expressed = np.zeros((genes, len(distinct)))
        run_in_threads(_count_members, genes, threads, indptr, cells, member.reshape(-1), expressed)
        gram = np.ascontiguousarray((rows * weights[:, None]).T @ rows)
        given = expressed, weights, rows, gram, weights @ rows, pen, bayes, MAX_ITERATIONS
        run_in_threads(_fit_grouped, genes, threads, *given, *fits)
        return _finished(fits, back)
    basis = np.ascontiguousarray((design @ back).T)
    sums = np.ascontiguousarray(basis @ basis.T), basis.sum(axis=1)
    given = indptr, cells, basis, *sums, pen, bayes, MAX_ITERATIONS
    run_in_threads(_fit_cells, genes, threads_for(genes * n * 10.0), *given, *fits)
    return _finished(fits, back)


@compiled(nogil=True)
def _count_members(lo, hi, indptr, cells, member, out):  # pragma: no cover (compiled)
    for g in range(lo, hi):
        for c in range(indptr[g], indptr[g + 1]):
            out[g, member[cells[c]]] += 1
