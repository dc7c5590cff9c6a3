"""Fitting the ensemble: folds by donor, temperature, curve and weights against closed forms; scores are always out of fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, sparse, special
from scipy.special import softmax
from sklearn.metrics import f1_score

from scmamba.annotation import ensemble as typing_module
from scmamba.annotation.base_classifiers import (
    BASE_CLASSIFIERS,
    class_log_profiles,
    fit_base_classifier,
    marker_features,
    profile_logits,
    tempered_log_probs,
)
from scmamba.annotation.cell_products import CellProducts
from scmamba.annotation.ensemble import (
    CellTypeEnsemble,
    OutOfFoldScores,
    cross_validate,
    donor_folds,
    fit_ensemble,
    fit_network_weight,
    fit_prior_correction,
    fit_weights,
    mix_network,
    with_rare_class_profiles,
)
from scmamba.annotation.novelty import call_evidence, common_space, novelty_scores
from scmamba.data.values import log1p_cp10k
from scmamba.training.calibration import (
    coverage_curve,
    fit_calibration,
    fit_temperature,
    log_loss,
    threshold_for,
)
from scmamba.utils.errors import DataError


def draw(codes: np.ndarray, seed: int, rates_seed: int = 0) -> sparse.csr_matrix:
    """log1p(CP10k) of cells of the given types, 70 genes."""
    rng = np.random.default_rng(rates_seed)
    rates = rng.gamma(0.8, 2.0, 70) * np.exp(0.4 * rng.normal(size=(4, 70)))
    counts = sparse.csr_matrix(np.random.default_rng(seed).poisson(rates[codes]).astype(float))
    return sparse.csr_matrix(
        log1p_cp10k(counts, np.asarray(counts.sum(axis=1)).ravel()), dtype=np.float64
    )


@pytest.fixture(scope="module")
def reference() -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    codes = rng.choice(3, 240, p=[0.6, 0.3, 0.1])
    return draw(codes, 2), codes, np.array([f"d{i % 6}" for i in range(240)])


def test_folds_are_whole_donors_or_stratified_by_class():
    donors = np.repeat([f"d{i}" for i in range(7)], [3, 50, 9, 20, 1, 30, 5])
    codes = np.arange(118) % 4
    fold = donor_folds(donors, codes, 3, 0)
    assert set(fold) == {0, 1, 2} and all(len(set(fold[donors == d])) == 1 for d in set(donors))
    assert sorted(np.bincount([fold[donors == d][0] for d in sorted(set(donors))])) == [2, 2, 3]
    assert len({tuple(donor_folds(donors, codes, 3, seed)) for seed in range(5)}) > 1
    np.testing.assert_array_equal(donor_folds(donors, codes, 3, 0), fold)
    exactly = donor_folds(np.repeat(["a", "b", "c"], 4), np.zeros(12, int), 3, 0)
    assert all(len(set(exactly[i : i + 4])) == 1 for i in (0, 4, 8)) and set(exactly) == {0, 1, 2}
    cells = donor_folds(
        np.repeat(["a", "b"], 30), np.repeat([0, 1], [50, 10]), 3, 0
    )  # two donors are too few for three folds
    assert np.bincount(cells[:50]).tolist() == [17, 17, 16] and np.bincount(
        cells[50:]
    ).tolist() == [4, 3, 3]
    assert cells[:6].tolist() != [0, 1, 2, 0, 1, 2]


def test_the_temperature_minimizes_the_log_loss():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 500)
    logits = 2.0 * (np.eye(3)[codes] + 0.8 * rng.normal(size=(500, 3)))

    def loss(t: float) -> float:
        return -np.log(special.softmax(logits / t, axis=1)[np.arange(500), codes]).mean()

    best = optimize.minimize_scalar(
        loss, bounds=(0.1, 5), method="bounded", options={"xatol": 1e-8}
    )
    assert fit_temperature(logits, codes) == pytest.approx(best.x, rel=1e-3)
    assert (
        log_loss(logits, codes)
        == pytest.approx(best.fun, rel=1e-6)
        == pytest.approx(log_loss(5 * logits, codes), rel=1e-5)
    )
    assert fit_temperature(0.1 * np.eye(3)[codes], codes) == pytest.approx(
        np.exp(-3), rel=0.05
    )  # bounds
    assert fit_temperature(-50 * np.eye(3)[codes], codes) == pytest.approx(np.exp(2), rel=0.05)
    kept = fit_calibration(logits, codes)
    assert kept["temperature"] == fit_temperature(logits, codes) and kept["cells"] == 500
    np.testing.assert_allclose(
        kept["curve"], coverage_curve(softmax(logits / kept["temperature"], axis=1), codes)
    )


def test_the_curve_by_hand():
    top = np.r_[np.full(12, 0.9), np.full(10, 0.7), np.full(3, 0.95)]
    p = np.column_stack([top, 1 - top])
    codes = np.r_[np.zeros(10), 1, 1, np.ones(5), np.zeros(5), np.zeros(3)].astype(int)
    curve = coverage_curve(p, codes)
    assert curve[0].tolist() == [0, 1, 18 / 25] and curve[curve[:, 0] == 0.7][0].tolist() == [
        0.7,
        1,
        18 / 25,
    ]
    assert curve[curve[:, 0] == 0.71][0].tolist() == pytest.approx([0.71, 15 / 25, 13 / 15])
    assert curve[-1, 0] == 0.9  # above this threshold only three cells remain: too few
    np.testing.assert_allclose(np.diff(curve[:, 0]), 0.01)
    assert len(coverage_curve(p[:3], codes[:3])) == 1
    assert (
        threshold_for(curve, 0.28) == 0
        and threshold_for(curve, 0.2) == 0.71
        and threshold_for(curve, 0.1) == 1.0
    )
    assert threshold_for(np.array([[0.0, 1.0, 0.9]]), 0.1 + 1e-12) == 0.0


def test_weights_and_rare_classes_by_hand():
    linear, network = np.log([[0.7, 0.3]]), np.log([[0.1, 0.9]])
    np.testing.assert_allclose(
        mix_network(linear, network, 0.25), 0.75 * linear + 0.25 * np.log(np.exp(network) + 1e-4)
    )
    out = with_rare_class_profiles(
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[9.0, 1.0], [9.0, 5.0]]),
        np.array([False, True]),
    )
    assert out.tolist() == [[1, 2], [3, 5]]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 300)
    good, noise = (
        np.log(special.softmax(s * np.eye(3)[codes] + rng.normal(size=(300, 3)), axis=1))
        for s in (2.5, 0.0)
    )
    share, losses = fit_network_weight(noise, good, codes)
    assert share == 1.0 and fit_network_weight(good, noise, codes)[0] == 0.0
    table = losses["log_loss_by_network_share"]
    assert list(table) == ["0.0", "0.15", "0.3", "0.5", "0.7", "1.0"]
    assert (
        table["0.3"] == pytest.approx(log_loss(mix_network(noise, good, 0.3), codes))
        and min(table.values()) == table["1.0"]
    )


def test_the_prior_correction_maximizes_macro_f1_and_accuracy():
    rng = np.random.default_rng(0)
    prior = np.array([0.8, 0.15, 0.05])
    codes = rng.choice(3, 600, p=prior)
    logits = np.log(prior) * 1.0 + 1.2 * (np.eye(3)[codes] + rng.normal(size=(600, 3)))
    found = fit_prior_correction(logits, codes, np.log(prior))
    worth = {}
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        calls = (logits - share * np.log(prior)).argmax(axis=1)
        worth[share] = f1_score(codes, calls, average="macro", labels=np.unique(codes)) + np.mean(
            calls == codes
        )
    best = max(worth, key=lambda s: worth[s])
    assert 0 < best < 0.5 or len(set(worth.values())) > 3
    np.testing.assert_allclose(found, best * np.log(prior))
    calls = rng.integers(0, 4, 600)  # a class that is called but absent does not count
    assert typing_module._macro_f1(codes, calls) == pytest.approx(
        f1_score(codes, calls, average="macro", labels=[0, 1, 2])
    )


def test_scores_of_a_donor_come_from_a_fit_without_it(reference):
    x, codes, donors = reference
    fold = donor_folds(donors, codes, 3, 0)
    seen = cross_validate(x, codes, 4, fold, 5, False)
    for f in range(3):
        here = fold == f
        for kind in BASE_CLASSIFIERS:
            alone = fit_base_classifier(x[~here], codes[~here], 4, kind, 5)
            # Inner products are taken from the full matrix or computed for a subset: the last digits differ.
            np.testing.assert_allclose(seen.logits[kind][here], alone.logits(x[here]), atol=1e-4)
            if kind == "markers":
                np.testing.assert_array_equal(seen.marks[here], marker_features(alone, x[here]))
        profiles = class_log_profiles(x[~here], codes[~here], 4)
        expected = profile_logits(x[here], profiles, np.array([False, False, False, True]))
        np.testing.assert_array_equal(seen.logits["profile"][here], expected)
    # Labels of the scored cells do not change their scores.
    other = codes.copy()
    other[fold == 1] = np.roll(codes[fold == 1], 5)
    again = cross_validate(x, other, 4, fold, 5, False)
    for kind in (*BASE_CLASSIFIERS, "profile"):
        np.testing.assert_allclose(again.logits[kind][fold == 1], seen.logits[kind][fold == 1])
        assert not np.array_equal(again.logits[kind][fold == 0], seen.logits[kind][fold == 0])
    assert not cross_validate(
        x[:9], codes[:9], 4, np.zeros(9, int), 0, False
    ).marks.any()  # with one fold no cells can be scored


def test_base_classifiers_are_combined_at_their_temperatures():
    rng = np.random.default_rng(1)
    codes = np.r_[rng.integers(0, 2, 300), np.full(19, 2), [3]]
    n = len(codes)
    logits = {
        kind: (1 + i) * (1.5 * np.eye(4)[codes] + rng.normal(size=(n, 4)))
        for i, kind in enumerate(BASE_CLASSIFIERS)
    }
    profile = 3.0 * np.eye(4)[codes] + rng.normal(size=(n, 4))
    for kind in BASE_CLASSIFIERS:
        logits[kind][codes == 2, 2] -= 9  # only the profiles find the rare class
    held, weights, temperatures, rare = fit_weights(
        OutOfFoldScores(logits | {"profile": profile}, np.zeros((n, 4))), codes, 4
    )
    assert rare.tolist() == [
        False,
        False,
        True,
        False,
    ]  # 19 cells are rare; one cell has no other cells to be scored with
    assert set(temperatures) == {*weights, "profile"}
    for kind in weights:
        assert temperatures[kind] == pytest.approx(fit_temperature(logits[kind], codes))
    plain = sum(w * tempered_log_probs(logits[k], temperatures[k]) for k, w in weights.items())
    np.testing.assert_allclose(
        held,
        with_rare_class_profiles(plain, tempered_log_probs(profile, temperatures["profile"]), rare),
    )
    twenty = np.r_[codes, 2]
    extra = {
        k: np.vstack([v, v[codes == 2][:1]]) for k, v in (logits | {"profile": profile}).items()
    }
    _, _, temperatures, rare = fit_weights(OutOfFoldScores(extra, np.zeros((n + 1, 4))), twenty, 4)
    assert not rare.any() and "profile" not in temperatures
    useless = fit_weights(
        OutOfFoldScores(logits | {"profile": -profile}, np.zeros((n, 4))), codes, 4
    )
    assert not useless[3].any()
    one = fit_weights(
        OutOfFoldScores({k: np.zeros((5, 1)) for k in logits}, np.zeros((5, 1))),
        np.zeros(5, int),
        1,
    )
    assert one[1] == {"components": 1.0} and one[0].shape == (5, 1) and one[3].tolist() == [False]


@pytest.fixture(scope="module")
def fitted(reference) -> CellTypeEnsemble:
    x, codes, donors = reference
    return fit_ensemble(x, np.array(list("bac"))[codes], donors, seed=3, verbose=False)


def test_fitted_parameters_are_chosen_on_held_out_donors(reference, fitted):
    x, letters, donors = reference
    codes = np.array([1, 0, 2])[letters]  # names are sorted
    fold = donor_folds(donors, codes, 3, 3)
    seen = cross_validate(x, codes, 3, fold, 3, False)
    held, weights, temperatures, rare = fit_weights(seen, codes, 3)
    assert (
        fitted.names == ["a", "b", "c"]
        and fitted.weights == weights
        and fitted.temperatures == temperatures
    )
    prior_correction = fit_prior_correction(held, codes, np.log(np.bincount(codes) / 240))
    np.testing.assert_allclose(fitted.prior_correction, prior_correction)
    final = held - prior_correction
    temperature = fit_temperature(final, codes)
    assert fitted.temperature == temperature and fitted.network_share == 0
    np.testing.assert_array_equal(
        fitted.curve, coverage_curve(softmax(final / temperature, axis=1), codes)
    )
    accuracy = np.mean(final.argmax(axis=1) == codes)
    assert fitted.report == {
        "views": list(weights),
        "weights": weights,
        "held_out_accuracy": accuracy,
        "network_share": 0.0,
    }
    assert fitted.threshold(0.05) == threshold_for(fitted.curve, 0.05)
    shown = softmax(final / temperature, axis=1)
    assert np.array_equal(fitted.novelty.called, shown.argmax(axis=1)[np.argsort(np.arange(240))])
    np.testing.assert_allclose(
        fitted.novelty.shown[:, -1], call_evidence(shown, seen.logits["profile"], seen.marks)[:, 1]
    )
    np.testing.assert_array_equal(fitted.profiles, class_log_profiles(x, codes, 3))
    # The base classifiers that are kept are fitted to all cells.
    assert set(fitted.views) == {*weights, "markers"}
    for kind, view in fitted.views.items():
        np.testing.assert_array_equal(
            view.logits(x[:7]),
            fit_base_classifier(x, codes, 3, kind, 3, CellProducts.of(x)).logits(x[:7]),
        )


def test_probabilities_are_the_weighted_base_classifiers_with_prior_and_temperature(
    reference, fitted
):
    x = draw(np.arange(40) % 3, 9)
    parts = sum(
        w * tempered_log_probs(fitted.views[k].logits(x), fitted.temperatures[k])
        for k, w in fitted.weights.items()
    )
    if fitted.rare.any():
        parts = with_rare_class_profiles(
            parts,
            tempered_log_probs(profile_logits(x, fitted.profiles), fitted.temperatures["profile"]),
            fitted.rare,
        )
    np.testing.assert_allclose(
        fitted.probabilities(x),
        special.softmax((parts - fitted.prior_correction) / fitted.temperature, axis=1),
    )
    network = np.log(special.softmax(np.random.default_rng(0).normal(size=(40, 3)), axis=1))
    with_network = replace(
        fitted,
        network_share=0.3,
        rare=np.array([True, False, False]),
        temperatures={**fitted.temperatures, "profile": 2.0},
    )
    parts = sum(
        w * tempered_log_probs(fitted.views[k].logits(x), fitted.temperatures[k])
        for k, w in fitted.weights.items()
    )
    parts = with_rare_class_profiles(
        parts, tempered_log_probs(profile_logits(x, fitted.profiles), 2.0), with_network.rare
    )
    expected = special.softmax(
        (mix_network(parts, network, 0.3) - fitted.prior_correction) / fitted.temperature, axis=1
    )
    np.testing.assert_allclose(with_network.probabilities(x, network), expected)


def test_the_weight_of_the_network_is_chosen_on_held_out_cells(reference):
    x, codes, donors = reference
    rows = np.flatnonzero(donor_folds(donors, codes, 3, 3) == 0)
    truth = np.log(special.softmax(6 * np.eye(3)[codes[rows]], axis=1))
    found = fit_ensemble(x, codes.astype(str), donors, network=(rows, truth), seed=3, verbose=False)
    assert found.network_share > 0 and found.report["network_share"] == found.network_share
    seen = cross_validate(x, codes, 3, donor_folds(donors, codes, 3, 3), 3, False)
    held = fit_weights(seen, codes, 3)[0]
    share, losses = fit_network_weight(held[rows], truth, codes[rows])
    assert (
        found.network_share == share
        and found.report["log_loss_by_network_share"] == losses["log_loss_by_network_share"]
    )
    final = mix_network(held[rows], truth, share)
    final -= fit_prior_correction(final, codes[rows], np.log(np.bincount(codes) / 240))
    assert found.temperature == fit_temperature(final, codes[rows])
    np.testing.assert_array_equal(
        found.curve, coverage_curve(softmax(final / found.temperature, axis=1), codes[rows])
    )


def test_novelty_is_judged_beside_all_cells_of_the_reference(reference, fitted):
    x = draw(np.arange(30) % 4, 8)
    p = fitted.probabilities(x)
    known = reference[0][:40]
    space = common_space(sparse.csr_matrix(sparse.vstack([known, x])), 1)
    evidence = call_evidence(
        p, profile_logits(x, fitted.profiles), marker_features(fitted.markers, x)
    )
    detector, called = fitted.novelty, p.argmax(axis=1)
    shown = novelty_scores(space[40:], space[:40], evidence, detector.pool, 1)
    score = detector.standardized_score(shown, called, detector.is_domain_shifted(shown))
    for level in (np.sort(score)[1:] + np.sort(score)[:-1]) / 2:  # between any two cells
        judge = replace(fitted, novelty=replace(detector, level=level))
        np.testing.assert_array_equal(judge.is_novel(x, p, known, 1), score > level)


def test_an_ensemble_is_unchanged_by_saving_and_loading(fitted, tmp_path):
    fitted.write(tmp_path / "t.npz")
    again = CellTypeEnsemble.read(tmp_path / "t.npz")
    x = draw(np.arange(30) % 4, 8)
    p = fitted.probabilities(x)
    np.testing.assert_array_equal(again.probabilities(x), p)
    reference = draw(np.arange(100) % 3, 2)
    np.testing.assert_array_equal(
        again.is_novel(x, p, reference, 1), fitted.is_novel(x, p, reference, 1)
    )
    assert (
        again.names == fitted.names
        and again.report == fitted.report
        and again.novelty.pool == fitted.novelty.pool == 80
    )
    for name in ("curve", "profiles", "rare", "prior_correction", "usual"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))


def test_edge_cases():
    x = draw(np.zeros(30, int), 1)
    one = fit_ensemble(x, np.full(30, "only"), np.full(30, ""), verbose=False)
    assert (
        one.temperature == 1.0
        and (one.probabilities(x) == 1).all()
        and not one.is_novel(x, one.probabilities(x), x, 0).any()
    )
    with pytest.raises(DataError, match="No cell"):
        fit_ensemble(x[:0], np.zeros(0, dtype=str), np.zeros(0, dtype=str), verbose=False)
    assert (typing_module.MIN_CELLS_PER_GENE, typing_module.RARE, typing_module._FLOOR) == (
        5,
        20,
        1e-4,
    )
