"""Gene embeddings of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_model
from typer.testing import CliRunner

import scmamba
from scmamba.cli.main import app
from scmamba.embedding import marker_map, plot_marker_map
from scmamba.utils.errors import GeneError, ScMambaError


@pytest.fixture(scope="module")
def model():
    """Untrained, except for three genes with equal embeddings."""
    small = small_model("expressed")
    places = [small.genes.symbols.index(s) for s in ("GAD1", "GAD2", "SST")]
    with torch.no_grad():
        weight = small.network.backbone.gene_id_embedding.weight
        weight[places[1]] = 1.01 * weight[places[0]]
        weight[places[2]] = weight[places[0]] + 0.002
    return small


def test_embedding_has_a_row_per_gene(model):
    table = scmamba.gene_embedding(model=model)
    assert table.shape == (len(model.genes), 1 + model.config.d_model)
    np.testing.assert_array_equal(
        table.loc[model.genes[7]].to_numpy()[1:].astype(np.float32),
        model.gene_embedding()[7].numpy(),
    )


def test_nearest_genes_are_those_of_scikit_learn(model):
    from sklearn.metrics.pairwise import cosine_similarity

    found = scmamba.gene_neighbors(["GAD1", "no such gene"], model=model, n=3)
    values = model.gene_embedding().double().numpy()
    values = values - values.mean(axis=0)
    own = model.genes.symbols.index("GAD1")
    expected = cosine_similarity(values[[own]], values)[0]
    expected[own] = -1
    order = np.argsort(-expected)[:3]
    assert found["ensembl_id"].tolist() == [model.genes[i] for i in order]
    np.testing.assert_allclose(found["cosine"], expected[order])
    assert found["neighbor"].iloc[0] == "GAD2" and set(found["gene"]) == {"GAD1"}


def test_markers_in_the_plane(model):
    panel = {"inhibitory": ["GAD1", "GAD2", "SST"], "other": ["MBP", "AQP4", "nothing"]}
    table = marker_map(panel, model=model)
    assert table["gene"].tolist() == ["GAD1", "GAD2", "SST", "MBP", "AQP4"]
    assert table["own_type"][:3].all() and np.isfinite(table[["x", "y"]]).all().all()
    assert table.attrs["expected"] == pytest.approx((3 * 2 + 2 * 1) / 5 / 4)
    assert len(plot_marker_map(table).axes[0].texts) == 5


def test_invalid_calls_are_refused(model):
    with pytest.raises(GeneError, match="has none"):
        scmamba.gene_neighbors("nothing", model=model)
    with pytest.raises(GeneError, match="has 1 of the 2 markers"):
        marker_map({"a": ["GAD1"], "b": ["nothing"]}, model=model)
    with pytest.raises(ScMambaError, match="at least 1"):
        scmamba.gene_neighbors("GAD1", model=model, n=0)


def test_command(model, tmp_path):
    scmamba.save_checkpoint(model, tmp_path / "m")
    result = CliRunner().invoke(
        app,
        [
            "genes",
            "GAD1",
            "-n",
            "2",
            "--model",
            str(tmp_path / "m"),
            "--map",
            str(tmp_path / "map.png"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "GAD2" in result.output and (tmp_path / "map.png").stat().st_size > 1000
