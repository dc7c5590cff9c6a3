"""Computations by hand next to the library call for the same: seconds (best of three) and difference of the results.

    python -m benchmarks.library_calls

One thread, simulated nuclei (:func:`scmamba.datasets.brain_cohort`). Writes ``benchmarks/results/library_calls.md``.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import h5py
import numpy as np
from scipy import sparse

TARGET = Path(__file__).resolve().parent / "results" / "library_calls.md"


class Row(NamedTuple):
    """One computation in both forms."""

    what: str
    ours: str
    library: str
    seconds: float
    library_seconds: float
    result: str


def timed(call: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest call, and its result; one call precedes."""
    result, best = call(), np.inf
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def neighbors(scores: np.ndarray) -> Row:
    """Exact nearest neighbors: NearestNeighbors."""
    from sklearn.neighbors import NearestNeighbors

    from scmamba.neighbors import nearest_neighbors

    k = 50
    own, first = timed(lambda: nearest_neighbors(scores, scores, k))
    brute, second = timed(
        lambda: (
            NearestNeighbors(n_neighbors=k, algorithm="brute")
            .fit(scores)
            .kneighbors(scores, return_distance=False)
        )
    )
    same = f"{100 * (first == second).mean():.3f}% of {first.size:,} neighbors are the same"
    where = f"{len(scores):,} x {scores.shape[1]} {scores.dtype}, k = {k}"
    return Row(
        f"nearest neighbors, {where}",
        "neighbors.nearest_neighbors",
        "sklearn NearestNeighbors(brute)",
        own,
        brute,
        same,
    )


def components(x: sparse.csr_matrix) -> Row:
    """Truncated SVD: randomized_svd."""
    from sklearn.utils.extmath import randomized_svd

    from scmamba.neighbors import principal_components

    n = 50
    own, (scores, _) = timed(lambda: principal_components(x, n, seed=0))
    theirs, (_, size, _) = timed(
        lambda: randomized_svd(
            x, n, n_iter=4, n_oversamples=10, power_iteration_normalizer="QR", random_state=0
        )
    )
    exact = np.sort(sparse.linalg.svds(x, n, random_state=0)[1])[::-1]
    gap = [
        float(np.abs(s - exact).max() / exact[0]) for s in (np.linalg.norm(scores, axis=0), size)
    ]
    return Row(
        f"truncated SVD, {x.shape[0]:,} x {x.shape[1]:,}, {n} components",
        "neighbors.principal_components",
        "sklearn randomized_svd",
        own,
        theirs,
        f"largest error of a singular value: {gap[0]:.1e} and {gap[1]:.1e} of the first",
    )


def widths(points: np.ndarray) -> Row:
    """Silhouettes of several clusterings from one matrix of distances: silhouette_score."""
    from scipy.spatial.distance import cdist
    from sklearn.metrics import silhouette_score

    from scmamba.doublets.features import kmeans, silhouette

    points = points[:1000]
    codes = [kmeans(points, k, seed=0, starts=1) for k in range(3, 13)]
    distance = cdist(points, points)

    own, first = timed(lambda: [silhouette(distance, code) for code in codes])
    theirs, second = timed(
        lambda: [silhouette_score(distance, code, metric="precomputed") for code in codes]
    )
    return Row(
        "silhouettes of 10 clusterings of 1,000 points",
        "doublets.features.silhouette",
        "sklearn silhouette_score(precomputed)",
        own,
        theirs,
        f"largest difference {np.abs(np.subtract(first, second)).max():.1e}",
    )


