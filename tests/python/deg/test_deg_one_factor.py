"""The test with one factor from sums per level, against the same model fitted cell by cell with its dense design."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from mast_by_hand import logistic

from scmamba.deg import find_markers, markers, zlm
from scmamba.deg.one_factor import _continuous, _discrete_lrt, group_p, level_design
from scmamba.deg.twogroup import group_sums
from scmamba.deg.variables import factor


def cells(levels: int, n: int = 400, nested: bool = False, seed: int = 0):
    """Counts of 60 genes from very rare to ubiquitous, a group effect, and donor effects of donors of unequal size."""
    rng = np.random.default_rng(seed)
    donor = np.minimum(rng.geometric(1.5 / levels, n) - 1, levels - 1)
    donor[: 2 * levels] = np.repeat(np.arange(levels), 2)
    group = donor % 2 if nested else np.arange(n) % 2
    rate = np.exp(rng.normal(0, 0.5, (levels, 60)))[donor] * np.geomspace(0.005, 4, 60)
    rate *= np.exp(0.4 * np.outer(group, np.arange(60) % 3 == 0))
    counts = rng.poisson(rate)
    counts[:, 3] = 0
    counts[:, 4] = np.arange(n) == 7
    counts[:, 5] = 2 * (donor == 1)  # in one donor only
    obs = pd.DataFrame(
        {"group": np.where(group == 0, "a", "b"), "donor": [f"d{k}" for k in donor]},
        index=[f"c{i}" for i in range(n)],
    )
    adata = ad.AnnData(sp.csr_matrix(counts.astype(float)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(60)]
    return adata


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 19])
def test_p_is_that_of_the_dense_design(levels, nested):
    adata = cells(levels, nested=nested)
    values = sp.csr_matrix(np.log1p(adata.X.toarray()))
    values.eliminate_zeros()
    group = (adata.obs["group"] == "b").to_numpy().astype(int)
    design, member = level_design(group, factor(adata.obs["donor"]))
    assert design.nested is nested
    parts, centre = group_sums(values, member, len(design.level))
    table = adata.obs[["group", "donor"]]
    dense = zlm(values, "~ group + donor", table, scale="log").lrt("group")
    p = group_p(parts, centre, design)
    np.testing.assert_allclose(p, dense["p_H"], rtol=1e-9, atol=1e-300)
    statistic, tested = _discrete_lrt(np.stack([q.expressed for q in parts]).T, design)
    np.testing.assert_allclose(statistic, dense["lambda_D"], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(tested, dense["df_D"] == 1)
    assert (dense["p_H"] < 0.05).sum() > 3


def test_least_squares_are_those_of_statsmodels():
    adata = cells(5)
    values = np.log1p(adata.X.toarray())
    group = (adata.obs["group"] == "b").to_numpy().astype(int)
    design, member = level_design(group, factor(adata.obs["donor"]))
    parts, centre = group_sums(sp.csr_matrix(values), member, len(design.level))
    stacked = np.stack([np.stack(part[1:4]) for part in parts])
    rss1, rank1, rss0, rank0 = _continuous(stacked, design)
    dummies = pd.get_dummies(adata.obs["donor"]).to_numpy(float)
    for gene in (0, 5, 20, 59):
        on = values[:, gene] > 0
        null = sm.OLS(values[on, gene], dummies[on]).fit()
        full = sm.OLS(values[on, gene], np.column_stack([dummies, group])[on]).fit()
        assert rss0[gene] == pytest.approx(null.ssr, rel=1e-9, abs=1e-12)
        assert rss1[gene] == pytest.approx(full.ssr, rel=1e-9, abs=1e-12)
        assert (rank0[gene], rank1[gene]) == (
            np.linalg.matrix_rank(dummies[on]),
            np.linalg.matrix_rank(np.column_stack([dummies, group])[on]),
        )


def test_discrete_fits_are_those_computed_by_hand():
    adata = cells(4)
    on = (adata.X.toarray() > 0).astype(float)
    group = (adata.obs["group"] == "b").to_numpy().astype(int)
    design, member = level_design(group, factor(adata.obs["donor"]))
    expressed = np.stack([on[member == u].sum(axis=0) for u in range(len(design.level))]).T
    statistic, tested = _discrete_lrt(expressed, design)
    dummies = pd.get_dummies(adata.obs["donor"]).to_numpy(float)[:, 1:]
    null = np.column_stack([np.ones(len(on)), dummies])
    full = np.column_stack([np.ones(len(on)), group, dummies])
    for gene in (10, 30, 50):
        fits = [logistic(x, on[:, gene], True) for x in (null, full)]
        assert tested[gene]
        assert statistic[gene] == pytest.approx(fits[0].deviance - fits[1].deviance, rel=1e-8)


@pytest.mark.parametrize("kind", ["text", "category with its own order", "bool"])
def test_markers_by_sums_agree_with_the_full_model(monkeypatch, kind):
    adata = cells(6)
    adata.obs.loc[adata.obs_names[::7], "group"] = "c"  # cells of neither group
    if kind == "bool":
        adata.obs["donor"] = adata.obs["donor"].isin(["d0", "d3"])
    elif kind != "text":
        order = ["unused", "d4", "d1", "d0", "d2", "d3", "d5"]
        adata.obs["donor"] = pd.Categorical(adata.obs["donor"], order)
    options = {"covariates": "donor", "min_pct": 0.0, "logfc_threshold": 0.0}
    monkeypatch.setattr(markers, "_model_p", None)
    short = find_markers(adata, "group", "a", "b", **options)
    monkeypatch.undo()
    monkeypatch.setattr(markers, "MAX_LEVELS", 1)
    long = find_markers(adata, "group", "a", "b", **options)
    pd.testing.assert_frame_equal(short.sort_index(), long.sort_index(), rtol=1e-9)
