"""Edge cases of the tests: the specified result, or an error with what to do."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scmamba.deg import build_design, find_markers, pseudobulk, zlm
from scmamba.deg.linear import moderated_t, squeeze
from scmamba.deg.markers import benjamini_hochberg, round3
from scmamba.deg.subsample import donor_combinations, donor_splits
from scmamba.deg.twogroup import combine_sums, subset_sums
from scmamba.deg.variables import r_sort_key
from scmamba.utils.errors import DataError


@pytest.fixture()
def toy() -> ad.AnnData:
    """120 cells x 60 genes of counts; 12 unsorted donors, two batches; g0-g4 differ, g5 is never expressed."""
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {"group": np.tile(["case", "control"], 60)}, index=[f"c{i}" for i in range(120)]
    )
    obs["donor"] = [f"d{(i * 7) % 12}" for i in range(120)]
    obs["batch"] = rng.choice(["b1", "b2"], 120)
    obs["depth"] = rng.normal(size=120)
    mean = np.full((120, 60), 1.2)
    mean[::2, :5] *= 5
    counts = rng.negative_binomial(2, 2 / (2 + mean)).astype(np.int32)
    counts[:, 5] = 0
    counts[:, 6] += 1
    return ad.AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(60)])
    )


def test_counts_and_logs_give_the_same_table(toy):
    truth = find_markers(toy, "group", "case")
    logged = toy.copy()
    totals = np.asarray(toy.X.sum(axis=1))
    logged.layers["logs"] = sp.csr_matrix(np.log1p(toy.X.toarray() / totals * 1e4))
    pd.testing.assert_frame_equal(find_markers(logged, "group", "case", layer="logs"), truth)
    assert set(truth.index[:5]) == {f"g{i}" for i in range(5)}
    assert (truth["avg_log2FC"].iloc[:5] > 0).all()
    assert isinstance(toy.X, sp.csr_matrix) and toy.X.dtype == np.int32  # the input is untouched


def test_dense_input_other_index_types_and_float32(toy):
    truth = find_markers(toy, "group", "case")
    for matrix in (toy.X.toarray(), sp.csc_matrix(toy.X), toy.X.astype(np.float32)):
        other = ad.AnnData(matrix, obs=toy.obs, var=toy.var)
        pd.testing.assert_frame_equal(find_markers(other, "group", "case"), truth)


def test_groups_that_cannot_be_compared(toy):
    with pytest.raises(DataError, match="no cells of 'sick'"):
        find_markers(toy, "group", "sick")
    with pytest.raises(DataError, match="no column 'disease'"):
        find_markers(toy, "disease", "case")
    toy.obs["few"] = ["x", "x", *["y"] * 118]
    with pytest.raises(DataError, match="Group 1 has 2 cells; the test needs at least 3"):
        find_markers(toy, "few", "x")
    with pytest.raises(DataError, match="Group 2 has 0 cells"):
        find_markers(toy, "few", ["x", "y"])
    with pytest.raises(DataError, match="share cells"):
        find_markers(toy, "group", "case", ["case", "control"])


def test_values_without_a_known_scale(toy):
    toy.layers["tpm"] = toy.X * 1234.5
    pd.testing.assert_frame_equal(
        find_markers(toy, "group", "case", layer="tpm"), find_markers(toy, "group", "case")
    )
    toy.layers["bad"] = toy.X.astype(float)
    toy.layers["bad"].data[0] = np.inf
    with pytest.raises(DataError, match="infinite"):
        find_markers(toy, "group", "case", layer="bad")
    with pytest.raises(DataError, match="no layer 'scmamba'.*scmamba.impute"):
        find_markers(toy, "group", "case", layer="scmamba")
    with pytest.raises(DataError, match="negative"):
        find_markers(ad.AnnData(-toy.X, obs=toy.obs, var=toy.var), "group", "case", scale="counts")


def test_covariates_that_cannot_be_used(toy):
    toy.obs["gap"] = toy.obs["depth"].where(toy.obs["depth"] > 0)
    toy.obs["same"] = "one"
    with pytest.raises(DataError, match="missing for .* of 120 cells"):
        find_markers(toy, "group", "case", covariates="gap")
    with pytest.raises(DataError, match="same value in every cell"):
        find_markers(toy, "group", "case", covariates="same")
    with pytest.raises(DataError, match="'gap' is missing"):
        zlm(toy, "~ group + gap")
    with pytest.raises(DataError, match="'same' has the same value"):
        zlm(toy, "~ group + same")
    with pytest.raises(DataError, match="no column of the cell table"):
        zlm(toy, "~ group + nothing")
    with pytest.raises(DataError, match="no intercept"):
        zlm(toy, "~ 0 + group")
    with pytest.raises(DataError, match="cells x genes"):
        zlm(toy.X.T, "~ group", toy.obs)


def test_collinear_covariates_are_dropped_as_r_drops_them(toy):
    toy.obs["twin"] = (toy.obs["group"] == "control").astype(float) * 3 - 1
    fit = zlm(toy, "~ group + twin")
    assert fit.design.names == ("(Intercept)", "groupcontrol") and fit.design.aliased == ("twin",)
    truth = zlm(toy, "~ group").lrt("group")
    pd.testing.assert_frame_equal(fit.lrt("group"), truth)
    with pytest.raises(DataError, match="linear combination"):
        fit.lrt("twin")
    with pytest.raises(DataError, match="intercept cannot be tested"):
        fit.lrt("(Intercept)")
    with pytest.raises(DataError, match="no term or coefficient"):
        fit.lrt("age")


def test_gene_never_and_always_expressed_and_missing_value(toy):
    values = np.log1p(toy.X.toarray().astype(float))
    values[3, 7] = np.nan
    table = zlm(values, "~ group", toy.obs, genes=toy.var_names).lrt("group")
    never, always, lost = table.loc["g5"], table.loc["g6"], table.loc["g7"]
    for row in (never, lost):
        assert (
            row["df_H"] == 0
            and row["p_H"] == 1
            and np.isnan(row["coefC"])
            and np.isnan(row["coefD"])
        )
    # Expressed in all cells: nothing to explain, but the degree of freedom stays (conservative, as in MAST).
    assert (
        always["lambda_D"] == pytest.approx(0, abs=1e-12)
        and always["df_D"] == 1
        and always["df_H"] == 2
    )


def test_continuous_part_is_least_squares(toy):
    """Without shrinkage the continuous coefficients are statsmodels' OLS on the expressing cells."""
    values = np.log1p(toy.X.toarray().astype(float))
    fit = zlm(values, "~ group + batch + depth", toy.obs, ebayes=False)
    x = np.column_stack(
        [np.ones(120), toy.obs["group"] == "control", toy.obs["batch"] == "b2", toy.obs["depth"]]
    ).astype(float)
    for gene in (0, 17, 40):
        on = values[:, gene] > 0
        ols = sm.OLS(values[on, gene], x[on]).fit()
        np.testing.assert_allclose(fit.continuous.coef[gene], ols.params, rtol=1e-9)
        logit = sm.Logit(on.astype(float), x).fit(disp=0)
        plain = zlm(
            values[:, [gene]], "~ group + batch + depth", toy.obs, method="glm", ebayes=False
        )
        np.testing.assert_allclose(plain.discrete.coef[0], logit.params, rtol=1e-6)


