"""MAST's hurdle test of two groups beside one factor, from sums over each level and group.

A factor with many levels (donors) makes a design with as many columns, nearly all zero. Least squares with it are group means
within levels, and the information matrix of the logistic regression is diagonal in the levels, bordered by intercept and group:
both take a step for each level instead of one for each pair of columns, and the cells are read once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ..utils.compiled_code import compiled
from ..utils.threads import run_in_threads, threads_for
from .design import build_design
from .discrete import EPS, MAX_ITERATIONS, has_converged, prior_scales
from .hurdle import chi2_p
from .twogroup import Sums, noise_floor, shared_prior

#: More levels are fitted cell by cell: sums for each would take more memory than the design.
MAX_LEVELS = 100


class LevelDesign(NamedTuple):
    """``~ group + factor`` over the distinct rows of its design matrix.

    Attributes
    ----------
    level, group
        (rows,) level and group (0 or 1) of each distinct row.
    cells
        (rows,) number of cells.
    slot
        (levels,) number of the level's column, -1 for the reference level and one that was dropped as aliased.
    """

    level: np.ndarray
    group: np.ndarray
    cells: np.ndarray
    slot: np.ndarray

    @property
    def nested(self) -> bool:
        """No level has cells of both groups: the group is a sum of levels, and one of them was dropped."""
        return len(self.level) == len(self.slot)


def level_design(group: np.ndarray, levels: pd.Series) -> tuple[LevelDesign, np.ndarray]:
    """The design of cells in two groups, and (cells,) the row of each.

    Parameters
    ----------
    group
        (cells,) 0 or 1.
    levels
        (cells,) categorical without missing values.
    """
    codes, _ = pd.factorize(levels.cat.codes, sort=True)
    rows, first, member, cells = np.unique(
        2 * codes + group, return_index=True, return_inverse=True, return_counts=True
    )
    table = pd.DataFrame(
        {
            "condition": np.where(group[first] == 0, "Group1", "Group2"),
            "level": levels.iloc[first].reset_index(drop=True),
        }
    )
    matrix = build_design("~ condition + level", table).matrix[:, 2:]
    slot = np.full(codes.max() + 1, -1)
    for row, level in enumerate(rows // 2):
        if matrix[row].any():
            slot[level] = matrix[row].argmax()
    return LevelDesign(rows // 2, rows % 2, cells.astype(np.float64), slot), member


def group_p(parts: list[Sums], centre: np.ndarray, design: LevelDesign) -> np.ndarray:
    """(genes,) p of the group beside the factor: ``zlm("~ group + factor").lrt("group")["p_H"]``.

    Parameters
    ----------
    parts
        Sums over the cells of each row of the design.
    centre
        (genes,) the values the sums are taken around.
    design
        Of the cells.
    """
    pooled = parts[0]
    for part in parts[1:]:
        pooled = pooled.plus(part)
    prior = shared_prior(pooled, centre)
    stacked = np.stack([np.stack(part[1:4]) for part in parts])  # (rows, 3, genes)
    rss1, rank1, rss0, rank0 = _continuous(stacked, design)
    floor = noise_floor(pooled, centre)
    rss0 = np.where(rss0 > floor, rss0, 0.0)
    rss1 = np.minimum(np.where(rss1 > floor, rss1, 0.0), rss0)
    n, extra = pooled.expressed, prior.variance * prior.dof
    testable = (n - rank1 > 1) & (n - rank0 > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lam_c = np.where(testable, n * np.log((rss0 + extra) / (rss1 + extra)), 0.0)
    df_c = np.where(testable, rank1 - rank0, 0)
    lam_d, test_d = _discrete_lrt(stacked[:, 0].T, design)
    result: np.ndarray = chi2_p(lam_c + lam_d, df_c + test_d)
    return result


def _continuous(
    stacked: np.ndarray, design: LevelDesign
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Residual sums of squares and ranks, (genes,) each, with and without the group."""
    n, total, squares = stacked.transpose(1, 0, 2)

    def within(member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sum of squares around the means of sets of rows, the number of sets with cells, and (sets, genes) cells."""
        sets = np.eye(member.max() + 1)[:, member]
        cells = sets @ n
        around = (sets @ total) ** 2 / np.maximum(cells, 1)
        return (
            np.maximum(squares.sum(axis=0) - around.sum(axis=0), 0),
            (cells > 0).sum(axis=0),
            cells,
        )

    if design.nested:
        # Without the group the dropped level has no column either: it is one set with the reference.
        merged = np.unique(
            np.where(design.slot < 0, -1, design.slot)[design.level], return_inverse=True
        )[1]
        (rss1, rank1, _), (rss0, rank0, _) = within(design.level), within(merged)
        return rss1, rank1, rss0, rank0
    rss0, rank0, cells = within(design.level)
    second = np.zeros((2, *cells.shape))  # cells and totals of group 2 in each level
    np.add.at(second[0], design.level[design.group == 1], n[design.group == 1])
    np.add.at(second[1], design.level[design.group == 1], total[design.group == 1])
    first = np.zeros(cells.shape)
    np.add.at(first, design.level[design.group == 0], total[design.group == 0])
    every = np.maximum(cells, 1)
    spread = ((cells - second[0]) * second[0] / every).sum(axis=0)
    slope = (((cells - second[0]) * second[1] - second[0] * first) / every).sum(axis=0)
    gain = np.where(spread > 0, slope**2 / np.maximum(spread, 1e-300), 0.0)
    return np.maximum(rss0 - gain, 0), rank0 + (spread > 0), rss0, rank0


def _discrete_lrt(expressed: np.ndarray, design: LevelDesign) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) likelihood-ratio statistic of the group, and where both fits converged."""
    cells, slots = design.cells, int(design.slot.max()) + 1
    share = np.zeros(slots)  # means of the columns of the levels
    slot = design.slot[design.level]
    np.add.at(share, slot[slot >= 0], cells[slot >= 0] / cells.sum())
    group_share = float(cells[design.group == 1].sum() / cells.sum())
    # All columns are 0 or 1 and take both values.
    sd = prior_scales(np.array([[1.0, 0.0], [1.0, 1.0]]))
    k = np.ascontiguousarray(expressed, dtype=np.float64)
    group = design.group.astype(np.float64)
    threads = threads_for(k.size * 400.0)
    full, null = np.full(len(k), -1.0), np.full(len(k), -1.0)
    for w, out in ((1.0, full), (0.0, null)):
        given = group * w, slot, share, group_share * w, sd, w > 0, MAX_ITERATIONS
        run_in_threads(_fit_levels, len(k), threads, k, cells, *given, out)
    good = (full >= 0) & (null >= 0)
    return np.where(good, null - full, 0.0), good


@compiled()
def _solve(w0, w1, wl, wl1, h0, h1, h, p, with_group, x):  # pragma: no cover (compiled)
    """Solve the bordered system for one right-hand side (h0, h1, h) into ``x``; returns the two of the border.

    ``w0, w1``: sums of all weights without a column of their own, of both groups and of group 2; ``wl, wl1``: of each column.
    """
    s00, s01, s11 = w0, w1, w1 + p
    for j in range(wl.size):
        d = wl[j] + p
        s00 += wl[j] * p / d
        s01 += wl1[j] * p / d
        s11 += wl1[j] * (wl[j] - wl1[j] + p) / d
        h0 -= wl[j] * h[j] / d
        h1 -= wl1[j] * h[j] / d
    if with_group:
        det = s00 * s11 - s01 * s01
        x0, x1 = (s11 * h0 - s01 * h1) / det, (s00 * h1 - s01 * h0) / det
    else:
        x0, x1 = h0 / s00, 0.0
    for j in range(wl.size):
        x[j] = (h[j] - wl[j] * x0 - wl1[j] * x1) / (wl[j] + p)
    return x0, x1


@compiled(nogil=True)
def _fit_levels(
    lo, hi, expressed, cells, group, slot, share, group_share, sd, with_group, maxit, out
):  # pragma: no cover (compiled)
    """Deviance of ``~ group + factor`` (or ``~ factor``) for each gene; -1 where nothing was expressed or it did not converge.

    The steps of :func:`scmamba.deg.discrete.fit_discrete` with its priors, in the basis of the design's own columns. The prior
    of the intercept is one of the whole linear predictor's mean: a rank-one term ``v v'`` beside the bordered diagonal.
    """
    rows, slots = cells.size, share.size
    n, p, v0 = cells.sum(), 1.0 / sd[1] ** 2, 1.0 / sd[0]
    z = np.log(3.0) + 0.25 / 0.1875
    for gene in range(lo, hi):
        k = expressed[gene]
        if k.sum() == 0:
            continue
        v, vg = share * v0, group_share * v0
        b0, bg, b = 0.0, 0.0, np.zeros(slots)
        wl, wl1, h = np.empty(slots), np.empty(slots), np.empty(slots)
        xg, xv = np.empty(slots), np.empty(slots)
        odds = np.empty(rows)
        dev = -2.0 * n * np.log(0.75)
        for iteration in range(1, maxit + 1):
            wl[:] = 0.0
            wl1[:] = 0.0
            w0 = w1 = h0 = h1 = 0.0
            along = v0 * b0 + vg * bg
            for j in range(slots):
                along += v[j] * b[j]
            for j in range(slots):
                h[j] = -p * b[j] - v[j] * along
            for u in range(rows):
                if iteration == 1:
                    w, r = 0.1875 * cells[u], 0.1875 * z * (2.0 * k[u] - cells[u])
                else:
                    inverse = 1.0 / (1.0 + odds[u])
                    w = cells[u] * odds[u] * inverse * inverse
                    r = (k[u] - (cells[u] - k[u]) * odds[u]) * inverse
                h0 += r
                h1 += group[u] * r
                if slot[u] >= 0:
                    wl[slot[u]] += w
                    wl1[slot[u]] += group[u] * w
                    h[slot[u]] += r
                else:
                    w0 += w
                    w1 += group[u] * w
            h0 -= v0 * along
            h1 -= p * bg + vg * along
            g0, g1 = _solve(w0, w1, wl, wl1, h0, h1, h, p, with_group, xg)
            r0, r1 = _solve(w0, w1, wl, wl1, v0, vg, v, p, with_group, xv)
            over, under = v0 * g0 + vg * g1, 1.0 + v0 * r0 + vg * r1
            for j in range(slots):
                over += v[j] * xg[j]
                under += v[j] * xv[j]
            share_of = over / under
            b0 += g0 - share_of * r0
            bg += g1 - share_of * r1
            for j in range(slots):
                b[j] += xg[j] - share_of * xv[j]
            old, dev = dev, 0.0
            for u in range(rows):
                eta = b0 + group[u] * bg
                if slot[u] >= 0:
                    eta += b[slot[u]]
                e = EPS if eta < -30 else 1.0 / EPS if eta > 30 else np.exp(eta)
                odds[u] = e
                if abs(eta) > 30:
                    if k[u] > 0:
                        dev += 2.0 * k[u] * np.log1p(1.0 / e)
                    if cells[u] > k[u]:
                        dev += 2.0 * (cells[u] - k[u]) * np.log1p(e)
                else:
                    dev += 2.0 * (cells[u] * np.log1p(e) - k[u] * eta)
            if has_converged(iteration, dev, old, True):
                out[gene] = dev
                break
