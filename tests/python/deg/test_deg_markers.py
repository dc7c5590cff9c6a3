"""``find_markers``: filters, fold changes, corrections and order of Seurat 4 and 5, by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mast_by_hand import hurdle, shared_variance
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scmamba.deg import benjamini_hochberg, find_markers
from scmamba.deg.markers import (
    MIN_CELLS,
    Rules,
    Screen,
    fold_changes,
    marker_table,
    pair_tests,
    round3,
    rules_for,
    screen_genes,
    two_groups,
)
from scmamba.deg.options import MarkerOptions
from scmamba.deg.twogroup import Sums, group_sums
from scmamba.deg.wilcoxon import rank_sum_p
from scmamba.utils.errors import DataError, OptionError

EVERYTHING = {"min_pct": 0, "logfc_threshold": 0}


def _sums(n, expressed, linear) -> Sums:
    e = np.array(expressed, dtype=float)
    return Sums(n, e, e * 0, e * 0, np.array(linear, dtype=float))


@pytest.fixture(scope="module")
def logs() -> np.ndarray:
    """60 cells x 10 genes of logarithms; even cells are the cases."""
    rng = np.random.default_rng(11)
    out = rng.gamma(3, 0.4, (60, 10)) * (rng.random((60, 10)) < np.linspace(0.3, 0.9, 10))
    out[::2, :3] *= 1.8
    out[1::2, 3] *= 1.5
    out[1::2, 9] = out[::2, 9]  # no difference at all
    return out


@pytest.fixture()
def adata(logs) -> ad.AnnData:
    obs = pd.DataFrame({"group": ["case", "ctrl"] * 30}, index=[f"c{i}" for i in range(60)])
    obs["batch"] = np.array(["x", "y", "z"])[np.arange(60) // 7 % 3]
    obs["depth"] = np.sin(np.arange(60.0))
    var = pd.DataFrame(index=[f"g{i}" for i in range(10)])
    return ad.AnnData(sp.csr_matrix(logs), obs=obs, var=var, uns={"log1p": {}})


def test_defaults_of_both_versions():
    """min.pct and logfc.threshold of FindMarkers: 0.01 and 0.1 since 5.0, 0.1 and 0.25 before."""
    assert rules_for("5") == Rules("5", 0.01, 0.1, False, -np.inf, "expm1") == Rules()
    assert rules_for("4") == Rules("4", 0.1, 0.25, False, -np.inf, "expm1")
    assert rules_for("4", 0, 0, True, 0.2, "log") == Rules("4", 0, 0, True, 0.2, "log")
    with pytest.raises(OptionError, match="seurat is '3'"):
        MarkerOptions(seurat="3")
    with pytest.raises(OptionError, match="fold_change is 'ln'"):
        MarkerOptions(fold_change="ln")
    assert MIN_CELLS == 3


def test_fold_changes_by_hand():
    """Seurat 4: log2 of the mean + 1; Seurat 5: log2 of (sum + 1) / n."""
    first, second = _sums(4, [4, 1], [28.0, 0.0]), _sums(8, [4, 3], [8.0, 120.0])
    four = fold_changes(first, second, rules_for("4"), None)
    np.testing.assert_allclose(four, [np.log2(8 / 2), np.log2(1 / 16)])
    five = fold_changes(first, second, rules_for("5"), None)
    np.testing.assert_allclose(five, [np.log2((29 / 4) / (9 / 8)), np.log2((1 / 4) / (121 / 8))])
    means = np.array([3.0, 0.0]), np.array([0.0, 7.0])
    logs = fold_changes(first, second, rules_for("4", fold_change="log"), means)
    np.testing.assert_allclose(logs, [2.0, -3.0])


def test_filters_by_hand():
    first = _sums(1000, [9, 10, 0, 500, 500, 500, 500], [9, 2000, 0, 3000, 1500, 10, 3000])
    second = _sums(1000, [8, 0, 10, 500, 500, 450, 100], [0, 0, 2000, 1500, 3000, 9, 1500])
    screen = screen_genes(first, second, rules_for("5"))
    assert screen.pct1.tolist() == [0.009, 0.01, 0, 0.5, 0.5, 0.5, 0.5]
    assert screen.pct2.tolist() == [0.008, 0, 0.01, 0.5, 0.5, 0.45, 0.1]
    # gene 0: 0.9% and 0.8% are below 1%; gene 5: |log2(11 / 10)| = 0.14 is above 0.1
    assert screen.passed.tolist() == [1, 2, 3, 4, 5, 6]
    assert screen_genes(first, second, rules_for("4")).passed.tolist() == [3, 4, 6]
    # from below in the first group: only.pos compares the signed change
    assert screen_genes(first, second, rules_for("5", only_pos=True)).passed.tolist() == [
        1,
        3,
        5,
        6,
    ]
    apart = screen_genes(first, second, rules_for("5", min_diff_pct=0.04))
    assert apart.passed.tolist() == [5, 6]
    turned = screen_genes(second, first, rules_for("5", min_diff_pct=0.04))
    assert turned.passed.tolist() == [5, 6]
    assert screen_genes(first, second, rules_for("5", min_diff_pct=0.4)).passed.tolist() == [6]
    assert screen_genes(first, second, rules_for("5", min_diff_pct=0.41)).passed.size == 0
    # thresholds are inclusive
    edge = screen_genes(_sums(4, [2], [15.0]), _sums(4, [2], [7.0]), rules_for("5", 0.5, 1.0))
    assert edge.passed.tolist() == [0] and edge.change.tolist() == [1.0]
    down = screen_genes(_sums(4, [2], [7.0]), _sums(4, [2], [15.0]), rules_for("5", 0.5, 1.0))
    assert down.passed.tolist() == [0] and down.change.tolist() == [-1.0]


def test_the_threshold_applies_to_the_rounded_rate():
    """0.95% is 0.01 after R's rounding: 19 of 2,000 pass a min.pct of 1%."""
    screen = screen_genes(
        _sums(2000, [19, 18], [900.0, 900.0]), _sums(2000, [0, 0], [0, 0]), rules_for("5")
    )
    assert screen.pct1.tolist() == [round3(np.array([19 / 2000]))[0], 0.009]
    assert screen.passed.tolist() == ([0] if screen.pct1[0] >= 0.01 else [])


