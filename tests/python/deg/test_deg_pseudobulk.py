"""Pseudobulk and the moderated t: Smyth's closed forms (Stat Appl Genet Mol Biol 3:3, 2004), as in limma."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from statsmodels.stats.multitest import multipletests

from scmamba.deg import pseudobulk
from scmamba.deg.between_donors import PRIOR_COUNT
from scmamba.deg.linear import inverse_trigamma, moderated_t, spline_basis, squeeze
from scmamba.utils.errors import DataError

DESIGN = np.column_stack([np.ones(8), np.repeat([0.0, 1.0], 4), [0, 1, 0, 1, 1, 0, 0, 1]])


def _smyth(variance, df):
    """Section 6.2: moments of log s2 give the prior's df and variance."""
    z = np.log(variance)
    e = z - digamma(df / 2) + np.log(df / 2)
    spread = e.var(ddof=1) - polygamma(1, df / 2)
    if spread <= 0:
        return np.inf, np.exp(e.mean())
    half = brentq(lambda x: polygamma(1, x) - spread, 1e-6, 1e8, xtol=1e-14, rtol=1e-14)
    return 2 * half, np.exp(e.mean() + digamma(half) - np.log(half))


def test_prior_of_the_variances():
    rng = np.random.default_rng(0)
    for df, d0 in ((4, 5.0), (7, 20.0), (1, 3.0)):
        variance = 0.3 * d0 / rng.chisquare(d0, 40) * rng.chisquare(df, 40) / df
        variance = np.maximum(variance, 1e-3)
        found, s2 = squeeze(variance, df)
        d, s = _smyth(variance, df)
        assert found == pytest.approx(d, rel=1e-6)
        np.testing.assert_allclose(s2, np.full(40, s), rtol=1e-8)
    # less spread than expected by chance: one variance for all
    equal = 0.5 + 0.01 * rng.random(40)
    found, s2 = squeeze(equal, 6)
    expected = np.exp(np.log(equal).mean() - digamma(3) + np.log(3))
    assert np.isinf(found) and s2 == pytest.approx(np.full(40, expected))


def test_variances_of_zero():
    """limma: excluded from the prior, and tiny ones raised to 1e-5 of the median."""
    variance = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 1e-9])
    d, s = _smyth(np.array([0.5, 1.0, 2.0, 4.0, 1e-5]), 3)
    found, s2 = squeeze(variance, 3)
    assert found == pytest.approx(d, rel=1e-6) and s2 == pytest.approx(np.full(6, s))
    few = squeeze(np.array([0.0, 1.0, 2.0]), 3)  # two variances are too few to estimate the spread
    assert few[0] == 0 and few[1].tolist() == [0, 0, 0]
    assert squeeze(np.array([1.0, 2.0, 90.0]), 30)[0] > 0


def testinverse_trigamma():
    for x in (1e-4, 0.03, 0.5, 1.0, 7.0, 500.0, 9e5):
        assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-7)
    # limma's two ends: 1/sqrt(y) above 1e7 and 1/y below 1e-6
    assert inverse_trigamma(4e8) == 1 / 2e4 and inverse_trigamma(1e-8) == 1e8


