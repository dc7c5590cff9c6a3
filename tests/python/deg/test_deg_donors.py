"""Tests between donors: recorded values of edgeR and limma, statsmodels, exact sums, and calibration under the null."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from scmamba.deg.linear import moderated_t
from scmamba.deg.negative_binomial import fit_nb, profile_likelihoods
from scmamba.deg.normalization import tmm_factors
from scmamba.deg.quasi_likelihood import (
    GRID,
    cell_dispersion,
    deviance_moments,
    dispersion_trend,
    fit_quasi_likelihood,
    minimal_change,
    squeeze_by_likelihood,
    test_coefficient,
)
from scmamba.deg.shrinkage import shrink
from scmamba.deg.voom import voom_weights, weighted_moderated_t

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reference"


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"donor_tests_{name}.tsv", sep="\t", skipinitialspace=True)


@pytest.fixture(scope="module")
def recorded():
    counts, genes, samples = (_read(n) for n in ("counts", "genes", "samples"))
    design = np.column_stack([np.ones(8), samples["group"], samples["age"]])
    return counts.to_numpy(dtype=float), genes, samples, design


def test_tmm_is_that_of_edger(recorded):
    counts, _, samples, _ = recorded
    np.testing.assert_allclose(tmm_factors(counts.T), samples["tmm"], rtol=1e-10)
    same = np.tile(counts[:, :1], 3).T * [[1], [2], [5]]
    np.testing.assert_allclose(tmm_factors(same), 1)


def test_fits_are_those_of_edger(recorded):
    counts, genes, samples, design = recorded
    offset = np.log(counts.sum(axis=0) * samples["tmm"].to_numpy())
    fit = fit_nb(counts, design, offset, 0.15)
    np.testing.assert_allclose(fit.deviance, genes["deviance"], rtol=1e-5, atol=1e-6)
    null = fit_nb(counts, design[:, [0, 2]], offset, 0.15)
    np.testing.assert_allclose(null.deviance, genes["null_deviance"], rtol=1e-5, atol=1e-6)
    # A gene without counts in one group has no finite estimate; edgeR's is missing if y is zero in all samples.
    finite = (genes["coef"].abs() < 10).to_numpy()
    assert finite.sum() > 190
    np.testing.assert_allclose(fit.coef[finite, 1], genes["coef"][finite], atol=1e-3)
    grid = np.array([0.02, 0.1, 0.5])
    mine = profile_likelihoods(counts, design, offset, 0.0, grid)
    theirs = genes[["apl1", "apl2", "apl3"]].to_numpy()
    # Constants that do not depend on the dispersion may differ.
    np.testing.assert_allclose(
        np.diff(mine, axis=1)[finite], np.diff(theirs, axis=1)[finite], atol=2e-3
    )


def test_fits_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(15), np.arange(15) % 2, rng.normal(size=15)])
    offset = rng.normal(0, 0.5, 15)
    y = rng.negative_binomial(4, 4 / (4 + np.exp(2 + offset)), (20, 15)).astype(float)
    fit = fit_nb(y, x, offset, 0.2)
    for g in range(20):
        family = sm.families.NegativeBinomial(alpha=0.2)
        truth = sm.GLM(y[g], x, family=family, offset=offset).fit(tol=1e-12, maxiter=100)
        np.testing.assert_allclose(fit.coef[g], truth.params, atol=1e-4)
        np.testing.assert_allclose(fit.cov[g], truth.cov_params() / truth.scale, rtol=1e-3)
        assert fit.deviance[g] == pytest.approx(truth.deviance, rel=1e-6)
        weight = fit.mu[g] / (1 + 0.2 * fit.mu[g])
        root = np.sqrt(weight)[:, None] * x
        hat = root @ np.linalg.pinv(root)
        np.testing.assert_allclose(fit.leverage[g], np.diag(hat), rtol=1e-6)
    # With a dispersion for every sample the weighted normal equations hold.
    phi = rng.uniform(0.01, 0.6, 15)
    own = fit_nb(y, x, offset, phi[None])
    score = ((y - own.mu) / (1 + phi * own.mu)) @ x
    np.testing.assert_allclose(score, 0, atol=2e-3)
    poisson = fit_nb(y[:1], x, offset, 0.0)
    truth = sm.GLM(y[0], x, family=sm.families.Poisson(), offset=offset).fit()
    np.testing.assert_allclose(poisson.coef[0], truth.params, atol=1e-6)


def test_voom_is_that_of_limma(recorded):
    counts, genes, samples, design = recorded
    library = counts.sum(axis=0) * samples["tmm"].to_numpy()
    levels, weights = voom_weights(counts, design, library)
    np.testing.assert_allclose(weights[:, 0], genes["voom_weight1"], rtol=2e-3)
    np.testing.assert_allclose(weights[:, 5], genes["voom_weight6"], rtol=2e-3)
    found = weighted_moderated_t(levels, weights, design, 1)
    np.testing.assert_allclose(found.change, genes["voom_change"], atol=1e-3)
    np.testing.assert_allclose(found.statistic, genes["voom_t"], rtol=5e-3, atol=2e-3)
    np.testing.assert_allclose(found.p, genes["voom_p"], rtol=3e-2)
    treat = weighted_moderated_t(levels, weights, design, 1, 0.5)
    np.testing.assert_allclose(treat.p, genes["treat_p"], rtol=3e-2)


def test_equal_weights_are_the_moderated_t():
    rng = np.random.default_rng(4)
    levels = rng.normal(5, 1, (40, 9)) * rng.uniform(0.5, 2, (40, 1))
    design = np.column_stack([np.ones(9), np.arange(9) % 2])
    weighted = weighted_moderated_t(levels, np.full((40, 9), 3.0), design, 1)
    plain = moderated_t(levels, design, 1)  # 40 genes: no trend
    np.testing.assert_allclose(weighted.statistic, plain["t"], rtol=1e-8)
    np.testing.assert_allclose(weighted.p, plain["p_val"], rtol=1e-6)


@pytest.mark.parametrize(
    ("mu", "phi"), [(0.002, 0.3), (0.3, 0.2), (1.5, 1.0), (30, 0.05), (900, 0.3), (40_000, 0.02)]
)
def test_moments_of_the_unit_deviance(mu, phi):
    """Against sums over the whole distribution (scipy)."""
    law = stats.nbinom(1 / phi, 1 / (1 + phi * mu))
    y = np.arange(int(law.isf(1e-13)) + 2.0)
    p = law.pmf(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = 2 * np.where(y > 0, y * np.log(y / mu), 0)
    d -= 2 * (y + 1 / phi) * np.log((y + 1 / phi) / (mu + 1 / phi))
    mean = (p * d).sum()
    found = deviance_moments(mu, phi)
    assert found[0] == pytest.approx(mean, rel=0.02)
    assert found[1] == pytest.approx((p * (d - mean) ** 2).sum(), rel=0.04)


def test_prior_by_likelihood():
    """Known prior degrees of freedom and a known trend are recovered from genes with unequal degrees of freedom."""
    rng = np.random.default_rng(2)
    level = rng.uniform(0, 10, 4000)
    df = rng.uniform(0.5, 8, 4000)
    prior = np.exp(0.5 - 0.1 * level)
    s2 = prior * stats.f.rvs(df, 12.0, random_state=3)
    found = squeeze_by_likelihood(s2, df, level)
    assert found.prior_df == pytest.approx(12, rel=0.2)
    np.testing.assert_allclose(np.log(found.prior), np.log(prior), atol=0.12)
    expected = (found.prior_df * found.prior + df * s2) / (found.prior_df + df)
    np.testing.assert_allclose(found.posterior, expected)
    few = squeeze_by_likelihood(s2[:5], df[:5], level[:5])
    assert few.prior_df == 0 and np.array_equal(few.posterior, s2[:5])


def test_dispersion_of_cells():
    """Simulated cells with a dispersion of 0.7 within donors that differ by a factor of 3."""
    rng = np.random.default_rng(5)
    depth = rng.uniform(0.5, 2, (4, 4000))
    rate = np.array([1.0, 2, 0.7, 2.1])[:, None]
    y = rng.negative_binomial(1 / 0.7, 1 / (1 + 0.7 * rate * depth), (300, 4, 4000))
    sums, squares = y.sum(axis=2).T, (y**2).sum(axis=2).T
    cross = (y * depth).sum(axis=2).T
    sizes = np.column_stack([depth.sum(axis=1), (depth**2).sum(axis=1)])
    found = cell_dispersion(sums.astype(float), squares.astype(float), cross, sizes)
    np.testing.assert_allclose(found, 0.7, rtol=0.15)
    assert found.mean() == pytest.approx(0.7, rel=0.02)


def _null(n: int, genes: int, low: float, seed: int, effect: float = 0.0):
    rng = np.random.default_rng(seed)
    library = np.exp(rng.normal(0, 0.6, n))
    base = np.exp(rng.normal(low, 2, genes))
    phi = (0.05 + 0.3 / np.sqrt(base)) * rng.chisquare(10, genes) / 10
    design = np.column_stack([np.ones(n), np.arange(n) % 2])
    change = np.zeros(genes)
    change[: genes // 20] = effect
    mean = base[:, None] * library * np.exp(np.outer(change, design[:, 1]))
    y = rng.negative_binomial(1 / phi[:, None], 1 / (1 + phi[:, None] * mean)).astype(float)
    keep = y.sum(axis=1) >= 15
    return y[keep], design, np.log(library * 1e6), change[keep]


@pytest.mark.parametrize(("n", "low"), [(8, 3.0), (12, 0.0), (20, 3.0)])
def test_calibrated_under_the_null(n, low):
    rates = []
    for seed in range(3):
        y, design, offset, _ = _null(n, 3000, low, seed)
        p = test_coefficient(fit_quasi_likelihood(y, design, offset), 1).p
        rates.append([(p < level).mean() for level in (0.05, 0.01)])
        assert stats.false_discovery_control(p).min() > 0.01
    five, one = np.mean(rates, axis=0)
    assert 0.042 < five < 0.058 and 0.006 < one < 0.014


def test_true_differences_are_found():
    y, design, offset, change = _null(16, 3000, 3.0, 7, effect=1.0)
    fit = fit_quasi_likelihood(y, design, offset)
    found = test_coefficient(fit, 1)
    called = stats.false_discovery_control(found.p) < 0.05
    assert called[change > 0].mean() > 0.6 and (change[called] == 0).mean() < 0.1
    bias = found.change[change > 0].mean()
    assert bias == pytest.approx(1, abs=0.08)
    covered = np.abs(found.change - change) < stats.t.isf(0.025, found.df) * found.se
    assert 0.93 < covered.mean() < 0.97
    least = test_coefficient(fit, 1, minimum=1.0).p
    assert (least[change > 0] < 0.05).mean() < 0.08  # the effect is not larger than that
    none = test_coefficient(fit, 1, minimum=1e-9).p
    strong = found.p < 0.2
    assert stats.spearmanr(none[strong], found.p[strong]).statistic > 0.97


def test_power_is_as_stated():
    """Simulated t-tests: the stated change is found in 80%."""
    rng = np.random.default_rng(1)
    least = minimal_change(np.array([0.4]), np.array([9.0]), 0.001)[0]
    t = stats.nct.rvs(9, least / 0.4, size=200_000, random_state=rng)
    assert (np.abs(t) > stats.t.isf(0.0005, 9)).mean() == pytest.approx(0.8, abs=0.005)


def test_intervals_of_shrunken_changes_have_their_coverage():
    rng = np.random.default_rng(0)
    truth = np.r_[np.zeros(1800), rng.normal(0, 1.5, 200)]
    se = rng.uniform(0.1, 0.8, 2000)
    found = shrink(truth + rng.normal(0, 1, 2000) * se, se)
    assert ((found.low <= truth) & (truth <= found.high)).mean() > 0.95
    large = np.abs(found.mean) > 0.5
    assert 0.90 < ((found.low <= truth) & (truth <= found.high))[large].mean() < 0.995
    raw = truth + rng.normal(0, 1, 2000) * se
    assert ((found.mean - truth) ** 2).mean() < 0.4 * ((raw - truth) ** 2).mean()
    assert np.isnan(shrink(np.array([np.nan, 1.0]), np.array([1.0, 1.0])).mean[0])


def test_shrinkage_of_few_genes_by_hand():
    """Expectation maximization gene by gene: with ten pseudo-genes at zero, few genes shrink strongly."""
    b, se = np.array([0.1, -0.3, 2.5, 0.0, 6.0]), np.array([0.2, 0.4, 0.5, 0.1, 1.5])
    smallest = np.sqrt(np.quantile(se**2, 0.05)) / 10
    largest = 2 * np.sqrt((b**2 - se**2).max())
    steps = int(2 * np.log2(largest / smallest)) + 2
    sds = [0.0, *(smallest * (largest / smallest) ** (k / (steps - 1)) for k in range(steps))]

    def shares(weight: list[float], gene: int) -> np.ndarray:
        scale = [np.hypot(se[gene], sd) for sd in sds]
        like = [w * stats.norm.pdf(b[gene], 0, s) for w, s in zip(weight, scale)]
        return np.array(like) / sum(like)

    weight = [1 / len(sds)] * len(sds)
    for _ in range(60):
        total = sum(shares(weight, gene) for gene in range(5)) + np.array([10.0] + [0.0] * steps)
        weight = list(total / 15)
    found = shrink(b, se)
    for gene in range(5):
        kept = [sd**2 / (sd**2 + se[gene] ** 2) for sd in sds]
        share = shares(weight, gene)
        assert found.mean[gene] == pytest.approx(float(share @ kept) * b[gene], rel=1e-9)
        for level, end in ((0.025, found.low[gene]), (0.975, found.high[gene])):
            parts = [
                stats.norm.cdf(end, k * b[gene], max(np.sqrt(k) * se[gene], 1e-12)) for k in kept
            ]
            assert end == 0 or float(share @ parts) == pytest.approx(level, abs=1e-6)
    assert abs(found.mean[1]) < 0.03 and found.low[4] < 6 * 0.9 < found.high[4]


def test_one_normal_prior_gives_its_conjugate_posterior():
    rng = np.random.default_rng(8)
    truth = rng.normal(0, 1, 6000)
    b = truth + rng.normal(0, 0.5, 6000)
    found = shrink(b, np.full(6000, 0.5))
    assert np.sqrt(np.mean((found.mean - b / 1.25) ** 2)) < 0.08


def test_the_reference_of_tmm_is_the_sample_with_the_typical_quartile():
    """calcNormFactors of edgeR 3.40; the deepest sample, the second, is not the reference."""
    counts = """138 7 15 31 14 2 72 66 0 23 4 2 9 8 10 40 2 9 2 23 1 2 3 24
    92 103 69 189 78 14 110 83 4 52 52 98 18 28 16 196 1 12 15 24 6 8 18 160
    57 20 32 23 31 3 192 131 4 32 11 5 1 5 3 67 3 6 5 23 2 0 1 12
    55 4 9 47 60 3 71 70 1 6 7 6 5 1 4 16 0 1 2 8 0 1 0 14"""
    rows = np.array([[int(n) for n in row.split()] for row in counts.splitlines()])
    edger = [0.833179218290, 1.251534235480, 0.965779069200, 0.992981249927]
    np.testing.assert_allclose(tmm_factors(rows), edger, rtol=1e-11)


def test_no_gene_varies_less_than_poisson_sampling():
    """Counts that hardly vary: p is at least that of the F test with Poisson variance."""
    rng = np.random.default_rng(5)
    design = np.column_stack([np.ones(12), np.repeat([0, 1], 6)])
    even = np.round(np.exp(rng.normal(4, 1, (400, 1))) * np.repeat([1, 1.12], 6)) + rng.integers(
        0, 2, (400, 12)
    )
    fit = fit_quasi_likelihood(even, design, np.zeros(12))
    found = test_coefficient(fit, 1)
    null = fit_nb(even, design[:, :1], np.zeros(12), 0.0)
    alternative = fit_nb(even, design, np.zeros(12), 0.0)
    poisson = stats.chi2.sf(null.deviance - alternative.deviance, 1)
    assert (poisson > 1e-3).sum() > 50
    assert (found.p >= 0.9 * poisson).all()


def test_the_dispersion_trend_is_symmetric_in_expression():
    """Dispersions are averaged over genes of similar expression: reversed expression gives the reversed trend."""
    rng = np.random.default_rng(3)
    level = np.sort(rng.normal(5, 2, 900))
    peak = np.linspace(np.log(GRID[2]), np.log(GRID[-3]), 900)  # each gene's most likely dispersion
    profiles = -((np.log(GRID)[None, :] - peak[:, None]) ** 2)
    trend = dispersion_trend(profiles, level)
    np.testing.assert_allclose(
        trend, dispersion_trend(profiles[::-1], -level[::-1])[::-1], rtol=0.05
    )
    assert (np.diff(trend) >= -1e-12).all()
    # The last window has the last 200 genes: its average is theirs, with more weight on the last.
    assert np.exp(peak[-200:].mean()) < trend[-1] < np.exp(peak[-1])