def test_the_table_agrees_with_the_model_on_the_cells(adata, logs):
    case = np.arange(60) % 2 == 0
    x = np.column_stack([np.ones(60), ~case]).astype(float)
    for seurat in ("5", "4"):
        table = find_markers(adata, "group", "case", "ctrl", seurat=seurat)
        lin = np.expm1(logs)
        if seurat == "5":
            change = np.log2((lin[case].sum(0) + 1) / 30) - np.log2((lin[~case].sum(0) + 1) / 30)
        else:
            change = np.log2(lin[case].mean(0) + 1) - np.log2(lin[~case].mean(0) + 1)
        tested = np.flatnonzero(np.abs(change) >= (0.1 if seurat == "5" else 0.25))
        assert 3 < len(tested) < 10
        v, d = shared_variance(logs[:, tested])  # of the tested genes only
        assert sorted(table.index) == sorted(f"g{g}" for g in tested) and table.index.name == "gene"
        p = np.array([hurdle(x, x[:, :1], logs[:, g], v, d)[3] for g in tested])
        for i, g in enumerate(tested):
            row = table.loc[f"g{g}"]
            assert row["p_val"] == pytest.approx(p[i], rel=3e-3)
            assert row["avg_log2FC"] == pytest.approx(change[g], rel=1e-10)
            assert row["pct.1"] == pytest.approx((logs[case, g] > 0).mean(), abs=6e-4)
            assert row["pct.2"] == pytest.approx((logs[~case, g] > 0).mean(), abs=6e-4)
            assert row["p_val_adj"] == min(1, row["p_val"] * 10)  # all genes of the object
        np.testing.assert_allclose(
            table["p_val_bh"], multipletests(table["p_val"], method="fdr_bh")[1]
        )
        assert (np.diff(table["p_val"]) >= 0).all()
        assert list(table) == ["p_val", "avg_log2FC", "pct.1", "pct.2", "p_val_adj", "p_val_bh"]


