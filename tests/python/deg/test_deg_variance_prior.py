"""The prior of gene variances: closed forms, a known mixture, and genes that a single common prior calls wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from scmamba.deg.negative_binomial import fit_nb
from scmamba.deg.quasi_likelihood import (
    fit_quasi_likelihood,
    minimal_quasi_change,
    test_coefficient,
)
from scmamba.deg.variance_prior import (
    VarianceMixture,
    fit_variance_mixture,
    minimal_change_of_mixture,
    p_of_change,
    p_of_deviance,
)


def test_without_a_prior_p_is_that_of_the_f_test():
    rng = np.random.default_rng(1)
    s2, df = rng.gamma(2, 1, 9), rng.uniform(3, 12, 9)
    found = fit_variance_mixture(s2, df, np.ones(9), 0.0)
    deviance = rng.chisquare(1, 9) * 8
    np.testing.assert_allclose(
        p_of_deviance(deviance, found), stats.f.sf(deviance / s2, 1, df), rtol=1e-6
    )
    variance, total = found.summary()
    np.testing.assert_allclose(variance, s2, rtol=1e-6)
    np.testing.assert_allclose(total, df, rtol=1e-5)
    # A minimal effect of zero gives the same test, of t
    change = np.sqrt(deviance * 0.3)
    p = p_of_change(change, np.full(9, 0.3), 0.0, found)
    np.testing.assert_allclose(p, stats.f.sf(deviance / s2, 1, df), rtol=1e-6)
    other = p_of_change(change, np.full(9, 0.3), 0.4, found)
    t = [stats.t.sf((change + side * 0.4) / np.sqrt(0.3 * s2), df) for side in (-1, 1)]
    np.testing.assert_allclose(other, np.minimum(sum(t), 1), rtol=1e-6)


def test_an_inverse_gamma_prior_is_recovered():
    """All variances from one scaled inverse chi-squared distribution: Smyth's moderated test, up to the tail."""
    rng = np.random.default_rng(2)
    sigma2 = 12 / rng.chisquare(12, 8000)
    s2 = sigma2 * rng.chisquare(6, 8000) / 6
    found = fit_variance_mixture(s2, np.full(8000, 6.0), np.ones(8000), 12.0)
    closed = (12 + 6 * s2) / 18
    middle = (s2 > np.quantile(s2, 0.05)) & (s2 < np.quantile(s2, 0.95))
    variance = found.summary()[0]
    np.testing.assert_allclose(variance[middle], closed[middle], rtol=0.12)
    deviance = sigma2 * rng.chisquare(1, 8000)
    p = p_of_deviance(deviance, found)
    assert (p < 0.05).mean() == pytest.approx(0.045, abs=0.008)
    assert (p < 0.001).mean() < 0.002


def test_highly_variable_genes_keep_a_uniform_p():
    """5% of genes vary 40-fold: their p stays uniform, while one common prior calls them."""
    rng = np.random.default_rng(3)
    n = 40_000
    wild = np.arange(n) < n // 20
    sigma2 = np.where(wild, 40.0, 1.0)
    s2 = sigma2 * rng.chisquare(6, n) / 6
    deviance = sigma2 * rng.chisquare(1, n)
    found = fit_variance_mixture(s2, np.full(n, 6.0), np.ones(n), 6.0)
    p = p_of_deviance(deviance, found)
    one = stats.f.sf(deviance / ((6 + 6 * s2) / 12), 1, 12)
    assert (one[wild] < 0.01).mean() > 0.05 and (p[wild] < 0.01).mean() < 0.025
    assert (p[~wild] < 0.05).mean() == pytest.approx(0.048, abs=0.006)
    # Bayes' rule with the true prior
    like = stats.gamma.pdf(s2[:, None], 3, scale=np.array([1.0, 40.0]) / 3)
    truth = like * [0.95, 0.05]
    truth /= truth.sum(axis=1, keepdims=True)
    mine = (found.weight * (found.scale > 8)).sum(axis=1)
    assert np.abs(mine - truth[:, 1]).mean() < 0.02


def test_responses_of_single_donors_are_not_called():
    """Two of eight donors express 30 genes 50-fold; the groups have one of them each, or two and none."""
    rng = np.random.default_rng(4)
    base = np.exp(rng.normal(4, 1, 2000))
    rate = base[:, None] * np.exp(rng.normal(0, 0.15, (2000, 8)))
    for g in range(30):
        rate[g, rng.choice(8, 2, replace=False)] *= 50
    counts = rng.poisson(rate).astype(float)
    design = np.column_stack([np.ones(8), np.repeat([0.0, 1.0], 4)])
    p = test_coefficient(fit_quasi_likelihood(counts, design, np.zeros(8)), 1).p
    assert p[:30].min() > 1e-3
    assert (stats.false_discovery_control(p) < 0.05).sum() == 0
    assert 0.03 < (p < 0.05).mean() < 0.065


