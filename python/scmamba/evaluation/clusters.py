"""What imputing zeros does to the cells' neighborhoods: types should stand out more, donors less (paper, "Imputation", zeros).

The matrix is clustered at resolutions 0.1 to 2.0; the paper reports the best NMI with the types, the ARI of that clustering and the
silhouette of the types. Donors are measured the same way and should score low; within types, because types differ between donors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.compiled_code import import_umap
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError, ScMambaError

#: The paper's resolutions.
RESOLUTIONS = tuple(np.round(np.arange(0.1, 2.01, 0.1), 1))
_SAMPLE = 4000  # silhouettes need all distances; more cells than this are sampled


def nmi(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information of two labellings (arithmetic mean of the entropies); 1 where both are one class."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_codes(first, second)))


def ari(first: np.ndarray, second: np.ndarray) -> float:
    """Adjusted Rand index of two labellings (Hubert and Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_codes(first, second)))


def _codes(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or len(first) < 2:
        raise DataError(
            f"Two labellings of the same two or more cells are compared; these have {len(first)} and {len(second)}."
        )
    a, b = pd.factorize(np.asarray(first))[0], pd.factorize(np.asarray(second))[0]
    if min(a.min(), b.min()) < 0:
        raise DataError("Some labels are missing (NA); leave those cells out first.")
    return a, b


def silhouette(points: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> float:
    """Mean silhouette width (-1 to 1) of at most 4,000 cells, Euclidean; NaN where all have one label, or each its own."""
    from sklearn.metrics import silhouette_score

    code = pd.factorize(np.asarray(labels))[0]
    part = np.arange(len(code))
    if len(part) > _SAMPLE:
        part = np.sort(np.random.default_rng(seed).choice(len(code), _SAMPLE, replace=False))
    if not 2 <= len(np.unique(code[part])) < len(part):
        return float("nan")
    return float(silhouette_score(points[part], code[part]))


def leading_components(values: Any, n: int = 50, *, genes: int = 2000, seed: int = 0) -> np.ndarray:
    """(cells, n) principal components of the ``genes`` most variable columns of log values, centered; sparse or dense."""
    if sparse.issparse(values):
        mean = np.asarray(values.mean(axis=0)).ravel()
        variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    else:
        variance = np.asarray(values).var(axis=0)
    chosen = np.sort(np.argsort(-variance, kind="stable")[:genes])
    dense = (
        values[:, chosen].toarray() if sparse.issparse(values) else np.asarray(values)[:, chosen]
    )
    dense = dense - dense.mean(axis=0)
    if not np.isfinite(dense).all():
        raise DataError(
            "Some values are NaN or infinite; distances between cells need finite ones."
        )
    from sklearn.utils.extmath import randomized_svd

    n = min(n, min(dense.shape) - 1)
    left, size, _ = randomized_svd(dense, n, random_state=seed)
    return left * size


@renamed_parameters(neighbours="n_neighbors")
def zero_imputation_scores(
    values: Any,
    types: np.ndarray,
    donors: np.ndarray | None = None,
    *,
    embedding: bool = False,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_neighbors: int = 15,
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Cluster one matrix and compare it with types and donors.

    Parameters
    ----------
    values
        (cells, genes) log values, raw or imputed; with ``embedding`` (cells, d) coordinates used as they are.
    types, donors
        (cells,) labels.

    Returns
    -------
    The paper's numbers: ``NMI`` (best over resolutions), ``ARI`` and ``resolution`` of that clustering, ``ASW`` by type; with donors,
    ``NMI_donor``, ``ARI_donor`` (of the same clustering), ``ASW_donor`` (mean within types) and ``mixing_donor`` (see :func:`mixing`); and
    the table over resolutions.

    Raises
    ------
    ScMambaError
        Missing packages, missing labels, or values that are not finite.
    """
    try:
        import anndata
        import igraph  # noqa: F401
        import scanpy as sc

        import_umap()  # before scanpy does
    except ImportError as error:
        raise ScMambaError(
            f"Clustering needs {error.name}: pip install 'scmamba[prepare]'."
        ) from error
    points = np.asarray(values, dtype=float) if embedding else leading_components(values, seed=seed)
    types = np.asarray(types)
    work = anndata.AnnData(
        np.zeros((len(points), 1), dtype=np.float32), obsm={"X": points.astype(np.float32)}
    )
    sc.pp.neighbors(
        work, n_neighbors=min(n_neighbors, len(points) - 1), use_rep="X", random_state=seed
    )
    rows, codes = [], {}
    for resolution in resolutions:
        sc.tl.leiden(
            work,
            resolution=float(resolution),
            random_state=seed,
            flavor="igraph",
            n_iterations=2,
            directed=False,
        )
        code = codes[resolution] = work.obs["leiden"].to_numpy()
        row = {
            "resolution": float(resolution),
            "clusters": len(np.unique(code)),
            "NMI": nmi(types, code),
            "ARI": ari(types, code),
        }
        if donors is not None:
            row |= {"NMI_donor": nmi(donors, code), "ARI_donor": ari(donors, code)}
        rows.append(row)
    table = pd.DataFrame(rows)
    best = table.loc[table["NMI"].idxmax()]
    scores = {key: float(value) for key, value in best.items()}
    scores["ASW"] = silhouette(points, types, seed=seed)
    if donors is not None:
        donors = np.asarray(donors)
        within = [
            silhouette(points[types == t], donors[types == t], seed=seed)
            for t in pd.unique(types)
            if (types == t).sum() > 20
        ]
        scores["ASW_donor"] = (
            float(np.nanmean(within)) if np.isfinite(within).any() else float("nan")
        )
        scores["mixing_donor"] = mixing(points, donors, types)
    return scores, table


def mixing(points: np.ndarray, donors: np.ndarray, types: np.ndarray, k: int = 30) -> float:
    """How evenly donors meet among neighbors of one type: 1 as if cells were dealt out at random, 0 if every donor keeps to itself.

    Mean share of a cell's ``k`` nearest cells of its type that are of other donors, over the share expected in that type.
    """
    from ..neighbors.knn import nearest_neighbors

    got, expected = 0.0, 0.0
    for kind in pd.unique(types):
        rows = np.flatnonzero(types == kind)
        if len(rows) < 3 or len(np.unique(donors[rows])) < 2:
            continue
        near = nearest_neighbors(points[rows], points[rows], min(k + 1, len(rows)))[:, 1:]
        code = pd.factorize(donors[rows])[0]
        got += (code[near] != code[:, None]).mean(axis=1).sum()
        size = np.bincount(code)
        expected += ((len(rows) - size[code]) / (len(rows) - 1)).sum()
    return float(got / expected) if expected else float("nan")