def test_trend_is_a_naturalspline_basis():
    """With 50 genes or more the prior depends on the level; with fewer it does not."""
    rng = np.random.default_rng(1)
    level = rng.uniform(2, 12, 80)
    variance = np.exp(1 - 0.5 * level) * 6 / rng.chisquare(6, 80) * rng.chisquare(5, 80) / 5
    variance = np.maximum(variance, 1e-4 * np.median(variance))
    d, s2 = squeeze(variance, 5, level)
    e = np.log(variance) - digamma(2.5) + np.log(2.5)
    at = np.quantile(level, [0.05, 0.275, 0.5, 0.725, 0.95])

    # truncated powers, natural at both ends: the textbook basis (Hastie et al., eq. 5.4)
    def power(k):
        return (np.maximum(level - at[k], 0) ** 3 - np.maximum(level - at[4], 0) ** 3) / (
            at[4] - at[k]
        )

    basis = np.column_stack([np.ones(80), level] + [power(k) - power(3) for k in range(3)])
    fit = sm.OLS(e, basis).fit()
    spread = fit.ssr / 75 - polygamma(1, 2.5)
    half = brentq(lambda x: polygamma(1, x) - spread, 1e-6, 1e8, xtol=1e-14, rtol=1e-14)
    assert d == pytest.approx(2 * half, rel=1e-5)
    np.testing.assert_allclose(
        s2, np.exp(fit.fittedvalues + digamma(half) - np.log(half)), rtol=1e-6
    )
    for n, trend in ((50, True), (49, False)):
        _, some = squeeze(variance[:n], 5, level[:n])
        assert (np.ptp(some) > 1e-3) == trend
    outside = np.array([-5.0, -4.0, -3.0, 30.0, 31.0, 32.0])
    bent = spline_basis(outside, level)
    np.testing.assert_allclose(
        np.diff(bent[:3], 2, axis=0), 0, atol=1e-9
    )  # linear beyond the boundary knots
    np.testing.assert_allclose(np.diff(bent[3:], 2, axis=0), 0, atol=1e-9)
    assert spline_basis(level, np.array([1.0, 1.0, 1.0])).shape == (80, 2)  # one level: a line


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    rng = np.random.default_rng(3)
    return 6 + rng.normal(size=(30, 8)) * np.sqrt(0.4 * 5 / rng.chisquare(5, 30))[:, None]


def test_moderated_t_by_its_formula(levels):
    table = moderated_t(levels, DESIGN, 1)
    fits = [sm.OLS(y, DESIGN).fit() for y in levels]
    variance = np.array([f.mse_resid for f in fits])
    d0, s0 = _smyth(variance, 5)
    coef = np.array([f.params[1] for f in fits])
    post = (d0 * s0 + 5 * variance) / (d0 + 5)
    t = coef / np.sqrt(post * np.linalg.inv(DESIGN.T @ DESIGN)[1, 1])
    p = 2 * stats.t.sf(np.abs(t), d0 + 5)
    np.testing.assert_allclose(table["log2FC"], coef, rtol=1e-9)
    np.testing.assert_allclose(table["mean_log2"], levels.mean(axis=1))
    np.testing.assert_allclose(table["t"], t, rtol=1e-7)
    np.testing.assert_allclose(table["df"], d0 + 5, rtol=1e-6)
    np.testing.assert_allclose(table["p_val"], p, rtol=1e-6)
    np.testing.assert_allclose(
        table["p_val_adj"], multipletests(table["p_val"], method="fdr_bh")[1]
    )
    other = moderated_t(levels, DESIGN, 2)
    np.testing.assert_allclose(other["log2FC"], [f.params[2] for f in fits], rtol=1e-9)


def test_ordinary_t(levels):
    table = moderated_t(levels, DESIGN, 1, moderate=False)
    fits = [sm.OLS(y, DESIGN).fit() for y in levels]
    np.testing.assert_allclose(table["t"], [f.tvalues[1] for f in fits], rtol=1e-8)
    np.testing.assert_allclose(table["p_val"], [f.pvalues[1] for f in fits], rtol=1e-8)
    assert (table["df"] == 5).all()


def test_total_df_is_capped():
    """limma: no more degrees of freedom than all genes together have."""
    rng = np.random.default_rng(6)
    two = np.column_stack([np.ones(4), [0, 0, 1, 1]]).astype(float)
    for seed in range(40):
        some = np.random.default_rng(seed).normal(size=(3, 4))
        variance = np.array([sm.OLS(y, two).fit().mse_resid for y in some])
        d0, s0 = _smyth(variance, 2)
        if np.isfinite(d0) and d0 + 2 > 6:
            break
    table = moderated_t(some, two, 1)
    assert (table["df"] == 6).all()
    post = (d0 * s0 + 2 * variance) / (d0 + 2)
    t = np.array([sm.OLS(y, two).fit().params[1] for y in some]) / np.sqrt(post)
    np.testing.assert_allclose(table["p_val"], 2 * stats.t.sf(np.abs(t), 6), rtol=1e-6)
    # an infinite prior: the normal distribution
    same = rng.normal(size=(1, 8)) + np.zeros((40, 1)) + 1e-3 * rng.normal(size=(40, 8))
    table = moderated_t(same, DESIGN, 1)
    assert np.isinf(table["df"]).all()
    np.testing.assert_allclose(table["p_val"], 2 * stats.norm.sf(np.abs(table["t"])), rtol=1e-5)