def test_the_variance_is_never_below_its_floor():
    mixture = VarianceMixture(
        np.array([0.1, 2.0]), np.array([1.0, 4.0]), np.array([[0.5, 0.5]] * 2)
    )
    np.testing.assert_allclose(mixture.variances(1.0), [[1, 2], [1, 8]])
    variance, df = mixture.summary(1.0)
    mean = [(1 + 1 / 2) / 2, (1 + 1 / 8) / 2]
    np.testing.assert_allclose(variance, 1 / np.array(mean))
    np.testing.assert_allclose(df, [2 * 0.75**2 / 0.25**2, 2 * 0.5625**2 / 0.4375**2])
    np.testing.assert_allclose(mixture.take(np.array([1])).variances(), [[0.4, 8]])


def test_power_by_the_normal_distribution_and_by_simulation():
    one = VarianceMixture(np.array([1.0]), np.array([4.0]), np.array([[1.0]]))
    least = minimal_change_of_mixture(np.array([0.25]), one, 0.01)
    assert least[0] == pytest.approx(stats.norm.isf(0.005) + stats.norm.isf(0.2), rel=1e-6)
    two = VarianceMixture(np.array([1.0, 9.0]), np.array([1.0]), np.array([[0.7, 0.3]]))
    least = minimal_change_of_mixture(np.array([1.0]), two, 0.02)[0]
    rng = np.random.default_rng(0)
    sd = np.where(rng.random(200_000) < 0.7, 1.0, 3.0)
    found = least + sd * rng.standard_normal(200_000)
    many = two._replace(trend=np.ones(found.size), weight=np.repeat(two.weight, found.size, axis=0))
    assert (p_of_deviance(found**2, many) < 0.02).mean() == pytest.approx(0.8, abs=0.005)


def test_the_change_found_with_80_percent_power():
    """Cohorts simulated with the stated change: four of five genes pass the p."""
    rng = np.random.default_rng(6)
    design = np.column_stack([np.ones(12), np.repeat([0.0, 1.0], 6)])
    phi = 0.1

    def draw(change: float) -> np.ndarray:
        mean = 60 * np.exp(change * design[:, 1])
        return rng.negative_binomial(1 / phi, 1 / (1 + phi * mean), (1500, 12)).astype(float)

    fit = fit_quasi_likelihood(draw(0.0), design, np.zeros(12))
    se = test_coefficient(fit, 1).se
    least = float(np.median(minimal_quasi_change(fit, se, 0.001, np.arange(0, 1500, 10))))
    mixed = np.concatenate([draw(0.0), draw(least)[:150]])
    p = test_coefficient(fit_quasi_likelihood(mixed, design, np.zeros(12)), 1).p
    assert (p[1500:] < 0.001).mean() == pytest.approx(0.8, abs=0.1)


def test_fits_converge_where_some_donors_have_thousands_of_counts_and_others_none():
    """XIST in women and men, in balanced groups: the fit without the condition must find the optimum, and nothing is called."""
    xist = np.array([1015, 0, 36, 0, 213, 0, 3574, 0, 182, 0, 626, 0.0])
    design = np.column_stack([np.ones(12), np.repeat([1.0, 0.0], 6)])
    offset = np.log(np.array([273, 195, 193, 137, 238, 141, 195, 230, 241, 128, 175, 122]) * 1e3)
    for phi in (0.02, 0.09, 1.0, 20.0):
        for x in (design, design[:, :1]):
            fit = fit_nb(xist[None], x, offset, np.full((1, 12), phi))

            def deviance(coef, x=x, phi=phi):
                mu, size = np.exp(offset + x @ coef), 1 / phi
                logs = np.where(xist > 0, xist * np.log(np.maximum(xist, 1) / mu), 0)
                return 2 * (logs - (xist + size) * np.log((xist + size) / (mu + size))).sum()

            start = np.r_[np.log(xist.sum() / np.exp(offset).sum()), np.zeros(x.shape[1] - 1)]
            best = minimize(deviance, start, method="Nelder-Mead", options={"fatol": 1e-10})
            assert fit.deviance[0] == pytest.approx(best.fun, rel=1e-6)
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(4, 1, 800))[:, None] * np.exp(offset - offset.mean())
    counts = rng.negative_binomial(20, 20 / (20 + mean)).astype(float)
    counts[0] = xist
    p = test_coefficient(fit_quasi_likelihood(counts, design, offset), 1).p
    assert p[0] > 0.05
