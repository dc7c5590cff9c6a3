"""Faults that must not go unreported: odd covariates, donors without counts, undefined fold changes."""

from __future__ import annotations

import inspect

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmamba.deg import find_markers, options, pseudobulk, robustness, zlm
from scmamba.utils.errors import DataError, OptionError


@pytest.fixture()
def cohort() -> ad.AnnData:
    """240 cells of 8 donors, 4 against 4; 40 genes, gene 0 four times as high in cases."""
    rng = np.random.default_rng(2)
    donor = np.repeat(np.arange(8), 30)
    mean = np.full((240, 40), 2.0)
    mean[donor < 4, 0] = 8.0
    obs = pd.DataFrame(
        {
            "patient": [f"p{d}" for d in donor],
            "state": np.where(donor < 4, "case", "ctrl"),
            "group": np.where(donor % 2, "lot1", "lot2"),
            "donor": np.array([60.0, 71, 65, 80, 77, 62, 70, 66])[donor],
            "cells": np.array([1.0, 2, 3, 4, 4, 3, 2, 1])[donor],
            "total": np.array([2.0, 1, 1, 2, 1, 2, 1, 2])[donor],
        },
        index=[f"c{i}" for i in range(240)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(40)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(mean).astype(float)), obs=obs, var=var)


@pytest.mark.parametrize("name", ["group", "donor", "cells", "total"])
def test_covariates_with_the_names_of_internal_columns(cohort, name):
    found = pseudobulk(cohort, "state", "patient", "case", covariates=name)
    other = cohort.copy()
    other.obs = other.obs.rename(columns={name: "plain"})
    truth = pseudobulk(other, "state", "patient", "case", covariates="plain")
    pd.testing.assert_frame_equal(found, truth)
    without = pseudobulk(cohort, "state", "patient", "case")
    assert not np.allclose(found["t"].sort_index(), without["t"].sort_index())
    assert found.index[0] == "g0"


def test_a_donor_without_counts_is_omitted(cohort):
    cohort.X[np.flatnonzero(cohort.obs["patient"] == "p3")] = 0
    with pytest.warns(UserWarning, match="Donor p3: omitted, no counts"):
        found = pseudobulk(cohort, "state", "patient", "case")
    truth = pseudobulk(cohort[cohort.obs["patient"] != "p3"].copy(), "state", "patient", "case")
    pd.testing.assert_frame_equal(found, truth)
    assert found["p_val"].iloc[0] < 1e-3 and "p3" in found.attrs["notes"][0]
    cohort.X[np.flatnonzero(cohort.obs["patient"].isin(["p1", "p2"]))] = 0
    with pytest.raises(DataError, match="1 and 4 donors"):
        pseudobulk(cohort, "state", "patient", "case")


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_covariates_that_are_not_finite(cohort, bad):
    cohort.obs["age"] = np.where(cohort.obs["patient"] == "p5", bad, cohort.obs["donor"])
    what = "missing" if np.isnan(bad) else "infinite"
    with pytest.raises(DataError, match=f"'age' is {what} for 30 cells"):
        pseudobulk(cohort, "state", "patient", "case", covariates="age")
    with pytest.raises(DataError, match=f"'age' is {what} for 30 of 240"):
        find_markers(cohort, "state", "case", covariates="age")
    with pytest.raises(DataError, match="age.* for 30 of 240"):
        zlm(cohort, "~ state + age")


def test_a_gene_with_an_undefined_fold_change_is_named(cohort):
    logs = np.log1p(cohort.X.toarray())
    logs[7, 0] = np.nan
    cohort.layers["logs"] = sp.csr_matrix(logs)
    with pytest.warns(UserWarning, match=r"fold change of 1 gene cannot be computed \(g0\)"):
        table = find_markers(cohort, "state", "case", layer="logs", scale="log", only_pos=True)
    assert np.isnan(table.loc["g0", "avg_log2FC"]) and table.loc["g0", "p_val"] == 1


def test_names_with_dots(cohort):
    cohort.obs["percent.mt"] = cohort.obs["donor"] / 10
    fit = zlm(cohort, "~ state + percent.mt + scale(donor)")
    assert fit.design.names == ("(Intercept)", "statectrl", "percent.mt")
    assert fit.design.aliased == ("scale(donor)",)
    found = pseudobulk(cohort, "state", "patient", "case", covariates="percent.mt")
    truth = pseudobulk(cohort, "state", "patient", "case", covariates="donor")
    np.testing.assert_allclose(found["t"], truth["t"].loc[found.index], rtol=1e-9)


@pytest.mark.parametrize(
    ("verb", "declared"),
    [
        (find_markers, options.MarkerOptions),
        (pseudobulk, options.PseudobulkOptions),
        (robustness, options.RobustnessOptions),
        (zlm, options.ZlmOptions),
    ],
)
def test_signatures_follow_the_options(verb, declared):
    parameters = inspect.signature(verb).parameters
    mine = declared.defaults()
    free = {"adata", "adata_or_matrix", "data", "genes", "prior", "verbose"}
    assert set(mine) == set(parameters) - free
    for name, value in mine.items():
        default = parameters[name].default
        if default is not inspect.Parameter.empty:
            assert default == value, name


def test_options_are_checked_before_any_work():
    with pytest.raises(OptionError, match="min_cells is 0"):
        pseudobulk(None, "state", "patient", "case", min_cells=0)
    with pytest.raises(OptionError, match="min_pct is 2"):
        find_markers(None, "state", "case", min_pct=2)
    with pytest.raises(OptionError, match="alpha is 1"):
        robustness(None, "state", alpha=1)
    with pytest.raises(OptionError, match="method is 'probit'"):
        zlm(None, "~ state", method="probit")
