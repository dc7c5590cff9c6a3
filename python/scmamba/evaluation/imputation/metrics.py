"""Scores of predicted counts, with the part that depth alone explains taken out.

After CP10k and log1p a count of one is log1p(10,000 / total), a function of the cell's depth alone, and most counts of droplet
data are ones. So pooled squared error and correlation (the paper's columns) mostly measure depth; the deviance on counts and
the within-gene correlation beyond depth do not.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, lambertw

from ...neighbors.rates import truncated_mean

_LEAST_MEAN = (
    0.01  # smallest Poisson mean a prediction is credited with: ones only, truncated mean 1.005
)


def score(
    predicted: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    gene: np.ndarray,
    depth: np.ndarray,
    min_values: int = 20,
) -> dict[str, float]:
    """The five columns of one predictor.

    Parameters
    ----------
    predicted, depth
        (n,) log1p(CP10k): the predictions, and what depth alone predicts.
    counts
        (n,) masked counts, at least 1.
    totals
        (n,) total counts of their cells.
    gene
        (n,) a number per gene (and group) to correlate within.
    min_values
        Genes with fewer values do not enter the within-gene columns. Default 20.

    Returns
    -------
    dict
        ``mse``, ``pearson``, ``pearson_within_gene``, ``deviance`` and ``pearson_beyond_depth``, as in
        :func:`nonzero_imputation`.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.evaluation import score
    >>> counts, totals = np.array([1.0, 2.0, 3.0]), np.full(3, 1000.0)
    >>> truth = np.log1p(1e4 / totals * counts)
    >>> score(truth, counts, totals, np.zeros(3), np.ones(3))["mse"]
    0.0
    """
    truth = np.log1p(1e4 / totals * counts)
    within = _within(gene, min_values, predicted, truth, depth)
    return {
        "mse": float(np.mean((predicted - truth) ** 2)),
        "pearson": _correlation(predicted, truth),
        "pearson_within_gene": within[0],
        "deviance": float(np.mean(truncated_deviance(counts, np.expm1(predicted) * totals / 1e4))),
        "pearson_beyond_depth": within[1],
    }


def truncated_deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Zero-truncated Poisson deviance of counts given their predicted mean.

    ``expected`` = mu / (1 - exp(-mu)) is solved for mu by Lambert's W; means below 1.005 count as 1.005, because no
    zero-truncated Poisson has a smaller one with a finite deviance for every count.

    Parameters
    ----------
    counts
        (n,) counts, at least 1.
    expected
        (n,) predicted means, given that the counts are not zero.

    Returns
    -------
    (n,) deviances.
    """
    counts = np.asarray(counts, dtype=np.float64)
    least = float(truncated_mean(np.array(_LEAST_MEAN)))
    return 2 * (
        _log_density(counts, _mu(np.maximum(counts, 1 + 1e-6)))
        - _log_density(counts, _mu(np.maximum(expected, least)))
    )


def _mu(mean: np.ndarray) -> np.ndarray:
    """Poisson mean whose zero-truncated mean is ``mean`` > 1: the other root of x exp(-x) = mean
    exp(-mean).
    """
    return mean + lambertw(-mean * np.exp(-mean)).real


def _log_density(counts: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return counts * np.log(mu) - mu - np.log(-np.expm1(-mu)) - gammaln(counts + 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0


def _within(
    gene: np.ndarray, least: int, predicted: np.ndarray, truth: np.ndarray, depth: np.ndarray
) -> tuple[float, float]:
    """Mean within-gene correlation, and the partial one given ``depth``; a constant prediction has 0."""
    _, code = np.unique(gene, return_inverse=True)
    size = np.bincount(code)

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights=x, minlength=len(size))

    p, y, d = (v - (total(v) / size)[code] for v in (predicted, truth, depth))

    def mean_correlation(
        a: np.ndarray, b: np.ndarray, a_scale: np.ndarray, b_scale: np.ndarray
    ) -> float:
        aa, bb = total(a * a), total(b * b)
        # Rounding left over from a (partial) constant is no variation.
        varies = (aa > 1e-10 * a_scale) & (bb > 1e-10 * b_scale)
        r = np.where(varies, total(a * b) / np.sqrt(np.where(varies, aa * bb, 1.0)), 0.0)
        use = size >= least
        return float(r[use].mean()) if use.any() else float("nan")

    spread_p, spread_y, spread_d = total(predicted**2), total(truth**2), total(d * d)
    plain = mean_correlation(p, y, spread_p, spread_y)
    safe = np.where(spread_d > 0, spread_d, 1.0)
    free_p, free_y = (
        v - (np.where(spread_d > 0, total(v * d), 0) / safe)[code] * d for v in (p, y)
    )
    return plain, mean_correlation(free_p, free_y, spread_p, spread_y)
