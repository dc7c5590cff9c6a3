"""Linear models of many genes at once, with variances shrunken towards a common trend.

Smyth, Stat Appl Genet Mol Biol 3:3 (2004); the trend along the mean expression follows Law et al., Genome Biol 15:R29
(2014).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma, stdtr

from .markers import benjamini_hochberg


def moderated_t(
    levels: np.ndarray, design: np.ndarray, column: int, *, moderate: bool = True
) -> pd.DataFrame:
    """Linear model per gene and the moderated t-test of one coefficient (Smyth 2004).

    Parameters
    ----------
    levels
        (genes, samples) log2 expression.
    design
        (samples, k) design of full rank.
    column
        Which coefficient is tested.
    moderate
        Shrink variances towards a trend along the mean expression; False: ordinary t-tests.

    Returns
    -------
    DataFrame in gene order: ``log2FC``, ``mean_log2``, ``t``, ``df``, ``p_val``, ``p_val_adj``.
    """
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
        else spline_basis(level, level[usable])
    )
    coef, _, rank, _ = np.linalg.lstsq(basis[usable], centred, rcond=None)
    trend = basis @ coef
    left = centred - trend[usable]
    spread = (left**2).sum() / max(known.size - rank, 1) - polygamma(1, df / 2)
    if spread <= 0:
        return np.inf, np.exp(trend)
    half = inverse_trigamma(float(spread))
    return 2 * half, np.exp(trend + digamma(half) - np.log(half))


def spline_basis(x: np.ndarray, reference: np.ndarray, knots: int = 5) -> np.ndarray:
    """Natural cubic spline basis (n, knots): constant, linear, and curvature between quantiles of ``reference``."""
    at = np.unique(np.quantile(reference, np.linspace(0.05, 0.95, knots)))
    columns = [np.ones_like(x), x]
    if at.size >= 3:

        def cubic(k: int) -> np.ndarray:
            rise = np.maximum(x - at[k], 0) ** 3 - np.maximum(x - at[-1], 0) ** 3
            result: np.ndarray = rise / (at[-1] - at[k])
            return result

        last = cubic(at.size - 2)
        columns += [(cubic(k) - last) / (at[-1] - at[0]) for k in range(at.size - 2)]
    return np.column_stack(columns)


def inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1/trigamma, which is convex."""
    if value > 1e7:
        result: float = 1 / np.sqrt(value)
        return result
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