def test_order_and_ties():
    """Seurat 4: by p. Seurat 5: by p, then by the larger difference of the detection rates."""
    p = np.array([0.02, 0.001, 0.02, 0.02, 0.5])
    pct1, pct2 = np.array([0.5, 0.1, 0.2, 0.9, 0.5]), np.array([0.4, 0.1, 0.9, 0.5, 0.1])
    screen = Screen(pct1, pct2, np.array([1.0, -1.0, 0.5, 0.0, 2.0]), np.arange(5))
    names = pd.Index(list("abcde") + ["untested"] * 5)
    five = marker_table(p, screen, screen.passed, names, rules_for("5"))
    assert "".join(five.index) == "bcdae"
    four = marker_table(p, screen, screen.passed, names, rules_for("4"))
    assert "".join(four.index) == "bacde"
    assert four["p_val_adj"].tolist() == [0.01, 0.2, 0.2, 0.2, 1.0]
    positive = marker_table(p, screen, screen.passed, names, rules_for("5", only_pos=True))
    assert "".join(positive.index) == "cae"  # 0 is not above 0
    # the false-discovery rate is over all tested genes, before the filter by sign
    assert positive.loc["c", "p_val_bh"] == pytest.approx(0.02 * 5 / 4)


def test_options(adata, logs):
    base = find_markers(adata, "group", "case", **EVERYTHING)
    assert len(base) == 10
    some = find_markers(adata, "group", "case", genes=["g9", "g1", "nothing"], **EVERYTHING)
    assert sorted(some.index) == ["g1", "g9"]
    assert (some["p_val_adj"] == np.minimum(1, some["p_val"] * 10)).all()
    other = find_markers(adata, "group", "ctrl", **EVERYTHING)
    np.testing.assert_allclose(other.loc[base.index, "avg_log2FC"], -base["avg_log2FC"])
    positive = find_markers(adata, "group", "case", only_pos=True)
    assert (
        (positive["avg_log2FC"] >= 0.1).all()
        and "g0" in positive.index
        and "g3" not in positive.index
    )
    logged = find_markers(adata, "group", "case", fold_change="log", seurat="4", **EVERYTHING)
    case = np.arange(60) % 2 == 0
    change = np.log2(logs[case].mean(0) + 1) - np.log2(logs[~case].mean(0) + 1)
    np.testing.assert_allclose(logged["avg_log2FC"], change[[int(g[1:]) for g in logged.index]])
    with pytest.raises(OptionError, match="test is 't'"):
        find_markers(adata, "group", "case", test="t")
    with pytest.raises(OptionError, match="takes no covariates"):
        find_markers(adata, "group", "case", test="wilcox", covariates="batch")
    nothing = find_markers(adata, "group", "case", logfc_threshold=50)
    assert len(nothing) == 0 and list(nothing) == list(base) and nothing.index.name == "gene"
    adata.layers["twice"] = adata.X * 2
    twice = find_markers(adata, "group", "case", layer="twice", scale="log", **EVERYTHING)
    lin = np.expm1(2 * logs[:, 3])
    assert twice.loc["g3", "avg_log2FC"] == pytest.approx(
        np.log2((lin[case].sum() + 1) / (lin[~case].sum() + 1))
    )


@pytest.mark.parametrize("latent", ["batch", ["depth", "batch"]])
def test_covariates(adata, logs, latent):
    got = find_markers(adata, "group", "case", covariates=latent, **EVERYTHING)
    with pytest.warns(
        DeprecationWarning, match=r"latent_vars=\) was renamed to find_markers\(covariates="
    ):
        old = find_markers(adata, "group", "case", latent_vars=latent, **EVERYTHING)
    pd.testing.assert_frame_equal(got, old)
    obs = adata.obs
    columns = [np.ones(60), obs["group"] == "ctrl", obs["batch"] == "y", obs["batch"] == "z"]
    columns += [obs["depth"]] if "depth" in latent else []
    x = np.column_stack(columns).astype(float)
    v, d = shared_variance(logs)
    for g in range(10):
        p = hurdle(x, np.delete(x, 1, axis=1), logs[:, g], v, d)[3]
        assert got.loc[f"g{g}", "p_val"] == pytest.approx(p, rel=5e-3), g
    with pytest.raises(DataError, match="no column 'age' in obs to use as a covariate"):
        find_markers(adata, "group", "case", covariates="age")
    adata.obs["flag"] = adata.obs["batch"] == "x"  # true and false are two levels
    table = find_markers(adata, "group", "case", covariates="flag", **EVERYTHING)
    assert len(table) == 10