def test_gene_without_any_difference(levels):
    flat = np.vstack([levels, np.full(8, 3.0)])
    table = moderated_t(flat, DESIGN, 1, moderate=False)
    assert table["p_val"].iloc[-1] == 1 or abs(table["log2FC"].iloc[-1]) < 1e-12
    zero = moderated_t(np.zeros((2, 8)), DESIGN, 1, moderate=False)
    assert zero["p_val"].tolist() == [1, 1]


@pytest.fixture()
def adata() -> ad.AnnData:
    """Donors d0-d3 case, d4-d7 control, 12 cells each and d8 with 5; 20 genes of counts."""
    rng = np.random.default_rng(5)
    donor = np.repeat(np.arange(9), [12] * 8 + [5])
    obs = pd.DataFrame(
        {"donor": [f"d{d}" for d in donor], "group": np.where(donor < 4, "case", "ctrl")}
    )
    obs["age"] = 50.0 + np.array([1, 4, 9, 2, 7, 7, 3, 5, 0])[donor]
    obs["sex"] = np.where(donor % 3 == 0, "f", "m")
    obs.index = [f"c{i}" for i in range(101)]
    counts = (
        rng.negative_binomial(2, 0.4, (101, 20)) + (donor < 4)[:, None] * (np.arange(20) == 2) * 4
    )
    counts[:, 18] = 0
    counts[0, 18] = 30  # one sample only
    counts[:, 19] = 0
    counts[[0, 12, 24, 36], 19] = [3, 2, 2, 2]  # nine in all
    order = rng.permutation(101)
    return ad.AnnData(
        sp.csr_matrix(counts)[order],
        obs=obs.iloc[order],
        var=pd.DataFrame(index=[f"g{i}" for i in range(20)]),
    )


def _levels(adata, samples):
    """edgeR's log counts per million with a prior count of 2, in proportion to the library."""
    frame = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)
    sums = frame.groupby(adata.obs["donor"].to_numpy()).sum().loc[samples["donor"]]
    library = sums.sum(axis=1)
    prior = 2 * library / library.mean()
    return np.log2(sums.add(prior, axis=0).div(library + 2 * prior, axis=0) * 1e6)


def test_genes_samples_and_order(adata):
    assert PRIOR_COUNT == 2
    table = pseudobulk(adata, "group", "donor", "case", "ctrl")
    samples = table.attrs["samples"]
    assert samples["donor"].tolist() == [f"d{i}" for i in range(8)]  # d8 has 5 cells: fewer than 10
    assert samples["group"].tolist() == [0] * 4 + [1] * 4 and (samples["cells"] == 12).all()
    # g18 is in one sample, g19 has a sum of 9: fewer than 10
    assert set(table.index) == {f"g{i}" for i in range(18)} and table.index.name == "gene"
    assert (np.diff(table["p_val"]) >= 0).all() and table.index[0] == "g2"
    levels = _levels(adata, samples).T
    two = np.column_stack([np.ones(8), [1] * 4 + [0] * 4]).astype(float)
    truth = moderated_t(levels.loc[table.index].to_numpy(), two, 1)
    np.testing.assert_allclose(table["t"], truth["t"], rtol=1e-8)
    np.testing.assert_allclose(table["mean_log2"], levels.mean(axis=1)[table.index], rtol=1e-12)
    change = levels.iloc[:, :4].mean(axis=1) - levels.iloc[:, 4:].mean(axis=1)
    np.testing.assert_allclose(table["log2FC"], change[table.index], rtol=1e-9)
    assert table.loc["g2", "log2FC"] > 0.5
    wide = pseudobulk(adata, "group", "donor", "case", min_cells=5, min_total=9)
    assert len(wide.attrs["samples"]) == 9 and "g19" in wide.index and "g18" not in wide.index
    assert "g19" not in pseudobulk(adata, "group", "donor", "case", min_total=9.5).index


