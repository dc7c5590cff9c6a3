"""The training loop: AdamW, warm-up and cosine decay, clipping; the same for every recipe (spec "Pre-training")."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import CheckpointError
from .._files import atomic_path
from .._progress import progress
from ..model import ScMamba


@dataclass(frozen=True)
class LoopConfig:
    """Optimiser settings; defaults are the paper's (lr decays to ``final_lr`` of its peak after ``warmup`` of the steps)."""

    steps: int = 1000
    batch_size: int = 16
    lr: float = 1e-3
    final_lr: float = 0.1
    warmup: float = 0.01
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    save_every: int = 200


#: Draws the loss of step ``k`` with a generator that depends on the seed and ``k`` alone, so that resuming needs no state of it.
Step = Callable[[nn.Module, int, np.random.Generator], Tensor]
#: Measures a network; its numbers go into the log.
Validate = Callable[[nn.Module], dict[str, float]]


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up from 1e-6 to ``lr``, then a cosine down to ``final_lr * lr``."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return 1e-6 + (config.lr - 1e-6) * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def make_optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on A_log, D, norms, biases and tokens."""
    free: set[str] = network.without_decay() if isinstance(network, ScMamba) else set()
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name not in free], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)


def fit(
    network: nn.Module,
    step: Step,
    config: LoopConfig,
    *,
    folder: str | os.PathLike[str] | None = None,
    description: str = "Training",
    verbose: bool = True,
    validate: Validate | None = None,
) -> list[dict[str, float]]:
    """Train ``network`` in place.

    Parameters
    ----------
    step
        Draws a batch and returns its loss.
    folder
        Where ``log.csv`` and, every ``save_every`` steps, the state are kept; a run that was stopped goes on from there with the
        curve it would have had.
    validate
        Called when the state is saved and at the end; its numbers go into the log.

    Returns
    -------
    One row a step: ``step, loss, lr`` and what ``validate`` returned.

    Raises
    ------
    CheckpointError
        The folder holds the state of a run with other settings.
    """
    optimizer = make_optimizer(network, config)
    folder = Path(folder) if folder is not None else None
    first, log = _resume(network, optimizer, config, folder)
    network.train()
    with progress(description, config.steps - first, verbose) as advance:
        for k in range(first, config.steps):
            log.append(_one_step(network, optimizer, step, k, config))
            last = k + 1 == config.steps
            if last or (k + 1) % config.save_every == 0:
                if validate is not None:
                    network.eval()
                    log[-1].update(validate(network))
                    network.train()
                if folder is not None:
                    _save(network, optimizer, config, folder, k + 1, log)
            advance(1)
    network.eval()
    return log


def _one_step(network: nn.Module, optimizer: torch.optim.Optimizer, step: Step, k: int, config: LoopConfig) -> dict[str, float]:
    lr = learning_rate(k, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss = step(network, k, np.random.default_rng([config.seed, k]))
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()
    return {"step": k, "loss": float(loss.detach()), "lr": lr}


def _save(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig, folder: Path, done: int, log: list[dict[str, float]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "config": asdict(config), "log": log}
    with atomic_path(folder / "state.pt") as temporary:
        torch.save(state, temporary)
    with atomic_path(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        names = list(dict.fromkeys(name for row in log for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(log)


def _resume(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig, folder: Path | None
) -> tuple[int, list[dict[str, float]]]:
    if folder is None or not (folder / "state.pt").is_file():
        return 0, []
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    if {**state["config"], "betas": tuple(state["config"]["betas"])} != asdict(config):
        raise CheckpointError(f"{folder} holds an unfinished run with other settings. Choose another folder, or remove it to start over.")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"]), list(state["log"])
