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

from . import _pool
from ._jit import kernels
from .registry import Direction

LANES = 16
BLOCK = 4  # vectors of sixteen channels per job; fixed, so that sums do not depend on the number of threads


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` for float32 (and half-precision, computed in float32) tensors on the CPU."""
    dtype, channels = directions[0].u.dtype, directions[0].u.shape[2]
    missing = -channels % LANES
    tensors = [_prepared(t, missing, last) for d in directions for t, last in zip(d[:-1], _CHANNELS_LAST)]
    gate = None if z is None else _prepared(z, missing, True)
    flags = tuple(bool(d.reverse) for d in directions)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, gate) if t is not None):
        out = _Scan.apply(flags, gate, *tensors)
    else:
        out = _forward(flags, gate, tensors, keep=False)[0]
    return out[..., :channels].to(dtype) if missing else out.to(dtype)


# where the channels are: last (u, delta, D, bias), first (A), nowhere (B, C)
_CHANNELS_LAST = (True, True, False, None, None, True, True)


def _prepared(x: Tensor, missing: int, channels_last: bool | None) -> Tensor:
    """float32, unit stride in the last dimension, channels padded to whole vectors with zeros."""
    x = x.float()
    if missing and channels_last is not None:
        x = F.pad(x, (0, missing) if channels_last else (0, 0, 0, missing))
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _packed(A: Tensor) -> tuple[Tensor, Tensor]:
    """A log2(e) as (vectors, N, 16), and per channel the largest dt that keeps every exponent above -125."""
    scaled = A.detach() * math.log2(math.e)
    limit = (125.0 / scaled.abs().amax(1)).clamp_(max=1e30)
    return scaled.view(-1, LANES, A.shape[1]).transpose(1, 2).contiguous(), limit


class _Jobs:
    """The table of jobs of one call: rows of integers the kernels read (see ``_kernels.Field``)."""

    def __init__(self, batch: int, channels: int, directions: int) -> None:
        self.k = kernels()
        self.vectors = channels // LANES
        self.blocks = -(-self.vectors // BLOCK)
        self.batch, self.directions = batch, directions
        self.table = np.zeros((batch, self.blocks, directions, self.k.FIELDS), np.int64)
        sizes = np.full(self.blocks, BLOCK)
        sizes[-1] = self.vectors - BLOCK * (self.blocks - 1)
        self.table[..., self.k.Field.VECTORS] = sizes[None, :, None]
        self.alive: list[Tensor] = []  # tensors whose addresses are in the table

    def number(self, direction: int, name: str, value: int) -> None:
        self.table[:, :, direction, self.k.Field[name]] = value

    def address(self, direction: int, name: str, x: Tensor, per_batch: bool, per_vector: int) -> None:
        """``per_vector``: bytes from one vector of channels to the next (0: not split by channels)."""
        cells = np.arange(self.batch)[:, None] * (4 * x.stride(0) if per_batch else 0)
        blocks = np.arange(self.blocks)[None, :] * (per_vector * BLOCK)
        self.table[:, :, direction, self.k.Field[name]] = x.data_ptr() + cells + blocks
        self.alive.append(x)

    def rows(self, direction: int, name: str, x: Tensor, *, channels: bool) -> None:
        """A (B, L, ...) tensor and its row stride."""
        self.address(direction, name, x, True, 4 * LANES if channels else 0)
        self.number(direction, f"STRIDE_{name}", 4 * x.stride(1))

    def run(self, kernel: Any, states: int) -> None:
        units = self.batch * self.blocks
        room = self.k.scratch_bytes(states, BLOCK) + 64
        scratch = torch.empty(_pool.workers(units), room, dtype=torch.uint8)
        table, row = self.table.ctypes.data, self.k.ROW * self.directions

        def task(unit: int, worker: int) -> None:
            aligned = (scratch.data_ptr() + worker * room + 63) // 64 * 64
            kernel(table + unit * row, self.directions, aligned)

        _pool.run(task, units)


def _inputs(flags: Sequence[bool], z: Tensor | None, tensors: Sequence[Tensor]) -> _Jobs:
    """The fields that forward and backward share."""
    batch, length, channels = tensors[0].shape
    jobs = _Jobs(batch, channels, len(flags))
    for i, reverse in enumerate(flags):
        u, delta, A, B, C, D, bias = tensors[7 * i : 7 * i + 7]
        states = A.shape[1]
        packed, limit = _packed(A)
        jobs.rows(i, "U", u, channels=True)
        jobs.rows(i, "DELTA", delta, channels=True)
        jobs.rows(i, "B", B, channels=False)
        jobs.rows(i, "C", C, channels=False)
        jobs.address(i, "A", packed, False, 64 * states)
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
    flags: Sequence[bool], z: Tensor | None, tensors: Sequence[Tensor], keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the states before every tile when ``keep``."""
    jobs = _inputs(flags, z, tensors)
    u = tensors[0]
    batch, length, channels = u.shape
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
    """Flat: (flags, z, then seven tensors per direction)."""

    @staticmethod
    def forward(ctx: Any, flags: tuple[bool, ...], z: Tensor | None, *tensors: Tensor) -> Tensor:
        out, ctx.kept = _forward(flags, z, tensors, keep=True)
        ctx.flags = flags
        ctx.save_for_backward(z, *tensors)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        z, *tensors = ctx.saved_tensors
        dz, grads = _backward(ctx.flags, z, tensors, ctx.kept, dout)
        return None, dz, *grads


def _backward(
    flags: Sequence[bool], z: Tensor | None, tensors: Sequence[Tensor], kept: list[Tensor], dout: Tensor
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of z and of the tensors, in their order."""
    jobs = _inputs(flags, z, tensors)
    batch, length, channels = tensors[0].shape
    dout = dout if dout.stride(-1) == 1 and dout.dtype == torch.float32 else dout.float().contiguous()
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
            jobs.table[:, :, i, jobs.k.Field[name]] += np.arange(jobs.blocks) * (4 * length * states)
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
