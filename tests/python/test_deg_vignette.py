"""The vignette's blocks run as written, with the imputation replaced by a stand-in that needs no model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import scmamba

PAGES = Path(__file__).resolve().parents[2] / "vignettes" / "python"


def _runner():
    spec = importlib.util.spec_from_file_location("run_page", PAGES / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_vignette_runs(tmp_path, monkeypatch, capsys):
    if not PAGES.is_dir():
        pytest.skip("the vignettes are not in an installed package")

    def stand_in(adata, **options):
        """The mean of the cell's donor and type at every zero, which is what a poor imputation does."""
        totals = np.asarray(adata.X.sum(axis=1))
        logs = np.log1p(adata.X.toarray() / totals * 1e4)
        key = (adata.obs["donor"].astype(str) + adata.obs["cell_type"].astype(str)).to_numpy()
        filled = logs.copy()
        for k in np.unique(key):
            filled[key == k] = logs[key == k].mean(axis=0)
        adata.layers["scmamba"] = sp.csr_matrix(np.where(logs > 0, logs, filled).astype(np.float32))
        return adata

    monkeypatch.setitem(scmamba.__dict__, "impute", stand_in)
    monkeypatch.chdir(tmp_path)
    page = PAGES / "deg_robustness.md"
    runner = _runner()
    # Fewer runs than the page: what is tested is that every block works.
    text = page.read_text().replace("permutations=10", "permutations=2")
    copy = tmp_path / "page.md"
    copy.write_text(text)
    runner.run(copy, tmp_path)
    said = capsys.readouterr().out
    assert "per donor, counts" in said and "null_donors" in said
    assert (tmp_path / "deg_robustness_report" / "overlap_heatmap.png").exists()
