"""The continuous part: least squares over the expressing cells, and the variance that all genes share."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from mast_by_hand import normal, shared_variance
from scipy.optimize import approx_fprime
from scipy.special import betaln

from scmamba.deg import prior as prior_module
from scmamba.deg.continuous import fit_continuous, shrunken
from scmamba.deg.prior import NO_PRIOR, Prior, estimate_prior
from scmamba.utils.errors import DataError


def _fit(x, values, prior):
    cells = [np.flatnonzero(column > 0) for column in values.T]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in cells])]).astype(np.int64)
    data = np.concatenate([column[c] for column, c in zip(values.T, cells, strict=True)])
    return fit_continuous(indptr, np.concatenate(cells), data, x, prior)


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    n = 60
    x = np.column_stack([np.ones(n), np.arange(n) % 2, rng.normal(size=n), rng.uniform(5, 6, n)])
    values = rng.gamma(2, 1, (n, 8)) * (rng.random((n, 8)) < np.linspace(0.2, 1, 8))
    return x, values


@pytest.mark.parametrize("prior", [NO_PRIOR, Prior(0.7, 3.5)])
def test_least_squares_and_shrunken_variance(example, prior):
    x, values = example
    fit = _fit(x, values, prior)
    for gene, y in enumerate(values.T):
        truth = normal(x, y, prior.variance, prior.dof)
        assert fit.n[gene] == (y > 0).sum() and fit.rank[gene] == 4 and fit.df[gene] == truth.df
        assert fit.fitted[gene]
        np.testing.assert_allclose(fit.rss[gene], truth.rss, rtol=1e-10)
        np.testing.assert_allclose(fit.s2_ml[gene], truth.s2_ml, rtol=1e-10)
        np.testing.assert_allclose(fit.log_lik[gene], truth.log_lik, rtol=1e-10)
        np.testing.assert_allclose(fit.coef[gene], truth.coef, rtol=1e-8)
        np.testing.assert_allclose(fit.cov[gene], truth.cov, rtol=1e-8)


def test_without_a_prior_it_is_statsmodels(example):
    x, values = example
    fit = _fit(x, values, NO_PRIOR)
    for gene, y in enumerate(values.T):
        truth = sm.OLS(y[y > 0], x[y > 0]).fit()
        np.testing.assert_allclose(fit.coef[gene], truth.params, rtol=1e-8)
        np.testing.assert_allclose(np.sqrt(np.diag(fit.cov[gene])), truth.bse, rtol=1e-8)
        np.testing.assert_allclose(fit.log_lik[gene], truth.llf, rtol=1e-10)


def test_shrunken_by_hand():
    """(rss + v d) / (n + d), and a likelihood of n values, not n + d."""
    s2, log_lik = shrunken(np.array([4, 10]), np.array([2.0, 7.0]), Prior(0.5, 6.0))
    np.testing.assert_allclose(s2, [0.5, 10 / 16])
    by_hand = [-2 * (np.log(np.pi) + 1), -5 * (np.log(2 * np.pi * 0.625) + 1)]
    np.testing.assert_allclose(log_lik, by_hand)


def test_few_expressing_cells():
    """One value: not fitted. Two of one group: the group is aliased, one df. Two and one: rank 2."""
    x = np.column_stack([np.ones(6), [0, 0, 0, 1, 1, 1]]).astype(float)
    values = np.zeros((6, 4))
    values[0, 0] = 2.0
    values[:2, 1] = [1.0, 4.0]
    values[[0, 1, 3], 2] = [1.0, 4.0, 7.0]
    values[[0, 3], 3] = [1.0, 4.0]
    fit = _fit(x, values, NO_PRIOR)
    assert fit.n.tolist() == [1, 2, 3, 2] and fit.rank.tolist() == [1, 1, 2, 2]
    assert fit.df.tolist() == [0, 1, 1, 0] and fit.fitted.tolist() == [False, True, True, False]
    assert (
        np.isnan(fit.coef[0]).all() and np.isnan(fit.coef[3]).all() and np.isnan(fit.cov[3]).all()
    )
    np.testing.assert_allclose(fit.coef[1:3], [[2.5, np.nan], [2.5, 4.5]])
    np.testing.assert_allclose(fit.rss[:3], [0, 4.5, 4.5], atol=1e-15)
    np.testing.assert_allclose(fit.cov[1], [[2.25, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(fit.cov[2], [[2.25, -2.25], [-2.25, 6.75]])
    assert fit.log_lik[0] == 0 and np.isnan(fit.s2_ml[[0, 3]]).all()
    # A prior adds degrees of freedom to the variance but does not affect whether a fit is possible.
    assert _fit(x, values, Prior(1.0, 4.0)).fitted.tolist() == [False, True, True, False]
    np.testing.assert_allclose(_fit(x, values, Prior(1.0, 4.0)).cov[1, 0, 0], (4.5 + 4) / 5 / 2)


def test_aliased_among_expressing_cells():
    """Of two columns that are equal in these cells the later one is dropped, as in R; nearly collinear ones stay."""
    rng = np.random.default_rng(2)
    a = rng.normal(size=20)
    x = np.column_stack([np.ones(20), a, 2 * a - 3, rng.normal(size=20)])
    x[15:, 2] += 1
    values = rng.gamma(3, 1, (20, 2))
    values[15:, 0] = 0
    fit = _fit(x, values, NO_PRIOR)
    assert fit.rank.tolist() == [3, 4] and fit.df.tolist() == [12, 16]
    kept = [0, 1, 3]
    truth = sm.OLS(values[:15, 0], x[:15][:, kept]).fit()
    np.testing.assert_allclose(fit.coef[0, kept], truth.params, rtol=1e-8)
    np.testing.assert_allclose(fit.cov[0][np.ix_(kept, kept)], truth.cov_params(), rtol=1e-8)
    assert (
        np.isnan(fit.coef[0, 2])
        and np.isnan(fit.cov[0, 2]).all()
        and np.isnan(fit.cov[0, :, 2]).all()
    )
    for noise, rank in ((1e-9, 4), (1e-13, 3)):  # R's tolerance here is 1e-11
        near = np.column_stack([x[:, :2], x[:, 1] + noise * x[:, 3], x[:, 3]])
        for unit in (1e-5, 1.0, 1e5):  # relative to the length of the column, whatever its unit
            assert _fit(near * [1, 1, unit, 1], values[:, 1:], NO_PRIOR).rank[0] == rank


def test_prior_from_many_genes():
    """The maximum of the marginal likelihood, found by another optimizer, within MAST's own tolerance (1e-3)."""
    rng = np.random.default_rng(4)
    values = rng.normal(5, np.sqrt(0.6 / rng.gamma(2.5, 1 / 2.5, 300)), (30, 300))
    values[rng.random(values.shape) < 0.5] = 0
    v, d = shared_variance(values)
    around = [c[c != 0] - c[c != 0].mean() for c in values.T]
    n = np.array([len(c) for c in around])
    squares = np.array([(c**2).sum() for c in around])
    found = estimate_prior(n, squares, (values**2).sum(axis=0))
    assert found.variance == pytest.approx(v, rel=1e-3) and found.dof == pytest.approx(d, rel=1e-3)
    assert found.n_genes == 300
    assert found.variance == pytest.approx(0.6, rel=0.2) and found.dof == pytest.approx(5, rel=0.3)


