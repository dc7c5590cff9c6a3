"""Values that no verb reads: square roots, scaling without centering, doubled logarithms, studies joined on different scales."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from scmamba import deg
from scmamba.data.values import classify_values
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError

COUNTS = brain_cohort(60, n_genes=300, n_donors=4, seed=3)
X = COUNTS.X.toarray().astype(np.float64)
TOTALS = X.sum(axis=1, keepdims=True)
CP10K = X / TOTALS * 1e4
#: Genes that every cell has, many of them with one count.
FEW = np.maximum(X[:, :60], 1) / TOTALS * 1e4
#: Imputed rates, of which no two are the same.
RATES = np.random.default_rng(0).gamma(0.5, 0.4, X.shape) + 1e-3


def without_centering(max_value: float | None = None) -> np.ndarray:
    """What ``sc.pp.scale(zero_center=False)`` makes of logarithms."""
    data = AnnData(np.log1p(CP10K))
    sc.pp.scale(data, zero_center=False, max_value=max_value)
    return data.X


def root_mean_square() -> np.ndarray:
    """R's ``scale(x, center = FALSE)``."""
    logs = np.log1p(CP10K)
    size = np.sqrt((logs**2).sum(axis=0) / (len(logs) - 1))
    return logs / np.where(size > 0, size, 1)


def joined(other: np.ndarray) -> np.ndarray:
    return np.vstack([X[:30], other[30:]])


#: Kind -> the matrix, the judgement and words of its sentence.
REFUSED = {
    "square roots": (np.sqrt(X), "neither", "square roots of counts"),
    "square roots, half precision": (np.sqrt(X).astype(np.float32), "neither", "square roots"),
    "square roots of CP10k": (np.sqrt(CP10K), "neither", "square roots of counts"),
    "Freeman-Tukey": (np.sqrt(X) + np.sqrt(X + 1), "neither", "Freeman-Tukey"),
    "Anscombe": (2 * np.sqrt(X + 3 / 8), "neither", "Anscombe"),
    "asinh": (np.arcsinh(X), "neither", "hyperbolic sines"),
    "log1p of log1p": (np.log1p(np.log1p(CP10K)), "neither", "applied twice"),
    "log1p of log1p of counts": (np.log1p(np.log1p(X)), "neither", "applied twice"),
    "unit variance, scanpy": (without_centering(), "scaled", "unit variance"),
    "unit variance, cut at 10": (without_centering(10), "scaled", "unit variance"),
    "unit variance, scikit-learn": (
        StandardScaler(with_mean=False).fit_transform(np.log1p(CP10K)),
        "scaled",
        "unit variance",
    ),
    "unit variance, few of the genes detected": (
        without_centering() * (np.arange(300) >= 220),
        "scaled",
        "unit variance",
    ),
    "unit root mean square, R": (root_mean_square(), "scaled", "unit variance"),
    "voom": (np.log2((X + 0.5) / (TOTALS + 1) * 1e6), "neither", "a prior count"),
    "cpm(log = TRUE)": (
        np.log2((X + 2 * TOTALS / TOTALS.mean()) / (TOTALS + 4 * TOTALS / TOTALS.mean()) * 1e6),
        "neither",
        "a prior count",
    ),
    "logarithms of CPM plus 5": (np.log(X / TOTALS * 1e6 + 5), "neither", "a prior count"),
    "counts and logarithms": (joined(np.log1p(CP10K)), "neither", "whole numbers in 50%"),
    "counts and log2": (joined(np.log2(CP10K + 1)), "neither", "whole numbers in 50%"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_other_transformations_are_refused(kind):
    matrix, judgement, words = REFUSED[kind]
    found = classify_values(matrix)
    assert found.kind == judgement and words in found.sentence, found.sentence
    assert classify_values(sparse.csr_matrix(matrix), block=7).kind == judgement
    adata = COUNTS.copy()
    adata.X = matrix
    with pytest.raises(ScMambaError, match=f"{words.split(' ')[0]}.*Give raw counts"):
        deg.find_markers(adata, "disease", "AD")


#: What looks alike and is read as before.
READ = {
    "counts with noise of rounding": (X + 1e-7 * (X == 0), "counts"),
    "minus zero": (np.where(X == 0, -0.0, X), "counts"),
    "half of the counts": (X / 2, "counts"),
    "counts times 1e-9": (X * 1e-9, "counts"),
    "proportions": (X / TOTALS, "counts"),
    "CPM": (X / TOTALS * 1e6, "counts"),
    "counts of unit length": (X / np.sqrt((X**2).sum(axis=1, keepdims=True)), "counts"),
    "corrected counts, whole in some cells": (joined(X * 0.93), "counts"),
    "log1p": (np.log1p(CP10K), "log1p"),
    "log1p, other total": (np.log1p(X / TOTALS * 1e6), "log1p"),
    "log1p, cells without counts": (np.log1p(CP10K) * (np.arange(60) % 3 > 0)[:, None], "log1p"),
    "log1p of counts": (np.log1p(X), "log1p_counts"),
    "log1p of few genes that all cells have": (np.log1p(FEW), "log1p"),
    "rates of all genes": (np.log1p(CP10K + RATES), "log1p"),
}


@pytest.mark.parametrize("kind", READ)
def test_what_looks_alike_is_read(kind):
    matrix, judgement = READ[kind]
    assert classify_values(matrix).kind == judgement


def test_noise_below_zero_is_not_called_scaled():
    found = classify_values(np.where(X == 0, -1e-17, np.log1p(CP10K)))
    assert found.kind == "negative" and "-1e-17" in found.sentence
