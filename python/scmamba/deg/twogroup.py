"""Two groups without covariates: every number of the hurdle test from sums over cells that add up.

Per gene and group the test needs the number of expressing cells and, over those, the sums of the values and
of their squares; the fold change needs the sum of expm1. Sums over any subset of cells are sums over its
parts, so a hundred subsamples are one pass over the matrix. Values enter around the gene's mean, which keeps
the differences of large sums exact enough (see :func:`noise_floor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import log_ndtr

from ..data.file_rows import FileRows
from ..data.values import SCALE
from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for
from .discrete import table_tests
from .hurdle import chi2_p
from .prior import Prior, estimate_prior

EPS = float(np.finfo(np.float64).eps)
# Rows of a file that are summed at a time.
_ROWS = 4000
#: More groups than this are summed one after the other.
MANY_GROUPS = 8


class Sums(NamedTuple):
    """Over the cells of one group: ``n`` cells, and per gene (genes,) the sums over the expressing ones."""

    n: int
    expressed: np.ndarray  # cells with a value above zero
    total: np.ndarray  # sum of (value - centre)
    squares: np.ndarray  # sum of (value - centre)^2
    linear: np.ndarray  # sum of expm1(value)

    def take(self, genes: np.ndarray) -> Sums:
        """The same for some genes."""
        return Sums(self.n, *(x[genes] for x in self[1:]))

    def plus(self, other: Sums) -> Sums:
        """Sums over both groups' cells."""
        return Sums(self.n + other.n, *(x + y for x, y in zip(self[1:], other[1:], strict=True)))


class HurdleTest(NamedTuple):
    """Per gene: statistic, degrees of freedom, p, and log p (which does not underflow)."""

    statistic: np.ndarray
    df: np.ndarray
    p: np.ndarray
    log_p: np.ndarray
    continuous: np.ndarray
    discrete: np.ndarray


