"""Simple methods that predict the rate of every gene, which imputation has to outperform.

Each takes cells with raw counts in ``X`` and returns (cells, genes) rates, shares of the cell's counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ...data.values import log1p_cp10k
from ...neighbors.hierarchical import RatePosterior, gene_dispersion
from ...neighbors.knn import nearest_neighbors, sqrt_values
from ...neighbors.rates import knn_rates
from ...neighbors.svd import principal_components

if TYPE_CHECKING:
    from anndata import AnnData


def average_rates(cells: AnnData) -> np.ndarray:
    """The gene's share of all counts, in every cell."""
    counts, _ = _counts(cells)
    rate = np.asarray(counts.sum(axis=0)).ravel() + 0.5
    return np.broadcast_to(rate / rate.sum(), cells.shape)


def raw_rates(cells: AnnData, pseudo: float = 2000.0) -> np.ndarray:
    """The cell's own counts, with ``pseudo`` counts of the average cell."""
    counts, totals = _counts(cells)
    average = average_rates(cells)
    return (counts.toarray() + pseudo * average) / (totals + pseudo)[:, None]


def neighbor_rates(cells: AnnData, k: int = 30, shrink: float = 5000.0) -> np.ndarray:
    """Counts pooled over the cell and its nearest neighbors, with ``shrink`` counts of the average cell."""
    counts, totals = _counts(cells)
    found = knn_rates(counts, np.maximum(totals, 1.0), k, shrink=shrink)
    return found.rate(slice(0, cells.n_obs))


def diffused_values(
    cells: AnnData, k: int = 5, steps: int = 3, components: int = 100
) -> np.ndarray:
    """Values smoothed by diffusion over the nearest neighbors.

    An own version of the idea of MAGIC with its default numbers: an adaptive Gaussian-like kernel of the ``k``-th
    neighbor, ``steps`` steps of the Markov matrix (van Dijk et al. 2018, Cell 174, 716-729).

    Returns
    -------
    (cells, genes) smoothed log1p(CP10k).
    """
    counts, totals = _counts(cells)
    values = log1p_cp10k(counts, totals, dtype=np.float64)
    scores, _ = principal_components(values, components)
    near = nearest_neighbors(scores, scores, min(3 * k + 1, len(scores)))
    apart = np.linalg.norm(scores[:, None] - scores[near], axis=2)
    width = np.maximum(apart[:, min(k, near.shape[1] - 1)], 1e-12)
    kernel = sparse.csr_matrix(
        (
            np.exp(-apart / width[:, None]).ravel(),
            near.ravel(),
            np.arange(len(near) + 1) * near.shape[1],
        ),
        shape=(len(scores), len(scores)),
    )
    kernel = (kernel + kernel.T) / 2
    markov = sparse.diags(1 / np.asarray(kernel.sum(axis=1)).ravel()) @ kernel
    smooth = values.toarray()
    for _ in range(steps):
        smooth = markov @ smooth
    return np.asarray(smooth)


def diffused_rates(cells: AnnData) -> np.ndarray:
    """Rates of :func:`diffused_values`."""
    return _as_rates(np.expm1(diffused_values(cells)))


