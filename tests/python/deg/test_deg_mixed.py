"""The mixed model of cells: an independent likelihood, exact integrals, the t-test between donors, calibration."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import integrate, optimize, stats

from scmamba.deg import compare, find_markers, zlm
from scmamba.deg.mixed import fit_mixed, make_strata, p_beyond
from scmamba.deg.mixed_kernel import RIDGE
from scmamba.utils.errors import DataError


def _cells(seed: int, n_donors: int, each: int, genes: int, level: float, sd: float, change=0.0):
    """Counts of ``each`` cells per donor with depths, donor effects and a dispersion of 0.5."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), each)
    group = (donor % 2).astype(float)
    depth = np.exp(rng.normal(0, 0.5, donor.size))
    effect = rng.normal(0, sd, (n_donors, genes))[donor]
    mean = depth[:, None] * np.exp(level + change * group[:, None] + effect)
    counts = rng.negative_binomial(2, 2 / (2 + mean))
    return counts, depth, donor, group


def _dense(theta, y, depth, donor, x):
    """Restricted Laplace likelihood of one gene from its definition: joint mode and joint Hessian over all cells."""
    phi, sigma2 = np.exp(theta)
    z = np.column_stack([x, np.eye(donor.max() + 1)[donor]])
    penalty = np.r_[np.zeros(x.shape[1]), np.full(donor.max() + 1, 1 / sigma2)]
    u = np.zeros(z.shape[1])
    u[0] = np.log(y.sum() / depth.sum())
    for _ in range(25):
        mu = depth * np.exp(z @ u)
        gradient = z.T @ ((y - mu) / (1 + phi * mu)) - penalty * u
        hessian = (z.T * ((1 + phi * y) * mu / (1 + phi * mu) ** 2)) @ z + np.diag(penalty)
        u = u + np.linalg.solve(hessian, gradient)
    law = stats.nbinom.logpmf(y, 1 / phi, 1 / (1 + phi * mu)).sum()
    value = law - 0.5 * (penalty * u**2).sum() - 0.5 * np.linalg.slogdet(hessian)[1]
    return value - 0.5 * (donor.max() + 1) * np.log(sigma2), u, np.linalg.inv(hessian)


@pytest.mark.parametrize("level", [-1.5, 0.5, 2.0])
def test_estimates_maximize_an_independent_likelihood(level):
    counts, depth, donor, group = _cells(3, 10, 60, 3, level, 0.4, 0.5)
    x = np.column_stack([np.ones(donor.size), group])
    fit = fit_mixed(sp.csc_matrix(counts), depth, make_strata(x, donor), 1, exact=True)
    for g in range(3):
        y = counts[:, g].astype(float)
        truth = optimize.minimize(
            lambda t, y=y: -_dense(t, y, depth, donor, x)[0],
            np.log([fit.dispersion[g], max(fit.variance[g], 0.01)]),
            method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-6},
        )
        _, u, cov = _dense(truth.x, y, depth, donor, x)
        assert fit.coef[g, 1] == pytest.approx(u[1], abs=0.005)
        assert fit.se(1)[g] == pytest.approx(np.sqrt(cov[1, 1]), rel=0.01)
        assert np.log(fit.dispersion[g]) == pytest.approx(truth.x[0], abs=0.02)
        assert np.log(fit.variance[g]) == pytest.approx(truth.x[1], abs=0.04)


def test_the_marginal_likelihood_is_the_integral_over_donors():
    counts, depth, donor, group = _cells(5, 8, 50, 1, 0.0, 0.5)
    x = np.column_stack([np.ones(donor.size), group])
    fit = fit_mixed(sp.csc_matrix(counts), depth, make_strata(x, donor), 1, exact=True)
    y, phi = counts[:, 0], fit.dispersion[0]
    total = 0.0
    for d in range(8):
        own = donor == d
        eta = np.log(depth[own]) + x[own] @ fit.coef[0]

        def density(b, start=0.0, own=own, eta=eta):
            mu = np.exp(eta + b)
            law = stats.nbinom.logpmf(y[own], 1 / phi, 1 / (1 + phi * mu)).sum()
            return np.exp(law - start + stats.norm.logpdf(b, 0, np.sqrt(fit.variance[0])))

        mode = fit.effects[0, d]
        top = np.log(density(mode))
        total += top + np.log(integrate.quad(density, -4, 4, args=(top,), points=[mode])[0])
    from scipy.special import gammaln

    assert fit.log_likelihood[0] - gammaln(y + 1).sum() == pytest.approx(total, abs=0.05)


