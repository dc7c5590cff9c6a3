"""The short causal convolution before the scan, with its SiLU: fused on the CPU, plain torch elsewhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import BackendError
from .cpu import memory as _memory
from .cpu import pool as _pool

LANES = 16


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    reverse: bool = False,
    silu: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Depthwise causal convolution along the positions, then SiLU.

    Position t reads t-W+1 .. t with ``weight[:, W-1]`` at t itself.

    Parameters
    ----------
    x
        (B, L, E), channel-last.
    weight
        (E, W).
    bias
        (E,).
    reverse
        Read t .. t+W-1 instead: what flipping, convolving and flipping back gives.
    silu
        Apply SiLU to the result.
    backend
        Name of a scan backend; only ``cpu`` has its own kernel.

    Returns
    -------
    (B, L, E) in the type of ``x``.

    Raises
    ------
    BackendError
        The shapes disagree.

    Examples
    --------
    >>> import torch
    >>> from scmamba.ops import causal_conv1d
    >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    >>> causal_conv1d(x, torch.ones(1, 2), torch.zeros(1), silu=False).flatten().tolist()
    [1.0, 3.0, 5.0]
    """
    from .backends import choose_backend

    if (
        x.dim() != 3
        or weight.dim() != 2
        or weight.shape[0] != x.shape[2]
        or bias.shape != x.shape[2:]
    ):
        raise BackendError(
            "causal_conv1d needs x (B, L, E), weight (E, W) and bias (E,); found "
            f"{tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}."
        )
    if choose_backend(x, backend) == "cpu" and x.numel():
        return _fused(x, weight, bias, reverse, silu)
    if x.device.type == "cuda" and backend not in ("chunked", "reference"):
        from .mamba_ssm_backend import convolve

        if (out := convolve(x, weight, bias, reverse, silu)) is not None:
            return out
    return _torch(x, weight, bias, reverse, silu)


def _torch(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, silu: bool) -> Tensor:
    width, length = weight.shape[1], x.shape[1]
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    padded = F.pad(x, (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    out = bias
    for k in range(width):  # tap k reads k rows further on in the padded sequence
        out = out + padded[:, k : k + length] * weight[:, width - 1 - k if reverse else k]
    return F.silu(out) if silu else out


def _fused(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, silu: bool) -> Tensor:
    dtype, channels = x.dtype, x.shape[2]
    missing = -channels % LANES
    x, taps, bias = x.float(), weight.float().t(), bias.float()
    if missing:
        x, taps, bias = (F.pad(t, (0, missing)) for t in (x, taps, bias))
    x = x if x.stride(-1) == 1 else x.contiguous()
    args = (x, taps.contiguous(), bias.contiguous(), reverse, silu)
    if torch.is_grad_enabled() and any(t.requires_grad for t in args[:3]):
        out = _Conv.apply(*args)
    else:
        out = _forward(*args)
    result: Tensor = out[..., :channels].to(dtype) if missing else out.to(dtype)
    return result


def _units(x: Tensor, rows: int) -> list[tuple[int, int, int]]:
    """(cell, first row, last row) of every unit of work; independent of the number of threads."""
    batch, length = x.shape[:2]
    return [(b, s, min(s + rows, length)) for b in range(batch) for s in range(0, length, rows)]


def _forward(x: Tensor, taps: Tensor, bias: Tensor, reverse: bool, silu: bool) -> Tensor:
    from .cpu.jit import kernels

    k = kernels()
    if 4 * x.numel() >= _memory.LARGE:
        _memory.keep()
    out = x.new_empty(x.shape)
    units = _units(x, k.CONV_ROWS)
    width, channels = taps.shape
    sign = -1 if reverse else 1
    fixed = (taps.data_ptr(), bias.data_ptr(), width, channels // LANES, x.shape[1])
    xp, xb, xs = x.data_ptr(), 4 * x.stride(0), 4 * x.stride(1)
    yp, yb, ys = out.data_ptr(), 4 * out.stride(0), 4 * out.stride(1)

    def task(unit: int, worker: int) -> None:
        b, start, stop = units[unit]
        k.conv_forward(xp + b * xb, xs, yp + b * yb, ys, *fixed, start, stop, sign, int(silu))

    _pool.run(task, len(units))
    return out


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, reverse: bool, silu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, taps, bias)
        ctx.options = (reverse, silu)
        return _forward(x, taps, bias, reverse, silu)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, taps, bias = ctx.saved_tensors
        reverse, silu = ctx.options
        return (*_backward(x, taps, bias, reverse, silu, dy), None, None)


def _backward(
    x: Tensor, taps: Tensor, bias: Tensor, reverse: bool, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps (W, E) and of the bias."""
    from .cpu.jit import kernels

    k = kernels()
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    units = _units(x, k.CONV_ROWS)
    width, channels = taps.shape
    dx = x.new_empty(x.shape)
    shares = x.new_empty(len(units), width + 1, channels)
    room = k.conv_scratch_bytes(width) + 64
    scratch = torch.empty(_pool.workers(len(units)), room, dtype=torch.uint8)
    fixed = (taps.data_ptr(), bias.data_ptr())
    sizes = (width, channels // LANES, x.shape[1])
    sign = -1 if reverse else 1

    def task(unit: int, worker: int) -> None:
        b, start, stop = units[unit]
        rows = [
            n for t in (x, dy, dx) for n in (t.data_ptr() + 4 * b * t.stride(0), 4 * t.stride(1))
        ]
        share = shares.data_ptr() + 4 * unit * shares.stride(0)
        aligned = (scratch.data_ptr() + worker * room + 63) // 64 * 64
        k.conv_backward(*rows, *fixed, share, *sizes, start, stop, sign, int(silu), aligned)

    _pool.run(task, len(units))
    total = shares.sum(0)
    return dx, total[:width], total[width]