def test_cells_of_neither_group_are_excluded(adata):
    adata.obs["third"] = np.array(["a", "b", "c"])[np.arange(60) % 3]
    some = adata[adata.obs["third"] != "c"].copy()
    for options in ({}, {"covariates": "depth"}, {"covariates": ["batch"]}, {"test": "wilcox"}):
        got = find_markers(adata, "third", "a", "b", **options, **EVERYTHING)
        truth = find_markers(some, "third", "a", **options, **EVERYTHING)
        pd.testing.assert_frame_equal(got.loc[truth.index], truth, rtol=1e-6)


@pytest.mark.parametrize("scale", ["auto", "log", "counts"])
def test_negative_values_are_refused(adata, logs, scale):
    below = logs.copy()
    below[logs == 0] = -0.05
    adata.X = below
    with pytest.raises(DataError, match="X holds .*-0.05"):
        find_markers(adata, "group", "case", scale=scale, **EVERYTHING)


def test_groups_of_the_cells():
    obs = pd.DataFrame(
        {"g": ["a", "b", None, "c", "a", "b", "c", "a", "b"], "n": [1, 1, 1, 2, 2, 2, 3, 3, 3]}
    )
    assert two_groups(obs, "g", "a", "b").tolist() == [0, 1, -1, -1, 0, 1, -1, 0, 1]
    assert two_groups(obs, "g", "b", None).tolist() == [1, 0, -1, 1, 1, 0, 1, 1, 0]
    assert two_groups(obs, "g", "a", ["b", "c"]).tolist() == [0, 1, -1, 1, 0, 1, 1, 0, 1]
    assert two_groups(obs, "n", 1, np.int64(3)).tolist() == [0, 0, 0, -1, -1, -1, 1, 1, 1]
    with pytest.raises(DataError, match="Group 2 has 2 cells; the test needs at least 3"):
        two_groups(obs, "g", "a", "c")
    with pytest.raises(DataError, match="has no cells of 'None'"):
        two_groups(obs, "g", "None", None)
    with pytest.raises(DataError, match="Group 1 has 1 cell;"):
        two_groups(obs.iloc[[0, 1, 5, 8]], "g", "a", None)


def test_pairs_equal_single_tests(adata):
    """Many pairs in one pass, each with the prior of its own tested genes."""
    group = np.arange(60) % 3
    sums, centre = group_sums(adata.X, group, 3)
    flat = Sums(10, np.zeros(10), np.zeros(10), np.zeros(10), np.zeros(10))
    done = pair_tests(
        [(sums[0], sums[1]), (sums[2], sums[1]), (flat, flat)], centre, rules_for("5")
    )
    for one, (a, b) in zip(done[:2], ("01", "21"), strict=True):
        adata.obs["third"] = group.astype(str)
        table = find_markers(adata, "third", a, b)
        names = adata.var_names[one.screen.passed]
        assert one.note == "" and sorted(names) == sorted(table.index)
        np.testing.assert_allclose(one.test.p, table.loc[names, "p_val"], rtol=1e-9)
    assert done[2].test is None and "No gene has two different" in done[2].note


def test_benjamini_hochberg_with_ties_and_edges():
    p = np.array([0.01, 0.04, 0.04, 1.0, 0.03])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.05, 0.05, 0.05, 1.0, 0.05])
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.9, 0.95])), [0.95, 0.95])
    assert benjamini_hochberg(np.array([])).size == 0


def test_wilcoxon(logs, adata):
    """scipy's, with ties, zeros in the middle, and genes that do not vary."""
    values = np.round(logs, 1)
    values[:, 0] -= 0.5  # below and above zero
    values[:, 1] = 0
    values[:, 2] = 3.0
    a, b = values[:25], values[25:]
    p = rank_sum_p(sp.csr_matrix(a), sp.csr_matrix(b))
    for g in range(10):
        if g in (1, 2):
            assert p[g] == 1
            continue
        truth = stats.mannwhitneyu(
            a[:, g], b[:, g], method="asymptotic", use_continuity=True
        ).pvalue
        assert p[g] == pytest.approx(truth, rel=1e-10)
    even = rank_sum_p(sp.csr_matrix([[1.0], [4.0]]), sp.csr_matrix([[2.0], [3.0]]))
    assert even[0] == 1  # equal rank sums: the continuity correction must not exceed the difference
    table = find_markers(adata, "group", "ctrl", "case", test="wilcox", **EVERYTHING)
    truth = stats.mannwhitneyu(logs[1::2, 4], logs[::2, 4], method="asymptotic").pvalue
    assert table.loc["g4", "p_val"] == pytest.approx(truth, rel=1e-10)