def test_with_many_counts_it_is_the_t_test_between_donors():
    """Donors measured without error: Welch's equal-variance t-test of their log rates, 8 degrees of freedom."""
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.3, (10, 6))
    donor = np.repeat(np.arange(10), 40)
    group = (donor % 2).astype(float)
    counts = rng.poisson(np.exp(7 + 0.4 * group[:, None] + effect[donor]))
    x = np.column_stack([np.ones(donor.size), group])
    fit = fit_mixed(
        sp.csc_matrix(counts), np.ones(donor.size), make_strata(x, donor), 1, exact=True
    )
    means = np.log(counts.reshape(10, 40, 6).mean(axis=1))
    t = stats.ttest_ind(means[1::2], means[::2])
    np.testing.assert_allclose(fit.coef[:, 1], means[1::2].mean(0) - means[::2].mean(0), atol=2e-3)
    wald = fit.coef[:, 1] / fit.se(1)
    np.testing.assert_allclose(wald, t.statistic, rtol=0.01)
    assert fit.df == 8
    np.testing.assert_allclose(
        p_beyond(fit.coef[:, 1], fit.se(1), fit.df, 0.0), t.pvalue, rtol=0.05
    )
    pooled = (means[1::2].var(axis=0, ddof=1) + means[::2].var(axis=0, ddof=1)) / 2
    np.testing.assert_allclose(fit.variance, pooled, rtol=0.02)
    # The ratio of likelihoods at this variance is the square of the same t.
    np.testing.assert_allclose(fit.lr, wald**2, rtol=0.02)


def test_calibrated_under_the_null_and_finds_true_differences():
    counts, depth, donor, group = _cells(7, 12, 60, 1500, -0.5, 0.3)
    x = np.column_stack([np.ones(donor.size), group])
    strata = make_strata(x, donor)
    p = fit_mixed(sp.csc_matrix(counts), depth, strata, 1).p
    assert 0.03 < (p < 0.05).mean() < 0.06 and (p < 0.001).mean() < 0.003
    counts, depth, donor, group = _cells(8, 12, 60, 60, -0.5, 0.3, 1.5)
    found = fit_mixed(sp.csc_matrix(counts), depth, make_strata(x, donor), 1)
    assert (found.p < 0.001).mean() > 0.8
    assert found.coef[:, 1].mean() == pytest.approx(1.5, abs=0.08)
    assert np.median(found.dispersion) == pytest.approx(0.5, rel=0.1)
    assert np.median(found.variance) == pytest.approx(0.09, rel=0.25)


def test_a_group_without_counts_has_finite_estimates():
    counts, depth, donor, group = _cells(9, 10, 40, 2, 0.0, 0.2)
    counts[group == 1, 0] = 0
    x = np.column_stack([np.ones(donor.size), group])
    fit = fit_mixed(sp.csc_matrix(counts), depth, make_strata(x, donor), 1)
    assert np.isfinite(fit.coef).all() and fit.coef[0, 1] < -4 and fit.p[0] < 1e-4


