"""The objectives of the recipes against sums in float64, and the settings that each verb passes to the loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse
from torch import nn

from scmamba.datasets import brain_cohort
from scmamba.genes import Vocabulary
from scmamba.model import Model
from scmamba.nn import ModelConfig, ScMamba
from scmamba.training import (
    TrainerConfig,
    _finetune,
    _pretrain,
    finetune,
    finetune_on,
    pretrain,
)
from scmamba.training.batches import CellSource, make_batch
from scmamba.training.dataloaders import InMemorySource, open_batch_source, reconstruction
from scmamba.training.distributed import BatchShard, Loss, ShardedStep
from scmamba.training.objectives import RateConfig, nb_rate_step, source_log_rate
from scmamba.training.reconstruction import (
    IMPUTE,
    PRETRAIN,
    alternate,
    clone,
    combine_validations,
    reconstruction_loss,
    reconstruction_step,
    validation,
)

# ---------------------------------------------------------------- objectives
from scmamba.utils.errors import ScMambaError


class Level(nn.Module):
    """Predicts one fitted number at every position."""

    def __init__(self, reads: str, n_genes: int = 60) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.5))
        self.config = SimpleNamespace(reads=reads, n_genes=n_genes)
        self.recorded: list[tuple] = []

    def reconstruct(self, x, mask, genes, keep):
        self.recorded.append((x, mask, genes, keep))
        return self.level + 0 * x


@pytest.fixture(scope="module")
def source() -> CellSource:
    rng = np.random.default_rng(0)
    genes = np.arange(3, 53)
    values = sparse.random(100, 50, 0.4, "csr", np.float32, rng, lambda k: rng.uniform(1, 4, k))
    return CellSource(
        "s", values, genes, np.full(100, ""), rng.integers(500, 900, 100).astype(float)
    )


SEQUENCE = replace(IMPUTE, zeros=(4, 9))


@pytest.mark.parametrize("reads", ["all", "expressed"])
def test_reconstruction_is_the_weighted_squared_error_of_masked_values(source, reads):
    network, rows = Level(reads), np.array([5, 80, 7])
    found = reconstruction_loss(network, source, rows, SEQUENCE, np.random.default_rng(3)).item()
    batch = make_batch(source, rows, SEQUENCE, reads, np.random.default_rng(3))
    x, w, m = batch.x.numpy().astype(float), batch.weight.numpy().astype(float), batch.mask.numpy()
    assert found == pytest.approx(np.average((1.5 - x[m]) ** 2, weights=w[m]), rel=1e-5)
    given, mask, genes, keep = network.recorded[0]
    if (
        reads == "all"
    ):  # every gene of the vocabulary; unmeasured ones are zeros that are never masked
        assert genes is None and keep is None and given.shape == (3, 60)
        np.testing.assert_array_equal(given[:, 3:53], batch.x)
        np.testing.assert_array_equal(mask[:, 3:53], batch.mask)
        assert not given[:, [0, 1, 2, 53, 59]].any() and not mask[:, [0, 1, 2, 53, 59]].any()
    else:
        assert torch.equal(genes, batch.genes) and torch.equal(keep, batch.keep)


def test_validation_is_the_mean_over_batches_of_eight_of_the_same_cells(source):
    judge, network = validation([source, source.take(np.arange(9))], SEQUENCE), Level("expressed")
    first = judge(network)["validation_loss"]
    expected = []
    for own in (source, source.take(np.arange(9))):
        rng = np.random.default_rng(12345)
        rows = own.by_length[np.sort(rng.choice(len(own), min(64, len(own)), replace=False))]
        for part in np.array_split(rows, max(1, len(rows) // 8)):
            expected.append(reconstruction_loss(network, own, part, SEQUENCE, rng).item())
    assert (
        len(expected) == 9
        and first == pytest.approx(np.mean(expected), rel=1e-6)
        and judge(network)["validation_loss"] == first
    )
    assert validation([source], SEQUENCE, seed=1)(network) != validation([source], SEQUENCE)(
        network
    )
    assert validation([source], SEQUENCE, cells=5)(network) != validation([source], SEQUENCE)(
        network
    )


def test_objectives_alternate():
    calls = []

    def plain(name):
        return lambda network, k, rng: calls.append((name, k)) or torch.tensor(2.0)

    shared = ShardedStep(
        lambda network, k, rng, share: (
            calls.append(("shared", k, share)) or Loss(torch.tensor(3.0), torch.tensor(4.0))
        )
    )
    step = alternate(plain("a"), shared, plain("b"))
    answers = [step.draw(None, k, None, BatchShard(1, 2)) for k in range(4)]
    assert calls == [("a", 0), ("shared", 1, BatchShard(1, 2)), ("b", 2), ("a", 3)]
    assert answers[1] == (3.0, 4.0) and answers[0] == (2.0, 1.0)
    joint = combine_validations(
        lambda n: {"validation_loss": 1.0}, lambda n: {"validation_loss": 2.0}
    )
    assert joint(None) == {"validation_loss": 1.0, "validation_squared_error": 2.0}


def test_a_clone_is_equal_and_independent():
    model = small_model("expressed", n_genes=30)
    model.network.backend, model.card = "reference", "about"
    twin = clone(model, "twin")
    assert twin.config == replace(model.config, name="twin") and clone(model).config == model.config
    assert (
        twin.network.backend == "reference" and twin.card == "about" and twin.genes is model.genes
    )
    assert all(
        torch.equal(v, model.network.state_dict()[k]) for k, v in twin.network.state_dict().items()
    )
    with torch.no_grad():
        twin.network.regressor.bias.add_(1)
    assert model.network.regressor.bias.item() == 0.5
    half = small_model("expressed", n_genes=30)
    half.network.to(torch.bfloat16)
    assert next(clone(half).network.parameters()).dtype == torch.bfloat16


# ---------------------------------------------------------------- settings of the verbs


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return brain_cohort(30, n_donors=2, n_genes=2500, seed=5)


@pytest.fixture
def recorded(monkeypatch):
    """The arguments that a recipe passes to the loop; nothing is trained."""
    seen: dict = {}

    def fit(network, step, config, *, folder=None, description="", verbose=True, validate=None):
        seen.update(network=network, step=step, config=config, folder=folder, validate=validate)
        return []

    for module in (_finetune, _pretrain):
        monkeypatch.setattr(module, "fit", fit)
    return seen


def same_loss(found, expected, network, k: int) -> None:
    with torch.no_grad():
        a, b = (
            s.draw(network, k, np.random.default_rng([7, k]), BatchShard())
            for s in (found, expected)
        )
    assert a.total.item() == pytest.approx(
        b.total.item(), rel=1e-6
    ) and a.weight.item() == pytest.approx(b.weight.item(), rel=1e-6)


def test_pre_training_masks_fifteen_percent_for_a_new_network(cells, recorded, tmp_path):
    config = ModelConfig(n_genes=5, d_model=4, n_layer=1, d_state=4, reads="expressed")
    model = pretrain(
        [cells],
        config=config,
        held_out=[cells],
        folder=tmp_path,
        name="mine",
        seed=7,
        verbose=False,
    )
    assert (
        recorded["config"] == TrainerConfig(seed=7)
        and recorded["folder"] == tmp_path
        and recorded["network"] is model.network
    )
    assert model.config.n_genes == 19306 and model.config.name == "mine" and model.genes is not None
    source = open_batch_source([cells], Vocabulary.published(), seed=7, reads="expressed").sources
    same_loss(
        recorded["step"],
        reconstruction(InMemorySource(source), PRETRAIN, TrainerConfig(seed=7)),
        model.network,
        3,
    )
    assert recorded["validate"](model.network) == validation(source, PRETRAIN)(model.network)
    torch.manual_seed(7)
    again = ScMamba(replace(config, n_genes=19306))
    assert torch.equal(again.regressor.weight, model.network.regressor.weight)
    pretrain([cells], config=config, loop=TrainerConfig(steps=3, seed=1), seed=2, verbose=False)
    assert recorded["config"] == TrainerConfig(steps=3, seed=2) and recorded["validate"] is None


def test_fine_tuning_for_imputation_masks_forty_percent_at_a_tenth_of_the_rate(cells, recorded):
    model = small_model("expressed")
    tuned = finetune([cells], model=model, held_out=[cells], seed=7, verbose=False)
    assert (
        recorded["config"] == TrainerConfig(lr=1e-4, seed=7)
        and tuned.config.name == "small"
        and tuned is not model
    )
    sources = open_batch_source([cells], model.genes, seed=7, reads="expressed").sources
    same_loss(
        recorded["step"],
        reconstruction(InMemorySource(sources), IMPUTE, TrainerConfig(lr=1e-4, seed=7)),
        tuned.network,
        0,
    )
    assert recorded["validate"](tuned.network) == validation(sources, IMPUTE)(tuned.network)
    deep = np.median(np.asarray(cells.X.sum(axis=1)))
    finetune([cells], model=model, min_total=deep, verbose=False)
    some = open_batch_source([cells], model.genes, seed=0, reads="expressed", min_total=deep)
    assert len(some) < 30
    same_loss(
        recorded["step"], reconstruction(some, IMPUTE, TrainerConfig(lr=1e-4)), tuned.network, 1
    )


def test_a_model_with_a_rate_head_trains_rates_three_steps_of_four(cells, recorded):
    torch.manual_seed(0)
    model = small_model("expressed")
    rated = Model(ScMamba(replace(model.config, rates=True)), model.genes)
    tuned = finetune([cells], model=rated, held_out=[cells], seed=7, verbose=False)
    sources = open_batch_source([cells], model.genes, seed=7, reads="expressed").sources
    share = torch.full((19306,), 1e-7)
    share[torch.from_numpy(sources[0].genes)] += torch.from_numpy(
        np.exp(source_log_rate(sources[0]))
    ).float()
    torch.testing.assert_close(tuned.network.gene_log_rate, (share / share.sum()).log())
    assert not torch.equal(rated.network.gene_log_rate, tuned.network.gene_log_rate)
    loop = TrainerConfig(lr=1e-4, seed=7)
    rates, masked = (
        nb_rate_step(InMemorySource(sources), RateConfig(), loop),
        reconstruction(InMemorySource(sources), IMPUTE, loop),
    )
    for k, expected in enumerate((rates, rates, rates, masked, rates)):
        same_loss(recorded["step"], expected, tuned.network, k)
    assert set(recorded["validate"](tuned.network)) == {
        "validation_loss",
        "validation_squared_error",
    }


def test_cells_of_the_user_are_used_whatever_their_depth(cells, recorded):
    tuned, card = finetune_on(
        cells, model=small_model("expressed"), steps=12, name="own", seed=3, verbose=False
    )
    assert (
        recorded["config"] == TrainerConfig(steps=12, lr=1e-3, warmup=0.05, seed=3)
        and tuned.config.name == "own"
    )
    assert "30 cells" in card and "12 steps" in card and "from small" in card
    shallow = cells.copy()
    shallow.X = sparse.csr_matrix(
        (shallow.X > 0)
        .astype(np.float32)
        .multiply(np.random.default_rng(0).random(shallow.shape) < 0.05)
    )
    assert np.asarray(shallow.X.sum(axis=1)).max() < 200
    assert (
        "1 steps"
        in finetune_on(shallow, model=small_model("expressed"), steps=1, force=True, verbose=False)[
            1
        ]
    )


def test_a_classifier_of_ones_own_types_is_calibrated_on_held_out_donors():
    cohort = brain_cohort(80, n_donors=4, n_genes=2500, seed=5)
    cohort.obs["type"] = cohort.obs["cell_type"].astype(str)
    cohort.obs.iloc[:3, cohort.obs.columns.get_loc("type")] = None
    train = partial(
        finetune_on, cohort, model=small_model("expressed"), steps=1, label_key="type", force=True
    )
    tuned, card = train(donor_key="donor", verbose=False)
    assert tuned.labels == sorted(set(cohort.obs["type"].iloc[3:]))
    left_out = tuned.calibration["cells"]
    assert f"on {77 - left_out} cells" in card and f"{left_out} cells of 1 of 4 donors" in card
    assert left_out in cohort.obs["donor"].iloc[3:].value_counts().tolist()
    plain, card = train(verbose=False)
    assert plain.calibration is None and "Not calibrated" in card
    with pytest.raises(ScMambaError, match="nothing"):
        finetune_on(cohort, label_key="nothing")


def test_steps_of_sources_in_memory(source):
    network = Level("expressed")
    loop = TrainerConfig(seed=2)
    expected = reconstruction(InMemorySource([source]), SEQUENCE, loop)
    same_loss(reconstruction_step([source], SEQUENCE, loop), expected, network, 4)
