"""Pseudobulk: one value per donor, so that donors and not cells are what is counted.

Counts are summed over the cells of each donor and group, put on log2 counts per million with a prior count,
and compared by a linear model whose gene variances are shrunken towards a common one (the moderated t-test of
Smyth, Stat Appl Genet Mol Biol 3:3, 2004). This is the honest test of a difference between patients and
controls; per-cell tests count every cell as a new person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import digamma, polygamma, stdtr

from ..utils.errors import DataError
from .design import build_design
from .markers import benjamini_hochberg, two_groups
from .values import Scale, as_csr, recognise, resolve_layer

PRIOR_COUNT = 2.0


def pseudobulk(
    adata: Any,
    groupby: str,
    donor: str,
    group1: str | Sequence[str],
    group2: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    scale: Scale = "auto",
    covariates: str | Sequence[str] | None = None,
    paired: bool | None = None,
    moderate: bool = True,
    min_cells: int = 10,
    min_total: float = 10.0,
) -> pd.DataFrame:
    """Test the difference between two groups with the donor as the unit.

    Parameters
    ----------
    adata
        AnnData with raw counts in X (or ``layer``). Log values are averaged per donor after expm1 instead.
    donor
        Column of ``obs`` naming the donor. A donor with cells in both groups gives one sample in each.
    covariates
        Columns of ``obs`` that are constant within a sample (age, sex, batch), added to the model.
    paired
        Compare within donors. Default: yes if every donor has both groups.
    moderate
        Shrink variances over genes; False gives ordinary t-tests.
    min_cells
        Samples with fewer cells are left out.
    min_total
        Genes with a smaller sum over the samples are left out (counts only).

    Returns
    -------
    DataFrame indexed by gene, sorted by p: ``log2FC`` (group 1 over group 2), ``mean_log2`` expression,
    ``t``, ``df``, ``p_val``, ``p_val_adj`` (Benjamini-Hochberg). ``attrs["samples"]`` is the table of
    samples.

    Raises
    ------
    DataError
        If a group has fewer than two samples, or a covariate varies within one.
    """
    group = two_groups(adata.obs, groupby, group1, group2)
    if donor not in adata.obs:
        raise DataError(f"There is no column {donor!r} in obs to name the donors.")
    asked = [covariates] if isinstance(covariates, str) else list(covariates or [])
    samples, code = _samples(adata.obs, group, donor, asked, min_cells)
    matrix, source = resolve_layer(adata, layer)
    values = as_csr(matrix)
    kind = recognise(values.data, source) if scale == "auto" else scale
    levels, kept = _sample_levels(values, code, samples, kind, min_total)
    design = _sample_design(samples, asked, paired)
    table = moderated_t(levels, design.matrix, design.columns("group")[0], moderate=moderate)
    table.index = pd.Index(np.asarray(adata.var_names)[kept], name="gene")
    table = table.sort_values("p_val", kind="stable")
    table.attrs["samples"] = samples
    return table


def _samples(
    obs: pd.DataFrame, group: np.ndarray, donor: str, covariates: Sequence[str], min_cells: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """The donor x group samples with enough cells, and every cell's sample number (-1: none)."""
    missing = int((obs[donor].isna().to_numpy() & (group >= 0)).sum())
    if missing:
        raise DataError(
            f"{donor!r} is missing for {missing:,} cells. Name their donors, or leave them out."
        )
    frame = pd.DataFrame({"group": group, "donor": obs[donor].astype(str).to_numpy()})
    for name in covariates:
        if name not in obs:
            raise DataError(f"There is no column {name!r} in obs to use as a covariate.")
        frame[name] = obs[name].to_numpy()
    chosen = frame[group >= 0].groupby(["group", "donor"], sort=True)
    table = chosen.size().rename("cells").reset_index()
    for name in covariates:
        varied = chosen[name].nunique()
        if (varied > 1).any():
            raise DataError(
                f"{name!r} varies within donor {varied[varied > 1].index[0][1]}: it is no covariate of donors."
            )
        table[name] = chosen[name].first().to_numpy()
    table = table[table["cells"] >= min_cells].reset_index(drop=True)
    counts = [int((table["group"] == k).sum()) for k in (0, 1)]
    if min(counts) < 2:
        raise DataError(
            f"The groups have {counts[0]} and {counts[1]} donors with at least {min_cells} cells; two in "
            "each are needed. Lower min_cells, or accept that these data cannot tell donors from groups."
        )
    number = {
        (g, d): i for i, (g, d) in enumerate(zip(table["group"], table["donor"], strict=True))
    }
    code = np.array([number.get(k, -1) for k in zip(frame["group"], frame["donor"], strict=True)])
    return table, code


