"""MAST's hurdle model for one gene, straight from its definition: dense float64, one cell at a time.

Written from the formulas (McDavid et al., Genome Biol 2015; arm's bayesglm with fixed Gaussian priors), not
from the package: augmented least squares by ``lstsq``, no orthogonal basis, no sums, nothing shared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import minimize
from scipy.special import betaln

EPS = 2.220446049250313e-16


class Logistic(NamedTuple):
    """A logistic regression: is it converged, after how many steps, and its numbers."""

    converged: bool
    iterations: int
    deviance: float
    coef: np.ndarray
    cov: np.ndarray


def prior_rows(x: np.ndarray) -> np.ndarray:
    """The rows that bayesglm puts below the design: sd 10 for the centered intercept, 2.5 / scale."""
    sd = [10.0]
    for column in x.T[1:]:
        values = set(column.tolist())
        scale = {1: 1.0, 2: max(values) - min(values)}.get(len(values), 2 * np.std(column, ddof=1))
        sd.append(2.5 / scale)
    rows = np.diag(1 / np.array(sd))
    rows[0] = x.mean(axis=0) / 10.0
    return rows


def logistic(x: np.ndarray, y: np.ndarray, bayes: bool = True) -> Logistic:
    """Iteratively reweighted least squares with R's start, limits and stopping rule."""
    rows = prior_rows(x) if bayes else np.zeros((0, x.shape[1]))
    eta = np.where(y > 0, np.log(3.0), -np.log(3.0))
    mu = np.where(y > 0, 0.75, 0.25)
    old = -2 * len(y) * np.log(0.75)
    for step in range(1, 26):
        weight = mu * (1 - mu)
        root = np.sqrt(weight)
        a = np.vstack([root[:, None] * x, rows])
        b = np.concatenate([root * (eta + (y - mu) / weight), np.zeros(len(rows))])
        coef = np.linalg.lstsq(a, b, rcond=None)[0]
        eta = x @ coef
        odds = np.where(eta > 30, 1 / EPS, np.where(eta < -30, EPS, np.exp(np.clip(eta, -30, 30))))
        mu = odds / (1 + odds)
        deviance = 2 * np.where(y > 0, np.log1p(1 / odds), np.log1p(odds)).sum()
        close = abs(deviance - old) / (0.1 + abs(deviance)) < 1e-8
        if close and (step > 1 or not bayes):
            return Logistic(True, step, deviance, coef, np.linalg.inv(a.T @ a))
        old = deviance
    return Logistic(False, 25, deviance, coef, np.linalg.inv(a.T @ a))


class Normal(NamedTuple):
    """Least squares over the expressing cells, its variance shrunken."""

    df: int
    rss: float
    s2_ml: float
    log_lik: float
    coef: np.ndarray
    cov: np.ndarray


def normal(x: np.ndarray, y: np.ndarray, variance: float = 1.0, dof: float = 0.0) -> Normal:
    """The continuous part for a full-rank design."""
    on = y > 0
    a, b, n = x[on], y[on], int(on.sum())
    coef = np.linalg.lstsq(a, b, rcond=None)[0]
    rss = float(((b - a @ coef) ** 2).sum())
    df = n - x.shape[1]
    s2_ml = (rss + variance * dof) / (n + dof)
    log_lik = -n / 2 * (np.log(2 * np.pi * s2_ml) + 1)
    cov = (rss + variance * dof) / (df + dof) * np.linalg.inv(a.T @ a)
    return Normal(df, rss, s2_ml, log_lik, coef, cov)


def hurdle(
    full: np.ndarray, null: np.ndarray, y: np.ndarray, v: float, d: float
) -> tuple[float, ...]:
    """(lambda_C, lambda_D, df, p) where both parts can be tested."""
    c = 2 * (normal(full, y, v, d).log_lik - normal(null, y, v, d).log_lik)
    on = (y > 0).astype(float)
    e = logistic(null, on).deviance - logistic(full, on).deviance
    df = 2 * (full.shape[1] - null.shape[1])
    return c, e, df, float(stats.chi2.sf(c + e, df))


def shared_variance(values: np.ndarray) -> tuple[float, float]:
    """(v, d) that maximize the marginal likelihood of the genes' variances, by a simplex search."""
    parts = [column[column != 0] for column in values.T]
    parts = [p for p in parts if len(p) > 1 and np.ptp(p) > 0]
    r = np.array([len(p) - 1 for p in parts])
    s = np.array([((p - p.mean()) ** 2).sum() for p in parts])

    def negative(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        terms = -betaln(r / 2, a) - r / 2 * np.log(b) - (r / 2 + a) * np.log1p(s / (2 * b))
        return -terms.sum()

    options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 4000, "maxfev": 8000}
    a, b = np.exp(minimize(negative, np.zeros(2), method="Nelder-Mead", options=options).x)
    return b / a, 2 * a
