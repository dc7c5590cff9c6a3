"""Plots show the values of the object, and the report is one file with all of them."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scmamba
from scmamba.cli.main import app
from scmamba.utils.errors import DataError


@pytest.fixture
def cells() -> ad.AnnData:
    counts = np.array([[5, 0, 5], [0, 10, 0], [2, 2, 6], [0, 0, 20]], dtype=np.float32)
    obs = pd.DataFrame(
        {
            "scmamba_type": pd.Categorical(["A", "B", "A", "Unassigned"]),
            "scmamba_probability": [0.9, 0.8, 0.7, 0.2],
            "scmamba_doublet": [False, False, True, False],
            "scmamba_doublet_score": [0.1, 0.2, 0.95, 0.3],
        },
        index=list("wxyz"),
    )
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=["G1", "G2", "G3"]))
    adata.obsm["X_umap"] = np.arange(8.0).reshape(4, 2)
    adata.layers["scmamba"] = np.full((4, 3), 2.5, np.float32)
    adata.uns["scmamba"] = {
        "impute": {"version": "0.2.0", "params": {"seed": 7}, "summary": {"values": "raw <counts>"}}
    }
    return adata


def test_annotation(cells):
    types, probability = scmamba.pl.annotation(cells)
    np.testing.assert_allclose(types.collections[0].get_offsets(), cells.obsm["X_umap"])
    drawn = types.collections[0].get_facecolors()
    assert len(cells.uns["scmamba_type_colors"]) == 3 and np.allclose(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], drawn[1]) and len(set(drawn[3][:3])) == 1, "Unassigned is grey"
    np.testing.assert_allclose(probability.collections[0].get_array(), [0.9, 0.8, 0.7, 0.2])
    cells.uns["scmamba_type_colors"] = ["#000000", "#ffffff", "#00ff00"]
    assert np.allclose(
        scmamba.pl.annotation(cells, confidence=False)[0].collections[0].get_facecolors()[1][:3], 1
    )


def test_imputation_before_and_after(cells):
    before, after = scmamba.pl.imputation(cells, "G1")
    # log1p of counts per 10,000: half and a fifth of the counts of two cells
    expected = np.log1p(1e4 * np.array([0, 0, 0.2, 0.5]))
    np.testing.assert_allclose(before.collections[0].get_array(), expected, rtol=1e-6)
    np.testing.assert_allclose(after.collections[0].get_array(), 2.5)
    assert before.collections[0].get_clim() == after.collections[0].get_clim()
    assert "50% of cells" in before.get_title() and "100% of cells" in after.get_title()


def test_markers_and_volcano(cells):
    axis = scmamba.pl.markers(cells, ["G1", "G2"])
    values = np.log1p(1e4 * np.array([[0.5, 0], [0, 1], [0.2, 0.2], [0, 0]]))
    expected = [values[[0, 2]].mean(0), values[1], values[3]]
    np.testing.assert_allclose(axis.collections[0].get_array(), np.ravel(expected), rtol=1e-6)
    np.testing.assert_allclose(axis.collections[0].get_sizes()[:2], [4 + 160, 4 + 80])
    table = pd.DataFrame(
        {"p_val": [0, 1e-4, 0.2], "p_val_adj": [0, 1e-2, 1], "avg_log2FC": [2, -0.1, 3]},
        index=["up", "small", "not"],
    )
    volcano = scmamba.pl.volcano(table)
    assert [t.get_text() for t in volcano.texts] == ["up"] and "1 of 3 genes" in volcano.get_title()
    assert np.isfinite(volcano.collections[1].get_offsets()).all(), "p of 0 has a place"


def test_missing_results_are_named(cells):
    with pytest.raises(DataError, match="no gene G9"):
        scmamba.pl.markers(cells, ["G1", "G9"])
    with pytest.raises(DataError, match="X_umap"):
        scmamba.pl.annotation(cells, basis="X_tsne")
    del cells.obs["scmamba_type"]
    with pytest.raises(DataError, match=r"scmamba.annotate\(adata\) writes it"):
        scmamba.pl.annotation(cells)
    with pytest.raises(DataError, match="p_val_adj"):
        scmamba.pl.volcano(pd.DataFrame({"p": [1]}))
    with pytest.raises(DataError, match="needs 2"):
        scmamba.pl.imputation(cells, "G1", axes=[None])


def test_the_report_is_one_self_contained_file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ["report", str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "r.html")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.html").read_text()
    assert "raw &lt;counts&gt;" in page and "params: seed" in page and "arXiv:2502.19429" in page
    assert re.search(r"<th>A</th><td>2 \(50.0%\)</td>", page)
    assert "1 of 4 cells" not in page and page.count("data:image/png") == 2
    assert not re.search(r"(src|href)='?https?:", page), "nothing is loaded from elsewhere"
    assert "25% of the cells were called doublets" in page
    assert "exists already" in CliRunner().invoke(app, command).output
    del cells.uns["scmamba"]
    with pytest.raises(DataError, match="no result"):
        scmamba.pl.write_report(cells, tmp_path / "x.html")
