"""Objects, names and lists that people give to the tests of genes: the right table, or one sentence."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from scmamba import deg
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import DataError

COHORT = brain_cohort(150, n_genes=300, n_donors=6, seed=3)


def cells() -> object:
    return COHORT.copy()


def pseudobulk(adata, **options) -> pd.DataFrame:
    return deg.pseudobulk(adata, "disease", "donor", "AD", "Control", min_cells=3, **options)


def compare(adata, **options) -> deg.CompareResult:
    return deg.compare(adata, "disease", "donor", min_cells=3, verbose=False, **options)


def robustness(adata, **options) -> deg.RobustnessResult:
    given = {"layers": ["counts"], "donors": None, "ratios": [0.5], "permutations": 1}
    given |= {"null_permutations": 0, "verbose": False}
    return deg.robustness(adata, "disease", "donor", **(given | options))


VERBS = {
    "pseudobulk": pseudobulk,
    "compare": compare,
    "robustness": robustness,
    "find_markers": lambda adata: deg.find_markers(adata, "disease", "AD"),
    "find_all_markers": lambda adata: deg.find_all_markers(adata, "cell_type"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("cells.h5ad", r"'cells.h5ad' is a path. Read it first: anndata.read_h5ad"),
        (pd.DataFrame({"a": [1]}), "found DataFrame"),
        (None, "found NoneType"),
        (np.ones((3, 2)), "found ndarray"),
    ],
    ids=["path", "table", "None", "array"],
)
def test_what_is_no_anndata_is_named(verb, given, words):
    with pytest.raises(DataError, match=rf"{verb}\(\) needs an AnnData object.*{words}"):
        VERBS[verb](given)


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Index, pd.Series])
def test_lists_of_any_make(make):
    expected = pseudobulk(cells(), covariates=["sex"])
    pd.testing.assert_frame_equal(pseudobulk(cells(), covariates=make(["sex"])), expected)
    pd.testing.assert_frame_equal(pseudobulk(cells(), covariates=make(["sex", "sex"])), expected)
    found = compare(cells(), label_key="cell_type", cell_types=make(["Oligodendrocyte"]))
    assert list(found.summary["cell_type"]) == ["Oligodendrocyte"]


def test_one_name_in_place_of_a_list():
    found = compare(cells(), label_key="cell_type", cell_types="Oligodendrocyte")
    assert list(found.summary["cell_type"]) == ["Oligodendrocyte"]
    pd.testing.assert_frame_equal(
        robustness(cells(), layers="counts").full, robustness(cells()).full
    )


def test_levels_that_are_one_word_are_one_group():
    """1 and "1" are one level in R, whether the column is a factor or not."""
    adata = cells()
    expected = deg.find_all_markers(adata, "cell_type")
    codes = adata.obs["cell_type"].cat.codes.astype(object).to_numpy(copy=True)
    codes[::3] = [str(code) for code in codes[::3]]
    for column in (codes, pd.Categorical(codes)):
        adata.obs["code"] = column
        found = deg.find_all_markers(adata, "code")
        np.testing.assert_allclose(found["p_val"], expected["p_val"], rtol=1e-12)
        assert found["cluster"].nunique() == expected["cluster"].nunique()


@pytest.mark.parametrize(("a", "b"), [("AD", "AD "), ("AD", "ad"), ("A D", " a  d")])
def test_values_that_differ_in_spaces_or_case_are_named(a, b):
    adata = cells()
    half = np.arange(adata.n_obs) % 2 == 0
    is_ad = (adata.obs["disease"] == "AD").to_numpy()
    adata.obs["state"] = np.where(is_ad & half, a, np.where(is_ad, b, "Control"))
    with pytest.warns(UserWarning, match="differ only in spaces or case"):
        deg.pseudobulk(adata, "state", "donor", a, "Control", min_cells=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pseudobulk(adata)


def test_groups_and_covariates_that_cannot_be():
    with pytest.raises(DataError, match="group1 is None.*AD, Control"):
        deg.pseudobulk(cells(), "disease", "donor", None)
    adata = cells()
    adata.obs["c"] = adata.obs["age"].astype(complex)
    for test in (pseudobulk, compare):
        with pytest.raises(DataError, match="'c' holds complex numbers"):
            test(adata, covariates="c")
    with pytest.raises(DataError, match="'disease' has no cells of 'AD'. It has: no value"):
        pseudobulk(adata[:0].copy())
    one = adata[(adata.obs["disease"] == "AD").to_numpy()].copy()
    with pytest.raises(DataError, match=r"has 1 value \(AD\)"):
        compare(one)