def test_design_follows_r(toy):
    data = pd.DataFrame(
        {
            "f": ["b", "A", "a", "B", "_", "1"],
            "flag": [True, False, False, True, True, True],
            "c": pd.Categorical(["z", "y", "z", "y", "z", "y"], ["z", "unused", "y"]),
        }
    )
    # What R 4.2.2 returns for sort() of these in a UTF-8 locale:
    order = [
        "_",
        "1",
        "a",
        "A",
        "a b",
        "a_b",
        "a-b",
        "a.b",
        "ab",
        "b",
        "B",
        "e",
        "é",
        "f",
        "Z",
        "z1",
        "z10",
        "z2",
    ]
    assert sorted(sorted(order), key=r_sort_key) == order
    design = build_design("~ f", data)
    assert design.names == ("(Intercept)", "f1", "fa", "fA", "fb", "fB")
    assert build_design("flag * c", data).names == ("(Intercept)", "flagTRUE", "cy", "flagTRUE:cy")


def test_rounding_is_that_of_r():
    # The output of round(x, 3) in R 4.2.2; numpy's round gives the adjacent number for the last five.
    ties = np.array([0.0005, 0.0015, 0.0025, 0.1235, 2 / 3, 0.0045, 0.2345, 0.5675])
    assert round3(ties).tolist() == [0.0, 0.002, 0.002, 0.124, 0.667, 0.004, 0.234, 0.568]
    rates = np.array([1 / 80, 147 / 240, 289 / 400, 399 / 560, 616 / 640])
    assert round3(rates).tolist() == [0.013, 0.613, 0.723, 0.713, 0.963]
    assert not (np.round(rates, 3) == round3(rates)).any()


def test_bh_and_wilcoxon_against_libraries(toy):
    p = np.random.default_rng(0).uniform(size=200) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    table = find_markers(toy, "group", "case", test="wilcox")
    logs = np.log1p(toy.X.toarray() / np.asarray(toy.X.sum(axis=1)) * 1e4)
    case = (toy.obs["group"] == "case").to_numpy()
    for gene in table.index[:20]:
        values = logs[:, toy.var_names.get_loc(gene)]
        truth = stats.mannwhitneyu(values[case], values[~case], method="asymptotic").pvalue
        assert table.loc[gene, "p_val"] == pytest.approx(truth, rel=1e-10)