def test_covariates(adata):
    table = pseudobulk(adata, "group", "donor", "case", covariates=["age", "sex"], moderate=False)
    samples = table.attrs["samples"]
    donors = adata.obs.groupby("donor").first().loc[samples["donor"]]
    x = np.column_stack(
        [np.ones(8), samples["group"] == 0, donors["age"], donors["sex"] == "m"]
    ).astype(float)
    levels = _levels(adata, samples)
    for gene in ("g2", "g7"):
        truth = sm.OLS(levels[gene].to_numpy(), x).fit()
        assert table.loc[gene, "log2FC"] == pytest.approx(truth.params[1], rel=1e-8)
        assert table.loc[gene, "p_val"] == pytest.approx(truth.pvalues[1], rel=1e-7)
    assert (table["df"] == 4).all()
    with pytest.raises(DataError, match="no column 'batch' in obs to use as a covariate"):
        pseudobulk(adata, "group", "donor", "case", covariates="batch")
    with pytest.raises(DataError, match="no column 'patient'"):
        pseudobulk(adata, "group", "patient", "case")
    adata.obs["side"] = np.where(np.arange(101) % 2 == 0, "left", "right")  # two values per donor
    with pytest.raises(DataError, match="'side' varies within donor d0"):
        pseudobulk(adata, "group", "donor", "case", covariates="side")
    adata.obs["id"] = adata.obs["donor"]
    with pytest.raises(DataError, match="linear combination of 'id'"):
        pseudobulk(adata, "group", "donor", "case", covariates="id")


def test_log_values_are_averaged_as_numbers(adata):
    totals = np.asarray(adata.X.sum(axis=1))
    logs = np.log1p(adata.X.toarray() / totals * 1e4)
    adata.layers["logs"] = sp.csr_matrix(logs)
    table = pseudobulk(adata, "group", "donor", "case", layer="logs", moderate=False)
    means = (
        pd.DataFrame(np.expm1(logs), columns=adata.var_names)
        .groupby(adata.obs["donor"].to_numpy())
        .mean()
    )
    levels = np.log2(means.iloc[:8] * 100 + 2)  # a million, and the same prior count
    assert "g19" in table.index and "g18" not in table.index
    for gene in ("g2", "g9"):
        change = levels[gene].iloc[:4].mean() - levels[gene].iloc[4:].mean()
        assert table.loc[gene, "log2FC"] == pytest.approx(change, rel=1e-9)
        assert table.loc[gene, "mean_log2"] == pytest.approx(levels[gene].mean(), rel=1e-9)
        truth = stats.ttest_ind(levels[gene].iloc[:4], levels[gene].iloc[4:]).pvalue
        assert table.loc[gene, "p_val"] == pytest.approx(truth, rel=1e-7)
    forced = pseudobulk(adata, "group", "donor", "case", layer="logs", scale="counts")
    assert not np.allclose(forced.loc["g2", "log2FC"], table.loc["g2", "log2FC"])


def test_pairs(adata):
    """Within donors if all have both groups; on request if only some do."""
    with pytest.raises(DataError, match="nothing can be paired"):
        pseudobulk(adata, "group", "donor", "case", paired=True)
    number = adata.obs["donor"].str[1:].astype(int)
    adata.obs["donor"] = ["p" + str(d % 4) for d in number]  # d8 joins p0, in the controls
    samples = pseudobulk(adata, "group", "donor", "case").attrs["samples"]
    assert samples["cells"].tolist() == [12] * 4 + [17, 12, 12, 12]
    assert (pseudobulk(adata, "group", "donor", "case", moderate=False)["df"] == 3).all()
    assert (
        pseudobulk(adata, "group", "donor", "case", moderate=False, paired=False)["df"] == 6
    ).all()
    adata.obs["donor"] = np.where(number == 8, "p9", adata.obs["donor"])
    some = pseudobulk(adata, "group", "donor", "case", moderate=False, min_cells=5)
    assert (some["df"] == 7).all()  # p9 has controls only: not paired by default
    assert (
        pseudobulk(adata, "group", "donor", "case", moderate=False, min_cells=5, paired=True)["df"]
        == 3
    ).all()


def test_too_few_donors(adata):
    keep = adata[~adata.obs["donor"].isin(["d5", "d6", "d7"])]
    with pytest.raises(DataError, match="have 4 and 1 donors with at least 10 cells"):
        pseudobulk(keep, "group", "donor", "case")
    assert len(pseudobulk(keep, "group", "donor", "case", min_cells=5).attrs["samples"]) == 6
    adata.obs["donor"] = adata.obs["donor"].where(adata.obs["donor"] != "d1")
    with pytest.raises(DataError, match="missing for 12 cells"):
        pseudobulk(adata, "group", "donor", "case")
