"""Likelihood ratios averaged over the dispersion: closed forms, calibration, weights of the discovery rate, DESeq2's values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from scmamba.deg.likelihood_ratio import (
    GRID,
    average_test,
    discovery_weights,
    fit_dispersions,
    mode_dispersion,
    wald_test,
)
from scmamba.deg.markers import benjamini_hochberg
from scmamba.deg.negative_binomial import likelihood_ratios, profile_likelihoods

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reference"


def _two_groups(each: int) -> np.ndarray:
    return np.column_stack([np.ones(2 * each), np.arange(2 * each) % 2]).astype(float)


def _draw(rng, genes: int, design: np.ndarray, sd: np.ndarray | float, change=0.0) -> np.ndarray:
    """Counts of donors whose levels are log-normal."""
    mean = np.exp(rng.normal(4, 1, (genes, 1)) + np.outer(np.ones(genes) * change, design[:, 1]))
    width = np.broadcast_to(sd, (genes,))[:, None]
    return rng.poisson(mean * np.exp(width * rng.normal(size=(genes, len(design))))).astype(float)


def test_ratios_are_those_of_statsmodels():
    rng = np.random.default_rng(3)
    x = np.column_stack([np.ones(12), np.arange(12) % 2, rng.normal(size=12)])
    offset = rng.normal(0, 0.4, 12)
    y = rng.negative_binomial(4, 4 / (4 + np.exp(2 + offset)), (8, 12)).astype(float)
    grid = np.array([0.05, 0.3])
    found = likelihood_ratios(y, x, offset, 0.1, grid, 1)
    np.testing.assert_allclose(
        found.profile, profile_likelihoods(y, x, offset, 0.1, grid), rtol=1e-8
    )
    moved = likelihood_ratios(y, x, offset, 0.1, grid, 1, shift=0.7)
    for g in range(8):
        for i, phi in enumerate(grid):
            family = sm.families.NegativeBinomial(alpha=phi + 0.1)

            def fit(design, offset, y=y[g], family=family):
                return sm.GLM(y, design, family=family, offset=offset).fit(tol=1e-12, maxiter=100)

            whole, rest = fit(x, offset), fit(x[:, [0, 2]], offset)
            assert found.ratio[g, i] == pytest.approx(rest.deviance - whole.deviance, abs=1e-5)
            assert found.coef[g, i] == pytest.approx(whole.params[1], abs=1e-4)
            assert found.var[g, i] == pytest.approx(
                whole.cov_params()[1, 1] / whole.scale, rel=1e-3
            )
            other = fit(x[:, [0, 2]], offset + 0.7 * x[:, 1])
            assert moved.ratio[g, i] == pytest.approx(other.deviance - whole.deviance, abs=1e-5)


@pytest.mark.parametrize("each", [4, 10])
def test_p_is_uniform_where_nothing_differs(each):
    rng = np.random.default_rng(each)
    design = _two_groups(each)
    sd = 0.3 * np.sqrt(10 / rng.chisquare(10, 3000))
    found = average_test(
        fit_dispersions(_draw(rng, 3000, design, sd), design, np.zeros(2 * each), 1)
    )
    assert 0.04 < (found.p < 0.05).mean() < 0.06
    assert (found.p < 0.001).mean() < 0.003
    # Against a minimal effect of which nothing is near, hardly any p is small.
    beyond = average_test(
        fit_dispersions(_draw(rng, 300, design, 0.2), design, np.zeros(2 * each), 1), 1.0
    )
    assert (beyond.p < 0.05).mean() < 0.01


def test_a_minimal_effect_is_tested_at_its_border():
    """With many counts of known dispersion the root of the ratio is that of a z-test."""
    rng = np.random.default_rng(5)
    design = _two_groups(60)
    mean = np.exp(6 + 0.5 * design[:, 1])
    counts = rng.negative_binomial(20, 20 / (20 + mean), (400, 120)).astype(float)
    fit = fit_dispersions(counts, design, np.zeros(120), 1)
    at = average_test(fit, 0.5).p
    assert 0.44 < at.mean() < 0.56 and 0.02 < (at < 0.05).mean() < 0.08
    none = average_test(fit)
    np.testing.assert_allclose(np.sqrt(none.statistic), none.change / none.se, rtol=0.15)
    assert np.median(average_test(fit, 0.3).p) < 1e-4 < 0.99 < np.median(average_test(fit, 0.7).p)
    # The sides are alike.
    back = fit_dispersions(counts, design * [1, -1] + [0, 1], np.zeros(120), 1)
    np.testing.assert_allclose(average_test(back, 0.45).p, average_test(fit, 0.45).p, rtol=0.02)


def test_dispersions_are_found_and_those_of_cells_are_taken_off():
    rng = np.random.default_rng(7)
    design = _two_groups(20)
    truth = np.where(np.arange(1500) < 150, 1.0, 0.05)
    mean = np.exp(rng.normal(5, 0.5, (1500, 1)))
    rate = mean * rng.gamma(1 / truth[:, None], truth[:, None], (1500, 40))
    counts = rng.poisson(rate * rng.gamma(1 / 0.2, 0.2, rate.shape)).astype(float)
    fit = fit_dispersions(counts, design, np.zeros(40), 1, 0.2)
    assert 0.8 < np.median(fit.dispersion[:150]) < 1.3  # 2 x 1.2 - 1 - 0.2 by moments
    assert np.median(fit.dispersion[150:]) == pytest.approx(0.05, abs=0.03)
    weight = discovery_weights(fit)
    assert weight.mean() == pytest.approx(1) and weight[:150].min() > np.median(weight[150:])
    mode = mode_dispersion(fit)
    assert 0.8 < np.median(mode[:150]) < 1.3


def test_weights_keep_the_false_discovery_rate():
    """Weights depend on residuals: where nothing differs, as many runs have calls as the rate allows."""
    rng = np.random.default_rng(9)
    design = _two_groups(8)
    runs, calls = 60, 0
    for _ in range(runs):
        sd = 0.2 * np.sqrt(6 / rng.chisquare(6, 400))
        fit = fit_dispersions(_draw(rng, 400, design, sd), design, np.zeros(16), 1)
        p = np.minimum(average_test(fit).p / discovery_weights(fit), 1)
        calls += bool((benjamini_hochberg(p) < 0.05).any())
    assert calls <= stats.binom.ppf(0.999, runs, 0.05)


def test_a_few_genes_get_no_prior_and_no_weights():
    rng = np.random.default_rng(1)
    design = _two_groups(5)
    fit = fit_dispersions(_draw(rng, 4, design, 0.3, 3.0), design, np.zeros(10), 1)
    np.testing.assert_array_equal(discovery_weights(fit), 1)
    assert (average_test(fit).p < 0.01).all()
    assert np.ptp(fit.ratios.profile, axis=1).min() > 0 and fit.ratios.profile.shape[1] == GRID.size


@pytest.fixture(scope="module")
def recorded():
    counts, genes, samples = (
        pd.read_csv(FOLDER / f"donor_tests_{n}.tsv", sep="\t", skipinitialspace=True)
        for n in ("counts", "deseq2", "samples")
    )
    return counts.to_numpy(dtype=float), genes, samples


def test_the_wald_test_is_that_of_deseq2(recorded):
    """Trend and optimizer differ, so numbers agree closely, not exactly."""
    counts, genes, samples = recorded
    design = np.column_stack([np.ones(8), samples["age"] - samples["age"].mean(), samples["group"]])
    fit = fit_dispersions(counts, design, np.log(samples["size_factor"].to_numpy()), 2)
    found = wald_test(fit)
    usable = counts.sum(axis=1) >= 25  # below, some estimates are infinite
    assert usable.sum() > 150
    change = found.change[usable] / np.log(2)
    assert np.corrcoef(change, genes["change"][usable])[0, 1] > 0.999
    assert np.median(np.abs(change - genes["change"][usable])) < 0.01
    ratio = found.se[usable] / np.log(2) / genes["se"][usable]
    assert 0.9 < np.median(ratio) < 1.1
    assert (
        np.corrcoef(found.statistic[usable], genes["change"][usable] / genes["se"][usable])[0, 1]
        > 0.99
    )
    assert stats.spearmanr(found.p[usable], genes["p"][usable])[0] > 0.97


def test_a_gene_without_counts_in_one_group_has_a_finite_error():
    """Its estimate is infinite; the error is that with which change / error has the gene's p, as for all other genes."""
    rng = np.random.default_rng(2)
    design = _two_groups(6)
    counts = _draw(rng, 300, design, 0.3)
    counts[0] = np.where(design[:, 1] > 0, rng.poisson(60, 12), 0)
    counts[1] = np.where(design[:, 1] > 0, 0, rng.poisson(60, 12))
    counts[2] = np.eye(12)[3] * 200  # one donor
    found = average_test(fit_dispersions(counts, design, np.zeros(12), 1))
    assert np.isfinite(found.se).all() and (found.se[:2] < 1.5).all()
    assert found.change[0] > 3 and found.change[1] < -3 and (found.p[:2] < 1e-8).all()
    z = np.abs(found.change[:2]) / found.se[:2]
    np.testing.assert_allclose(2 * stats.norm.sf(z), found.p[:2], rtol=1e-6)
    assert found.p[2] > 0.01 and abs(found.change[2]) / found.se[2] < 2.5
    beyond = average_test(fit_dispersions(counts, design, np.zeros(12), 1), 1.0)
    assert np.isfinite(beyond.se).all() and (beyond.se[:2] > 0).all()
