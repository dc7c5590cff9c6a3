"""The training loop against AdamW written out in float64, its schedule in closed form, and its stored states."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import small_model
from torch import nn

from scmamba.training import TrainerConfig, fit
from scmamba.training.checkpointing import state_files
from scmamba.training.distributed import BatchShard, Loss, ShardedStep, SingleProcess, StepModule
from scmamba.training.trainer import Trainer, learning_rate, make_optimizer
from scmamba.utils.errors import CheckpointError, ScMambaError


class Weights(nn.Module):
    """Three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))


def slopes(k: int) -> np.ndarray:
    """Gradients whose norm is sometimes far below and sometimes far above one."""
    return np.random.default_rng([7, k]).normal(size=3) * (8.0 if k % 3 == 0 else 0.2)


def plain_step(network: nn.Module, k: int, rng: np.random.Generator) -> torch.Tensor:
    return (network.w * torch.from_numpy(slopes(k)).float()).sum()


def schedule(k: int, steps: int, peak: float, warm: int, last: float = 0.1) -> float:
    """Warm-up from 1e-6 over ``warm`` steps, then half a cosine from the peak to a tenth of it (specification, "Pre-training")."""
    if k < warm:
        return 1e-6 + (peak - 1e-6) * (k + 1) / warm
    return peak * (last + (1 - last) * (1 + math.cos(math.pi * (k - warm) / (steps - warm))) / 2)


def adamw(
    steps: int,
    gradient,
    *,
    peak: float = 1e-3,
    warm: int = 1,
    decay: float = 0.1,
    betas=(0.9, 0.95),
    clip: float = 1.0,
) -> np.ndarray:
    """Loshchilov and Hutter's update with the global norm clipped, in float64; rows: the weights after every step."""
    w, m, v, rows = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3), []
    for k in range(steps):
        g = gradient(k)
        g = g * min(1.0, clip / np.linalg.norm(g))
        lr = schedule(k, steps, peak, warm)
        w = w * (1 - lr * decay)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** (k + 1))) / (
            np.sqrt(v / (1 - betas[1] ** (k + 1))) + 1e-8
        )
        rows.append(w)
    return np.array(rows)


def test_defaults_are_those_of_the_paper():
    assert asdict(TrainerConfig()) == {
        "steps": 1000,
        "batch_size": 16,
        "lr": 1e-3,
        "final_lr": 0.1,
        "warmup": 0.01,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "clip": 1.0,
        "seed": 0,
        "save_every": 200,
        "keep": 3,
        "accumulate": 1,
        "precision": "32",
        "ema": 0.0,
    }


def test_the_schedule_in_closed_form():
    config = TrainerConfig(steps=400, lr=2e-3, warmup=0.05, final_lr=0.25)
    assert [learning_rate(k, config) for k in range(400)] == pytest.approx(
        [schedule(k, 400, 2e-3, 20, 0.25) for k in range(400)]
    )
    assert learning_rate(0, replace(config, warmup=0.0)) == pytest.approx(
        2e-3
    )  # one warm-up step, which reaches the peak
    assert (
        learning_rate(19, config) == pytest.approx(2e-3) == pytest.approx(learning_rate(20, config))
    )
    assert learning_rate(400, config) == learning_rate(9999, config) == pytest.approx(5e-4)
    assert learning_rate(0, TrainerConfig()) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 10)


def test_weights_follow_adamw_with_the_norm_clipped_at_one():
    network = Weights()
    rows = fit(network, plain_step, TrainerConfig(steps=200), verbose=False)
    expected = adamw(200, slopes, warm=2)
    np.testing.assert_allclose(network.w.detach().numpy(), expected[-1], rtol=2e-5)
    before = np.vstack([[1.0, -2.0, 0.5], expected[:-1]])
    np.testing.assert_allclose(
        [r["loss"] for r in rows], [slopes(k) @ before[k] for k in range(200)], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        [r["lr"] for r in rows], [schedule(k, 200, 1e-3, 2) for k in range(200)]
    )
    assert [r["step"] for r in rows] == list(range(200))
    # Without an effect of clipping and decay the test would prove nothing.
    for change in ({"clip": 1e9}, {"betas": (0.9, 0.999)}, {"betas": (0.5, 0.95)}, {"decay": 0.0}):
        assert np.abs(adamw(200, slopes, warm=2, **change)[-1] - expected[-1]).max() > 1e-4


def test_the_given_clip_and_decay_are_used():
    network = Weights()
    fit(
        network,
        plain_step,
        TrainerConfig(steps=50, lr=5e-3, clip=0.05, weight_decay=0.7, betas=(0.8, 0.9), warmup=0.2),
        verbose=False,
    )
    expected = adamw(50, slopes, peak=5e-3, warm=10, clip=0.05, decay=0.7, betas=(0.8, 0.9))
    np.testing.assert_allclose(network.w.detach().numpy(), expected[-1], rtol=2e-5)