def test_pseudobulk_is_the_t_test_of_donors(toy):
    toy.obs["group"] = np.where(
        toy.obs["donor"].isin([f"d{i}" for i in range(6)]), "case", "control"
    )
    table = pseudobulk(toy, "group", "donor", "case", moderate=False, min_cells=5, min_total=0)
    samples = table.attrs["samples"]
    assert samples["cells"].sum() == 120 and len(samples) == 12
    sums = (
        pd.DataFrame(toy.X.toarray(), columns=toy.var_names)
        .groupby(toy.obs["donor"].to_numpy())
        .sum()
    )
    size = sums.sum(axis=1)
    prior = 2 * size / size.mean()
    levels = np.log2(sums.add(prior, axis=0).div(size + 2 * prior, axis=0) * 1e6)
    case = np.array([d in {f"d{i}" for i in range(6)} for d in levels.index])
    for gene in ("g0", "g9", "g30"):
        truth = stats.ttest_ind(levels.loc[case, gene], levels.loc[~case, gene])
        assert table.loc[gene, "p_val"] == pytest.approx(truth.pvalue, rel=1e-9)
    with pytest.raises(DataError, match="two in each are needed"):
        pseudobulk(toy, "group", "donor", "case", min_cells=11)
    with pytest.raises(DataError, match="varies within donor"):
        pseudobulk(toy, "group", "donor", "case", covariates="depth", min_cells=5)


def test_pseudobulk_pairs_donors_with_both_groups(toy):
    toy.obs["donor"] = [
        f"d{(i // 2) % 6}" for i in range(120)
    ]  # every donor has cells in both groups
    table = pseudobulk(toy, "group", "donor", "case", moderate=False, min_total=0)
    logs = {}
    for group in ("case", "control"):
        part = toy[toy.obs["group"] == group]
        sums = (
            pd.DataFrame(part.X.toarray(), columns=toy.var_names)
            .groupby(part.obs["donor"].to_numpy())
            .sum()
        )
        logs[group] = sums
    both = pd.concat(logs)
    size = both.sum(axis=1)
    prior = 2 * size / size.mean()
    levels = np.log2(both.add(prior, axis=0).div(size + 2 * prior, axis=0) * 1e6)
    truth = stats.ttest_rel(levels.loc["case", "g3"], levels.loc["control", "g3"])
    assert table.loc["g3", "p_val"] == pytest.approx(truth.pvalue, rel=1e-9)


def test_variance_shrinkage_recovers_the_simulated_prior():
    rng = np.random.default_rng(0)
    d0, s0, df = 8.0, 0.5, 6
    true = s0 * d0 / rng.chisquare(d0, 20_000)
    observed = true * rng.chisquare(df, true.size) / df
    found_df, found_s = squeeze(observed, df)
    assert found_df == pytest.approx(d0, rel=0.1) and found_s == pytest.approx(s0, rel=0.03)
    # and with a trend: the variance decreases with the level
    level = rng.uniform(2, 12, true.size)
    fall = np.exp(-0.4 * level)
    trend_df, trend_s = squeeze(observed * fall, df, level)
    assert trend_df == pytest.approx(d0, rel=0.1)
    np.testing.assert_allclose(trend_s / (s0 * fall), 1, atol=0.1)
    design = np.column_stack([np.ones(8), np.repeat([0.0, 1.0], 4)])
    levels = rng.normal(size=(20_000, 8)) * np.sqrt(true)[:, None]
    p = moderated_t(levels, design, 1)["p_val"]
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.006)


def test_donor_designs():
    assert len(donor_combinations(5, 6, (3, 3), 200, 0)) == 200  # the paper's 3 of 5 v 3 of 6
    some = donor_combinations(9, 10, (3, 3), 50, 0)
    assert (
        len(np.unique(some, axis=0)) == 50
        and (some[:, :9].sum(axis=1) == 3).all()
        and (some.sum(axis=1) == 6).all()
    )
    assert len(donor_combinations(2, 6, (3, 3), 200, 0)) == 0
    splits = donor_splits(8, 100, 0)
    assert len(splits) == 35 and len(np.unique(np.vstack([splits, 1 - splits]), axis=0)) == 70
    assert len(donor_splits(5, 100, 0)) == 10


def test_sums_add_up():
    rng = np.random.default_rng(0)
    values = sp.random(50, 20, 0.4, format="csc", random_state=1)
    centre = np.full(20, 0.3)
    part = rng.integers(0, 4, 50)
    parts = subset_sums(values, centre, (part[:, None] == np.arange(4)).astype(np.uint8))
    whole = combine_sums(parts, np.array([[1, 0, 1, 1]]))[0]
    dense = values.toarray()[part != 1]
    assert whole.n == len(dense)
    np.testing.assert_allclose(whole.expressed, (dense > 0).sum(axis=0))
    np.testing.assert_allclose(
        whole.squares, np.where(dense > 0, (dense - 0.3) ** 2, 0).sum(axis=0)
    )
    np.testing.assert_allclose(whole.linear, np.expm1(dense).sum(axis=0))
