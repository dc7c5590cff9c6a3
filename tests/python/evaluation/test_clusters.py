"""Cluster scores against hand counts, and on data with known types and donors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import silhouette_score

from scmamba.evaluation.clusters import (
    ari,
    leading_components,
    mixing,
    nmi,
    silhouette,
    zero_imputation_scores,
)
from scmamba.evaluation.reports import cluster_report
from scmamba.utils.errors import DataError

pytest.importorskip("igraph")


def test_scores_are_those_counted_by_hand():
    # The second labeling determines the first: mutual information ln 2, entropies ln 2 and 1.5 ln 2.
    assert nmi([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(2 / (1 + 1.5))
    # One pair of cells is together in both labelings, two in one and one in the other, of six: expected 2 x 1 / 6, at most 1.5.
    assert ari([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))
    assert nmi(["x"] * 5, [1] * 5) == 1 and ari(np.zeros(5), np.zeros(5)) == 1
    points = np.array([[0.0], [1], [10], [11]])
    assert silhouette(points, [0, 0, 1, 1]) == pytest.approx(np.mean([1 - 1 / 10.5, 1 - 1 / 9.5]))
    assert np.isnan(silhouette(points, np.zeros(4))) and np.isnan(silhouette(points, np.arange(4)))
    with pytest.raises(DataError, match="missing"):
        nmi(np.array(["x", None, "y"], dtype=object), np.array([1, 2, 3]))


def test_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(1)
    # Five well-separated directions: among equal ones a randomized decomposition may return others.
    signal = (
        rng.standard_normal((120, 5))
        * [16, 12, 9, 6, 4]
        @ np.linalg.qr(rng.standard_normal((40, 5)))[0].T
    )
    x = np.maximum(signal + 0.05 * rng.standard_normal((120, 40)) + 1, 0)
    ours, theirs = (
        leading_components(sparse.csr_matrix(x), 3),
        PCA(3, svd_solver="full").fit_transform(x),
    )
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)


def test_types_and_donors_are_distinguished():
    rng = np.random.default_rng(2)
    types, donors = np.repeat(["a", "b", "c"], 80), np.tile(["x", "y"], 120)
    place = rng.standard_normal((240, 6)) + 8 * (
        types[:, None] == np.array(["a", "b", "c", "", "", ""])
    )
    clean, table = zero_imputation_scores(
        place, types, donors, embedding=True, resolutions=(0.1, 0.5), seed=0
    )
    assert clean["NMI"] > 0.95 and clean["ARI"] > 0.95 and list(table["resolution"]) == [0.1, 0.5]
    assert (
        clean["NMI_donor"] < 0.05 and clean["mixing_donor"] > 0.9 and abs(clean["ASW_donor"]) < 0.1
    )
    place[:, 5] += 8 * (donors == "x")
    apart, _ = zero_imputation_scores(
        place, types, donors, embedding=True, resolutions=(0.1, 0.5), seed=0
    )
    assert apart["mixing_donor"] < 0.1 and apart["ASW_donor"] > 0.4
    assert mixing(place, np.zeros(240), types) != mixing(
        place, np.zeros(240), types
    )  # with one donor there is no score


def test_scores_of_a_clustering_are_those_of_the_best_resolution():
    rng = np.random.default_rng(1)
    types, donors = np.repeat(["a", "b", "c"], 50), np.tile(["x", "y"], 75)
    place = rng.normal(size=(150, 4)) + 7 * np.eye(4)[np.repeat([0, 1, 2], 50)]
    found, table = zero_imputation_scores(
        place, types, donors, embedding=True, resolutions=(0.05, 0.4, 3.0)
    )
    best = table.loc[table["NMI"].idxmax()]
    for name in ("resolution", "NMI", "ARI", "NMI_donor", "ARI_donor"):
        assert found[name] == best[name]
    assert table["NMI"].nunique() > 1 and found["NMI"] == table["NMI"].max()
    assert found["ASW"] == pytest.approx(silhouette_score(place, types))
    within = [silhouette_score(place[types == t], donors[types == t]) for t in "abc"]
    assert found["ASW_donor"] == pytest.approx(np.mean(within)) and found[
        "mixing_donor"
    ] == pytest.approx(mixing(place, donors, types))
    assert (
        "NMI_donor"
        not in zero_imputation_scores(place, types, embedding=True, resolutions=(0.4,))[0]
    )
    report = cluster_report({"one": np.exp(place)}, types, donors, resolutions=(0.4,))
    direct, _ = zero_imputation_scores(np.exp(place), types, donors, resolutions=(0.4,))
    assert (
        report.summary.loc["one"].to_dict() == pytest.approx(direct)
        and report.tables["resolutions"].columns[0] == "values"
    )
