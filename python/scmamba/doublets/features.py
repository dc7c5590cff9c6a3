"""Features of doublet detection; each of the six groups is also a detector by itself.

1. share of simulated doublets among the nearest cells, for several numbers of neighbors (the idea of Scrublet and DoubletFinder);
2. likelihood ratio of the counts under a mixture of two cluster profiles and under one profile (multinomial, cross-fitted);
3. co-expression of genes that rarely occur together (the idea of cxds);
4. counts and detected genes, alone and relative to neighbors;
5. the leading principal components, so that thresholds can differ between cell types;
6. their squares and products, because doublets lie between two cell types (a separate fit, :mod:`scmamba.doublets._find`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import log_ndtr

from ..neighbors.knn import nearest_neighbors
from ..neighbors.svd import principal_components
from ..utils.threads import single_thread
from .mixture_likelihood import mixture_ratios

COMPONENTS = 30
CURVED = 15  # leading components whose squares and products are features
REACHES = (10, 25, 50, 100)
#: Features of depth.
DEPTH = ("counts", "genes", "counts_beside", "genes_beside")
#: Shares of the smaller parent in a mixture.
SHARES = (0.05, 0.2, 0.5)
_GENES = 2000  # most variable genes that distances are measured in
_PAIRED = 500  # genes whose co-expression is scored
_SHRINK = 200.0  # counts of the average profile added to each cluster
_SHRINK_EXPECTED = 1000.0  # the same of the expected profile of its type
_FOLDS = 5
# A cluster consists of doublets if two others explain this share of it, it is this many times deeper, and has at most this share of cells.
_EXPLAINED, _DEEPER, _SMALL = 0.55, 1.2, 0.1


def log_values(counts: sparse.csr_matrix, scale: float) -> sparse.csr_matrix:
    """(n, genes) log1p of counts scaled to ``scale`` per cell."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    out = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    out.data = np.log1p(
        out.data * np.repeat(scale / np.maximum(totals, 1e-12), np.diff(out.indptr))
    )
    return out


def median_total(counts: sparse.csr_matrix) -> float:
    """Median total of the cells, to which counts are scaled before the logarithm."""
    return float(np.median(np.asarray(counts.sum(axis=1)).ravel()))


def variable_genes(values: sparse.csr_matrix, n: int = _GENES) -> np.ndarray:
    """Columns with the largest variance of log values, in order."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:n])


@dataclass
class VariableGenes:
    """Log values of cells on their most variable genes, and the same of others.

    Attributes
    ----------
    columns
        The genes.
    scale
        Counts that logs are taken of.
    values
        (n, columns) of the cells that the genes were chosen by.
    """

    columns: np.ndarray
    scale: float
    values: sparse.csr_matrix

    @classmethod
    def of(cls, counts: sparse.csr_matrix) -> VariableGenes:
        """From (n, genes) counts."""
        scale = median_total(counts)
        values = log_values(counts, scale)
        columns = variable_genes(values)
        return cls(columns, scale, values[:, columns])

    def of_cells(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """(r, columns) of (r, genes) counts, scaled by all genes of a cell."""
        totals = np.asarray(counts.sum(axis=1)).ravel()
        out = sparse.csr_matrix(counts[:, self.columns], dtype=np.float64)
        factor = np.repeat(self.scale / np.maximum(totals, 1e-12), np.diff(out.indptr))
        out.data = np.log1p(out.data * factor)
        return out


def kmeans(points: np.ndarray, k: int, *, seed: int = 0, starts: int = 4) -> np.ndarray:
    """(n,) codes of the best of several runs of k-means; fewer than ``k`` where fewer points differ."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    k = min(k, len(points))
    with single_thread(), warnings.catch_warnings():
        # Fewer distinct points than clusters, as in samples of a few dozen shallow droplets.
        warnings.simplefilter("ignore", ConvergenceWarning)
        code = KMeans(k, n_init=starts, tol=1e-6, random_state=seed).fit_predict(points)
    return np.unique(code, return_inverse=True)[1]


