"""Every group against all others: one pass over the matrix gives the tables of the single comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scmamba.datasets import brain_cohort
from scmamba.deg import all_markers, find_all_markers, find_markers
from scmamba.utils.errors import DataError, OptionError


@pytest.fixture(scope="module")
def adata():
    cells = brain_cohort(n_cells=260, n_genes=200, n_donors=4, seed=2)
    cells.obs["group"] = cells.obs["cell_type"].astype(str)
    cells.obs.loc[cells.obs_names[::9], "group"] = None
    few = cells.obs_names[1:3]
    cells.obs.loc[few, "group"] = "few"
    return cells


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seurat": "4", "only_pos": True},
        {"test": "wilcox", "min_pct": 0.3},
        {"covariates": "sex", "min_pct": 0.5},
        {"min_diff_pct": 0.2, "logfc_threshold": 0.5},
    ],
)
def test_tables_are_those_of_single_comparisons(adata, options):
    with pytest.warns(UserWarning, match="No markers for few"):
        table = find_all_markers(adata, "group", **options)
    sizes = adata.obs["group"].value_counts()
    groups = sorted(sizes.index[sizes >= 3], key=str.casefold)  # as in R
    assert list(table["cluster"].cat.categories) == groups and set(table["cluster"]) == set(groups)
    for group in groups:
        alone = find_markers(adata, "group", group, **options)
        part = table[table["cluster"] == group].drop(columns="cluster").set_index("gene")
        pd.testing.assert_frame_equal(part.sort_index(), alone.sort_index(), rtol=1e-9)
        assert (np.diff(part["p_val"]) >= 0).all()


def test_the_matrix_is_read_once(adata, monkeypatch):
    monkeypatch.setattr(all_markers, "markers_of", None)
    with pytest.warns(UserWarning, match="No markers for few"):
        assert len(find_all_markers(adata, "group")) > 20


def test_impossible_comparisons_are_refused(adata):
    with pytest.raises(DataError, match="no column"):
        find_all_markers(adata, "nothing")
    one = adata[adata.obs["group"] == "Microglia"].copy()
    with pytest.raises(DataError, match="two are needed"):
        find_all_markers(one, "group")
    with pytest.raises(OptionError, match="takes no covariates"):
        find_all_markers(adata, "group", test="wilcox", covariates="sex")