def test_prior_stops_where_mast_stops(monkeypatch):
    """R's L-BFGS-B: from (1, 1), bounds .001, factr 1e7, memory 5, 100 steps; analytic gradient."""
    n, squares = np.array([5, 5, 8, 12]), np.array([2.0, 5.0, 3.0, 30.0])
    seen = {}
    real = prior_module.minimize

    def spy(function, start, **options):
        seen.update(options, start=start, function=function)
        return real(function, start, **options)

    monkeypatch.setattr(prior_module, "minimize", spy)
    found = estimate_prior(n, squares, squares)
    assert seen["start"].tolist() == [1, 1] and seen["bounds"] == [(1e-3, None)] * 2
    assert seen["options"] == {"ftol": 1e7 * 2.0**-52, "gtol": 0.0, "maxcor": 5, "maxiter": 100}
    assert seen["method"] == "L-BFGS-B" and seen["jac"] is True
    r = n - 1

    def by_hand(theta):
        a, b = theta
        terms = -betaln(r / 2, a) - r / 2 * np.log(b) - (r / 2 + a) * np.log1p(squares / (2 * b))
        return -terms.sum()

    for theta in ([1.0, 1.0], [0.4, 3.0], [5.0, 0.7]):
        value, slope = seen["function"](np.array(theta))
        zero = seen["function"](np.array([1.0, 1.0]))[0]
        assert value - zero == pytest.approx(
            by_hand(theta) - by_hand([1.0, 1.0]), rel=1e-10, abs=1e-10
        )
        np.testing.assert_allclose(slope, approx_fprime(theta, by_hand, 1e-7), rtol=1e-4, atol=1e-4)
    a, b = found.dof / 2, found.variance * found.dof / 2
    assert np.abs(approx_fprime([a, b], by_hand, 1e-7)).max() < 0.05


def test_genes_without_information_about_the_variance():
    n, squares = np.array([5, 5, 8, 12, 9]), np.array([2.0, 5.0, 3.0, 30.0, 4.0])
    truth = estimate_prior(n, squares, squares)
    more_n = np.r_[n, 1, 0, 7, 6, 7, 6, 2]
    squares_with_uninformative = np.r_[squares, 0.0, 0.0, 0.0, np.nan, 0.0, np.inf, 1.0]
    scale = np.r_[squares, 1.0, 0.0, 9.0, 1.0, 0.0, 1.0, 1.0]
    with_pair = estimate_prior(more_n, squares_with_uninformative, scale)
    assert with_pair.n_genes == 6  # two values are enough; one value or equal values are not
    without = estimate_prior(more_n[:-1], squares_with_uninformative[:-1], scale[:-1])
    assert without == truth and truth.n_genes == 5
    # rounding of equal values: 1e-26 of the sum of squares
    noise = estimate_prior(np.r_[n, 4], np.r_[squares, 0.9e-26], np.r_[squares, 1.0])
    assert noise == truth
    signal = estimate_prior(np.r_[n, 4], np.r_[squares, 1.1e-26], np.r_[squares, 1.0])
    assert signal.n_genes == 6
    with pytest.raises(DataError, match="No gene has two different"):
        estimate_prior(np.array([1, 3]), np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    assert Prior(1.0, 0.0, 0) == NO_PRIOR
