"""The layers' matrix products: torch's, or the matrix unit's where the processor has one (see ``amx``).

``SCMAMBA_LINEAR`` overrides the choice: ``torch`` (float32 as ever), ``amx``, ``onednn``; anything else and unset: what is fastest here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import memory as _memory
from . import pool as _pool
from .jit import kernels

ENVIRONMENT = "SCMAMBA_LINEAR"
UNIT = 512  # rows of one unit of work
LEAST = 1 << 22  # multiply-adds of a product worth the unit's overhead
SHARE, WIDEST = 4096, 512  # rows and columns of one share of a weight's gradient


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``, by the fastest product of this machine.

    Parameters
    ----------
    x
        (..., K).
    weight
        (N, K).

    Returns
    -------
    (..., N), float32 to about 1e-6 of its size; differentiable in both arguments.

    Examples
    --------
    >>> import torch
    >>> from scmamba.ops import linear
    >>> linear(torch.ones(1, 3), torch.eye(3)).tolist()
    [[1.0, 1.0, 1.0]]
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight)
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if fits(x, weight) and matrix_unit():
        rows = _rows(x)
        out = _Product.apply(rows, weight) if training else product(rows, weight)
        return out.view(*x.shape[:-1], weight.shape[0])
    if training or not _onednn_is_faster():
        return F.linear(x, weight)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def times(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight`` of (..., N) and (N, K), no gradient: what goes back through ``linear``."""
    if fits(x, weight) and matrix_unit():
        return product(_rows(x), weight, turned=True).view(*x.shape[:-1], weight.shape[1])
    return x @ weight


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """``dy.T @ x`` of (M, N) and (M, K), no gradient."""
    if (
        dy.numel()
        and dy.shape[1] % 16 == x.shape[1] % 16 == 0
        and dy.numel() * x.shape[1] >= LEAST
        and matrix_unit()
    ):
        return outer(_rows(dy), _rows(x))
    return dy.t() @ x


def _rows(x: Tensor) -> Tensor:
    """(..., K) -> (M, K), rows dense."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whole vectors of sixteen, and enough of them."""
    return (
        x.numel() > 0
        and weight.shape[0] % 16 == 0
        and weight.shape[1] % 16 == 0
        and x.numel() * weight.shape[0] >= LEAST
    )


@cache
def matrix_unit() -> bool:
    """Whether there is an AMX unit for bfloat16 and the system lets this process use it."""
    if os.environ.get(ENVIRONMENT) in ("torch", "onednn") or not sys.platform.startswith("linux"):
        return False
    if platform.machine() != "x86_64":
        return False
    try:
        flags = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("flags")
        ).split()
        # arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): the kernel saves the tiles only of processes that request it
        return {"amx_bf16", "amx_tile", "avx512f"} <= set(flags) and ctypes.CDLL(None).syscall(
            158, 0x1023, 18
        ) == 0
    except (OSError, StopIteration, AttributeError):
        return False


@cache
def _onednn_is_faster() -> bool:
    """MKL uses half of an AMD processor's vector width, oneDNN all of it.

    A rule and not a measurement, so that the same machine gives the same digits every time.
    """
    if os.environ.get(ENVIRONMENT, "auto") in ("torch", "amx") or not sys.platform.startswith(
        "linux"
    ):
        return False
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    if os.environ.get(ENVIRONMENT) == "onednn":
        return True
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()[:4096]
    except OSError:
        return False


@cache
def _shapes() -> np.ndarray:
    """The unit's configuration: eight tiles of 16 rows of 64 bytes."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16:32].view(np.uint16)[:] = 64
    shapes[48:56] = 16
    return shapes


def _scratch(units: int, room: int) -> tuple[Tensor, Any]:
    """Room for every worker, and the aligned address of a worker's."""
    room = (room + 127) // 64 * 64
    scratch = torch.empty(_pool.workers(units) * room + 64, dtype=torch.uint8)
    start = (scratch.data_ptr() + 63) // 64 * 64
    return scratch, lambda worker: start + worker * room


def _pack(weight: Tensor, turned: bool = False) -> Tensor:
    """The weight (N, K), or its transpose if ``turned``, as tiles of hi and lo."""
    k = kernels("amx")
    w = weight.detach().t() if turned else weight.detach()
    columns, terms = w.shape
    blocks, tiles = -(-columns // 16), -(-terms // k.TERMS)
    out = torch.empty(blocks * tiles * k.BOTH + 64, dtype=torch.uint8)
    start = (out.data_ptr() + 63) // 64 * 64
    step = 4
    units = -(-blocks // step)
    scratch, place = _scratch(units, 2048)

    def task(unit: int, worker: int) -> None:
        strides = (4 * w.stride(0), 4 * w.stride(1))
        k.pack(
            w.data_ptr(),
            *strides,
            columns,
            terms,
            start,
            step * unit,
            min(blocks, step * unit + step),
            place(worker),
        )

    _pool.run(task, units)
    return out


def product(x: Tensor, weight: Tensor, turned: bool = False) -> Tensor:
    """(M, K) times the transpose of (N, K) (``turned``: of (K, N), not transposed) by the matrix unit."""
    k = kernels("amx")
    packed = _pack(weight, turned)
    columns, terms = weight.shape[::-1] if turned else weight.shape
    out = x.new_empty(x.shape[0], columns)
    if out.nbytes >= _memory.LARGE:
        _memory.keep()
    units = -(-x.shape[0] // UNIT)
    scratch, place = _scratch(units, k.product_scratch(terms))
    tiles = (packed.data_ptr() + 63) // 64 * 64
    fixed = (
        x.data_ptr(),
        4 * x.stride(0),
        tiles,
        out.data_ptr(),
        4 * out.stride(0),
        terms,
        columns,
    )
    shapes = _shapes().ctypes.data

    def task(unit: int, worker: int) -> None:
        k.product(*fixed, UNIT * unit, min(x.shape[0], UNIT * unit + UNIT), shapes, place(worker))

    _pool.run(task, units)
    return out


def outer(x: Tensor, y: Tensor) -> Tensor:
    """``x.T @ y`` of (M, K) and (M, N): the gradient of a weight, a sum over many rows. (K, N)."""
    if x.shape[1] > y.shape[1]:
        return outer(y, x).t()
    k = kernels("amx")
    rows, few, many = x.shape[0], x.shape[1], y.shape[1]
    starts = [(r, c) for c in range(0, many, WIDEST) for r in range(0, rows, SHARE)]
    shares = x.new_empty(-(-rows // SHARE), -(-few // 32) * 32, -(-many // 32) * 32)
    scratch, place = _scratch(len(starts), k.outer_scratch(few, min(many, WIDEST)))
    shapes, s_out = _shapes().ctypes.data, 4 * shares.stride(1)

    def task(unit: int, worker: int) -> None:
        row, column = starts[unit]
        out = shares.data_ptr() + 4 * (row // SHARE * shares.stride(0) + column)
        to = (y.data_ptr() + 4 * column, 4 * y.stride(0), min(WIDEST, many - column), out, s_out)
        k.outer(
            x.data_ptr(),
            4 * x.stride(0),
            few,
            *to,
            row,
            min(rows, row + SHARE),
            shapes,
            place(worker),
        )

    _pool.run(task, len(starts))
    return shares.sum(0)[:few, :many]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy = _rows(dy)
        dx = product(dy, weight, turned=True) if ctx.needs_input_grad[0] else None
        return dx, outer(dy, x) if ctx.needs_input_grad[1] else None
