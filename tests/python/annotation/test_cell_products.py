"""Linear models from inner products of cells, against the same models fitted gene by gene; samples for cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from scmamba.annotation import cell_products, ensemble
from scmamba.annotation.base_classifiers import fit_base_classifier
from scmamba.annotation.cell_products import CellProducts
from scmamba.annotation.ensemble import fit_ensemble, validation_sample


def draw(n: int, genes: int = 700, classes: int = 4, seed: int = 0):
    """log1p values of overlapping classes, and their codes."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    rates = rng.gamma(0.3, 1.0, genes) * np.exp(rng.normal(0, 0.5, (classes, genes)))
    return sparse.csr_matrix(np.log1p(rng.poisson(rates[codes]).astype(float))), codes


@pytest.mark.parametrize("settings", [{"C": 0.02, "class_weight": "balanced"}, {"C": 1.0}])
@pytest.mark.parametrize("dense", [False, True])
def test_the_optimum_equals_that_of_all_genes(settings, dense):
    x, codes = draw(120)
    x = x.toarray() if dense else x
    space = CellProducts.of(x)
    rows = space.coordinates()
    np.testing.assert_allclose(
        rows @ rows.T, (x @ x.T) if dense else (x @ x.T).toarray(), atol=1e-6
    )
    exact = {"tol": 1e-9, "max_iter": 5000}
    short = LogisticRegression(**settings, **exact).fit(rows, codes)
    long = LogisticRegression(**settings, **exact).fit(x, codes)
    weight = space.to_genes(rows, short.coef_)
    np.testing.assert_allclose(weight, long.coef_, atol=1e-5)
    np.testing.assert_allclose(short.intercept_, long.intercept_, atol=3e-4)


@pytest.mark.parametrize("kind", ["genes", "plain", "scaled", "components"])
def test_base_classifiers_agree_in_both_forms(monkeypatch, kind):
    x, codes = draw(150)
    other, _ = draw(40, seed=1)
    assert CellProducts.of(x) is not None
    short = fit_base_classifier(x, codes, 4, kind, 0)
    monkeypatch.setattr(cell_products, "MOST_CELLS", 10)
    assert CellProducts.of(x) is None
    long = fit_base_classifier(x, codes, 4, kind, 0)
    np.testing.assert_allclose(
        # The solver stops if the gradient is small in its own coordinates, so the two stop at slightly different points.
        softmax(short.logits(other), axis=1),
        softmax(long.logits(other), axis=1),
        atol=0.03,
    )


def test_components_are_the_singular_vectors():
    x, _ = draw(90)
    scores, basis = CellProducts.of(x).components(3, 0)
    left, size, right = np.linalg.svd(x.toarray(), full_matrices=False)
    np.testing.assert_allclose(np.abs((scores / size[:3]).T @ left[:, :3]), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(np.abs(basis.T @ right[:3].T), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), size[:3], rtol=1e-5)
    np.testing.assert_allclose(x @ basis, scores, atol=0.05 * size[2])


def test_products_of_a_subset_are_a_subset_of_the_products():
    x, _ = draw(60)
    here = np.arange(60) % 3 == 0
    part, alone = CellProducts.of(x).within(here), CellProducts.of(x[here])
    np.testing.assert_allclose(part.products, alone.products, rtol=1e-12)
    assert (part.x != alone.x).nnz == 0
    np.testing.assert_allclose(part.products, (x @ x.T).toarray()[np.ix_(here, here)])


def test_identical_and_empty_cells_can_be_fitted():
    x, codes = draw(80)
    x = x.tolil()
    x[4] = x[0]
    x[9] = 0
    view = fit_base_classifier(sparse.csr_matrix(x), codes, 4, "plain", 0)
    assert np.isfinite(view.weight).all()


def test_the_sample_keeps_all_cells_of_rare_classes_and_a_share_of_the_others(monkeypatch):
    monkeypatch.setattr(ensemble, "VALIDATION_CELLS", 500)
    monkeypatch.setattr(ensemble, "KEPT_PER_CLASS", 20)
    codes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [2000, 1000, 21, 9]))
    sample = validation_sample(codes, 3)
    sizes = np.bincount(codes[sample])
    assert (np.diff(sample) > 0).all() and 495 <= len(sample) <= 500
    assert sizes[3] == 9 and sizes[2] >= 20
    assert (sizes[0] - 20) / (sizes[1] - 20) == pytest.approx(2, rel=0.05)
    np.testing.assert_array_equal(sample, validation_sample(codes, 3))
    assert not np.array_equal(sample, validation_sample(codes, 4))
    np.testing.assert_array_equal(validation_sample(codes[:500], 3), np.arange(500))


def test_the_fit_to_all_cells_starts_from_the_fit_to_the_sample(monkeypatch):
    x, codes = draw(600)
    names = np.array(list("abcd"))[codes]
    donors = np.array([f"d{i}" for i in np.arange(600) // 100])
    whole = fit_ensemble(x, names, donors, seed=1, verbose=False)
    monkeypatch.setattr(ensemble, "VALIDATION_CELLS", 200)
    monkeypatch.setattr(cell_products, "MOST_CELLS", 250)
    sampled = fit_ensemble(x, names, donors, seed=1, verbose=False)
    other, truth = draw(200, seed=0)
    p, q = whole.probabilities(other), sampled.probabilities(other)
    assert (p.argmax(axis=1) == truth).mean() > 0.9
    assert (q.argmax(axis=1) == truth).mean() > (p.argmax(axis=1) == truth).mean() - 0.03
    assert len(sampled.novelty.called) <= 200 < len(whole.novelty.called)


def test_the_network_is_trained_on_the_cells_of_the_sample(monkeypatch):
    monkeypatch.setattr(ensemble, "VALIDATION_CELLS", 120)
    x, codes = draw(300)
    codes = np.random.default_rng(0).permutation(codes)  # the values are not informative
    rows = np.arange(0, 300, 2)
    truth = np.log(np.full((150, 4), 0.01))
    truth[np.arange(150), codes[rows]] = np.log(0.97)
    names = np.array(list("abcd"))[codes]
    found = fit_ensemble(x, names, np.full(300, ""), network=(rows, truth), seed=0, verbose=False)
    assert found.network_share > 0 and found.report["held_out_accuracy"] == 1
