"""The discrete part: Bayesian logistic regression, on tables, on groups and cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from mast_by_hand import logistic, prior_rows
from scipy.special import expit

from scmamba.deg import discrete
from scmamba.deg.discrete import fit_discrete, penalty, prior_scales, table_tests


def _fit(x, on, bayes=True):
    """``on`` (cells, genes) of True/False."""
    cells = [np.flatnonzero(column) for column in on.T]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in cells])])
    return fit_discrete(indptr.astype(np.int64), np.concatenate(cells), x, bayes=bayes)


def _check(x, on, bayes=True, tol=1e-9):
    fit = _fit(x, on, bayes)
    for gene, y in enumerate(on.T.astype(float)):
        truth = logistic(x, y, bayes)
        assert fit.converged[gene] == truth.converged
        assert fit.iterations[gene] == truth.iterations
        assert fit.deviance[gene] == pytest.approx(truth.deviance, rel=tol, abs=tol)
        if truth.converged:
            assert fit.log_lik[gene] == -fit.deviance[gene] / 2
            np.testing.assert_allclose(fit.coef[gene], truth.coef, rtol=1e-7, atol=tol)
            np.testing.assert_allclose(fit.cov[gene], truth.cov, rtol=1e-6, atol=tol)
    return fit


def _factors(n, rng):
    return np.column_stack([np.ones(n), np.arange(n) % 2, rng.integers(0, 2, n)]).astype(float)


def _covariates(n, rng):
    return np.column_stack([np.ones(n), np.arange(n) % 2, rng.normal(size=n), rng.uniform(2, 9, n)])


def test_prior_standard_deviations():
    """arm's: 10 for the intercept, 2.5 over the range of two values, over 2 sd of more."""
    x = np.column_stack([np.ones(5), [0, 3, 3, 0, 3], [1, 2, 3, 4, 10], np.full(5, 7.0)])
    sd = np.std([1, 2, 3, 4, 10], ddof=1)
    np.testing.assert_allclose(prior_scales(x), [10, 2.5 / 3, 2.5 / (2 * sd), 2.5], rtol=1e-15)
    np.testing.assert_allclose(prior_scales(x * 1e14)[1:3], [1e-12, 1e-12])  # arm's least scale
    rows = prior_rows(x)
    np.testing.assert_allclose(penalty(x), rows.T @ rows, rtol=1e-13)


@pytest.mark.parametrize("bayes", [True, False])
def test_few_cells_and_factors(bayes):
    rng = np.random.default_rng(0)
    x = _factors(40, rng)
    on = rng.random((40, 6)) < np.linspace(0.2, 0.8, 6)
    if bayes:  # without a prior a single cell would separate the groups
        on[:, 0] = np.arange(40) == 7
    _check(x, on, bayes)
    _check(x[:, :1], on, bayes)
    _check(x[:, :2], on, bayes)  # saturated
    _check(_covariates(40, rng), on, bayes)  # a row of the design per cell


@pytest.mark.parametrize("n", [64, 300, 530])
@pytest.mark.parametrize("bayes", [True, False])
def test_cell_by_cell(n, bayes):
    """Numbers per cell, in whole and in broken blocks."""
    rng = np.random.default_rng(n)
    x = _covariates(n, rng)
    on = rng.random((n, 5)) < 1 / (1 + np.exp(-x[:, [2]] * np.array([0, 0.5, -1, 2, 0.3])))
    on[:, 0] = np.arange(n) == 3 if bayes else np.arange(n) < 3
    _check(x, on, bayes)


def test_both_methods_agree():
    """Eight distinct rows are counted; 64 distinct rows are fitted cell by cell. The results agree."""
    rng = np.random.default_rng(3)
    x = np.repeat(_covariates(8, rng), 8, axis=0)
    on = rng.random((64, 4)) < 0.4
    grouped = _fit(x, on)
    x[:, 2] += np.arange(64) * 1e-13  # now no two rows are equal
    single = _fit(x, on)
    np.testing.assert_allclose(grouped.coef, single.coef, rtol=1e-7)
    np.testing.assert_allclose(grouped.deviance, single.deviance, rtol=1e-9)


@pytest.mark.parametrize("bayes", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
def test_far_outliers_are_limited_as_in_r(bayes, rounded):
    """Beyond 30 on the log-odds scale R uses eps and 1/eps as the odds."""
    rng = np.random.default_rng(1)
    depth = rng.normal(size=900)
    if rounded:  # few distinct rows: counted, not cell by cell
        depth = depth.round()
    depth[:2] = [400.0, -400.0]
    x = np.column_stack([np.ones(900), depth])
    on = rng.random((900, 2)) < expit(2 * depth)[:, None]
    on[0], on[1] = True, False
    on[:, 1] = ~on[:, 1]
    fit = _check(x, on, bayes, tol=1e-7)
    assert np.abs(fit.coef[:, 1] * 400).min() > 30


def test_plain_regression_is_statsmodels():
    rng = np.random.default_rng(5)
    x = _covariates(120, rng)
    y = rng.random(120) < 0.4
    fit = _fit(x, y[:, None], bayes=False)
    truth = sm.Logit(y.astype(float), x).fit(disp=0)
    np.testing.assert_allclose(fit.coef[0], truth.params, rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.cov[0])), truth.bse, rtol=1e-3)
    assert fit.log_lik[0] == pytest.approx(truth.llf, rel=1e-9)


