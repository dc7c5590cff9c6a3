"""Models as users call them: batches within the memory budget, checkpoints that are restored, and refused input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file, save_file
from scipy import sparse

from scmamba.genes import Vocabulary
from scmamba.model import Model, checkpoint, list_models, load_model, pack_model, save_checkpoint
from scmamba.model.hub import fetch_model, registry, unpack_model
from scmamba.nn import ModelConfig, ScMamba
from scmamba.utils.errors import CheckpointError, DataError


def shapes_seen(model: Model, verb: str, call) -> list[tuple[int, ...]]:
    """The shapes that pass through the network during ``call``."""
    seen, run = [], getattr(model.network, verb)

    def noted(x, *args, **options):
        assert not model.network.training and torch.is_inference_mode_enabled()
        seen.append(tuple(x.shape))
        return run(x, *args, **options)

    setattr(model.network, verb, noted)
    try:
        call()
    finally:
        delattr(model.network, verb)
    return seen


# --- batches
# ----------------------------------------------------------------------------------------------


def test_the_budget_is_twelve_activations_a_position():
    wide = Model(
        ScMamba(ModelConfig(n_genes=40, n_layer=1)), Vocabulary.published().subset(range(40))
    )
    # 12 tensors of (L, 512) float32 per cell, 1.5 GB in total
    assert wide.batch_size(19306) == math.floor(1.5e9 / (12 * 4 * 19306 * 512)) == 3
    assert wide.batch_size(1000) == math.floor(1.5e9 / (12 * 4 * 1000 * 512)) == 61
    assert wide.batch_size(100) == 256 and wide.batch_size(10**8) == 1


def test_batches_are_as_large_as_the_budget_allows(monkeypatch):
    model = small_model(n_genes=50, n_classes=2)  # d_inner 16
    x = torch.rand(11, 50)
    monkeypatch.setattr(checkpoint, "_CPU_BUDGET", 12 * 4 * 50 * 16 * 4.5)
    assert shapes_seen(model, "classify", lambda: model.classify(x)) == [(4, 50), (4, 50), (3, 50)]
    assert shapes_seen(model, "classify", lambda: model.classify(x, batch_size=3)) == [
        (3, 50)
    ] * 3 + [(2, 50)]
    assert shapes_seen(model, "classify", lambda: model.classify(x, batch_size=9)) == [
        (4, 50),
        (4, 50),
        (3, 50),
    ]
    some = torch.arange(0, 50, 2)
    sizes = shapes_seen(
        model, "cell_embedding", lambda: model.cell_embedding(x[:, some], genes=some)
    )
    assert sizes == [(9, 25), (2, 25)]


def test_batches_of_expressed_genes_depend_on_their_lengths(monkeypatch):
    model = small_model(n_genes=50, reads="expressed")
    x, mask = torch.zeros(130, 50), torch.zeros(130, 50, dtype=torch.bool)
    x[:, :5] = 1
    x[0, :20] = 1
    mask[100, 10:40] = True  # masked zeros are read too
    monkeypatch.setattr(checkpoint, "_CPU_BUDGET", 12 * 4 * 16 * 200.5)  # 200 positions at once
    # Longest cells first: 5 + 30 positions, 20, then those of 5.
    expected = [(5, 35)] + [(32, 5)] * 3 + [(29, 5)]
    seen = shapes_seen(model, "reconstruct", lambda: model.reconstruct(x, mask))
    assert seen == expected
    assert sum(n for n, _ in seen) == 130
    without = shapes_seen(model, "cell_embedding", lambda: model.cell_embedding(x))
    assert without == [(10, 20), (32, 5), (32, 5), (32, 5), (24, 5)]
    silent = torch.zeros(2, 50)
    assert shapes_seen(model, "cell_embedding", lambda: model.cell_embedding(silent)) == [(2, 1)]
    assert (model.cell_embedding(silent) == 0).all()


def test_empty_input_gives_the_right_number_of_columns():
    model = small_model(n_genes=50, n_classes=3)
    x = np.zeros((0, 50), np.float32)
    assert model.reconstruct(x, x > 0).shape == (0, 50)
    assert model.cell_embedding(x).shape == (0, 8) and model.classify(x).shape == (0, 3)
    assert model.classify(x).dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_inference_leaves_the_mode_of_the_network_unchanged(training):
    model = small_model(n_genes=50)
    model.network.train(training)
    model.reconstruct(np.zeros((1, 50)))
    assert model.network.training is training
    with pytest.raises(IndexError):
        model.reconstruct(np.zeros((1, 50)), genes=torch.arange(50) + 10**6)
    assert model.network.training is training


def test_wrong_shapes_and_missing_heads_are_refused():
    model = small_model(n_genes=50)
    for x in (np.zeros(50), np.zeros((2, 51)), np.zeros((1, 2, 50))):
        with pytest.raises(DataError, match=r"\(cells, 50 genes\) is expected"):
            model.cell_embedding(x)
    with pytest.raises(DataError, match=r"\(cells, 3 genes\) is expected"):
        model.cell_embedding(np.zeros((2, 50)), genes=torch.arange(3))
    with pytest.raises(DataError, match=r"mask has shape \(1, 50\), the input \(2, 50\)"):
        model.reconstruct(np.zeros((2, 50)), np.zeros((1, 50), bool))
    with pytest.raises(CheckpointError, match="'small' has no classification head"):
        model.classify(np.zeros((2, 50)))
    with pytest.raises(CheckpointError, match="'small' has no rate head"):
        model.log_ratio(sparse.csr_matrix((1, 50)), np.arange(50))
    classifier = Model(
        ScMamba(
            ModelConfig(n_genes=50, d_model=8, n_layer=1, n_classes=2, reconstructs=False, name="c")
        ),
        model.genes,
    )
    with pytest.raises(CheckpointError, match="'c' classifies; it has no reconstruction head"):
        classifier.reconstruct(np.zeros((2, 50)))
    with pytest.raises(CheckpointError, match="The network has 50 genes and the vocabulary 49"):
        Model(model.network, model.genes.subset(range(49)))


# --- checkpoints
# ---------------------------------------------------------------------------------------------


def test_everything_in_a_model_is_restored(tmp_path):
    model = small_model(n_genes=40, n_classes=2)
    model.calibration, model.card = {"temperature": 1.5, "cells": 7}, "its card\n"
    torch.manual_seed(1)
    before = torch.get_rng_state()
    path = save_checkpoint(model, str(tmp_path / "deep" / "m"))
    again = load_model(path, device="cpu", backend="reference", dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before), (
        "random numbers of the user's own go on as if nothing had been read"
    )
    assert (
        path == tmp_path / "deep" / "m"
        and again.config == model.config
        and again.genes == model.genes
    )
    assert (again.labels, again.calibration, again.card) == (
        model.labels,
        model.calibration,
        "its card\n",
    )
    assert (
        again.network.backend == "reference"
        and not again.network.training
        and again.device.type == "cpu"
    )
    stored, found = model.network.state_dict(), again.network.state_dict()
    assert stored.keys() == found.keys()
    assert all(
        found[name].dtype == torch.float64 and torch.equal(found[name], stored[name].double())
        for name in stored
    )
    assert (
        again.cell_embedding(np.zeros((0, 40))).dtype
        == again.classify(np.ones((1, 40))).dtype
        == torch.float64
    )
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert load_model(again) is again
    assert json.loads((path / "labels.json").read_text()) == {
        "labels": model.labels,
        "calibration": model.calibration,
    }


def test_optional_parts_of_a_checkpoint(tmp_path):
    save_checkpoint(small_model(n_genes=40), tmp_path / "m", card="")
    assert not (tmp_path / "m" / "labels.json").exists()
    (tmp_path / "m" / "model_card.md").unlink()
    weights = load_file(tmp_path / "m" / "model.safetensors")
    tokens = {name: weights.pop(name) for name in ("backbone.mask_token", "backbone.cls_token")}
    assert all(value.abs().min() > 0 for value in tokens.values())
    save_file(weights, tmp_path / "m" / "model.safetensors")
    model = load_model(tmp_path / "m", device="cpu")
    assert (model.labels, model.calibration, model.card) == (None, None, "")
    assert (model.network.backbone.mask_token == 0).all() and (
        model.network.backbone.cls_token == 0
    ).all()
    for change in (lambda w: w.pop("regressor.bias"), lambda w: w.update(more=torch.zeros(1))):
        other = dict(weights)
        change(other)
        save_file(other, tmp_path / "m" / "model.safetensors")
        with pytest.raises(CheckpointError, match="m is incomplete: missing"):
            load_model(tmp_path / "m")


def test_the_default_model_of_every_verb_is_brain_mini():
    assert checkpoint.DEFAULT_MODEL == "brain-mini"
    assert (
        load_model(device="cpu").config
        == load_model(list_models()["brain-mini"], device="cpu").config
    )


# --- models by name
# ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCMAMBA_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("SCMAMBA_REGISTRY", raising=False)
    return tmp_path / "models"


def test_models_in_the_folder_are_found_by_name(folder):
    shipped = list_models()
    assert "brain-mini" in shipped and list(shipped) == sorted(shipped)
    save_checkpoint(small_model(n_genes=40), folder / "a-own")
    save_checkpoint(small_model(n_genes=40), folder / "brain-mini")
    (folder / "zz-unfinished").mkdir()
    found = list_models()
    assert found == dict(sorted({**shipped, "a-own": folder / "a-own"}.items())), (
        "a name that ships keeps what ships"
    )
    assert list(found)[0] == "a-own" and load_model("a-own", device="cpu").config.name == "small"
    assert fetch_model("a-own") == folder / "a-own", "nothing to fetch"


def test_a_registry_of_the_user_is_added(folder, tmp_path, monkeypatch):
    entry = {"url": "http://127.0.0.1:9/x.zip", "sha256": "00"}
    (tmp_path / "own.json").write_text(
        json.dumps({"lab": entry, "other": {**entry, "about": "of the lab"}})
    )
    before = registry()
    monkeypatch.setenv("SCMAMBA_REGISTRY", str(tmp_path / "own.json"))
    assert registry() == {
        **before,
        "lab": {**entry, "about": ""},
        "other": {**entry, "about": "of the lab"},
    }
    for name in (".hidden", "", "a/b"):
        (tmp_path / "own.json").write_text(json.dumps({name: entry}))
        with pytest.raises(CheckpointError, match="own.json cannot be read"):
            registry()
    monkeypatch.setenv("SCMAMBA_REGISTRY", "ftp://host/own.json")
    with pytest.raises(CheckpointError, match="must be a path or an http"):
        registry()
    monkeypatch.setenv("SCMAMBA_REGISTRY", str(tmp_path / "absent.json"))
    with pytest.raises(CheckpointError, match=r"absent.json \(SCMAMBA_REGISTRY\) cannot be read"):
        registry()


@pytest.mark.parametrize(
    ("offline", "sentence"),
    [("1", "SCMAMBA_OFFLINE is set"), ("0", "could not be fetched"), ("", "could not be fetched")],
)
def test_fetching_can_be_forbidden(folder, tmp_path, monkeypatch, offline, sentence):
    (tmp_path / "own.json").write_text(
        json.dumps({"lab": {"url": "http://127.0.0.1:9/x.zip", "sha256": "00"}})
    )
    monkeypatch.setenv("SCMAMBA_REGISTRY", str(tmp_path / "own.json"))
    monkeypatch.setenv("SCMAMBA_OFFLINE", offline)
    with pytest.raises(CheckpointError, match=sentence):
        fetch_model("lab", verbose=False)
    with pytest.raises(
        CheckpointError, match="The model 'absent' is in no registry; the registries have .*lab"
    ):
        fetch_model("absent", verbose=False)


def test_a_packed_model_is_unchanged_after_unpacking(folder, tmp_path):
    save_checkpoint(small_model(n_genes=40, n_classes=2), tmp_path / "m", card="card\n")
    (tmp_path / "m" / "notes.txt").write_text("stays at home")
    assert len(pack_model(tmp_path / "m", tmp_path / "m.zip")["sha256"]) == 64
    unpack_model(tmp_path / "m.zip", tmp_path / "again")
    files = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir() if p.name != "notes.txt"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == files and len(
        files
    ) == 5
    (tmp_path / "m" / "genes.tsv").unlink()
    pack_model(tmp_path / "m", tmp_path / "poor.zip")
    with pytest.raises(CheckpointError, match="it lacks genes.tsv"):
        unpack_model(tmp_path / "poor.zip", tmp_path / "poor")
    assert not (tmp_path / "poor").exists()
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(CheckpointError, match="not a zip archive"):
        unpack_model(tmp_path / "text.zip", tmp_path / "poor")


def test_results_are_in_the_order_of_the_cells():
    model = small_model(n_genes=50, reads="expressed")
    x = torch.zeros(40, 50)
    for i in range(40):
        x[i, : 1 + (i * 7) % 40] = 1 + i / 40
    alone = torch.cat([model.cell_embedding(row[None]) for row in x])
    np.testing.assert_allclose(model.cell_embedding(x, batch_size=8), alone, rtol=0, atol=1e-6)
