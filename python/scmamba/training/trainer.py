"""The training loop: AdamW, warm-up and cosine decay, clipping; the same for every recipe.

Processes and precision are those of a strategy (:mod:`scmamba.training.distributed`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..nn import ScMamba
from ..utils.errors import CheckpointError, ScMambaError
from ..utils.options import option
from ..utils.progress import progress, say
from .checkpointing import load_state, save_state
from .distributed import BatchShard, StepModule, Strategy, choose_strategy
from .metrics_log import MetricsLog, Row, pack_rows, unpack_rows
from .options import OptimizerOptions


@dataclass(frozen=True)
class TrainerConfig(OptimizerOptions):
    """Options of the optimizer and the length of a run; defaults are the paper's.

    The other attributes are those of :class:`~scmamba.training.options.OptimizerOptions`.

    Attributes
    ----------
    steps
        Optimizer steps.
    betas
        Decay of the two running means of AdamW.
    precision
        ``32``, ``bf16`` or ``16`` (GPU).

    Examples
    --------
    >>> from scmamba.training import TrainerConfig
    >>> TrainerConfig(steps=100, lr=1e-4).batch_size
    16
    """

    steps: int = option(1000, "Optimizer steps.", minimum=0)
    betas: tuple[float, float] = option((0.9, 0.95), "Decay of the two running means of AdamW.")
    precision: str = option("32", "Number format.", choices=("32", "bf16", "16"))


#: Draws the loss of step ``k`` with a generator that depends on the seed and ``k`` alone, so that resuming needs no state of it.
Step = Callable[[nn.Module, int, np.random.Generator], Tensor]
#: Measures a network; its numbers go into the log.
Validate = Callable[[nn.Module], dict[str, float]]


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Linear warm-up from 1e-6 to ``lr``, then a cosine down to ``final_lr * lr``."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return 1e-6 + (config.lr - 1e-6) * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.lr * (
        config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    )


def make_optimizer(network: nn.Module, config: TrainerConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on A_log, D, norms, biases and tokens."""
    free: set[str] = network.without_decay() if isinstance(network, ScMamba) else set()
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in named if name not in free],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for name, p in named if name in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)


def fit(
    network: nn.Module,
    step: Step,
    config: TrainerConfig,
    *,
    folder: str | os.PathLike[str] | None = None,
    description: str = "Training",
    verbose: bool = True,
    validate: Validate | None = None,
) -> list[Row]:
    """Train a network in place.

    Parameters
    ----------
    network
        The network, on the device it is to be trained on.
    step
        Draws a batch and returns its loss, from the network, the number of the step and a random generator. A
        :class:`~scmamba.training.distributed.ShardedStep` is divided exactly among processes.
    config
        Options of the optimizer and number of steps.
    folder
        Folder of ``log.csv``, ``loss.png`` and, every ``save_every`` steps, the state. A run that was stopped, for whatever
        reason, continues from there with the curve it would have had. Under torchrun or Slurm every process must see the same
        folder.
    description
        Title of the progress bar.
    verbose
        Print messages and progress.
    validate
        Called when the state is saved and at the end; its numbers go into the log.

    Returns
    -------
    One row per step: ``step, loss, lr`` and what ``validate`` returned.

    Raises
    ------
    CheckpointError
        The folder holds a run with other settings, or no state that can be read.
    ScMambaError
        The loss is not finite.

    Examples
    --------
    >>> import torch
    >>> from scmamba.training import TrainerConfig, fit
    >>> line = torch.nn.Linear(1, 1)
    >>> x = torch.linspace(-1, 1, 8).view(-1, 1)
    >>> def step(network, k, rng):
    ...     return (network(x) - 2 * x).square().mean()
    >>> rows = fit(line, step, TrainerConfig(steps=200, lr=0.1, weight_decay=0.0), verbose=False)
    >>> rows[-1]["loss"] < 1e-3
    True
    """
    device = next(network.parameters()).device
    engine = choose_strategy(config.precision, device, quick=folder is None)
    optimizer = make_optimizer(network, config)
    module, wrapped = engine.setup(StepModule(network, step, config.seed), optimizer)
    run = Trainer(
        engine,
        network,
        module,
        optimizer,
        wrapped,
        config,
        Path(folder) if folder is not None else None,
    )
    verbose = verbose and engine.rank == 0
    first = run.resume(verbose)
    network.train()
    cells = config.batch_size * config.accumulate * engine.world
    with (
        progress(description, config.steps - first, verbose, unit="cells", each=cells) as advance,
        run.recording(),
    ):
        for k in range(first, config.steps):
            run.step(k)
            last = k + 1 == config.steps
            if last or (k + 1) % config.save_every == 0:
                run.measure(validate)
                run.save(k + 1)
            advance(1)
    run.take_average()
    network.eval()
    return run.record.rows