def _sample_levels(
    values: sp.csr_matrix, code: np.ndarray, samples: pd.DataFrame, kind: str, min_total: float
) -> tuple[np.ndarray, np.ndarray]:
    """(genes, samples) log2 levels and the genes kept."""
    cells = np.flatnonzero(code >= 0)
    member = sp.csr_matrix(
        (np.ones(cells.size), (code[cells], cells)), shape=(len(samples), values.shape[0])
    )
    if kind == "counts":
        sums = (member @ values.astype(np.float64)).toarray()
        library = sums.sum(axis=1)
        kept = np.flatnonzero((sums.sum(axis=0) >= min_total) & ((sums > 0).sum(axis=0) > 1))
        prior = PRIOR_COUNT * library / library.mean()
        return np.log2(
            (sums[:, kept] + prior[:, None]) / (library + 2 * prior)[:, None] * 1e6
        ).T, kept
    linear = sp.csr_matrix(
        (np.expm1(values.data.astype(np.float64)), values.indices, values.indptr), values.shape
    )
    means = (member @ linear).toarray() / samples["cells"].to_numpy()[:, None]
    kept = np.flatnonzero((means > 0).sum(axis=0) > 1)
    return np.log2(means[:, kept] * 100.0 + PRIOR_COUNT).T, kept


def _sample_design(samples: pd.DataFrame, covariates: Sequence[str], paired: bool | None) -> Any:
    """``~ group + covariates (+ donor)`` with group 1 against group 2."""
    frame = samples[["donor", *covariates]].copy()
    frame["group"] = (samples["group"] == 0).astype(np.float64)
    twice = samples["donor"].duplicated(keep=False)
    if paired is None:
        paired = bool(twice.all())
    if paired and not twice.any():
        raise DataError("No donor has both groups, so nothing can be paired. Use paired=False.")
    terms = ["group", *[f"`{c}`" for c in covariates], *(["donor"] if paired else [])]
    design = build_design("~ " + " + ".join(terms), frame)
    if design.matrix.shape[0] - design.matrix.shape[1] < 1:
        raise DataError(
            f"{len(samples)} samples leave no degrees of freedom for {design.matrix.shape[1]} coefficients. Use fewer covariates."
        )
    return design


def moderated_t(
    levels: np.ndarray, design: np.ndarray, column: int, *, moderate: bool = True
) -> pd.DataFrame:
    """Linear model per gene (``levels`` genes x samples) and the moderated t of one coefficient."""
    inverse = np.linalg.inv(design.T @ design)
    coef = levels @ design @ inverse
    residual = levels - coef @ design.T
    df = design.shape[0] - design.shape[1]
    variance = (residual**2).sum(axis=1) / df
    prior_df, prior = (
        squeeze(variance, df, levels.mean(axis=1)) if moderate else (0.0, np.zeros_like(variance))
    )
    if np.isinf(prior_df):
        posterior, total = prior, np.inf
    else:
        posterior = (prior_df * prior + df * variance) / (prior_df + df)
        total = min(prior_df + df, df * len(variance))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = coef[:, column] / np.sqrt(posterior * inverse[column, column])
    p = 2 * stdtr(total if np.isfinite(total) else 1e12, -np.abs(t))
    p = np.where(np.isnan(t), 1.0, p)
    return pd.DataFrame(
        {
            "log2FC": coef[:, column],
            "mean_log2": levels.mean(axis=1),
            "t": t,
            "df": np.full(len(t), total),
            "p_val": p,
            "p_val_adj": benjamini_hochberg(p),
        }
    )


def squeeze(
    variance: np.ndarray, df: int, level: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Prior degrees of freedom and variances (genes,) of the scaled-F model of variances (Smyth 2004, 6.2).

    With ``level`` (genes,), the mean log expression, the prior variance follows it along a natural spline: counts
    make little-expressed genes noisier, and one common variance would call them too often.
    """
    usable = variance > 0
    if usable.sum() < 3:
        return 0.0, np.zeros_like(variance)
    # Variances that are practically zero would dominate the log scale.
    known = np.maximum(variance[usable], 1e-5 * np.median(variance[usable]))
    centred = np.log(known) - digamma(df / 2) + np.log(df / 2)
    basis = (
        np.ones((variance.size, 1))
        if level is None or usable.sum() < 50
        else _spline(level, level[usable])
    )
    coef, _, rank, _ = np.linalg.lstsq(basis[usable], centred, rcond=None)
    trend = basis @ coef
    left = centred - trend[usable]
    spread = (left**2).sum() / max(known.size - rank, 1) - polygamma(1, df / 2)
    if spread <= 0:
        return np.inf, np.exp(trend)
    half = _inverse_trigamma(float(spread))
    return 2 * half, np.exp(trend + digamma(half) - np.log(half))


def _spline(x: np.ndarray, reference: np.ndarray, knots: int = 5) -> np.ndarray:
    """Natural cubic spline basis (n, knots): constant, linear, and curvature between quantiles of ``reference``."""
    at = np.unique(np.quantile(reference, np.linspace(0.05, 0.95, knots)))
    columns = [np.ones_like(x), x]
    if at.size >= 3:

        def cubic(k: int) -> np.ndarray:
            rise = np.maximum(x - at[k], 0) ** 3 - np.maximum(x - at[-1], 0) ** 3
            return rise / (at[-1] - at[k])

        last = cubic(at.size - 2)
        columns += [(cubic(k) - last) / (at[-1] - at[0]) for k in range(at.size - 2)]
    return np.column_stack(columns)


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1/trigamma, which is convex."""
    if value > 1e7:
        return 1 / np.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        tri = float(polygamma(1, x))
        step = tri * (1 - tri / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x
