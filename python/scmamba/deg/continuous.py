"""The continuous part: least squares on the cells that express the gene (spec of MAST, section B2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for
from .prior import Prior


class ContinuousFit(NamedTuple):
    """Per gene, arrays of length genes unless stated; NaN for aliased coefficients and unfitted genes."""

    n: np.ndarray  # cells expressing the gene
    rank: np.ndarray
    df: np.ndarray  # residual degrees of freedom
    fitted: np.ndarray  # bool: df > 0
    rss: np.ndarray
    log_lik: np.ndarray  # 0 where not fitted
    s2_ml: np.ndarray  # shrunken maximum-likelihood variance
    coef: np.ndarray  # (genes, k)
    cov: np.ndarray  # (genes, k, k)


@compiled(nogil=True)
def _least_squares(
    lo, hi, indptr, cells, values, design, tol, coef, cov, rss, rank
):  # pragma: no cover (compiled)
    k = design.shape[1]
    for g in range(lo, hi):
        first = indptr[g]
        n = indptr[g + 1] - first
        a = np.empty((k, n))
        y = np.empty(n)
        for i in range(n):
            y[i] = values[first + i]
            for j in range(k):
                a[j, i] = design[cells[first + i], j]
        kept = np.empty(k, np.int64)
        norm = np.empty(k)
        for j in range(k):
            s = 0.0
            for i in range(n):
                s += a[j, i] * a[j, i]
            norm[j] = np.sqrt(s) if s > 0 else 1.0
        r = 0
        for j in range(
            k
        ):  # Householder; a column with nothing left below row r is aliased and skipped
            s = 0.0
            for i in range(r, n):
                s += a[j, i] * a[j, i]
            length = np.sqrt(s)
            if r >= n or length < tol * norm[j] or length == 0.0:
                continue
            kept[r] = j
            sign = -1.0 if a[j, r] < 0 else 1.0
            head = a[j, r] + sign * length
            scale = sign * length * head  # v'v / 2 for v = (head, rest)
            for m in range(j + 1, k):
                dot = head * a[m, r]
                for i in range(r + 1, n):
                    dot += a[j, i] * a[m, i]
                dot /= scale
                a[m, r] -= dot * head
                for i in range(r + 1, n):
                    a[m, i] -= dot * a[j, i]
            dot = head * y[r]
            for i in range(r + 1, n):
                dot += a[j, i] * y[i]
            dot /= scale
            y[r] -= dot * head
            for i in range(r + 1, n):
                y[i] -= dot * a[j, i]
            a[j, r] = -sign * length
            r += 1
        rank[g] = r
        s = 0.0
        for i in range(r, n):
            s += y[i] * y[i]
        rss[g] = s
        inverse = np.zeros((r, r))  # of the triangle R, column by column
        for c in range(r):
            inverse[c, c] = 1.0 / a[kept[c], c]
            for i in range(c - 1, -1, -1):
                t = 0.0
                for m in range(i + 1, c + 1):
                    t += a[kept[m], i] * inverse[m, c]
                inverse[i, c] = -t / a[kept[i], i]
        for i in range(r):
            t = 0.0
            for m in range(i, r):
                t += inverse[i, m] * y[m]
            coef[g, kept[i]] = t
            for j in range(r):
                t = 0.0
                for m in range(max(i, j), r):
                    t += inverse[i, m] * inverse[j, m]
                cov[g, kept[i], kept[j]] = t


def shrunken(n: np.ndarray, rss: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """ML variance with the prior's ``dof`` pseudo-values, and the log-likelihood (n, not n + dof, values)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s2 = (rss + prior.variance * prior.dof) / (n + prior.dof)
        return s2, -n / 2.0 * (np.log(2 * np.pi * s2) + 1.0)


def fit_continuous(
    indptr: np.ndarray, cells: np.ndarray, values: np.ndarray, design: np.ndarray, prior: Prior
) -> ContinuousFit:
    """Least squares for every gene over its expressing cells, with variances shrunken towards ``prior``.

    ``indptr, cells, values`` are the columns (genes) of a CSC matrix that holds the values above zero only;
    ``design`` is (cells, k). Columns without information among a gene's expressing cells are dropped (1e-11).
    """
    genes, k = indptr.size - 1, design.shape[1]
    coef, cov = np.full((genes, k), np.nan), np.full((genes, k, k), np.nan)
    rss, rank = np.zeros(genes), np.zeros(genes, np.int64)
    given = indptr, cells, values, np.ascontiguousarray(design), 1e-11
    threads = threads_for(values.size * k**2)
    run_in_threads(_least_squares, genes, threads, *given, coef, cov, rss, rank)
    n = np.diff(indptr).astype(np.int64)
    df = np.maximum(n - rank, 0)
    fitted = df > 0
    s2_ml, log_lik = shrunken(n, rss, prior)
    with np.errstate(divide="ignore", invalid="ignore"):
        s2 = (rss + prior.variance * prior.dof) / (df + prior.dof)
    cov *= np.where(fitted, s2, np.nan)[:, None, None]
    coef[~fitted] = np.nan
    return ContinuousFit(
        n,
        rank,
        df,
        fitted,
        rss,
        np.where(fitted, log_lik, 0.0),
        np.where(fitted, s2_ml, np.nan),
        coef,
        cov,
    )