def regression(points: np.ndarray) -> Row:
    """Ridge-penalized logistic regression: LogisticRegression."""
    from sklearn.linear_model import LogisticRegression

    from scmamba.doublets._find import logistic

    rng = np.random.default_rng(0)
    x = (points - points.mean(axis=0)) / points.std(axis=0)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-x[:, :5].sum(axis=1)))
    ridge = 5.0
    own, first = timed(lambda: logistic(x, y, ridge=ridge))
    model = LogisticRegression(C=1 / ridge, solver="newton-cholesky", tol=1e-8, max_iter=30)

    def fitted() -> np.ndarray:
        found = model.fit(x, y)
        return np.r_[found.intercept_, found.coef_[0]]

    theirs, second = timed(fitted)
    return Row(
        f"logistic regression with a ridge, {x.shape[0]:,} x {x.shape[1]}",
        "doublets._find.logistic",
        "sklearn LogisticRegression(newton-cholesky)",
        own,
        theirs,
        f"largest difference of a weight {np.abs(first - second).max():.1e}",
    )


def ranks(x: sparse.csr_matrix) -> Row:
    """Rank-sum test of sparse values: mannwhitneyu."""
    from scipy.stats import mannwhitneyu

    from scmamba.deg.wilcoxon import rank_sum_p

    few, half = x[:, :500].astype(np.float64), x.shape[0] // 2
    own, first = timed(lambda: rank_sum_p(few[:half], few[half:]))
    dense = few.toarray()
    theirs, second = timed(
        lambda: mannwhitneyu(dense[:half], dense[half:], method="asymptotic").pvalue
    )
    tested = np.isfinite(second)
    gap = np.abs(first - second)[tested].max()
    return Row(
        f"rank-sum test, {x.shape[0]:,} cells x 500 genes",
        "deg.wilcoxon.rank_sum_p",
        "scipy mannwhitneyu",
        own,
        theirs,
        f"largest difference of p {gap:.1e}; the library needs dense values",
    )


def rows_of_a_file(x: sparse.csr_matrix) -> Row:
    """Blocks of rows of an .h5ad file: sparse_dataset."""
    import anndata
    from anndata.io import sparse_dataset

    from scmamba.data.storage import AnnDataStore

    rng = np.random.default_rng(0)
    starts = rng.integers(0, x.shape[0] - 64, 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        anndata.AnnData(x).write_h5ad(path)
        store = AnnDataStore(path)
        own, first = timed(lambda: [store.read(int(s), int(s) + 64) for s in starts])
        with h5py.File(path) as file:
            stored = sparse_dataset(file["X"])
            theirs, second = timed(lambda: [stored[int(s) : int(s) + 64] for s in starts])
        store.close()
    same = all((a != b).nnz == 0 for a, b in zip(first, second, strict=True))
    return Row(
        "200 blocks of 64 rows of an .h5ad file",
        "data.storage.AnnDataStore",
        "anndata sparse_dataset",
        own,
        theirs,
        "the same rows" if same else "other rows",
    )


def rows() -> Iterator[Row]:
    """All comparisons."""
    from scmamba.data.values import log1p_cp10k
    from scmamba.datasets import brain_cohort
    from scmamba.neighbors import principal_components

    cells = brain_cohort(3000, n_genes=3000, n_donors=4, seed=0)
    values = log1p_cp10k(sparse.csr_matrix(cells.X))
    scores, _ = principal_components(values, 50, seed=0)
    yield neighbors(scores.astype(np.float64))
    yield neighbors(scores.astype(np.float32))
    yield components(values.astype(np.float64))
    yield widths(scores[:, :15].astype(np.float64))
    yield regression(scores[:, :40].astype(np.float64))
    yield ranks(values)
    yield rows_of_a_file(sparse.csr_matrix(cells.X, dtype=np.float32))


def main() -> None:
    """Measure and write the table."""
    import scipy
    import sklearn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(rows())
    lines = [
        "# Library calls",
        "",
        "Written by `python -m benchmarks.library_calls`: seconds with one thread, best of three, on simulated nuclei. "
        f"scikit-learn {sklearn.__version__}, SciPy {scipy.__version__}, NumPy {np.__version__}.",
        "",
        "| computation | by hand | library | s by hand | s of the library | results |",
        "|---|---|---|---:|---:|---|",
        *(
            f"| {r.what} | `{r.ours}` | `{r.library}` | {r.seconds:.3f} | {r.library_seconds:.3f} | {r.result} |"
            for r in found
        ),
    ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