def silhouette_k(
    points: np.ndarray, choices: range, *, seed: int = 0, sample: int = 1000
) -> np.ndarray:
    """(n,) codes of the k-means with the largest mean silhouette (of at most ``sample`` points)."""
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    part = rng.choice(len(points), min(sample, len(points)), replace=False)
    distance = cdist(points[part], points[part])
    best, result = -np.inf, np.zeros(len(points), dtype=np.int64)
    for k in choices:
        if k >= len(points):
            break
        code = kmeans(points, k, seed=seed, starts=2)
        value = silhouette(distance, code[part])
        if value > best:
            best, result = value, code
    return result


def silhouette(distance: np.ndarray, code: np.ndarray) -> float:
    """Mean silhouette width from (n, n) distances and (n,) codes; -1 where all are one cluster."""
    # By hand: silhouette_score gives the same and takes four times as long (benchmarks/results/library_calls.md).
    names, code = np.unique(code, return_inverse=True)
    if len(names) < 2:
        return -1.0
    size = np.bincount(code)
    to = distance @ np.eye(len(names))[code]
    own = np.arange(len(code)), code
    inside = to[own] / np.maximum(size[code] - 1, 1)
    to = to / size
    to[own] = np.inf
    outside = to.min(axis=1)
    width = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12)
    return float(np.where(size[code] > 1, width, 0).mean())