class Trainer:
    """A run under way: what it trains, how far it is."""

    def __init__(
        self,
        engine: Strategy,
        network: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        wrapped: Any,
        config: TrainerConfig,
        folder: Path | None,
    ) -> None:
        self.engine, self.network, self.module, self.config = engine, network, module, config
        # Fabric wraps the optimiser (fp16 scales its steps); groups and state are those of the bare one.
        self.optimizer, self.wrapped = optimizer, wrapped
        self.folder = folder
        self.record = MetricsLog(None, [])
        self.average = [p.detach().clone() for p in network.parameters()] if config.ema else []

    @property
    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to continue; precision and the division of the batch may change."""
        config = asdict(self.config)
        share = config.pop("batch_size") * config.pop("accumulate") * self.engine.world
        for name in ("precision", "keep"):
            config.pop(name)
        return {**config, "betas": list(config["betas"]), "cells_per_step": share}

    def step(self, k: int) -> None:
        """One optimiser step on all pieces of the batch."""
        config, engine = self.config, self.engine
        lr = learning_rate(k, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.wrapped.zero_grad(set_to_none=True)
        totals: list[Tensor] = []
        weights: list[Tensor] = []
        for part in range(config.accumulate):
            last = part + 1 == config.accumulate
            with engine.forward(self.module, last):
                errors, own = self.module(
                    k, BatchShard(engine.rank, engine.world, part, config.accumulate)
                )
                weights.append(engine.total(own.detach().float()))
                totals.append(errors.detach())
                # One mean over all cells of the step: the weight of the first piece is used until that of all is known.
                unit = weights[0].clamp(min=1e-6)
                engine.backward(
                    errors * engine.world / unit if engine.world > 1 else errors / unit,
                    self.module,
                    last,
                )
        weight = torch.stack(weights).sum().clamp(min=1e-6)
        if config.accumulate > 1:
            for p in self.network.parameters():
                if p.grad is not None:
                    p.grad.mul_(unit / weight)
        loss = float(engine.total(torch.stack(totals).sum()) / weight)
        if not math.isfinite(loss):
            raise ScMambaError(
                f"The loss is {loss} at step {k}. Lower the learning rate (now {config.lr:g}), lengthen the warm-up, "
                "or train in precision 32."
            )
        engine.clip(self.module, self.wrapped, config.clip)
        self.wrapped.step()
        if self.average:
            torch._foreach_lerp_(
                self.average, [p.detach() for p in self.network.parameters()], 1 - config.ema
            )
        self.record.add({"step": k, "loss": loss, "lr": lr})

    def measure(self, validate: Validate | None) -> None:
        """Validation numbers into the last row; the first process measures."""
        if validate is not None:
            numbers = None
            if self.engine.rank == 0:
                self.network.eval()
                with self.averaged():
                    numbers = validate(self.network)
                self.network.train()
            self.record.rows[-1].update(self.engine.share_object(numbers))
        self.record.measured()

    def save(self, done: int) -> None:
        """Keep the state; one process writes, all wait."""
        if self.folder is not None and self.engine.rank == 0:
            self.record.write()
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "engine": self.engine.state(),
                "random": torch.get_rng_state(),
                "settings": self.settings,
                "log": pack_rows(self.record.rows),
                "done": done,
            }
            save_state(self.folder, done, state, self.config.keep)
        self.engine.wait()

    def resume(self, verbose: bool) -> int:
        """Take up the newest state there is; steps already done."""
        state: dict[str, Any] | None = None
        if self.folder is not None:
            if self.engine.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
            # All must continue from the same one, also where only the first process could read it.
            state = self.engine.share_object(
                load_state(self.folder, verbose) if self.engine.rank == 0 else None
            )
        if state is not None:
            if state["settings"] != self.settings:
                changed = [
                    name
                    for name, value in self.settings.items()
                    if state["settings"].get(name) != value
                ]
                raise CheckpointError(
                    f"{self.folder} holds a run with other settings ({', '.join(changed)}). Choose another folder, "
                    "or remove it to start over."
                )
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            for kept, value in zip(self.average, state["average"]):
                kept.copy_(value)
            self.engine.load_state(state["engine"])
            torch.set_rng_state(state["random"])
            say(f"continuing after step {state['done']} of {self.config.steps}", verbose)
        rows = unpack_rows(state["log"]) if state else []
        self.record = MetricsLog(self.folder if self.engine.rank == 0 else None, rows)
        return int(state["done"]) if state else 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever ends the run, its record is written."""
        try:
            yield
        finally:
            self.record.close()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running mean in place of the weights."""
        if not self.average:
            yield
            return
        kept = [p.detach().clone() for p in self.network.parameters()]
        self.take_average()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.network.parameters()), kept)

    def take_average(self) -> None:
        """The running mean becomes the weights."""
        if self.average:
            with torch.no_grad():
                torch._foreach_copy_(list(self.network.parameters()), self.average)
