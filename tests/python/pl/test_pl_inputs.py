"""Columns, colors and maps of any make, in plots and in the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import DataError

pytest.importorskip("matplotlib")


def cells(**obs):
    adata = brain_cohort(60, n_genes=300, n_donors=2, seed=0)
    adata.obsm["X_umap"] = np.random.default_rng(0).random((60, 2))
    adata.uns["scmamba"] = {"annotate": {"version": "1", "params": {"a": "<script>"}}}
    for name, column in {"scmamba_type": "A", "scmamba_probability": 0.5, **obs}.items():
        adata.obs[name] = column
    return adata


def report(adata, tmp_path) -> str:
    scmamba.pl.write_report(adata, tmp_path / "r.html")
    return (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("types", "names"),
    [
        (pd.Categorical([None if i % 3 else "A" for i in range(60)]), {"A", "Unassigned"}),
        (
            pd.array([None if i % 3 else "A" for i in range(60)], dtype="string"),
            {"A", "Unassigned"},
        ),
        (np.arange(60) % 3, {"0", "1", "2"}),
        (np.arange(60) % 2 == 0, {"False", "True"}),
        (pd.Categorical([1 if i % 2 else "1" for i in range(60)]), {"1"}),
    ],
    ids=["missing", "nullable text", "numbers", "bool", "1 and '1'"],
)
def test_types_of_any_make_are_drawn_and_counted(types, names, tmp_path):
    adata = cells(scmamba_type=types)
    axes = scmamba.pl.annotation(adata)
    assert {text.get_text() for text in axes[0].get_legend().get_texts()} == names
    text = report(adata, tmp_path)
    assert all(f"<th>{name}</th>" in text for name in names) and "<script>" not in text
    share = pd.Series(types).isna().mean()
    assert ("Only 33% of the cells received a type" in text) == (share > 0.3)


def test_nullable_calls_of_doublets(tmp_path):
    called = pd.array([True, None, False] * 20, dtype="boolean")
    adata = cells(scmamba_doublet=called, scmamba_doublet_score=np.linspace(0, 1, 60))
    assert scmamba.pl.doublets(adata).get_title().startswith("20 of 60 cells (33.3%)")
    assert "33% of the cells were called doublets" in report(adata, tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("scmamba_probability", "high"), ("scmamba_doublet", "yes"), ("scmamba_doublet_score", "x")],
)
def test_text_where_numbers_are_expected(column, value, tmp_path):
    adata = cells(**({"scmamba_doublet": True, "scmamba_doublet_score": 0.5} | {column: value}))
    with pytest.raises(DataError, match=rf"obs\['{column}'\] holds no numbers"):
        report(adata, tmp_path)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("colors", ["red", ["nocolor"], [], ["#ff0000", "#00ff00"]])
def test_colors_that_do_not_fit_are_replaced(colors):
    adata = cells()
    adata.uns["scmamba_type_colors"] = colors
    scmamba.pl.annotation(adata)[0].figure.canvas.draw()
    assert len(adata.uns["scmamba_type_colors"]) == 1


def test_maps_of_any_make():
    adata = cells()
    adata.obsm["s"] = sparse.csr_matrix(adata.obsm["X_umap"])
    adata.obsm["t"] = pd.DataFrame(adata.obsm["X_umap"], index=adata.obs_names)
    drawn = [scmamba.pl.annotation(adata, basis=b)[0] for b in ("X_umap", "s", "t")]
    for axis in drawn:
        np.testing.assert_allclose(axis.collections[0].get_offsets(), adata.obsm["X_umap"])
    adata.obsm["one"] = np.zeros((60, 1))
    with pytest.raises(DataError, match=r"obsm\['one'\] holds no two numbers.*\(60, 1\)"):
        scmamba.pl.annotation(adata, basis="one")


@pytest.mark.parametrize("record", ["mine", np.array([1, 2]), 5])
def test_a_record_of_another_program_is_named(record, tmp_path):
    adata = cells()
    adata.uns["scmamba"] = record
    with pytest.raises(DataError, match="was not made by scMamba"):
        report(adata, tmp_path)


def test_one_gene_at_a_time():
    adata = cells()
    adata.layers["scmamba"] = adata.X
    with pytest.raises(DataError, match="one gene at a time"):
        scmamba.pl.imputation(adata, [adata.var_names[0]])
    with pytest.raises(DataError, match="no gene NOPE"):
        scmamba.pl.imputation(adata, "NOPE")
