"""Novelty detection: each score by brute force, thresholds as quantiles, and the flagged cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scmamba.annotation import novelty
from scmamba.annotation.novelty import (
    NoveltyDetector,
    call_evidence,
    common_space,
    novelty_scores,
    unit,
)


def test_constants():
    assert (novelty.COMPONENTS, novelty.NEAREST, novelty.AROUND, novelty.OVER) == (
        50,
        5,
        15,
        (15, 15, 5),
    )
    assert (
        novelty.FEW,
        novelty.ALONE,
        novelty.REJECTED,
        novelty.ENOUGH,
        novelty.FEWEST,
        novelty._CAP,
    ) == (0.98, 0.5, 0.08, 20, 60, 6.0)


def test_directions_by_hand():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.poisson(2.0, (40, 12)).astype(float))
    space = common_space(x, 0)
    np.testing.assert_allclose(np.linalg.norm(space, axis=1), 1)
    left, size, _ = np.linalg.svd(x.toarray(), full_matrices=False)
    exact = unit((left * size)[:, :11])
    np.testing.assert_allclose(space @ space.T, exact @ exact.T, atol=1e-3)
    assert common_space(x[:1], 0).tolist() == [[1.0]]


def test_call_evidence_by_hand():
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    found = call_evidence(p, np.array([[-10.0, -20], [-30, -40]]), np.array([[1.0, 2], [3, 4]]))
    np.testing.assert_allclose(found, [[0.3, 10, -1], [0.2, 40, -4]])


def brute(here, there, evidence, own):
    """The five novelty scores, one cell at a time."""
    n, rows = len(here), []
    calm = np.minimum(evidence, np.quantile(evidence, 0.98, axis=0))
    k = int(np.clip(n // 20, 1, 15))
    for i in range(n):
        to_reference = np.sort(np.linalg.norm(there - here[i], axis=1))[:5].mean()
        others = np.sort([np.linalg.norm(here[j] - here[i]) for j in own if j != i])[:5].mean()
        near = np.argsort(np.linalg.norm(here - here[i], axis=1), kind="stable")[:k]
        rows.append(
            [
                np.log(max(to_reference, 1e-3) / max(others, 1e-3)),
                calm[near[:15], 0].mean(),
                calm[near[:15], 1].mean(),
                calm[near[:5], 2].mean(),
                evidence[i, 1],
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize(("n", "pool"), [(100, 100), (320, 320), (120, 40)])
def test_novelty_scores_by_brute_force(n, pool):
    rng = np.random.default_rng(n)
    here, there, evidence = (
        rng.normal(size=(n, 4)),
        rng.normal(size=(90, 4)),
        rng.normal(size=(n, 3)),
    )
    own = (
        np.arange(n)
        if n <= pool
        else np.sort(np.random.default_rng(7).choice(n, pool, replace=False))
    )
    np.testing.assert_allclose(
        novelty_scores(here, there, evidence, pool, 7), brute(here, there, evidence, own), atol=1e-8
    )


def test_few_cells_are_not_isolated():
    rng = np.random.default_rng(0)
    here, there = rng.normal(size=(6, 3)), rng.normal(size=(30, 3))
    assert not novelty_scores(here, there, np.zeros((6, 3)), 100, 0)[:, 0].any()
    assert novelty_scores(rng.normal(size=(7, 3)), there, np.zeros((7, 3)), 100, 0)[:, 0].all()


@pytest.fixture(scope="module")
def detector() -> NoveltyDetector:
    rng = np.random.default_rng(1)
    called = np.r_[np.zeros(150, int), np.ones(60, int), np.full(19, 2)]
    return NoveltyDetector(called, rng.gamma(2.0, size=(229, 5)) * (1 + called[:, None]), 1.0, 70)


def test_scores_are_scaled_by_deciles_of_the_called_class(detector):
    rng = np.random.default_rng(2)
    shown, called = rng.gamma(2.0, size=(12, 5)) * 2, np.array([0, 1, 2] * 4)
    shown[0, 1] = 1e6
    found = detector.standardized_score(shown, called)
    for i in range(12):
        base = (
            detector.shown[detector.called == called[i]] if called[i] < 2 else detector.shown
        )  # 19 cells are too few
        middle = np.median(base, axis=0)
        each = (shown[i] - middle) / (np.quantile(base, 0.9, axis=0) - middle + 1e-6)
        each[4] /= 2
        assert found[i] == pytest.approx(np.clip(each, -2, 6).max())
    assert found[0] == 6


def test_cells_of_a_shifted_domain_are_compared_with_each_other(detector):
    rng = np.random.default_rng(3)
    shown, called = rng.gamma(2.0, size=(80, 5)) * 3 + 4, np.arange(80) % 2
    found = detector.standardized_score(shown, called, foreign=True)
    for c in (0, 1):
        own, base = shown[called == c], detector.shown[detector.called == c]
        here, middle = np.median(own, axis=0), np.median(base, axis=0)
        spread = np.maximum(
            np.quantile(base, 0.9, axis=0) - middle, 1.9 * (np.quantile(own, 0.75, axis=0) - here)
        )
        each = (own - np.maximum(middle, here)) / (spread + 1e-6)
        each[:, 4] /= 2
        np.testing.assert_allclose(found[called == c], np.clip(each, -2, 6).max(axis=1))
    low, middle, high = np.quantile(detector.shown[:, 0], [0.25, 0.5, 0.9])
    for shift, foreign in ((high - middle + low - 1e-6, False), (high - middle + low + 1e-6, True)):
        moved = np.tile(np.r_[shift - 1, np.full(3, shift), shift + 9][:, None], (1, 5))
        assert detector.is_domain_shifted(moved) == foreign


def test_novel_cells_have_a_score_above_the_threshold(detector):
    rng = np.random.default_rng(4)
    shown, called = rng.gamma(2.0, size=(50, 5)), np.arange(50) % 2
    np.testing.assert_array_equal(
        detector.is_novel(shown, called),
        detector.standardized_score(shown, called, detector.is_domain_shifted(shown)) > 1.0,
    )
    away = shown + 50
    assert detector.is_domain_shifted(away)
    np.testing.assert_array_equal(
        detector.is_novel(away, called), detector.standardized_score(away, called, True) > 1.0
    )
    assert detector.is_novel(shown[:0], called[:0]).shape == (0,)
    assert (
        not NoveltyDetector(detector.called, detector.shown, np.inf, 70)
        .is_novel(away, called)
        .any()
    )


def test_each_fold_is_scored_against_the_others():
    rng = np.random.default_rng(5)
    space, evidence = rng.normal(size=(150, 4)), rng.normal(size=(150, 3))
    fold, called = np.repeat([0, 1, 2], [60, 50, 40]), np.arange(150) % 2
    found = NoveltyDetector.of(space, called, evidence, fold, 3)
    assert found.pool == 40
    for f in range(3):
        here = fold == f
        np.testing.assert_allclose(
            found.shown[here], novelty_scores(space[here], space[~here], evidence[here], 40, 3)
        )
    standing = found.standardized_score(found.shown, called)
    assert found.level == pytest.approx(np.quantile(standing, 0.92)) and np.mean(
        standing > found.level
    ) == pytest.approx(0.08, abs=0.01)
    assert np.isinf(
        NoveltyDetector.of(space[:59], called[:59], evidence[:59], np.arange(59) % 3, 3).level
    )
    assert np.isfinite(
        NoveltyDetector.of(space[:60], called[:60], evidence[:60], np.arange(60) % 3, 3).level
    )
    assert (
        len(NoveltyDetector.of(space, called, evidence, np.zeros(150, int), 3).called) == 0
    )  # with one fold there are no others
