"""What carries out a training step: one process as it is, or Lightning Fabric (several processes, GPUs, half precision).

The loop is the same for both. Fabric is imported when a run needs it: the short adaptation inside imputation does not, and should not
wait for it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.errors import ScMambaError

#: What people write -> what Fabric calls it.
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class Loss(NamedTuple):
    """A weighted sum of errors and the sum of the weights; keeping them apart lets several processes form one mean."""

    total: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        """The loss of these cells alone."""
        return self.total / self.weight.clamp(min=1e-6)


class BatchShard(NamedTuple):
    """Which cells of a step's batch one process reads at once: every ``world``-th, in ``parts`` consecutive pieces."""

    rank: int = 0
    world: int = 1
    part: int = 0
    parts: int = 1

    @property
    def whole(self) -> int:
        """Into how many shares the batch is cut."""
        return self.world * self.parts

    def of(self, size: int) -> np.ndarray:
        """Positions, within a batch of ``size`` cells, of this share."""
        return np.array_split(np.arange(self.rank, size, self.world), self.parts)[self.part]


class ShardedStep:
    """A step whose cells and masked values depend on the seed, the step and the cell alone, however the batch is divided.

    ``draw(network, k, rng, share)`` returns the :class:`Loss` of the share's cells; ``rng`` is the same in every process, so all draw the
    same batch and each computes its part of it.
    """

    def __init__(
        self, draw: Callable[[nn.Module, int, np.random.Generator, BatchShard], Loss]
    ) -> None:
        self.draw = draw

    def __call__(self, network: nn.Module, k: int, rng: np.random.Generator) -> Tensor:
        """The loss of the whole batch."""
        return self.draw(network, k, rng, BatchShard()).mean()


class StepModule(nn.Module):
    """A step as a module, so that wrappers of modules (Fabric, DDP) include everything a step calls."""

    def __init__(self, network: nn.Module, step: Callable[..., Tensor], seed: int) -> None:
        super().__init__()
        self.network, self.step, self.seed = network, step, seed

    def forward(self, k: int, share: BatchShard) -> tuple[Tensor, Tensor]:
        """Sum of weighted errors and of weights of one share of step ``k``."""
        if isinstance(self.step, ShardedStep):
            return self.step.draw(self.network, k, np.random.default_rng([self.seed, k]), share)
        # A plain step is not divided: each process and piece draws a batch of its own.
        own = [] if share.whole == 1 else [share.rank, share.part]
        loss = self.step(self.network, k, np.random.default_rng([self.seed, k, *own]))
        return loss, torch.ones((), device=loss.device)