def test_separated_groups_as_mast():
    """60 + 60 cells; coefficients and statistics that MAST 1.32.0 returned."""
    x = np.column_stack([np.ones(120), np.repeat([0.0, 1.0], 60)])
    on = np.zeros((120, 4), dtype=bool)
    on[60:80, 0] = True  # 0 v 20
    on[:60, 1] = True  # all v none
    on[:, 2] = True  # all
    fit = _check(x, on[:, :3])
    fit = _fit(x, on)
    null = _fit(x[:, :1], on)
    lam = null.deviance - fit.deviance
    assert fit.coef[0, 1] == pytest.approx(3.817, abs=5e-4) and lam[0] == pytest.approx(
        30.47, abs=5e-3
    )
    assert fit.coef[1, 1] == pytest.approx(-7.72, abs=5e-3) and lam[1] == pytest.approx(
        161.4, abs=0.05
    )
    assert lam[2] == pytest.approx(0, abs=1e-6) and fit.iterations[2] == 11
    # never expressed: no fit
    assert not fit.converged[3] and fit.iterations[3] == -1 and fit.log_lik[3] == 0
    assert np.isnan(fit.coef[3]).all() and np.isnan(fit.cov[3]).all()
    statistic, ok = table_tests(
        np.array([0, 60, 60, 0]), np.array([20, 0, 60, 0]), np.full(4, 60), np.full(4, 60)
    )
    np.testing.assert_allclose(statistic[:3], lam[:3], atol=1e-9)
    assert ok.tolist() == [True, True, True, False] and statistic[3] == 0


def test_separation_without_a_prior_does_not_converge():
    x = np.column_stack([np.ones(120), np.repeat([0.0, 1.0], 60)])
    on = np.zeros((120, 2), dtype=bool)
    on[:60, 0] = True
    on[:30, 1] = True
    on[60:70, 1] = True
    fit = _fit(x, on, bayes=False)
    assert fit.iterations[0] == 25 and not fit.converged[0] and np.isnan(fit.coef[0]).all()
    assert fit.log_lik[0] == 0 and fit.converged[1]
    # by hand: log odds 0, and log odds ratio log((10/50)/(30/30))
    np.testing.assert_allclose(fit.coef[1], [0, np.log(0.2)], atol=1e-6)
    statistic, ok = table_tests(
        np.array([60, 30]), np.array([0, 10]), np.full(2, 60), np.full(2, 60), bayes=False
    )
    assert ok.tolist() == [False, True] and statistic[0] == 0
    g = 2 * (30 * np.log(0.5) * 2 + 10 * np.log(1 / 6) + 50 * np.log(5 / 6))
    assert statistic[1] == pytest.approx(
        g - 2 * (40 * np.log(1 / 3) + 80 * np.log(2 / 3)), rel=1e-7
    )


@pytest.mark.parametrize("bayes", [True, False])
def test_tables_of_unequal_groups(bayes):
    """The 2 x 2 form against the regression on the cells."""
    tables = [(3, 9, 10, 40), (0, 4, 7, 33), (5, 1, 50, 8), (30, 12, 31, 13), (1, 0, 4, 3)]
    if not bayes:
        tables = [t for t in tables if t[0] and t[1]]
    k1, k2, n1, n2 = np.array(tables).T
    statistic, ok = table_tests(k1, k2, n1, n2, bayes=bayes)
    assert ok.all()
    for i, (a, b, m1, m2) in enumerate(tables):
        y = np.r_[np.arange(m1) < a, np.arange(m2) < b].astype(float)
        x = np.column_stack([np.ones(m1 + m2), np.repeat([0.0, 1.0], [m1, m2])])
        full, null = logistic(x, y, bayes), logistic(x[:, :1], y, bayes)
        assert statistic[i] == pytest.approx(null.deviance - full.deviance, abs=1e-9)


def test_tables_beyond_the_limit():
    """With this many cells the log odds of an empty group reach the limits."""
    statistic, ok = table_tests([0.0], [5e5], [5e5], [5e5])
    assert ok[0] and statistic[0] == pytest.approx(2 * 1e6 * np.log(2), rel=1e-4)


def test_separated_tables_converge_where_the_regression_does():
    """Without a prior the start and the number of cells determine whether 25 steps suffice."""
    sizes = np.array([4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 60, 100, 200])
    done = []
    for n in sizes:
        x = np.column_stack([np.ones(2 * n), np.repeat([0.0, 1.0], n)])
        done.append(logistic(x, 1 - x[:, 1], bayes=False).converged)
    _, ok = table_tests(sizes, 0 * sizes, sizes, sizes, bayes=False)
    assert ok.tolist() == done and 0 < sum(done) < len(done)


def test_stopping_rule_and_limits_are_those_of_r():
    assert discrete.MAX_ITERATIONS == 25 and discrete.TOLERANCE == 1e-8
    assert discrete.EPS == 2.0**-52
    # |dev - old| / (0.1 + |dev|) < 1e-8, never in the first step of the Bayesian fit
    assert not discrete.has_converged(1, 9.9, 9.9, True) and discrete.has_converged(
        1, 9.9, 9.9, False
    )
    assert discrete.has_converged(2, 9.9, 9.9 + 0.9e-7, True) and not discrete.has_converged(
        2, 9.9, 9.9 + 1.1e-7, True
    )
    assert discrete.has_converged(2, 0.0, 0.9e-9, True) and not discrete.has_converged(
        2, 0.0, 1.1e-9, True
    )
    x = np.linspace(-30, 30, 4001)
    np.testing.assert_allclose([discrete._exp(v) for v in x], np.exp(x), rtol=1e-15, atol=0)
