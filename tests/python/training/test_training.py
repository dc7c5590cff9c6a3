"""Training: properties of the batches, reproducible and resumed runs, decreasing losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse

from scmamba.genes import Vocabulary
from scmamba.nn import ModelConfig
from scmamba.training import TrainerConfig, finetune, fit, make_batch, pretrain, read_sources
from scmamba.training.batches import sample_rows
from scmamba.training.reconstruction import IMPUTE, PRETRAIN, reconstruction_step, validation
from scmamba.training.trainer import learning_rate, make_optimizer
from scmamba.utils.errors import CheckpointError, DataError, ScMambaError

CONFIG = ModelConfig(n_genes=19306, d_model=8, n_layer=1, d_state=4, reads="expressed")


@pytest.fixture(scope="module")
def source(cohort):
    return read_sources([cohort], Vocabulary.published())[0]


def test_short_sequences_have_expressed_genes_and_masked_zeros(source):
    config = replace(IMPUTE, zeros=(50, 80))
    rng = np.random.default_rng(0)
    batch = make_batch(source, np.arange(5), config, "expressed", rng)
    for row in range(5):
        keep = batch.keep[row]
        genes = batch.genes[row][keep]
        assert (genes.diff() > 0).all(), "canonical order is kept"
        x, mask, weight = batch.x[row][keep], batch.mask[row][keep], batch.weight[row][keep]
        truth = np.zeros(19306, np.float32)
        truth[source.genes] = source.values[row].toarray()[0]
        np.testing.assert_array_equal(x, truth[genes])
        assert (x != 0).sum() == source.values[row].nnz and 50 <= (x == 0).sum() <= 80
        assert mask[x == 0].all()
        n_zeros = len(source.genes) - source.values[row].nnz
        assert math.isclose(weight[x == 0].sum(), 0.04 * n_zeros, rel_tol=1e-4)
        assert (weight[x != 0] == 1).all()


def test_pretraining_masks_no_zero(source):
    batch = make_batch(source, np.arange(8), PRETRAIN, "expressed", np.random.default_rng(0))
    assert (batch.x[batch.mask] != 0).all() and 0.1 < batch.mask.sum() / batch.keep.sum() < 0.2
    whole = make_batch(source, np.arange(8), IMPUTE, "all", np.random.default_rng(0))
    assert abs(whole.mask[whole.x == 0].float().mean() - 0.04) < 0.005


def test_batches_have_cells_of_similar_length_and_all_are_drawn(source):
    lengths = np.diff(source.values.indptr)
    rng = np.random.default_rng(0)
    seen = np.concatenate([sample_rows(source, 4, rng) for _ in range(400)])
    assert set(seen) == set(range(len(source)))
    rows = sample_rows(source, 4, rng)
    rank = np.argsort(np.argsort(lengths, kind="stable"))[rows]
    assert len(set(rows)) == 4 and rank.max() - rank.min() < 16


def test_filters_are_those_of_the_paper(cohort):
    data = cohort.copy()
    data.X = sparse.vstack([data.X[:1] * 0, data.X[1:]]).tocsr()
    assert (
        len(read_sources([data], Vocabulary.published())[0])
        == len(read_sources([cohort], Vocabulary.published())[0]) - 1
    )
    with pytest.raises(DataError, match="no cell is left to train on"):
        read_sources([cohort], Vocabulary.published(), min_cells_per_donor=10_000)


def test_learning_rate_follows_the_recipe():
    config = TrainerConfig(steps=1000, lr=1e-3)
    assert learning_rate(9, config) == pytest.approx(1e-3)
    assert learning_rate(0, config) < 2e-4
    assert learning_rate(505, config) == pytest.approx(1e-3 * 0.55, rel=0.01)
    assert learning_rate(1000, config) == pytest.approx(1e-4)


def test_optimizer_decays_matrices_only():
    network = small_model(n_genes=30).network
    decayed, free = make_optimizer(network, TrainerConfig()).param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert any(p is network.backbone.gene_id_embedding.weight for p in decayed["params"])
    assert any(p is network.backbone.layers[0].mixer.A_log for p in free["params"])


def test_training_lowers_the_loss_on_fixed_masked_values(source):
    network, judge = small_model("expressed").network, validation([source], PRETRAIN)
    config = TrainerConfig(steps=40, lr=1e-2, batch_size=4)
    before = judge(network)["validation_loss"]
    fit(network, reconstruction_step([source], PRETRAIN, config), config, verbose=False)
    assert judge(network)["validation_loss"] < 0.9 * before


def test_runs_are_reproducible(cohort):
    loop = TrainerConfig(steps=4, lr=1e-2, batch_size=8)
    models = [pretrain([cohort], config=CONFIG, loop=loop, seed=3, verbose=False) for _ in range(2)]
    for a, b in zip(models[0].network.parameters(), models[1].network.parameters()):
        assert torch.equal(a, b)
    other = pretrain([cohort], config=CONFIG, loop=loop, seed=4, verbose=False)
    assert not torch.equal(other.gene_embedding(), models[0].gene_embedding())


def test_a_stopped_run_continues_with_the_same_curve(source, tmp_path):
    config = TrainerConfig(steps=12, lr=1e-2, batch_size=4, save_every=4)
    step = reconstruction_step([source], PRETRAIN, config)
    whole = fit(small_model("expressed").network, step, config, verbose=False)

    def stops(network, k, rng):
        if k == 9:
            raise KeyboardInterrupt
        return step(network, k, rng)

    with pytest.raises(KeyboardInterrupt):
        fit(small_model("expressed").network, stops, config, folder=tmp_path / "run", verbose=False)
    resumed = fit(
        small_model("expressed", seed=9).network,
        step,
        config,
        folder=tmp_path / "run",
        verbose=False,
    )
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    with pytest.raises(CheckpointError, match="other settings"):
        fit(
            small_model("expressed").network,
            step,
            replace(config, lr=1.0),
            folder=tmp_path / "run",
            verbose=False,
        )


def test_finetuning_starts_from_the_model_and_does_not_change_it(cohort):
    model = small_model("expressed")
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    loop = TrainerConfig(steps=3, lr=1e-3, batch_size=4)
    tuned = finetune(
        [cohort], model=model, loop=loop, held_out=[cohort], name="tuned", verbose=False
    )
    assert tuned.config.name == "tuned"
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    assert not torch.equal(tuned.network.backbone.mask_token, before["backbone.mask_token"])
    assert (tuned.network.backbone.mask_token - before["backbone.mask_token"]).abs().max() < 0.01, (
        "the mask token is kept, not made anew"
    )
    with pytest.raises(ScMambaError, match="task is 'sorting'"):
        finetune([cohort], model=model, task="sorting")


def test_training_on_whole_cells(cohort):
    model = pretrain(
        [cohort[:4].copy()],
        config=replace(CONFIG, reads="all"),
        loop=TrainerConfig(steps=1, batch_size=2),
        verbose=False,
    )
    assert model.config.reads == "all" and all(
        torch.isfinite(p).all() for p in model.network.parameters()
    )
