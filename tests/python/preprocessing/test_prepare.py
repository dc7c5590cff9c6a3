"""Preparation: true types on the simulated cohort, a stopped run continues, and unusable input gets an error."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.preprocessing import PrepareOptions, _prepare, analysis
from scmamba.preprocessing.cluster_labels import (
    DOUBLET,
    MYELOID,
    NEURON_BOTH,
    NEURON_NEITHER,
    UNIDENTIFIED,
    name_clusters,
)
from scmamba.utils.errors import DataError, ScMambaError

pytest.importorskip("harmonypy")
pytest.importorskip("leidenalg")
SMALL = PrepareOptions(min_cells_per_donor=100, n_top_genes=1000, n_neighbors=15)
PANEL = {
    "Excitatory": "Excitatory neuron",
    "Inhibitory": "Inhibitory neuron",
}  # the cohort's names for the panel's types


@pytest.fixture(scope="module")
def studies() -> list[ad.AnnData]:
    """Two studies of the cohort with different genes; one has a donor with twenty cells and a cell without a donor."""
    cells = brain_cohort(620, n_donors=3, n_genes=4000, seed=4)
    first, second = cells[cells.obs["donor"] != "D03"], cells[cells.obs["donor"] == "D03"]
    first, second = first[:, :3900].copy(), second[:, 100:].copy()
    second.obs["donor"] = second.obs["donor"].astype(str)
    second.obs.iloc[:20, second.obs.columns.get_loc("donor")] = "small"
    second.obs.iloc[20, second.obs.columns.get_loc("donor")] = np.nan
    return [first, second]


@pytest.fixture(scope="module")
def prepared(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    with _quiet():
        return scmamba.prepare(studies, folder=folder, config=SMALL, verbose=False), folder


def _quiet():
    import warnings

    context = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return context


def test_types_of_the_cohort_are_recovered(prepared, studies):
    result, folder = prepared
    truth = result.obs["cell_type"].astype(str).replace(PANEL)
    assert (result.obs["scmamba_label"].astype(str) == truth).mean() > 0.9
    assert set(result.obs["donor"]) == {"study1:D01", "study1:D02", "study2:D03"}
    assert result.n_obs <= sum(s.n_obs for s in studies) - 21
    genes = pd.Index(result.var_names)
    assert genes.str.startswith("ENSG").all()
    assert {"X_pca", "X_pca_harmony", "X_umap"} <= set(result.obsm)
    cell = result.obs_names[result.obs["study"] == "study1"][5]
    source = studies[0][cell.split(":", 1)[1]]
    assert (
        result[cell].X.sum() <= source.X.sum()
        and (result[cell].X.data == np.rint(result[cell].X.data)).all()
    )
    back = ad.read_h5ad(folder / "prepared.h5ad")
    pd.testing.assert_series_equal(
        back.obs["scmamba_cluster_type"], result.obs["scmamba_cluster_type"]
    )


def test_a_stopped_run_continues_and_a_different_one_is_refused(prepared, studies, monkeypatch):
    result, folder = prepared
    (folder / "5_graph.npz").unlink()
    before = (folder / "4_harmony.npz").stat().st_mtime_ns
    monkeypatch.setattr(_prepare, "scrublet_scores", lambda *a: pytest.fail("made again"))
    with _quiet():
        again = scmamba.prepare(studies, folder=folder, config=SMALL, verbose=False)
    assert (folder / "4_harmony.npz").stat().st_mtime_ns == before
    pd.testing.assert_series_equal(
        again.obs["scmamba_cluster_type"], result.obs["scmamba_cluster_type"]
    )
    with pytest.raises(ScMambaError, match="options differ"):
        scmamba.prepare(studies, folder=folder, config=PrepareOptions(), verbose=False)
    with pytest.raises(ScMambaError, match="cells differ"):
        scmamba.prepare(studies[:1], folder=folder, config=SMALL, verbose=False)


def test_unassigned_clusters_have_descriptive_names():
    scores = pd.DataFrame(
        [
            [1.0, 0.1, 0.0, 0.9, 0.0],  # excitatory
            [0.9, 0.88, 0.0, 0.9, 0.0],  # both
            [0.1, 0.1, 0.0, 0.8, 0.0],  # neither
            [0.0, 0.0, 0.9, 0.0, 0.3],  # microglia
            [0.0, 0.0, 0.3, 0.0, 1.2],  # another myeloid cell
            [0.0, 0.1, 0.1, 0.0, 0.0],  # no markers
            [1.0, 0.1, 0.0, 0.9, 0.0],  # doublets
        ],
        columns=["Excitatory neuron", "Inhibitory neuron", "Microglia", "_neuron", "_myeloid"],
    )
    doublet = pd.Series([0.0] * 6 + [0.2])
    names = name_clusters(scores, doublet, PrepareOptions(), brain=True)
    assert list(names) == [
        "Excitatory neuron",
        NEURON_BOTH,
        NEURON_NEITHER,
        "Microglia",
        MYELOID,
        UNIDENTIFIED,
        DOUBLET,
    ]


def test_invalid_input_gives_the_reason(studies, tmp_path):
    with pytest.raises(DataError, match="no column 'patient'"):
        scmamba.prepare(studies, folder=tmp_path, donor_key="patient", verbose=False)
    with pytest.raises(DataError, match="Lower min_total"):
        scmamba.prepare(studies[0][:60].copy(), folder=tmp_path / "a", verbose=False)
    logs = studies[0][:60].copy()
    logs.X = logs.X.astype(float).log1p()
    with pytest.raises(DataError, match="raw counts"):
        scmamba.prepare(logs, folder=tmp_path / "b", verbose=False)
    with pytest.raises(DataError, match="no study"):
        scmamba.prepare([], folder=tmp_path / "c", verbose=False)


@pytest.mark.versions
def test_samples_with_approximate_neighbors():
    # From 8,192 points scanpy uses pynndescent, and not every version of it works with scanpy.
    cells = brain_cohort(2900, n_donors=2, n_genes=300, seed=4)
    cells.obs["donor"] = "one"
    score = analysis.scrublet_scores(cells, PrepareOptions(), verbose=False)
    assert score.shape == (2900,) and np.isfinite(score).all() and score.std() > 0