def test_the_likelihood_ratio_is_that_of_the_penalized_likelihoods():
    """A group without counts: its coefficient is held by a normal prior of variance 1 / RIDGE, in units of the column."""
    counts, _, donor, group = _cells(9, 10, 40, 2, 0.0, 0.2)
    counts[group == 1, 0] = 0
    x, depth = np.column_stack([np.ones(donor.size), group]), np.ones(donor.size)
    fit = fit_mixed(sp.csc_matrix(counts), depth, make_strata(x, donor), 1)
    z = np.column_stack([x, np.eye(10)[donor]])

    def best(gene: int, free: np.ndarray) -> tuple[float, np.ndarray]:
        """Laplace's approximation over the donors at the variances of the fit, and the mode."""
        y, phi, sigma2 = counts[:, gene], fit.dispersion[gene], fit.variance[gene]
        design = z[:, free]
        penalty = np.r_[RIDGE * x.var(axis=0), np.full(10, 1 / sigma2)][free]

        def law(u):
            mu = np.exp(design @ u)
            return stats.nbinom.logpmf(y, 1 / phi, 1 / (1 + phi * mu)).sum() - penalty @ u**2 / 2

        def slope(u):
            mu = np.exp(design @ u)
            return design.T @ ((y - mu) / (1 + phi * mu)) - penalty * u

        mode = optimize.minimize(
            lambda u: -law(u), np.zeros(free.size), jac=lambda u: -slope(u), method="BFGS"
        ).x
        mu = np.exp(design @ mode)
        info = np.bincount(donor, (1 + phi * y) * mu / (1 + phi * mu) ** 2)
        return law(mode) - np.log(1 + sigma2 * info).sum() / 2, mode

    for gene in (0, 1):
        full, mode = best(gene, np.arange(12))
        null, _ = best(gene, np.delete(np.arange(12), 1))
        assert fit.coef[gene, 1] == pytest.approx(mode[1], abs=1e-3)
        assert fit.lr[gene] == pytest.approx(2 * (full - null), abs=1e-3)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    counts, _, donor, group = _cells(11, 8, 40, 120, 0.3, 0.3)
    rng = np.random.default_rng(1)
    counts[:, 0] = rng.poisson(np.where(group == 1, 8.0, 1.0))
    obs = pd.DataFrame(
        {
            "group": np.where(group == 1, "AD", "Control"),
            "donor id": [f"d{d}" for d in donor],
            "age": 60.0 + donor // 2 * 3,
            "state": np.where(rng.random(donor.size) < 0.5, "x", "y"),
        },
        index=[f"c{i}" for i in range(donor.size)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(120)])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def test_formulas_with_a_random_intercept(cells):
    model = zlm(cells, "~ group + age + (1 | `donor id`)")
    assert repr(model).startswith(
        "MixedModel(120 genes, 320 cells, 8 donors; (Intercept) + groupControl"
    )
    table = model.lrt("group")
    assert table["p_val"].idxmin() == "g0" and table.loc["g0", "log2FC"] < -2
    assert (table["df"] == 5).all()  # 8 donors, 3 coefficients
    part = model.take(np.array([0, 5])).lrt("groupControl")
    pd.testing.assert_frame_equal(part.iloc[:, :5], table.iloc[[0, 5], :5])
    plain = zlm(
        cells.X.toarray(), "~ group + age + (1 | `donor id`)", cells.obs, genes=cells.var_names
    )
    pd.testing.assert_frame_equal(plain.lrt("group"), table)
    within = zlm(cells, "~ state + (1 | `donor id`)").lrt("state")
    assert (within["df"] == 320 - 8 - 1).all()
    with pytest.raises(DataError, match="has 2 random effects"):
        zlm(cells, "~ group + (1 | `donor id`) + (1 | state)")
    with pytest.raises(DataError, match="'state' has 2 values"):
        zlm(cells, "~ group + (1 | state)")
    logs = cells.copy()
    logs.X = sp.csr_matrix(np.log1p(cells.X.toarray() / 3))
    with pytest.raises(DataError, match="needs raw counts"):
        zlm(logs, "~ group + (1 | `donor id`)")


def test_markers_with_a_random_intercept(cells):
    cells_p = find_markers(cells, "group", "AD", "Control", logfc_threshold=0)
    donor_p = find_markers(
        cells, "group", "AD", "Control", covariates="(1 | donor id)", logfc_threshold=0
    )
    assert list(donor_p.columns) == list(cells_p.columns) and donor_p.index[0] == "g0"
    rest = cells_p.index.difference(["g0"])
    # Donors differ, so the test of cells calls genes that the mixed model does not.
    many, few = ((p.loc[rest, "p_val"] < 0.05).mean() for p in (cells_p, donor_p))
    assert many > 0.15 and many > 2 * few and few < 0.1
    table = zlm(cells, "~ group + (1 | `donor id`)").lrt("group")
    np.testing.assert_allclose(donor_p["p_val"], table.loc[donor_p.index, "p_val"], rtol=1e-3)


def test_compare_by_the_mixed_model(cells):
    found = compare(cells, "group", "donor id", test="mixed", verbose=False)
    assert found.genes("all cells")["gene"].tolist()[:1] == ["g0"]
    table = found.table.set_index("gene")
    assert (table["df"] == 6).all() and table.loc["g0", "log2FC"] > 2
    large = compare(cells, "group", "donor id", test="mixed", min_log2fc=1, verbose=False)
    rows = large.table.set_index("gene")
    t = [stats.t.sf((rows["log2FC"].abs() + side) / rows["lfc_se"], 6) for side in (-1, 1)]
    np.testing.assert_allclose(rows["p_val"], np.minimum(sum(t), 1), rtol=1e-6)