@compiled(nogil=True)
def _row_sums(
    lo, hi, indptr, genes, data, totals, group, order, centre, out
):  # pragma: no cover (compiled)
    """One pass over CSR rows; each of the blocks of ``out`` gets its share of the rows."""
    n, threads = indptr.size - 1, out.shape[0]
    counts = totals.size > 0
    for t in range(lo, hi):
        for i in range(n * t // threads, n * (t + 1) // threads):
            row = order[i]
            k = group[row]
            if k < 0:
                continue
            block = out[t, k]
            for c in range(indptr[row], indptr[row + 1]):
                if counts:
                    linear = data[c] / totals[row] * 10000.0
                    value = np.log1p(linear)
                else:
                    value = np.float64(data[c])
                    linear = np.expm1(value)
                g = genes[c]
                x = value - centre[g]
                block[0, g] += 1.0
                block[1, g] += x
                block[2, g] += x * x
                block[3, g] += linear


@compiled(nogil=True)
def _column_sums(lo, hi, indptr, cells, data, centre, member, out):  # pragma: no cover (compiled)
    """Sums over many subsets at once: ``member`` (cells, subsets) 0/1, ``out`` (4, genes, subsets)."""
    subsets = member.shape[1]
    for g in range(lo, hi):
        for c in range(indptr[g], indptr[g + 1]):
            value = np.float64(data[c])
            x = value - centre[g]
            xx = x * x
            linear = np.expm1(value)
            row = member[cells[c]]
            for s in range(subsets):
                m = np.float64(row[s])
                out[0, g, s] += m
                out[1, g, s] += m * x
                out[2, g, s] += m * xx
                out[3, g, s] += m * linear


@compiled(nogil=True)
def _sample_columns(
    lo, hi, indptr, cells, data, sample, member, linear, expressed
):  # pragma: no cover (compiled)
    """(runs, samples, genes) sums of expm1 and (runs, genes) numbers of cells, over each run's cells."""
    runs = member.shape[1]
    for g in range(lo, hi):
        for c in range(indptr[g], indptr[g + 1]):
            s = sample[cells[c]]
            if s < 0:
                continue
            value = np.expm1(np.float64(data[c]))
            row = member[cells[c]]
            for r in range(runs):
                if row[r]:
                    linear[r, s, g] += value
                    expressed[r, g] += 1.0


def centres(
    matrix: sp.csr_matrix | FileRows, totals: np.ndarray | None = None, cells: int = 4096
) -> np.ndarray:
    """(genes,) a value near each gene's mean over expressing cells, from about ``cells`` evenly spread rows.

    Any value near the mean will do; it only has to be close to keep the digits of the sums of squares.
    """
    step = max(1, matrix.shape[0] // cells)
    if isinstance(matrix, FileRows):
        some = matrix.take(slice(None, None, step))
    else:
        some = matrix[::step] if step > 1 else matrix
    data = some.data.astype(np.float64)
    if totals is not None:
        data = np.log1p(data / np.repeat(totals[::step], np.diff(some.indptr)) * SCALE)
    n = np.bincount(some.indices, minlength=matrix.shape[1])
    return np.bincount(some.indices, data, matrix.shape[1]) / np.maximum(n, 1)


def group_sums(
    matrix: sp.csr_matrix | FileRows,
    group: np.ndarray,
    n_groups: int,
    *,
    totals: np.ndarray | None = None,
) -> tuple[list[Sums], np.ndarray]:
    """Sums per group in one streaming pass over a CSR matrix, and the centres they are taken around.

    ``group`` (cells,) is the group's number, or -1 for all other cells. With ``totals`` (cells,) the matrix
    holds raw counts, normalized on the way (nothing is copied); otherwise log values. All values must be >=
    0.
    """
    centre = centres(matrix, totals)
    labels = group.astype(np.int64)
    every = slice(0, len(labels))
    blocks = matrix.blocks(_ROWS) if isinstance(matrix, FileRows) else [(every, matrix)]
    whole = np.zeros((n_groups, 4, centre.size))
    for rows, part in blocks:
        own = None if totals is None else totals[rows]
        _add_sums(part, labels[rows], own, centre, whole)
    sizes = np.bincount(group[group >= 0], minlength=n_groups)
    return [Sums(int(sizes[k]), *whole[k]) for k in range(n_groups)], centre


def _add_sums(
    matrix: sp.csr_matrix,
    labels: np.ndarray,
    totals: np.ndarray | None,
    centre: np.ndarray,
    whole: np.ndarray,
) -> None:
    """Add the sums of some cells to (groups, 4, genes) ``whole``."""
    empty = np.zeros(0) if totals is None else np.asarray(totals, dtype=np.float64)
    # The sums of many groups do not fit a cache: the cells of a group are read one after the other.
    many = len(whole) > MANY_GROUPS
    order = np.argsort(labels, kind="stable") if many else np.arange(len(labels))
    csr = matrix.indptr, matrix.indices, matrix.data
    threads = threads_for(matrix.nnz * 15.0)
    parts = np.zeros((threads, *whole.shape))
    run_in_threads(_row_sums, threads, threads, *csr, empty, labels, order, centre, parts)
    whole += parts.sum(axis=0)


def subset_sums(matrix: sp.csc_matrix, centre: np.ndarray, member: np.ndarray) -> list[Sums]:
    """Sums over many subsets of cells: ``member`` (cells, subsets) of 0/1; log values >= 0 in CSC."""
    genes, subsets = matrix.shape[1], member.shape[1]
    out = np.zeros((4, genes, subsets))
    csc = matrix.indptr, matrix.indices, matrix.data
    threads = threads_for(matrix.nnz * (10.0 + subsets))
    run_in_threads(_column_sums, genes, threads, *csc, centre, np.ascontiguousarray(member), out)
    sizes = member.sum(axis=0, dtype=np.int64)
    out = np.ascontiguousarray(out.transpose(2, 0, 1))
    return [Sums(int(sizes[s]), *out[s]) for s in range(member.shape[1])]


def sample_sums(
    matrix: sp.csc_matrix, sample: np.ndarray, n_samples: int, member: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of each sample's cells in many runs: ``member`` (cells, runs) of 0/1, ``sample`` -1 for cells of none.

    Returns (runs, samples, genes) sums of expm1, (runs, genes) cells with a value above zero, (runs, samples) cells.
    """
    genes, runs = matrix.shape[1], member.shape[1]
    linear, expressed = np.zeros((runs, n_samples, genes)), np.zeros((runs, genes))
    given = matrix.indptr, matrix.indices, matrix.data, sample, np.ascontiguousarray(member)
    threads = threads_for(matrix.nnz * (10.0 + runs))
    run_in_threads(_sample_columns, genes, threads, *given, linear, expressed)
    own = sample >= 0
    sizes = np.stack([np.bincount(sample[own & m], minlength=n_samples) for m in member.T > 0])
    return linear, expressed, sizes


def combine_sums(parts: list[Sums], weights: np.ndarray) -> list[Sums]:
    """Sums over unions of disjoint parts (donors, say): ``weights`` (unions, parts) of 0/1."""
    sizes = weights @ np.array([p.n for p in parts])
    stacked = np.stack([np.stack(p[1:]) for p in parts])
    whole = np.tensordot(weights.astype(np.float64), stacked, axes=1)
    return [Sums(int(sizes[i]), *whole[i]) for i in range(len(weights))]


def noise_floor(pooled: Sums, centre: np.ndarray) -> np.ndarray:
    """Sum of squares around the mean below which a gene's values are all the same: rounding of the sums."""
    raw = pooled.squares + 2 * centre * pooled.total + pooled.expressed * centre**2
    result: np.ndarray = np.maximum(1e-26 * raw, EPS * pooled.expressed * pooled.squares)
    return result


def _around_mean(sums: Sums) -> np.ndarray:
    """Sum of squares around the group's own mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        out = sums.squares - sums.total**2 / sums.expressed
    return np.where(sums.expressed > 0, np.maximum(out, 0.0), 0.0)


def shared_prior(pooled: Sums, centre: np.ndarray) -> Prior:
    """The empirical-Bayes prior from the sums over all cells of both groups."""
    squares = _around_mean(pooled)
    squares = np.where(squares > noise_floor(pooled, centre), squares, 0.0)
    return estimate_prior(pooled.expressed, squares, np.zeros_like(squares))


def discrete_tests(pairs: Sequence[tuple[Sums, Sums]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Statistic and testability of the discrete part for many pairs of groups, in one parallel sweep."""
    sizes = [a.expressed.size for a, _ in pairs]
    if not sizes:
        return []
    lam, ok = table_tests(
        np.concatenate([a.expressed for a, _ in pairs]),
        np.concatenate([b.expressed for _, b in pairs]),
        np.repeat([a.n for a, _ in pairs], sizes),
        np.repeat([b.n for _, b in pairs], sizes),
    )
    cuts = np.cumsum(sizes)[:-1]
    return list(zip(np.split(lam, cuts), np.split(ok, cuts), strict=True))


def hurdle_test(
    first: Sums,
    second: Sums,
    prior: Prior,
    centre: np.ndarray,
    discrete: tuple[np.ndarray, np.ndarray] | None = None,
) -> HurdleTest:
    """The hurdle likelihood-ratio test of ``~ group`` for every gene (first group = reference level).

    The same numbers as ``zlm(...).lrt(group)``, from sums alone (spec of MAST, B2-B4). ``discrete`` is the
    pair's entry of :func:`discrete_tests` where it was computed before.
    """
    pooled = first.plus(second)
    n = pooled.expressed
    both = (first.expressed > 0) & (second.expressed > 0)
    testable = both & (n > 3)  # residual degrees of freedom above 1 in both models
    floor = noise_floor(pooled, centre)
    rss0 = _around_mean(pooled)
    rss0 = np.where(rss0 > floor, rss0, 0.0)
    rss1 = _around_mean(first) + _around_mean(second)
    rss1 = np.minimum(np.where(rss1 > floor, rss1, 0.0), rss0)
    extra = prior.variance * prior.dof
    with np.errstate(divide="ignore", invalid="ignore"):
        lam_c = n * np.log((rss0 + extra) / (rss1 + extra))
    lam_c = np.where(testable & (rss0 + extra > 0), lam_c, 0.0)
    lam_d, test_d = discrete if discrete is not None else discrete_tests([(first, second)])[0]
    df = testable.astype(np.int64) + test_d
    statistic = lam_c + lam_d
    return HurdleTest(statistic, df, chi2_p(statistic, df), log_tail(statistic, df), lam_c, lam_d)


def log_tail(statistic: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Natural log of the chi-squared upper tail for 0, 1 or 2 degrees of freedom, exact far beyond 1e-308."""
    x = np.maximum(statistic, 0.0)
    one = np.log(2.0) + log_ndtr(-np.sqrt(x))
    return np.where(df == 2, -x / 2, np.where(df == 1, np.minimum(one, 0.0), 0.0))
