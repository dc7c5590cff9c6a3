"""The vignette's blocks run as written, with the real imputation; its numbers are computed in another way."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scmamba import deg

PAGES = Path(__file__).resolve().parents[3] / "vignettes" / "python"


def _runner():
    spec = importlib.util.spec_from_file_location("run_page", PAGES / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_vignette(tmp_path, monkeypatch, capsys):
    if not PAGES.is_dir():
        pytest.skip("the vignettes are not in an installed package")
    monkeypatch.chdir(tmp_path)
    # Fewer cells, genes and runs than on the page, so that the imputation takes seconds.
    text = (PAGES / "deg_robustness.md").read_text()
    changes = {
        "brain_cohort(900, n_donors=8, n_genes=3000": "brain_cohort(260, n_donors=8, n_genes=2000",
        "permutations=10, null_permutations=10, min_degs=5": "permutations=3, null_permutations=2, min_degs=2",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    page = tmp_path / "page.md"
    page.write_text(text)
    space = _runner().run(page, tmp_path)
    output = capsys.readouterr().out
    adata, markers, bulk, result = (space[n] for n in ("adata", "markers", "bulk", "result"))

    # Measured on split counts, the rates are better than the average of each gene.
    card = adata.uns["scmamba"]["impute"]
    summary = card["summary"]
    assert card["model"] == "brain-mini"
    assert summary["deviance_neighbors"] < summary["deviance_average"]
    # Values are close to the observed logarithms, and zeros are imputed.
    counts, filled = adata.X.toarray(), adata.layers["scmamba"].toarray()
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    assert filled.min() >= 0 and np.corrcoef(logs[counts > 0], filled[counts > 0])[0, 1] > 0.5
    before, after = (counts > 0).mean(), (filled > 0).mean()
    assert f"non-zero before {before:.1%}, after {after:.1%}" in output and after > before + 0.02

    # The table of FindMarkers: rates, Seurat 5's fold change, Bonferroni over 2,000 genes.
    cell_type, disease = (adata.obs[c].to_numpy() for c in ("cell_type", "disease"))
    ill, well = (
        np.flatnonzero((cell_type == "Excitatory") & (disease == d)) for d in ("AD", "Control")
    )
    best = markers.iloc[:30]
    at = adata.var_names.get_indexer(best.index)
    linear = np.expm1(logs)
    change = np.log2((linear[ill].sum(axis=0) + 1) / len(ill)) - np.log2(
        (linear[well].sum(axis=0) + 1) / len(well)
    )
    np.testing.assert_allclose(best["avg_log2FC"], change[at], rtol=1e-9)
    np.testing.assert_allclose(best["pct.1"], (counts[ill] > 0).mean(axis=0)[at], atol=6e-4)
    np.testing.assert_allclose(best["p_val_adj"], np.minimum(1, best["p_val"] * 2000))
    ranks = stats.mannwhitneyu(logs[ill], logs[well]).pvalue[at]
    assert stats.spearmanr(np.log(ranks), np.log(best["p_val"])).statistic > 0.5

    # Per donor: the mean over donors of log counts per million.
    sums = pd.DataFrame(counts).groupby([disease, adata.obs["donor"].to_numpy(), cell_type]).sum()
    sums = sums.xs("Excitatory", level=2)
    used = bulk.attrs["samples"].assign(state=lambda t: np.where(t["group"] == 0, "AD", "Control"))
    sums = sums.loc[list(zip(used["state"], used["donor"], strict=True))].to_numpy()
    library = sums.sum(axis=1, keepdims=True)
    prior = 2 * library / library.mean()
    levels = np.log2((sums + prior) / (library + 2 * prior) * 1e6)
    side = used["group"].to_numpy() == 0
    at = adata.var_names.get_indexer(bulk.index)
    np.testing.assert_allclose(
        bulk["log2FC"], (levels[side].mean(axis=0) - levels[~side].mean(axis=0))[at], rtol=1e-8
    )

    # Found and false, against the truth of the simulation.
    truth = adata.varm["true_log2fc"]["Excitatory"].to_numpy()
    changed = set(adata.var_names[truth != 0])
    for name, genes in space["tests"].items():
        right = len(set(genes) & changed)
        assert f"{name}" in output
        assert space["score"](genes) == {
            "called": len(genes),
            "right": right,
            "false": len(genes) - right,
        }
    called = space["tests"]["MAST, counts"]
    assert len(called) >= 2 and set(called) & changed

    # The robustness table: all of the full data's calls are those of the table above.
    full = result.full.set_index(["cell_type", "layer", "direction"])["n_degs"]
    for way, name in ((1, "up"), (-1, "down")):
        degs = (markers["p_val_adj"] < 0.05) & (way * markers["avg_log2FC"] > 0.25)
        assert full["Excitatory", "counts", name] == degs.sum()
        imputed = space["imputed"]
        degs = (imputed["p_val_adj"] < 0.05) & (way * imputed["avg_log2FC"] > 0.25)
        assert full["Excitatory", "scmamba", name] == degs.sum()
    sizes = result.runs.query("kind == 'cells' and cell_type == 'Excitatory'")[
        ["ratio", "n_cells1", "n_cells2"]
    ]
    assert set(sizes.itertuples(index=False, name=None)) == {
        (r, round(len(ill) * r), round(len(well) * r)) for r in (0.2, 0.5, 0.9)
    }
    false = result.false_positives().set_index(["kind", "cell_type", "layer"])["rate_nominal"]
    assert false["null_cells", "Excitatory", "counts"] < 0.08  # nominal: 5%
    again = deg.RobustnessResult.load(tmp_path / "deg_robustness_report")
    pd.testing.assert_frame_equal(again.false_positives(), result.false_positives())
    assert (tmp_path / "deg_robustness_report" / "overlap_heatmap.png").exists()