def low_rank_values(cells: AnnData, rank: int | None = None, components: int = 60) -> np.ndarray:
    """Log values rebuilt from a low rank, zeros kept where the rebuilt value is within the error of zero.

    An own version of the idea of ALRA: the most negative rebuilt value of a gene is the size of its error, and values below it
    are zero; the others are scaled to the gene's mean and standard deviation over its counts (Linderman et al. 2022, Nat
    Commun 13, 192).

    Returns
    -------
    (cells, genes) log1p(CP10k).
    """
    counts, totals = _counts(cells)
    values = log1p_cp10k(counts, totals, dtype=np.float64)
    scores, basis = principal_components(values, components)
    if rank is None:
        gaps = -np.diff(np.linalg.norm(scores, axis=0))
        noise = gaps[2 * len(gaps) // 3 :]
        above = np.flatnonzero(gaps > noise.mean() + 6 * noise.std())
        rank = int(above.max()) + 1 if len(above) else 1
    rebuilt = scores[:, :rank] @ basis[:, :rank].T
    rebuilt[rebuilt <= np.abs(np.minimum(rebuilt.min(axis=0), 0))] = 0
    observed = values.toarray()
    for matrix in (rebuilt, observed):
        matrix[matrix == 0] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = _spread(observed) / _spread(rebuilt)
        ratio = np.where(np.isfinite(ratio), ratio, 1.0)
        scaled = (rebuilt - _center(rebuilt)) * ratio + _center(observed)
    scaled = np.nan_to_num(np.maximum(scaled, 0))
    return np.where(np.isnan(observed), scaled, observed)


def low_rank_rates(cells: AnnData) -> np.ndarray:
    """Rates of :func:`low_rank_values`, with a small share of the average: a rate of 0 has an infinite deviance."""
    return 0.9 * _as_rates(np.expm1(low_rank_values(cells))) + 0.1 * average_rates(cells)


def hellinger_rates(cells: AnnData, k: int = 100) -> np.ndarray:
    """As :func:`neighbor_rates`, with 100 neighbors by the Hellinger distance."""
    counts, totals = _counts(cells)
    scores, _ = principal_components(sqrt_values(counts, np.maximum(totals, 1.0)), 15)
    near = nearest_neighbors(scores, scores, k + 1)
    weight = sparse.csr_matrix(
        (np.ones(near.size), near.ravel(), np.arange(len(near) + 1) * near.shape[1]),
        shape=(len(near), len(near)),
    )
    pooled = (weight @ counts).toarray()
    return (pooled + 5000.0 * average_rates(cells)) / (pooled.sum(axis=1, keepdims=True) + 5000.0)


def regression_rates(
    cells: AnnData, components: int = 10, steps: int = 5, ridge: float = 1.0
) -> np.ndarray:
    """Rates predicted by Poisson regression on leading components, and updated by the cell's own counts.

    An own version of the idea of SAVER: the regression gives the mean of a gamma prior whose dispersion is fitted per gene;
    the result is the posterior mean (Huang et al. 2018, Nat Methods 15, 539-542). SAVER's regressors are other genes.
    """
    counts, totals = _counts(cells)
    totals = np.maximum(totals, 1.0)
    scores, _ = principal_components(log1p_cp10k(counts, totals, dtype=np.float64), components)
    x = np.column_stack([np.ones(len(scores)), (scores - scores.mean(0)) / scores.std(0)])
    products = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    penalty = ridge * np.diag([0.0] + [1.0] * (x.shape[1] - 1))
    average = average_rates(cells)[0]
    beta = np.zeros((x.shape[1], len(average)))
    beta[0] = np.log(average)
    for _ in range(steps):  # Newton steps, of all genes at once
        expected = np.exp(np.clip(x @ beta, -30, 0)) * totals[:, None]
        slope = x.T @ (counts.toarray() - expected) - penalty @ beta
        curvature = (products.T @ expected).T.reshape(-1, *penalty.shape) + penalty
        step = np.linalg.solve(curvature + 1e-6 * np.eye(len(penalty)), slope.T[..., None])[
            ..., 0
        ].T
        beta += np.clip(step, -2, 2)
    prior = np.exp(np.clip(x @ beta, -30, 0))
    dispersion = gene_dispersion(counts.toarray(), prior * totals[:, None])
    found = RatePosterior.from_prior(counts, totals, prior.astype(np.float32), dispersion)
    return found.mean.astype(np.float64)


#: Name -> method that predicts rates, with nothing to install.
RATE_METHODS = {
    "gene rate": average_rates,
    "raw": raw_rates,
    "30 neighbors": neighbor_rates,
    "100 neighbors, Hellinger": hellinger_rates,
    "diffusion (idea of MAGIC)": diffused_rates,
    "low rank (idea of ALRA)": low_rank_rates,
    "regression posterior (idea of SAVER)": regression_rates,
}


def _counts(cells: AnnData) -> tuple[sparse.csr_matrix, np.ndarray]:
    counts = sparse.csr_matrix(cells.X, dtype=np.float64)
    return counts, np.asarray(counts.sum(axis=1)).ravel()


def _as_rates(linear: np.ndarray) -> np.ndarray:
    linear = np.maximum(linear, 1e-6)
    return linear / linear.sum(axis=1, keepdims=True)


def _center(values: np.ndarray) -> np.ndarray:
    """(genes,) mean of the values that are not NaN; NaN if there is none."""
    number = np.sum(~np.isnan(values), axis=0)
    return np.nansum(values, axis=0) / number


def _spread(values: np.ndarray) -> np.ndarray:
    """(genes,) standard deviation of the values that are not NaN."""
    number = np.sum(~np.isnan(values), axis=0)
    return np.sqrt(np.nansum((values - _center(values)) ** 2, axis=0) / number)
