"""``zlm`` and its likelihood-ratio tests against the model written out, cell by cell."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mast_by_hand import hurdle, logistic, normal, shared_variance
from scipy import stats
from scipy.optimize import approx_fprime
from scipy.special import expit

from scmamba.deg import zlm
from scmamba.deg.hurdle import chi2_p
from scmamba.utils.errors import DataError, OptionError

Z95 = stats.norm.ppf(0.975)


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """80 cells x 12 genes of log values, a table, and the design of ~ group + batch + depth."""
    rng = np.random.default_rng(7)
    group, batch = np.arange(80) % 2, rng.integers(0, 3, 80)
    depth = rng.normal(size=80)
    values = rng.gamma(4, 0.5, (80, 12)) + 0.6 * group[:, None] * (np.arange(12) < 4)
    values *= rng.random((80, 12)) < expit(depth[:, None] + np.linspace(-1, 1, 12))
    table = pd.DataFrame({"group": np.array(["a", "b"])[group], "depth": depth})
    table["batch"] = np.array(["x", "y", "z"])[batch]
    x = np.column_stack([np.ones(80), group, batch == 1, batch == 2, depth]).astype(float)
    return values, table, x


@pytest.fixture(scope="module")
def fitted(cells):
    values, table, _ = cells
    return zlm(values, "~ group + batch + depth", table)


@pytest.mark.parametrize(
    ("term", "gone"),
    [("group", [1]), ("batch", [2, 3]), ("depth", [4]), (["groupb", "depth"], [1, 4])],
)
def test_every_test_is_two_fits(cells, fitted, term, gone):
    values, _, x = cells
    got = fitted.lrt(term)
    v, d = fitted.prior[:2]
    null = np.delete(x, gone, axis=1)
    assert got.index.name == "gene" and got.index.tolist() == [str(i) for i in range(12)]
    for gene, y in enumerate(values.T):
        c, e, df, p = hurdle(x, null, y, v, d)
        row = got.iloc[gene]
        assert row["lambda_C"] == pytest.approx(c, abs=1e-8)
        assert row["lambda_D"] == pytest.approx(e, abs=1e-8)
        assert row["lambda_H"] == pytest.approx(c + e, abs=1e-8)
        assert (row["df_C"], row["df_D"], row["df_H"]) == (df / 2, df / 2, df)
        assert row["p_C"] == pytest.approx(stats.chi2.sf(c, df / 2), rel=1e-7)
        assert row["p_D"] == pytest.approx(stats.chi2.sf(e, df / 2) if e > 0 else 1, rel=1e-6)
        assert row["p_H"] == pytest.approx(p, rel=1e-7)
        on = (y > 0).astype(float)
        n = int(on.sum())
        assert row["loglik1_C"] == pytest.approx(normal(x, y, v, d).log_lik, rel=1e-9)
        assert row["loglik0_C"] == pytest.approx(normal(null, y, v, d).log_lik, rel=1e-9)
        assert row["loglik1_D"] == pytest.approx(-logistic(x, on).deviance / 2, rel=1e-9)
        assert row["loglik0_D"] == pytest.approx(-logistic(null, on).deviance / 2, rel=1e-9)
        assert row["converged0_C"] and row["converged0_D"]
        assert row["dfresid0_C"] == n - null.shape[1]
        assert row["dfresid0_D"] == min(n, 80 - n) - null.shape[1]
        assert row["deviance0_C"] == pytest.approx(normal(null, y).rss, rel=1e-9)
        assert row["deviance0_D"] == pytest.approx(logistic(null, on).deviance, rel=1e-9)
    assert ("coefC" in got) == (len(gone) == 1)


def test_prior_is_estimated_or_given_or_off(cells, fitted):
    values, table, _ = cells
    v, d = shared_variance(values)
    assert fitted.prior.variance == pytest.approx(v, rel=1e-3)
    assert fitted.prior.dof == pytest.approx(d, rel=1e-2) and fitted.prior.n_genes == 12
    assert zlm(values, "~ group", table, ebayes=False).prior[:2] == (1.0, 0.0)
    assert zlm(values, "~ group", table, prior=(0.3, 4.0)).prior[:2] == (0.3, 4.0)
    assert zlm(values, "~ group", table, prior=(0.3, 4.0), ebayes=False).prior[:2] == (0.3, 4.0)
    below = values.copy()
    below[values == 0] = -1.0
    with pytest.raises(DataError, match="negative values"):
        zlm(below, "~ group + batch + depth", table)


def test_methods(cells):
    values, table, x = cells
    for method, bayes in (("bayesglm", True), ("glm", False)):
        fit = zlm(values, "~ group + batch + depth", table, method=method)
        for gene in (0, 5, 11):
            truth = logistic(x, (values[:, gene] > 0).astype(float), bayes)
            np.testing.assert_allclose(fit.discrete.coef[gene], truth.coef, rtol=1e-6)
    assert zlm(values, "~ group", table).method == "bayesglm"
    with pytest.raises(OptionError, match="method is 'logit'"):
        zlm(values, "~ group", table, method="logit")


def test_estimates_limits_and_log_fold_change(cells, fitted):
    """Wald limits, and the variance of u1 p1 - u0 p0 of independent parts, from its definition."""
    values, _, x = cells
    table = fitted.lrt("depth")
    v, d = fitted.prior[:2]
    for gene, y in enumerate(values.T):
        row = table.iloc[gene]
        c, e = normal(x, y, v, d), logistic(x, (y > 0).astype(float))
        for part, letter in ((c, "C"), (e, "D")):
            se = np.sqrt(part.cov[4, 4])
            assert row[f"coef{letter}"] == pytest.approx(part.coef[4], rel=1e-7)
            assert row[f"z_{letter}"] == pytest.approx(part.coef[4] / se, rel=1e-7)
            assert row[f"ci_lo_{letter}"] == pytest.approx(part.coef[4] - Z95 * se, rel=1e-6)
            assert row[f"ci_hi_{letter}"] == pytest.approx(part.coef[4] + Z95 * se, rel=1e-6)
        assert row["z_stouffer"] == pytest.approx((row["z_C"] + row["z_D"]) / np.sqrt(2), rel=1e-12)
        used = [0, 4]
        mean = np.r_[c.coef[used], e.coef[used]]

        def effect(b):
            return (b[0] + b[1]) * expit(b[2] + b[3]) - b[0] * expit(b[2])

        assert row["logFC"] == pytest.approx(effect(mean), rel=1e-8)
        # Var(u p) = Var u Var p + p^2 Var u + u^2 Var p, the same for covariances
        a, b = c.cov[np.ix_(used, used)], e.cov[np.ix_(used, used)]
        h = np.array([[1.0, 0.0], [1.0, 1.0]])
        u, p = h @ mean[:2], expit(h @ mean[2:])
        a, slope = h @ a @ h.T, np.diag(p * (1 - p))
        b = slope @ (h @ b @ h.T) @ slope
        var = [
            a[i, j] * b[i, j] + u[i] * u[j] * b[i, j] + p[i] * p[j] * a[i, j]
            for i in (0, 1)
            for j in (0, 1)
        ]
        assert row["varLogFC"] == pytest.approx(var[0] - var[1] - var[2] + var[3], rel=1e-6)
        slopes = approx_fprime(mean, effect, 1e-7)  # without Var u Var p it is the delta method
        block = np.zeros((4, 4))
        block[:2, :2], block[2:, 2:] = c.cov[np.ix_(used, used)], e.cov[np.ix_(used, used)]
        second = (a * b)[0, 0] + (a * b)[1, 1] - 2 * (a * b)[0, 1]
        assert row["varLogFC"] == pytest.approx(slopes @ block @ slopes + second, rel=1e-4)
        half = Z95 * np.sqrt(row["varLogFC"])
        assert row["logFC_z"] == pytest.approx(row["logFC"] / np.sqrt(row["varLogFC"]), rel=1e-9)
        assert row["logFC_ci_lo"] == pytest.approx(row["logFC"] - half, rel=1e-9, abs=1e-12)
        assert row["logFC_ci_hi"] == pytest.approx(row["logFC"] + half, rel=1e-9, abs=1e-12)


def test_summary_is_long(fitted):
    plain, tested = fitted.summary(), fitted.summary("batch")
    names = ["groupb", "batchy", "batchz", "depth"]
    assert plain["coefficient"].unique().tolist() == names and len(plain) == 4 * 12
    assert plain["gene"].iloc[:12].tolist() == fitted.genes.tolist() and "p_H" not in plain
    alone = fitted.lrt("depth")
    np.testing.assert_array_equal(
        plain.loc[plain["coefficient"] == "depth", "logFC"].to_numpy(), alone["logFC"].to_numpy()
    )
    batch = fitted.lrt("batch")
    for name in names:
        part = tested[tested["coefficient"] == name]
        for column in ("p_C", "p_D", "p_H"):
            if name.startswith("batch"):
                np.testing.assert_array_equal(part[column].to_numpy(), batch[column].to_numpy())
            else:
                assert part[column].isna().all()
    assert zlm(np.eye(4) + 1, "~ 1", pd.DataFrame(index=range(4)), ebayes=False).summary().empty


def test_fit_table(cells, fitted):
    values, _, x = cells
    table = fitted.fit_table()
    assert table.index.name == "gene"
    for gene, y in enumerate(values.T):
        c = normal(x, y, *fitted.prior[:2])
        e = logistic(x, (y > 0).astype(float))
        row = table.iloc[gene]
        assert row["iterD"] == e.iterations and row["rankC"] == 5 and row["dfresid_C"] == c.df
        assert row["converged_C"] and row["converged_D"]
        assert row["loglik_C"] == pytest.approx(c.log_lik, rel=1e-9)
        assert row["loglik_D"] == pytest.approx(-e.deviance / 2, rel=1e-9)
        assert row["deviance_C"] == pytest.approx(c.rss, rel=1e-9)
        assert row["deviance_D"] == pytest.approx(e.deviance, rel=1e-9)
        assert row["dispersionMLE_C"] == pytest.approx(c.s2_ml, rel=1e-9)
        for name, j in (("Intercept", 0), ("groupb", 1), ("depth", 4)):
            assert row[f"coefC_{name}"] == pytest.approx(c.coef[j], rel=1e-7)
            assert row[f"seC_{name}"] == pytest.approx(np.sqrt(c.cov[j, j]), rel=1e-7)
            assert row[f"coefD_{name}"] == pytest.approx(e.coef[j], rel=1e-6)
            assert row[f"seD_{name}"] == pytest.approx(np.sqrt(e.cov[j, j]), rel=1e-6)


def _two_groups(*pairs: tuple[int, int]) -> tuple[np.ndarray, pd.DataFrame]:
    """30 + 30 cells; for each gene the given numbers of expressing cells in the two groups, with varying values."""
    values = np.zeros((60, len(pairs)))
    for g, (a, b) in enumerate(pairs):
        values[:a, g] = 1 + np.arange(a) % 5
        values[30 : 30 + b, g] = 2 + np.arange(b) % 7
    return values, pd.DataFrame({"group": np.repeat(["a", "b"], 30)})


def test_which_parts_can_be_tested():
    """Edge cases with the results of MAST 1.32.0 (df of the continuous and of the discrete part)."""
    values, table = _two_groups((0, 0), (20, 0), (1, 1), (2, 1), (2, 2), (3, 1), (30, 30), (1, 0))
    fit = zlm(values, "~ group", table, prior=(1.0, 3.0))
    got = fit.lrt("group")
    assert got["df_C"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert got["df_D"].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert (got["lambda_C"][got["df_C"] == 0] == 0).all() and got["p_C"].iloc[3] == 1
    assert (got["p_H"][got["df_C"] == 0] == got["p_D"][got["df_C"] == 0]).all()
    assert got["p_H"].iloc[0] == 1 and got["df_H"].iloc[0] == 0
    state = fit.fit_table()
    assert state["converged_C"].tolist() == [False, True, False, True, True, True, True, False]
    assert state["rankC"].iloc[1] == 1 and np.isnan(got["logFC"].iloc[1])
    for column in ("iterD", "rankC", "deviance_C", "deviance_D", "dfresid_C"):
        assert np.isnan(state[column].iloc[0]), column
    for column in ("dfresid0_C", "dfresid0_D", "deviance0_C", "deviance0_D"):
        assert np.isnan(got[column].iloc[0]) and not np.isnan(got[column].iloc[1]), column


def test_separation_without_a_prior_is_not_tested():
    """All of 200 cells against none of 200: R's 25 steps do not suffice, the null model's do."""
    values = np.zeros((400, 2))
    values[:200, 0] = 1 + np.arange(200) % 5
    values[::3, 1] = 1 + np.arange(134) % 7
    table = pd.DataFrame({"group": np.repeat(["a", "b"], 200)})
    fit = zlm(values, "~ group", table, method="glm", prior=(1.0, 3.0))
    got = fit.lrt("group")
    assert fit.fit_table()["converged_D"].tolist() == [False, True]
    assert got["converged0_D"].all() and got["df_D"].tolist() == [0, 1]
    assert got["lambda_D"].iloc[0] == 0 and got["df_H"].iloc[0] == 0 and got["p_H"].iloc[0] == 1
    assert got["loglik1_D"].iloc[0] == 0


def test_residual_df_counts_in_both_models():
    """Four expressing cells and three coefficients: df 1 in the full model, so nothing is tested."""
    values = np.zeros((40, 1))
    values[[0, 1, 20, 21], 0] = [1.0, 2.0, 4.0, 3.0]
    table = pd.DataFrame({"group": np.repeat(["a", "b"], 20), "depth": np.sin(np.arange(40.0))})
    got = zlm(values, "~ group + depth", table, prior=(1.0, 3.0)).lrt("group").iloc[0]
    assert got["df_C"] == 0 and got["lambda_C"] == 0 and got["dfresid0_C"] == 2
    values[2, 0] = 5.0
    got = zlm(values, "~ group + depth", table, prior=(1.0, 3.0)).lrt("group").iloc[0]
    assert got["df_C"] == 1 and got["lambda_C"] > 0


def test_a_gene_with_missing_values_is_not_tested(cells):
    values, table, _ = cells
    holed = values.copy()
    holed[3, 2] = np.nan
    fit = zlm(holed, "~ group", table, prior=(0.5, 3.0))
    truth = zlm(values, "~ group", table, prior=(0.5, 3.0))
    got, expected = fit.lrt("group"), truth.lrt("group")
    pd.testing.assert_frame_equal(got.drop("2"), expected.drop("2"))
    assert got.loc["2", "p_H"] == 1 and got.loc["2", "df_H"] == 0
    assert fit.continuous.n[2] == 0 and not fit.discrete.converged[2]
    assert fit._held.lost.tolist() == [i == 2 for i in range(12)]


def test_inputs(cells):
    values, table, _ = cells
    counts = np.round(values * 3)
    counts[:, 11] += 1  # no empty cell
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    truth = zlm(logs, "~ group", table).lrt("group")
    adata = ad.AnnData(counts, obs=table.set_index(np.arange(80).astype(str)))
    adata.layers["l"] = sp.csr_matrix(logs)
    for fit in (
        zlm(adata, "~ group"),
        zlm(adata, "~ group", layer="l"),
        zlm(counts, "~ group", table, scale="auto"),
        zlm(sp.csc_matrix(counts), "~ group", table, scale="counts"),
    ):
        pd.testing.assert_frame_equal(fit.lrt("group"), truth, rtol=1e-9)
    raw = zlm(counts, "~ group", table)  # a matrix is read as logarithms, unchanged
    np.testing.assert_allclose(raw.continuous.coef[0, 0], counts[::2, 0][counts[::2, 0] > 0].mean())
    other = table.assign(group=table["group"].to_numpy()[::-1])
    swapped = zlm(adata, "~ group", other, layer="l").lrt("group")
    np.testing.assert_allclose(swapped["coefC"], zlm(logs, "~ group", other).lrt("group")["coefC"])
    assert zlm(logs, "~ group", table, genes=list("abcdefghijkl")).lrt("group").index[3] == "d"
    with pytest.raises(DataError, match="11 gene names were given for 12 columns"):
        zlm(logs, "~ group", table, genes=list("abcdefghijk"))
    with pytest.raises(DataError, match="80 rows .* and the table 79"):
        zlm(logs, "~ group", table.iloc[1:])
    with pytest.raises(DataError, match="pass data="):
        zlm(logs, "~ group")
    text = repr(zlm(logs, "~ group", table, prior=(0.5, 3.25)))
    assert "12 genes, 80 cells, bayesglm; (Intercept) + groupb" in text and "0.5, df 3.25" in text


def test_chi_squared_tail_probabilities():
    statistic, df = np.array([3.84, 0.0, -2.0, 5.0, 9.0]), np.array([1, 1, 2, 0, 3])
    expected = [stats.chi2.sf(3.84, 1), 1, 1, 1, stats.chi2.sf(9, 3)]
    np.testing.assert_allclose(chi2_p(statistic, df), expected, rtol=1e-12)
