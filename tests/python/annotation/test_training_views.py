"""Base classifiers against scikit-learn on explicit features; profiles and weights against sums and optimizers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, sparse, special
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from scmamba.annotation import base_classifiers as views
from scmamba.annotation.base_classifiers import (
    KNNClassifier,
    LinearClassifier,
    class_log_profiles,
    fit_base_classifier,
    fit_classifier_weights,
    fit_knn,
    load_base_classifier,
    marker_features,
    profile_logits,
    tempered_log_probs,
)
from scmamba.data.values import log1p_cp10k


@pytest.fixture(scope="module")
def cells() -> tuple[sparse.csr_matrix, np.ndarray]:
    """log1p(CP10k) of 150 cells of three types, 90 genes."""
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 150, p=[0.6, 0.3, 0.1])
    rates = rng.gamma(0.6, 2, (3, 90))
    counts = sparse.csr_matrix(rng.poisson(rates[codes]).astype(float))
    return sparse.csr_matrix(
        log1p_cp10k(counts, np.asarray(counts.sum(axis=1)).ravel()), dtype=np.float64
    ), codes


def same(
    logits: np.ndarray, peer: LogisticRegression, features: np.ndarray, tolerance: float = 2e-3
) -> None:
    np.testing.assert_allclose(
        special.softmax(logits, axis=1), peer.predict_proba(features), atol=tolerance
    )


def test_constants():
    assert (
        views.COMPONENTS,
        views.VARIABLE,
        views.MARKERS,
        views.N_NEIGHBORS,
        views.DIRECTIONS,
        views.MIN_WEIGHT,
    ) == (50, 3000, 30, 20, 30, 0.05)
    assert (views.MIN_CLASS_SHARE, views._FLOOR, views._CLIP, views.COUNTS) == (
        0.02,
        1e-4,
        5.0,
        200,
    )
    assert views.BASE_CLASSIFIERS == ("genes", "components", "scaled", "markers", "plain", "knn")


def test_probabilities_by_hand():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])
    np.testing.assert_allclose(softmax(logits, axis=1), [[0.25, 0.75], [1, 0]])
    np.testing.assert_allclose(
        np.exp(tempered_log_probs(logits)), [[0.2501, 0.7501], [1.0001, 1e-4]]
    )
    np.testing.assert_allclose(
        np.exp(tempered_log_probs(logits, 2.0))[0], special.softmax(logits[0] / 2) + 1e-4
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("genes", dict(C=0.02, class_weight="balanced", max_iter=300)),
        ("plain", dict(C=1.0, max_iter=300)),
    ],
)
def test_the_classifiers_on_all_genes_are_those_of_scikit_learn(cells, kind, settings):
    x, codes = cells
    view = fit_base_classifier(x, codes, 3, kind, 0)
    same(view.logits(x), LogisticRegression(**settings).fit(x, codes), x)


def test_the_scaled_classifier_reads_variable_genes_divided_by_their_standard_deviation(
    cells, monkeypatch
):
    monkeypatch.setattr(views, "VARIABLE", 40)
    monkeypatch.setattr(views, "_BLOCK", 64)
    x, codes = cells
    x = x.copy()
    x.data[::500] += 30  # a few values beyond five standard deviations
    dense = x.toarray()
    variance = dense.var(axis=0)
    chosen = np.argsort(
        -np.maximum(variance, 1e-4) / np.maximum(dense.mean(axis=0), 1e-3), kind="stable"
    )[:40]
    z = np.clip((dense - dense.mean(axis=0)) / np.sqrt(np.maximum(variance, 1e-4)), -5, 5)[
        :, chosen
    ]
    assert (np.abs(z) == 5).any()
    view = fit_base_classifier(x, codes, 3, "scaled", 0)
    assert isinstance(view, LinearClassifier)
    np.testing.assert_array_equal(view.columns, chosen)
    np.testing.assert_allclose(view.scores(x), z, atol=1e-3)
    same(
        view.logits(x),
        LogisticRegression(C=1e-3, class_weight="balanced", max_iter=100).fit(z, codes),
        z,
        5e-3,
    )


def test_the_component_classifier_reads_standardized_scores(cells, monkeypatch):
    monkeypatch.setattr(views, "COMPONENTS", 5)
    x, codes = cells
    capped = x.copy()
    capped.data[::7] += 6  # values are clipped at ten
    assert (capped.data > 10).any()
    view = fit_base_classifier(capped, codes, 3, "components", 0)
    dense = np.minimum(capped.toarray(), 10)
    exact = np.linalg.svd(dense, full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(np.diag(exact @ view.basis)), 1, atol=0.05)
    scores = dense @ view.basis
    z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    np.testing.assert_allclose(view.scores(capped), z, atol=1e-6)
    same(view.logits(capped), LogisticRegression(C=1.0, max_iter=500).fit(z, codes), z)


def test_marker_sums_by_hand(cells, monkeypatch):
    monkeypatch.setattr(views, "MARKERS", 4)
    x, codes = cells
    dense, classes = x.toarray(), 4  # the last class has no cells
    spread = np.sqrt(np.maximum(dense.var(axis=0), 1e-3))
    means = np.stack([dense[codes == c].mean(axis=0) / spread for c in range(3)])
    basis = np.zeros((90, 8))
    for c in range(3):
        others = np.delete(means, c, axis=0)
        nearest = others[np.argmin(((others - means[c]) ** 2).sum(axis=1))]
        for column, gap in ((c, means[c] - others.mean(axis=0)), (4 + c, means[c] - nearest)):
            for gene in np.argsort(-gap, kind="stable")[:4]:
                basis[gene, column] = max(gap[gene], 0) / spread[gene]
    basis /= np.maximum(np.linalg.norm(basis, axis=0), 1e-9)
    view = fit_base_classifier(x, codes, classes, "markers", 0)
    np.testing.assert_allclose(view.basis, basis, atol=1e-9)
    scores = dense @ basis
    z = (scores - scores.mean(axis=0)) / (scores.std(axis=0) + 1e-9)
    same(
        view.logits(x)[:, :3],
        LogisticRegression(C=1.0, class_weight="balanced", max_iter=500).fit(z, codes),
        z,
    )
    np.testing.assert_allclose(marker_features(view, x), z[:, :4], atol=1e-6)


def test_classes_without_cells_are_never_called_and_two_classes_work(cells):
    x, codes = cells
    two = codes < 2
    view = fit_base_classifier(x[two], np.where(codes[two] == 1, 3, 1), 5, "plain", 0)
    logits = view.logits(x[two])
    peer = LogisticRegression(C=1.0, max_iter=300).fit(x[two], codes[two])
    np.testing.assert_allclose(
        special.softmax(logits[:, [1, 3]], axis=1), peer.predict_proba(x[two]), atol=2e-3
    )
    assert (logits[:, [0, 2, 4]] == -30).all()
    one = fit_base_classifier(x[codes == 0], np.full((codes == 0).sum(), 2), 3, "plain", 0).logits(
        x
    )
    assert (one[:, 2] == 0).all() and (one[:, :2] == -30).all()


def test_the_knn_classifier_by_hand(cells, monkeypatch):
    monkeypatch.setattr(views, "N_NEIGHBORS", 7)
    monkeypatch.setattr(views, "DIRECTIONS", 2)
    monkeypatch.setattr(views, "_BLOCK", 60)
    x, codes = cells
    dense = x.toarray()
    z = np.clip((dense - dense.mean(axis=0)) / np.sqrt(np.maximum(dense.var(axis=0), 1e-4)), -5, 5)
    view = fit_knn(x, codes, 3, 0)
    assert (
        isinstance(view, KNNClassifier) and view.rotation.shape == (90, 2) and len(view.pool) == 150
    )
    place = PCA(2, svd_solver="full").fit_transform(z)
    place /= np.linalg.norm(place, axis=1, keepdims=True)
    np.testing.assert_allclose(view.pool @ view.pool.T, place @ place.T, atol=0.03)
    nearest = np.argsort(-(view.pool.astype(float) @ view.pool.T), axis=1, kind="stable")[:, :7]
    share = np.stack([(codes[nearest] == c).mean(axis=1) for c in range(3)], axis=1)
    expected = np.array([(codes == c).mean() for c in range(3)]) + 0.02
    even = share / expected
    expected = np.log(even / even.sum(axis=1, keepdims=True) + 0.02)
    found = view.logits(x)
    assert np.mean(np.abs(found - expected).max(axis=1) < 1e-6) > 0.97  # ties of float32
    few = fit_knn(x[:2], codes[:2], 3, 0)
    assert (
        few.rotation.size == 0
        and few.pool.shape == (2, 90)
        and np.isfinite(few.logits(x[:2])).all()
    )


@pytest.mark.parametrize("kind", views.BASE_CLASSIFIERS)
def test_saved_classifiers_return_the_same_values(cells, kind):
    x, codes = cells
    view = fit_base_classifier(x, codes, 3, kind, 0)
    again = load_base_classifier(kind, view.arrays(f"{kind}_"))
    assert type(again) is type(view)
    np.testing.assert_array_equal(again.logits(x), view.logits(x))


def test_profiles_by_hand(cells):
    x, codes = cells
    linear = np.expm1(x.toarray())
    average = linear.mean(axis=0) + 1e-3
    found = class_log_profiles(x, codes, 4)
    for c in range(4):
        mixed = linear[codes == c].sum(axis=0) + average
        np.testing.assert_allclose(found[c], np.log(mixed / mixed.sum()))
    logits = profile_logits(x, found)
    share = linear / linear.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, 200 * share @ found.T)
    absent = profile_logits(x, found, np.array([False, False, False, True]))
    np.testing.assert_allclose(absent[:, :3], logits[:, :3])
    np.testing.assert_allclose(absent[:, 3], logits.min(axis=1) - 60)
    assert (profile_logits(sparse.csr_matrix((2, 90)), found) == 0).all()


def test_weights_minimize_the_loss():
    """Against scipy's search over the simplex, which uses no gradients."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 400)
    good = {
        name: np.log(special.softmax(scale * np.eye(3)[codes] + rng.normal(size=(400, 3)), axis=1))
        for name, scale in (("a", 1.5), ("b", 1.0), ("c", 0.8))
    }
    found = fit_classifier_weights(good, codes)

    def loss(w: np.ndarray) -> float:
        mixed = sum(abs(v) * good[k] for v, k in zip(w, good))
        return float(np.mean(special.logsumexp(mixed, axis=1) - mixed[np.arange(400), codes]))

    best = np.abs(
        optimize.minimize(
            loss,
            np.full(3, 0.5),
            method="Nelder-Mead",
            options=dict(xatol=1e-6, fatol=1e-10, maxiter=2000),
        ).x
    )
    assert [found[k] for k in "abc"] == pytest.approx(best / best.sum(), abs=5e-3) and sum(
        found.values()
    ) == pytest.approx(1)
    # A weak classifier is dropped, and the others are weighted again without it.
    weak = fit_classifier_weights(
        {**good, "weak": np.log(special.softmax(rng.normal(size=(400, 3)), axis=1))}, codes
    )
    assert "weak" not in weak or weak["weak"] >= 0.05
    harmful = {**good, "wrong": np.log(special.softmax(3.0 * np.eye(3)[(codes + 1) % 3], axis=1))}
    assert fit_classifier_weights(harmful, codes) == pytest.approx(found)
    wrong = {
        name: np.log(special.softmax(9.0 * np.eye(3)[(codes + 1) % 3], axis=1)) for name in "ab"
    }
    assert fit_classifier_weights(wrong, codes) == {"a": 0.5, "b": 0.5}