class Strategy(Protocol):
    """What the trainer needs of a strategy."""

    rank: int
    world: int

    def setup(self, module: StepModule, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Put both where they are to run; what to call in their place."""

    def forward(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of one piece of a step."""

    def backward(self, loss: Tensor, module: nn.Module, last: bool) -> None:
        """Accumulate gradients; with the ``last`` piece, average them over processes."""

    def clip(self, module: nn.Module, optimizer: Any, limit: float) -> None:
        """Scale all gradients so that their norm is at most ``limit``."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes."""

    def share_object(self, value: Any) -> Any:
        """What the first process has."""

    def wait(self) -> None:
        """Wait for the other processes."""

    def state(self) -> dict[str, Any]:
        """State that is needed to continue."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


class SingleProcess:
    """One process, single precision, on the device the network is on."""

    rank, world = 0, 1

    def setup(self, module: StepModule, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Take both as they are."""
        return module, optimizer

    def forward(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Nothing to arrange."""
        return nullcontext()

    def backward(self, loss: Tensor, module: nn.Module, last: bool) -> None:
        """Accumulate gradients."""
        loss.backward()

    def clip(self, module: nn.Module, optimizer: Any, limit: float) -> None:
        """Scale all gradients so that their norm is at most ``limit``."""
        # In the optimiser's order, as Fabric does: sums of floats depend on it, and both engines shall agree bit for bit.
        nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], limit
        )

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return value

    def share_object(self, value: Any) -> Any:
        """What the first process has."""
        return value

    def wait(self) -> None:
        """Wait for the others."""

    def state(self) -> dict[str, Any]:
        """State that is needed to continue: none."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


class FabricStrategy:
    """Lightning Fabric: torchrun and Slurm processes, GPUs, bf16 and fp16."""

    def __init__(self, precision: str, device: torch.device) -> None:
        import logging
        import warnings

        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        local, nodes = _processes()
        kind = "cuda" if device.type == "cuda" else "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if local * nodes > 1:
                # Heads that a recipe does not use have no gradient; DDP needs an option for that.
                strategy: Any = DDPStrategy(find_unused_parameters=True)
                self.fabric = Fabric(
                    accelerator=kind,
                    devices=local,
                    num_nodes=nodes,
                    strategy=strategy,
                    precision=PRECISIONS[precision],  # type: ignore[arg-type]
                )
            else:
                devices: Any = [device.index or 0] if kind == "cuda" else 1
                self.fabric = Fabric(
                    accelerator=kind,
                    devices=devices,
                    precision=PRECISIONS[precision],  # type: ignore[arg-type]
                )
            self.fabric.launch()
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size

    def setup(self, module: StepModule, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Move both to the device of this process and wrap them."""
        return self.fabric.setup(module, optimizer)

    def forward(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged once a step, with its last piece."""
        return self.fabric.no_backward_sync(module, enabled=self.world > 1 and not last)  # type: ignore[arg-type]

    def backward(self, loss: Tensor, module: nn.Module, last: bool) -> None:
        """Accumulate gradients; with the last piece, average them over processes."""
        self.fabric.backward(loss)

    def clip(self, module: nn.Module, optimizer: Any, limit: float) -> None:
        """Scale all gradients so that their norm is at most ``limit``; infinite ones of fp16 are left to its loss scaling."""
        self.fabric.clip_gradients(module, optimizer, max_norm=limit, error_if_nonfinite=False)

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return self.fabric.all_reduce(value, reduce_op="sum") if self.world > 1 else value  # type: ignore[return-value]

    def share_object(self, value: Any) -> Any:
        """What the first process has."""
        return self.fabric.broadcast(value, src=0)

    def wait(self) -> None:
        """Wait for the other processes."""
        self.fabric.barrier()

    def state(self) -> dict[str, Any]:
        """The loss scale of fp16."""
        return dict(self.fabric.strategy.precision.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        if state:
            self.fabric.strategy.precision.load_state_dict(state)


def _processes() -> tuple[int, int]:
    """Processes on this machine and machines, as set by torchrun or Slurm's srun; (1, 1) if nothing started several."""
    environ = os.environ
    if "LOCAL_WORLD_SIZE" in environ and "WORLD_SIZE" in environ:
        local = int(environ["LOCAL_WORLD_SIZE"])
        return local, int(environ["WORLD_SIZE"]) // local
    if "SLURM_PROCID" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1")))
        return int(environ["SLURM_STEP_NUM_TASKS"]) // nodes, nodes
    return 1, 1


def number_of_processes() -> int:
    """How many torchrun or Slurm started."""
    local, nodes = _processes()
    return local * nodes


def is_distributed() -> bool:
    """Whether torchrun or Slurm started more than one."""
    return number_of_processes() > 1


def is_first_process() -> bool:
    """Whether this is the process that talks and writes."""
    return (
        not is_distributed()
        or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    )


def training_device() -> torch.device:
    """Where a new network belongs: this process' GPU if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(
        "cuda",
        int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        if is_distributed()
        else 0,
    )


def fabric_installed() -> bool:
    """Whether Lightning Fabric can be imported, without importing it."""
    return importlib.util.find_spec("lightning_fabric") is not None


def choose_strategy(precision: str, device: torch.device, *, quick: bool) -> Strategy:
    """Fabric, unless one process in single precision is enough and the run is ``quick`` or Fabric is not installed.

    Raises
    ------
    ScMambaError
        An unknown precision; several processes or half precision without Lightning.
    """
    if precision not in PRECISIONS:
        raise ScMambaError(
            f"The precision '{precision}' is not known; choose one of {', '.join(PRECISIONS)}."
        )
    simple = precision == "32" and not is_distributed()
    if simple and (quick or not fabric_installed()):
        return SingleProcess()
    if not fabric_installed():
        raise ScMambaError(
            "Several processes and half precision need Lightning: pip install 'scmamba[train]'."
        )
    if precision == "16" and device.type == "cpu":
        raise ScMambaError("Precision 16 needs a GPU; on a CPU choose 32 or bf16.")
    return FabricStrategy(precision, device)