def test_fabric_clips_the_norm_too(tmp_path):
    pytest.importorskip("lightning_fabric")
    network = Weights()
    config = TrainerConfig(steps=20, lr=0.1, clip=0.3)
    fit(network, plain_step, config, folder=tmp_path / "run", verbose=False)
    expected = adamw(20, slopes, peak=0.1, clip=0.3)
    np.testing.assert_allclose(network.w.detach().numpy(), expected[-1], rtol=2e-5)
    assert np.abs(adamw(20, slopes, peak=0.1, clip=1e9)[-1] - expected[-1]).max() > 1e-3


def test_weight_decay_affects_matrices_only():
    """Without a gradient a step of AdamW multiplies decayed weights by 1 - lr * decay and does not change the rest."""
    network = small_model("expressed", n_classes=3, n_genes=20).network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    config = TrainerConfig(steps=1, lr=0.5, weight_decay=0.2)
    fit(
        network, lambda n, k, rng: sum((p * 0).sum() for p in n.parameters()), config, verbose=False
    )
    shrunk = set()
    for name, p in network.named_parameters():
        if not torch.equal(p, before[name]):
            torch.testing.assert_close(p.detach(), before[name] * 0.9)
            shrunk.add(name.removeprefix("backbone.").removeprefix("layers.0.mixer."))
    matrices = {
        "in_proj.weight",
        "conv1d.weight",
        "conv1d_b.weight",
        "x_proj.weight",
        "x_proj_b.weight",
        "dt_proj.weight",
        "dt_proj_b.weight",
        "out_proj.weight",
    }
    assert shrunk == matrices | {
        "gene_id_embedding.weight",
        "expression_embedding.weight",
        "regressor.weight",
        "cls_head.weight",
    }
    frozen = small_model("expressed", n_genes=20).network
    frozen.backbone.requires_grad_(False)
    assert sum(len(g["params"]) for g in make_optimizer(frozen, config).param_groups) == 2


def test_what_a_step_does_not_use_stays_as_it_is():
    """Neither momentum nor decay moves, for instance, the token of a mask in a step without masks."""
    network, seen = Weights(), []
    network.token = nn.Parameter(torch.tensor([[0.7, -0.3]]))  # a matrix, which decays

    def step(network: nn.Module, k: int, rng: np.random.Generator) -> torch.Tensor:
        seen.append(network.token.detach().clone())
        return plain_step(network, k, rng) + (network.token.sum() if k in (1, 4) else 0.0)

    fit(network, step, TrainerConfig(steps=7, lr=0.1), verbose=False)
    moved = [not torch.equal(a, b) for a, b in zip(seen, [*seen[1:], network.token.detach()])]
    assert moved == [False, True, False, False, True, False, False]


def test_pieces_of_a_step_form_one_weighted_mean():
    """Sums of errors over sums of weights, however the cells are divided."""

    def draw(network, k, rng, share):
        assert (share.rank, share.world, share.parts) == (0, 1, 3)
        c = torch.from_numpy(slopes(10 * k + share.part)).float()
        return Loss((network.w * c).sum(), torch.tensor([0.5, 2.0, 4.5][share.part]))

    network = Weights()
    rows = fit(network, ShardedStep(draw), TrainerConfig(steps=30, accumulate=3), verbose=False)

    def gradient(k: int) -> np.ndarray:
        return sum(slopes(10 * k + part) for part in range(3)) / 7.0

    expected = adamw(30, gradient)
    np.testing.assert_allclose(network.w.detach().numpy(), expected[-1], rtol=2e-5)
    assert rows[0]["loss"] == pytest.approx(gradient(0) @ [1.0, -2.0, 0.5], rel=1e-4)
    assert Loss(torch.tensor(3.0), torch.tensor(0.0)).mean() == pytest.approx(3e6)


def test_every_step_and_share_has_its_own_generator():
    drawn = {}

    def remember(network, k, rng):
        drawn[k] = rng.random()
        return network.w.sum() * 0

    fit(Weights(), remember, TrainerConfig(steps=3, seed=11), verbose=False)
    assert drawn == {k: np.random.default_rng([11, k]).random() for k in range(3)}
    stepper = StepModule(Weights(), remember, 11)
    stepper(5, BatchShard(2, 4, 1, 3))
    assert drawn[5] == np.random.default_rng([11, 5, 2, 1]).random()
    shared = StepModule(
        Weights(),
        ShardedStep(
            lambda n, k, rng, share: Loss(
                torch.tensor(rng.random()), torch.tensor(float(share.rank))
            )
        ),
        11,
    )
    total, weight = shared(5, BatchShard(2, 4, 1, 3))
    assert float(total) == pytest.approx(np.random.default_rng([11, 5]).random()) and weight == 2
    alone = ShardedStep(
        lambda n, k, rng, share: Loss(
            torch.tensor(6.0 + share.rank), torch.tensor(2.0 * share.whole)
        )
    )
    assert alone(Weights(), 0, np.random.default_rng(0)) == 3


