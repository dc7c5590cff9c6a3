"""The fused scan on the processor: numba kernels, forward and backward, under torch's autograd.

Memory beyond inputs and outputs: forward, the state of one block of channels per thread; for gradients, the
states before every 32nd step of each direction (B, L/32, E, N) and the gradients themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import Direction
from . import memory as _memory
from . import pool as _pool
from .jit import kernels
from .matmul import times, weight_gradient

LANES = 16
MOST, LEAST = (
    16,
    4,
)  # vectors of sixteen channels per job: wide rows stream better, narrow ones share better


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` for float32 (and half-precision, computed in float32) tensors on the CPU."""
    needed = (t for d in directions for t in (*d.tensors, d.delta_weight, z) if t is not None)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in needed)
    dtype, channels = directions[0].u.dtype, directions[0].u.shape[2]
    missing = -channels % LANES
    tensors = [
        _prepared(t, missing, where) for d in directions for t, where in zip(d.tensors, _places(d))
    ]
    gate = None if z is None else _prepared(z, missing, "last")
    flags = tuple(bool(d.reverse) for d in directions)
    weights = [
        None if (w := d.delta_weight) is None else _prepared(w, missing, "first")
        for d in directions
    ]
    if training:
        out = _Scan.apply(flags, gate, *tensors, *weights)
    else:
        out = _forward(flags, gate, tensors, keep=False, weights=weights)[0]
    result: Tensor = out[..., :channels].to(dtype) if missing else out.to(dtype)
    return result


def _places(d: Direction) -> tuple[str, ...]:
    """Which dimension of each tensor of a direction is the channels."""
    return ("last", "last" if d.delta_weight is None else "", "first", "", "", "last", "last")


