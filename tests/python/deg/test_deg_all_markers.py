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
        {"fold_change": "log", "seurat": "4"},
        {"fold_change": "log", "seurat": "4", "test": "wilcox"},
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


@pytest.mark.parametrize("test", ["MAST", "wilcox"])
def test_the_matrix_is_read_once(adata, monkeypatch, test):
    monkeypatch.setattr(all_markers, "markers_of", None)
    with pytest.warns(UserWarning, match="No markers for few"):
        assert len(find_all_markers(adata, "group", test=test)) > 20


@pytest.mark.parametrize("test", ["MAST", "wilcox"])
def test_some_groups_and_some_genes_have_the_rows_of_all(adata, test):
    """The cells of groups that were not named still count among the other cells."""
    names, genes = ["Oligodendrocyte", "Astrocyte"], list(adata.var_names[20:90])
    part = find_all_markers(adata, "group", test=test, groups=names, genes=genes)
    with pytest.warns(UserWarning, match="No markers for few"):
        whole = find_all_markers(adata, "group", test=test)
    # MAST shares a variance prior among the genes that are tested, the rank-sum test nothing.
    assert set(part["cluster"]) == set(names) and set(part["gene"]) <= set(genes)
    for name in names:
        alone = find_markers(adata, "group", name, test=test, genes=genes)
        rows = part[part["cluster"] == name].drop(columns="cluster").set_index("gene")
        pd.testing.assert_frame_equal(rows.sort_index(), alone.sort_index(), rtol=1e-9)
    if test == "wilcox":
        kept = whole[whole["cluster"].isin(names) & whole["gene"].isin(genes)]
        key = ["cluster", "gene"]
        both = part.astype({"cluster": str}).merge(
            kept.astype({"cluster": str}), on=key, suffixes=("", "_")
        )
        assert len(both) == len(part) == len(kept)
        np.testing.assert_allclose(both["p_val"], both["p_val_"], rtol=1e-12)


def test_ranks_of_many_groups_are_those_of_scipy(adata):
    from scipy.stats import mannwhitneyu

    table = find_all_markers(adata, "cell_type", test="wilcox", min_pct=0.3)
    logs = np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4)
    for row in table.groupby("cluster", observed=True).head(3).itertuples():
        own = (adata.obs["cell_type"] == row.cluster).to_numpy()
        values = np.asarray(logs)[:, adata.var_names.get_loc(row.gene)]
        p = mannwhitneyu(values[own], values[~own], method="asymptotic").pvalue
        np.testing.assert_allclose(row.p_val, p, rtol=1e-6)


def test_impossible_comparisons_are_refused(adata):
    with pytest.raises(DataError, match="no column"):
        find_all_markers(adata, "nothing")
    with pytest.raises(DataError, match="no cells of 'Neuron'"):
        find_all_markers(adata, "group", groups=["Neuron"])
    one = adata[adata.obs["group"] == "Microglia"].copy()
    with pytest.raises(DataError, match="two are needed"):
        find_all_markers(one, "group")
    with pytest.raises(OptionError, match="takes no covariates"):
        find_all_markers(adata, "group", test="wilcox", covariates="sex")