def test_shares_are_every_nth_cell_in_consecutive_pieces():
    assert BatchShard().of(5).tolist() == [0, 1, 2, 3, 4] and BatchShard().whole == 1
    assert BatchShard(1, 3, 0, 2).of(14).tolist() == [1, 4, 7] and BatchShard(1, 3, 1, 2).of(
        14
    ).tolist() == [
        10,
        13,
    ]
    assert BatchShard(1, 3, 0, 2).whole == 6


@pytest.mark.parametrize("ema", [0.0, 0.75])
def test_validation_runs_with_each_state_and_at_the_end_on_the_kept_weights(ema):
    seen, modes = [], []

    def step(network, k, rng):
        modes.append(network.training)
        return plain_step(network, k, rng)

    def validate(network):
        modes.append(network.training)
        seen.append(network.w.detach().numpy().astype(float))
        return {"validation_loss": float(len(seen))}

    network = Weights()
    rows = fit(
        network,
        step,
        TrainerConfig(steps=7, save_every=3, lr=0.1, ema=ema),
        validate=validate,
        verbose=False,
    )
    assert [r["step"] for r in rows if "validation_loss" in r] == [2, 5, 6]
    assert [r["validation_loss"] for r in rows if "validation_loss" in r] == [1, 2, 3]
    assert (
        modes == [True] * 3 + [False] + [True] * 3 + [False, True, False] and not network.training
    )
    weights = adamw(7, slopes, peak=0.1)
    mean, means = np.array([1.0, -2.0, 0.5]), []
    for row in weights:
        mean = ema * mean + (1 - ema) * row
        means.append(mean)
    np.testing.assert_allclose(seen, [means[i] for i in (2, 5, 6)], rtol=1e-4)
    np.testing.assert_allclose(network.w.detach().numpy(), means[-1], rtol=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_resumed_run_is_bit_for_bit_equal(tmp_path, ema):
    """Weights, moments, running mean and torch's generator all continue."""
    config = TrainerConfig(steps=8, save_every=2, keep=2, lr=0.05, ema=ema)

    def step(network, k, rng):
        return (network.w * (torch.from_numpy(slopes(k)).float() + torch.randn(3))).sum()

    def stops(network, k, rng):
        if k == 5:
            raise KeyboardInterrupt
        return step(network, k, rng)

    torch.manual_seed(1)
    whole = Weights()
    rows = fit(whole, step, config, folder=tmp_path / "whole", verbose=False)
    assert [p.name for p in state_files(tmp_path / "whole")] == [
        "state-000000008.pt",
        "state-000000006.pt",
    ]
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        fit(Weights(), stops, config, folder=tmp_path / "run", verbose=False)
    torch.manual_seed(99)
    again = Weights()
    with torch.no_grad():
        again.w.fill_(3.0)
    assert fit(again, step, config, folder=tmp_path / "run", verbose=False) == rows and torch.equal(
        again.w, whole.w
    )
    # A finished run does nothing more and returns the same result.
    assert fit(Weights(), stops, config, folder=tmp_path / "run", verbose=False) == rows
    other = dict(
        steps=9,
        lr=0.1,
        final_lr=0.2,
        warmup=0.5,
        weight_decay=0.0,
        betas=(0.9, 0.9),
        clip=2.0,
        seed=4,
        save_every=4,
        batch_size=8,
        ema=0.9,
    )
    for name, value in other.items():
        with pytest.raises(
            CheckpointError, match="cells_per_step" if name == "batch_size" else name
        ):
            fit(
                Weights(),
                step,
                replace(config, **{name: value}),
                folder=tmp_path / "run",
                verbose=False,
            )
    assert (
        fit(
            Weights(),
            step,
            replace(config, batch_size=4, accumulate=4, keep=9),
            folder=tmp_path / "run",
            verbose=False,
        )
        == rows
    )
    with open(tmp_path / "run" / "log.csv") as file:
        kept = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in kept] == [row["loss"] for row in rows] and len(kept) == 8
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000


def test_an_infinite_loss_stops_before_the_weights_change():
    network = Weights()
    with pytest.raises(ScMambaError, match=r"inf at step 1.*now 0.001"):
        fit(
            network,
            lambda n, k, rng: n.w.sum() * (float("inf") if k else 1e-9),
            TrainerConfig(steps=3, warmup=0.9),
            verbose=False,
        )
    assert torch.isfinite(network.w).all()


def test_cells_per_step_count_every_process():
    """A run can be resumed if the size of a step is the same, however it is divided."""
    two = SingleProcess()
    two.world = 2
    network, config = Weights(), TrainerConfig(batch_size=3, accumulate=5)
    found = Trainer(two, network, network, None, None, config, None).settings
    assert found["cells_per_step"] == 30 and not {
        "precision",
        "keep",
        "batch_size",
        "accumulate",
    } & set(found)