def _prepared(x: Tensor, missing: int, where: str) -> Tensor:
    """float32, unit stride in the last dimension, channels padded to whole vectors with zeros."""
    x = x.float()
    if missing and where:
        x = F.pad(x, (0, missing) if where == "last" else (0, 0, 0, missing))
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _block(batch: int, vectors: int) -> int:
    """Vectors of channels per job, so that every thread has one.

    One thread and two give the same blocks: the shares of dB and dC are then added in the same order.
    """
    threads = max(2, torch.get_num_threads())
    share = -(-batch * vectors // threads)
    return min(MOST, max(LEAST, share - share % LEAST))


def _by_vector(rows: Tensor) -> Tensor:
    """(channels, K) -> (vectors, K, 16)."""
    return rows.view(-1, LANES, rows.shape[1]).transpose(1, 2).contiguous()


def _packed(A: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """A log2(e) as (vectors, N, 16); per channel the largest dt that keeps every exponent above -125; the steepest of each state's
    group.
    """
    scaled = A.detach() * math.log2(math.e)
    limit = (125.0 / scaled.abs().amax(1)).clamp_(max=1e30)
    steep = torch.where(scaled <= 0, -scaled, torch.inf)
    whole = A.shape[1] - A.shape[1] % group
    if whole:
        groups = steep[:, :whole].unflatten(1, (-1, group))
        groups.copy_(groups.amax(2, keepdim=True).expand_as(groups))
    return _by_vector(scaled), limit, _by_vector(steep)


class _Jobs:
    """The table of jobs of one call: rows of integers the kernels read (see ``_kernels.Field``)."""

    def __init__(self, batch: int, channels: int, directions: int) -> None:
        self.k = kernels()
        self.vectors = channels // LANES
        self.block = _block(batch, self.vectors)
        self.blocks = -(-self.vectors // self.block)
        self.batch, self.directions = batch, directions
        self.table = np.zeros((batch, self.blocks, directions, self.k.FIELDS), np.int64)
        sizes = np.full(self.blocks, self.block)
        sizes[-1] = self.vectors - self.block * (self.blocks - 1)
        self.table[..., self.k.Field.VECTORS] = sizes[None, :, None]
        self.alive: list[Tensor] = []  # tensors whose addresses are in the table

    def number(self, direction: int, name: str, value: int) -> None:
        self.table[:, :, direction, self.k.Field[name]] = value

    def address(
        self, direction: int, name: str, x: Tensor, per_batch: bool, per_vector: int
    ) -> None:
        """``per_vector``: bytes from one vector of channels to the next (0: not split by channels)."""
        cells = np.arange(self.batch)[:, None] * (4 * x.stride(0) if per_batch else 0)
        blocks = np.arange(self.blocks)[None, :] * (per_vector * self.block)
        self.table[:, :, direction, self.k.Field[name]] = x.data_ptr() + cells + blocks
        self.alive.append(x)

    def rows(self, direction: int, name: str, x: Tensor, *, channels: bool) -> None:
        """A (B, L, ...) tensor and its row stride."""
        self.address(direction, name, x, True, 4 * LANES if channels else 0)
        self.number(direction, f"STRIDE_{name}", 4 * x.stride(1))

    def run(self, kernel: Any, states: int) -> None:
        units = self.batch * self.blocks
        room = self.k.scratch_bytes(states, self.block) + 64
        scratch = torch.empty(_pool.workers(units), room, dtype=torch.uint8)
        table, row = self.table.ctypes.data, self.k.ROW * self.directions

        def task(unit: int, worker: int) -> None:
            aligned = (scratch.data_ptr() + worker * room + 63) // 64 * 64
            kernel(table + unit * row, self.directions, aligned)

        _pool.run(task, units)


Weights = Sequence["Tensor | None"]


def _inputs(
    flags: Sequence[bool], z: Tensor | None, tensors: Sequence[Tensor], weights: Weights = ()
) -> _Jobs:
    """The fields that forward and backward share; ``weights`` project a thin delta."""
    batch, length, channels = tensors[0].shape
    jobs = _Jobs(batch, channels, len(flags))
    for i, reverse in enumerate(flags):
        u, delta, A, B, C, D, bias = tensors[7 * i : 7 * i + 7]
        states = A.shape[1]
        packed, limit, steep = _packed(A, jobs.k.INTERLEAVED)
        jobs.rows(i, "U", u, channels=True)
        weight = weights[i] if weights else None
        jobs.rows(i, "DELTA", delta, channels=weight is None)
        if weight is not None:
            jobs.number(i, "RANK", weight.shape[1])
            jobs.address(i, "WEIGHT", _by_vector(weight), False, 64 * weight.shape[1])
        jobs.rows(i, "B", B, channels=False)
        jobs.rows(i, "C", C, channels=False)
        jobs.address(i, "A", packed, False, 64 * states)
        jobs.address(i, "STEEP", steep, False, 64 * states)
        for name, x in (("D", D), ("BIAS", bias), ("LIMIT", limit)):
            jobs.address(i, name, x.contiguous(), False, 64)
        if z is not None:
            jobs.rows(i, "Z", z, channels=True)
        for name, value in (("LENGTH", length), ("STATES", states), ("REVERSE", int(reverse))):
            jobs.number(i, name, value)
    jobs.number(0, "FIRST", 1)
    jobs.number(len(flags) - 1, "LAST", 1)
    return jobs


def _kept_states(jobs: _Jobs, direction: int, kept: Tensor) -> None:
    vectors, states = kept.shape[2:4]
    jobs.address(direction, "KEPT", kept, True, 64 * states)
    jobs.number(direction, "STRIDE_KEPT", 64 * states * vectors)


def _forward(
    flags: Sequence[bool],
    z: Tensor | None,
    tensors: Sequence[Tensor],
    keep: bool,
    weights: Weights = (),
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the states before every tile when ``keep``."""
    jobs = _inputs(flags, z, tensors, weights)
    u = tensors[0]
    batch, length, channels = u.shape
    if 4 * tensors[0].numel() >= _memory.LARGE:
        _memory.keep()
    out = u.new_empty(u.shape)
    kept = []
    for i in range(len(flags)):
        jobs.rows(i, "Y", out, channels=True)
        if keep:
            tiles = -(-length // jobs.k.TILE)
            kept.append(u.new_empty(batch, tiles, jobs.vectors, tensors[7 * i + 2].shape[1], LANES))
            _kept_states(jobs, i, kept[i])
    jobs.run(jobs.k.forward, max(A.shape[1] for A in tensors[2::7]))
    return out, kept


class _Scan(torch.autograd.Function):
    """Flat: (flags, z, then seven tensors per direction, then a weight or None per direction)."""

    @staticmethod
    def forward(ctx: Any, flags: tuple[bool, ...], z: Tensor | None, *tensors: Any) -> Tensor:
        out, ctx.kept = _forward(
            flags, z, tensors[: 7 * len(flags)], keep=True, weights=tensors[7 * len(flags) :]
        )
        ctx.flags = flags
        ctx.save_for_backward(z, *tensors)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        z, *saved = ctx.saved_tensors
        tensors, weights = saved[: 7 * len(ctx.flags)], saved[7 * len(ctx.flags) :]
        dz, grads = _backward(ctx.flags, z, tensors, ctx.kept, dout, weights)
        dweights: list[Tensor | None] = []
        for i, weight in enumerate(weights):
            dweights.append(None)
            if (
                weight is not None
            ):  # delta is a product: from the gradient of all channels to those of its factors
                ddelta, thin = grads[7 * i + 1], tensors[7 * i + 1]
                grads[7 * i + 1] = times(ddelta, weight)
                dweights[i] = weight_gradient(
                    ddelta.flatten(0, 1), thin.reshape(-1, thin.shape[-1])
                )
        return None, dz, *grads, *dweights


def _backward(
    flags: Sequence[bool],
    z: Tensor | None,
    tensors: Sequence[Tensor],
    kept: list[Tensor],
    dout: Tensor,
    weights: Weights = (),
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of z and of the tensors, in their order; that of delta is always (B, L, E)."""
    jobs = _inputs(flags, z, tensors, weights)
    batch, length, channels = tensors[0].shape
    dout = (
        dout if dout.stride(-1) == 1 and dout.dtype == torch.float32 else dout.float().contiguous()
    )
    dz = None if z is None else torch.empty(batch, length, channels)
    shares: list[dict[str, Tensor]] = []
    for i in range(len(flags)):
        states = tensors[7 * i + 2].shape[1]
        new = {name: torch.empty(batch, length, channels) for name in ("DU", "DDELTA")}
        parts = {name: torch.empty(batch, jobs.blocks, length, states) for name in ("DB", "DC")}
        sums = {name: torch.empty(batch, channels) for name in ("DD", "DBIAS")}
        sums["DA"] = torch.empty(batch, jobs.vectors, states, LANES)
        shares.append({**new, **parts, **sums})
        _kept_states(jobs, i, kept[i])
        jobs.rows(i, "DOUT", dout, channels=True)
        for name, x in new.items():
            jobs.address(i, name, x, True, 64)
        if dz is not None:
            jobs.address(i, "DZ", dz, True, 64)
        jobs.number(i, "STRIDE_DX", 4 * channels)
        for name, x in parts.items():
            jobs.address(i, name, x, True, 0)
            jobs.table[:, :, i, jobs.k.Field[name]] += np.arange(jobs.blocks) * (
                4 * length * states
            )
        jobs.number(i, "STRIDE_DBC", 4 * states)
        for name, x in sums.items():
            jobs.address(i, name, x, True, 64 * states if name == "DA" else 64)
    jobs.run(jobs.k.backward, max(A.shape[1] for A in tensors[2::7]))
    return dz, [g for share in shares for g in _summed(share, channels)]


def _summed(share: dict[str, Tensor], channels: int) -> list[Tensor]:
    """One direction's gradients in the order of ``Direction``, shares of cells and blocks added."""
    dA = share["DA"].sum(0).transpose(1, 2).reshape(channels, -1)
    dB, dC = (share[name].sum(1) for name in ("DB", "DC"))
    return [share["DU"], share["DDELTA"], dA, dB, dC, share["DD"].sum(0), share["DBIAS"].sum(0)]