@dataclass
class Clusters:
    """Two clusterings of the cells: few well-separated clusters, and four to twenty finer ones."""

    coarse: np.ndarray
    fine: np.ndarray

    @classmethod
    def find(cls, counts: sparse.csr_matrix, *, seed: int = 0) -> Clusters:
        """Cluster (n, genes) counts in 15 components of their log values."""
        values = log_values(counts, median_total(counts))
        scores, _ = principal_components(
            values[:, variable_genes(values)], min(15, counts.shape[0] - 2), seed=seed
        )
        n = len(scores)
        coarse, fine = (
            silhouette_k(scores, range(3, 13), seed=seed),
            kmeans(scores, int(np.clip(n // 100, 4, 20)), seed=seed),
        )
        return cls(without_mixtures(counts, coarse), without_mixtures(counts, fine))


def without_mixtures(counts: sparse.csr_matrix, cluster: np.ndarray) -> np.ndarray:
    """(n,) codes without clusters that consist of doublets; their cells join the cluster that explains them best.

    Doublets of two common types form a cluster of their own, whose profile then makes each of them look like one cell. Such a cluster is
    small, has more counts than others, and a mixture of two other clusters explains most of its difference from the most similar one.
    """
    cells, n = len(cluster), int(cluster.max()) + 1
    if n < 4:
        return cluster
    size = np.bincount(cluster, minlength=n)
    member = sparse.csr_matrix((np.ones(cells), (cluster, np.arange(cells))), shape=(n, cells))
    pooled = (member @ counts).toarray()
    average = pooled.sum(axis=0) + 0.5
    profile = (pooled + _SHRINK * average / average.sum()) / (
        pooled.sum(axis=1, keepdims=True) + _SHRINK
    )
    alone = pooled @ np.log(profile).T
    own = alone.diagonal().copy()
    np.fill_diagonal(alone, -np.inf)
    mixed, pair = _best_mixtures(pooled, profile)
    explained = (mixed - alone.max(axis=1)) / np.maximum(own - alone.max(axis=1), 1e-9)
    depth = pooled.sum(axis=1) / np.maximum(size, 1)
    double = (
        (explained > _EXPLAINED)
        & (depth > _DEEPER * depth[pair].mean(axis=1))
        & (size <= _SMALL * cells)
    )
    if not double.any() or (~double).sum() < 2:
        return cluster
    stay = np.flatnonzero(~double)
    out, moved = cluster.copy(), double[cluster]
    out[moved] = stay[(counts[np.flatnonzero(moved)] @ np.log(profile[stay]).T).argmax(axis=1)]
    return np.unique(out, return_inverse=True)[1]


def _best_mixtures(pooled: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(clusters,) log-likelihood of each cluster's counts under the best mixture of two others, and (clusters, 2) which."""
    best, pair = np.full(len(pooled), -np.inf), np.zeros((len(pooled), 2), dtype=np.int64)
    for a, b in combinations(range(len(pooled)), 2):
        for share in (0.2, 0.35, 0.5, 0.65, 0.8):
            value = pooled @ np.log(share * profile[a] + (1 - share) * profile[b])
            value[[a, b]] = -np.inf
            better = value > best
            best[better], pair[better] = value[better], (a, b)
    return best, pair


class Mixtures:
    """Log-likelihood ratio of a cell's counts under a mixture of two cluster profiles and under one profile.

    Multinomial, maximized over pairs of clusters. Profiles exclude likely doublets and the cell's own fold, because a cell fits a profile
    that it contributed to too well, especially if the smaller share is small. Between rounds each cell is moved to the cluster that
    explains it best. Profiles are shrunk towards the average of all cells, or towards ``expected`` (clusters, genes) where it is given.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        cluster: np.ndarray,
        *,
        suspected: float,
        rounds: int = 3,
        seed: int = 0,
        expected: np.ndarray | None = None,
    ) -> None:
        self.counts, self.cluster, self.n = counts, cluster.copy(), int(cluster.max()) + 1
        self.expected = expected
        self.keep = np.ones(len(cluster), dtype=bool)
        self.average = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        self.average /= self.average.sum()
        fold = np.random.default_rng(seed).integers(0, _FOLDS, len(cluster))
        for last in [False] * (rounds - 1) + [True]:
            shares = SHARES if last else (0.1,)
            ratio, moved = np.zeros((len(cluster), len(shares))), self.cluster.copy()
            pair = np.zeros((len(cluster), 2), dtype=np.int64)
            for k in range(_FOLDS):
                rows = np.flatnonzero(fold == k)
                if len(rows):
                    ratio[rows], pair[rows], moved[rows] = mixture_ratios(
                        counts[rows], self.profiles(fold != k), shares
                    )
            self.cluster = moved
            self.keep = ratio[:, 0] <= np.quantile(ratio[:, 0], 1 - suspected)
        self.ratio, self.pair = ratio, pair

    def profiles(self, among: np.ndarray) -> np.ndarray:
        """(clusters, genes) profiles of the cells ``among`` without likely doublets, shrunk towards the average."""
        use = (self.keep & among).astype(float)
        member = sparse.csr_matrix(
            (use, (self.cluster, np.arange(len(use)))), shape=(self.n, len(use))
        )
        profile = (member @ self.counts).toarray()
        towards = self.average if self.expected is None else self.expected
        weight = _SHRINK if self.expected is None else _SHRINK_EXPECTED
        return (profile + weight * towards) / (profile.sum(axis=1, keepdims=True) + weight)

    def of(self, counts: sparse.csr_matrix) -> np.ndarray:
        """(r, shares) ratios of other cells."""
        return mixture_ratios(counts, self.profiles(np.ones(len(self.keep), dtype=bool)), SHARES)[0]


class Coexpression:
    """Co-expression score of cxds (Bais and Kostka 2020).

    A pair of genes weighs minus the log probability, if they were independent, of as many cells with exactly one of the two; a cell's score
    is the sum over pairs of which it has both. Pairs are formed of the genes with the most variable detection.
    """

    def __init__(self, counts: sparse.csr_matrix, genes: int = _PAIRED) -> None:
        seen = sparse.csr_matrix(
            (np.ones_like(counts.data, dtype=np.float32), counts.indices, counts.indptr),
            shape=counts.shape,
        )
        rate = np.asarray(seen.mean(axis=0)).ravel()
        self.columns = np.sort(np.argsort(-rate * (1 - rate), kind="stable")[:genes])
        dense = seen[:, self.columns].toarray()
        rate, n = dense.mean(axis=0, dtype=np.float64), len(dense)
        both = (dense.T @ dense).astype(np.float64)
        one = both.diagonal()[:, None] + both.diagonal()[None, :] - 2 * both
        chance = rate[:, None] * (1 - rate)[None, :]
        chance = chance + chance.T
        z = (one - n * chance) / np.sqrt(np.maximum(n * chance * (1 - chance), 1e-9))
        weight = np.where(z > 0, np.minimum(-log_ndtr(-z), 700), 0)
        np.fill_diagonal(weight, 0)
        self.weight = weight.astype(np.float32)

    def score(self, counts: sparse.csr_matrix) -> np.ndarray:
        """(r,) scores of cells."""
        dense = (counts[:, self.columns].toarray() > 0).astype(np.float32)
        return np.einsum("ij,ij->i", dense @ self.weight, dense).astype(np.float64) / 2


@dataclass
class Evidence:
    """All features of real cells and simulated doublets.

    Attributes
    ----------
    table
        One row per droplet, the real ones first.
    simulated
        (rows,) bool.
    scores
        (rows, d) principal components.
    """

    table: pd.DataFrame
    simulated: np.ndarray
    scores: np.ndarray

    def curved(self) -> np.ndarray:
        """(rows, k + k (k + 1) / 2) leading components, standardized, their squares and products."""
        x = self.scores[:, :CURVED]
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        first, second = np.triu_indices(x.shape[1])
        return np.column_stack([x, x[:, first] * x[:, second]])


def gather(
    counts: sparse.csr_matrix,
    simulated: sparse.csr_matrix,
    mixtures: dict[str, Mixtures],
    coexpression: Coexpression,
    *,
    seed: int = 0,
    variable: VariableGenes | None = None,
) -> Evidence:
    """Compute the features of (n, genes) real cells and (m, genes) simulated doublets.

    ``variable``, of the real cells, saves working it out for each simulation.
    """
    n, m = counts.shape[0], simulated.shape[0]
    both = sparse.vstack([counts, simulated], format="csr")
    artificial = np.r_[np.zeros(n), np.ones(m)].astype(bool)
    variable = VariableGenes.of(counts) if variable is None else variable
    values = sparse.vstack([variable.values, variable.of_cells(simulated)], format="csr")
    scores, _ = principal_components(values, min(COMPONENTS, min(values.shape) - 1), seed=seed)
    table: dict[str, np.ndarray] = {}
    table["counts"] = np.log1p(np.asarray(both.sum(axis=1)).ravel())
    table["genes"] = np.log1p(np.diff(both.indptr))
    near = _others(scores, min(REACHES[-1], n + m - 1))
    for k in REACHES:
        share = artificial[near[:, :k]].mean(axis=1)
        table[f"neighbours{k}"] = np.log((share + 0.02) / (1.02 - share))
    for name in ("counts", "genes"):
        table[f"{name}_beside"] = table[name] - table[name][near[:, :25]].mean(axis=1)
    table["together"] = np.log1p(coexpression.score(both))
    for name, mixture in mixtures.items():
        ratio = np.arcsinh(np.vstack([mixture.ratio, mixture.of(simulated)]))
        for j, share in enumerate(SHARES):
            table[f"{name}{100 * share:.0f}"] = ratio[:, j]
    for j in range(min(10, scores.shape[1])):
        table[f"component{j + 1}"] = scores[:, j]
    return Evidence(pd.DataFrame(table), artificial, scores)


def _others(scores: np.ndarray, k: int) -> np.ndarray:
    """(n, k) nearest rows, nearest first, without the row itself."""
    found = nearest_neighbors(scores, scores, k + 1)
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(axis=1), -1] = (
        True  # among many identical cells the cell itself may be missing
    )
    return found[~itself].reshape(len(found), -1)
