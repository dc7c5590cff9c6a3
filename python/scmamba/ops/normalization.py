"""Residual addition and RMSNorm in one pass: four trips through memory instead of seven."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import memory as _memory
from .cpu import pool as _pool

LANES = 16


def add_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalize: ``total = hidden + residual`` and ``total / rms(total) * weight``.

    Parameters
    ----------
    hidden
        (..., D); may be half-precision.
    residual
        (..., D); the results have its type.
    weight
        (D,).
    eps
        Added to the mean square.
    backend
        Name of a scan backend; only ``cpu`` has its own kernel.

    Returns
    -------
    The normalized values and ``total``, both (..., D).

    Examples
    --------
    >>> import torch
    >>> from scmamba.ops import add_rms_norm
    >>> out, total = add_rms_norm(torch.ones(1, 2), torch.tensor([[2.0, 0.0]]), torch.ones(2), 0.0)
    >>> total.tolist()
    [[3.0, 1.0]]
    >>> round(float(out.square().mean()), 3)
    1.0
    """
    from .backends import choose_backend

    fused = choose_backend(residual, backend) == "cpu" and residual.dtype == torch.float32
    if fused and residual.numel() and residual.shape[-1] % LANES == 0:
        tensors = (hidden.float().contiguous(), residual.contiguous(), weight.float().contiguous())
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            result: tuple[Tensor, Tensor] = _AddNorm.apply(*tensors, eps)
            return result
        return _forward(*tensors, eps)
    total = residual + hidden.to(residual.dtype)
    return F.rms_norm(total, (total.shape[-1],), weight.to(total.dtype), eps), total


def _units(x: Tensor, rows: int) -> list[tuple[int, int]]:
    count = x.numel() // x.shape[-1]
    return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def _forward(hidden: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from .cpu.jit import kernels

    k = kernels()
    if 4 * residual.numel() >= _memory.LARGE:
        _memory.keep()
    total, out = torch.empty_like(residual), torch.empty_like(residual)
    units = _units(residual, k.NORM_ROWS)
    addresses = [t.data_ptr() for t in (hidden, residual, weight, total, out)]
    vectors = weight.shape[0] // LANES
    _pool.run(
        lambda unit, worker: k.norm_forward(*addresses, vectors, eps, *units[unit]), len(units)
    )
    return out, total


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        out, total = _forward(hidden, residual, weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return out, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dtotal: Tensor | None) -> tuple[Any, ...]:
        total, weight = ctx.saved_tensors
        dx, dweight = _backward(total, weight, ctx.eps, dout, dtotal)
        return dx, dx, dweight, None


def _backward(
    total: Tensor, weight: Tensor, eps: float, dout: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of either addend, and of the weight."""
    from .cpu.jit import kernels

    k = kernels()
    dout = torch.zeros_like(total) if dout is None else dout.contiguous()
    dtotal = None if dtotal is None else dtotal.contiguous()
    units = _units(total, k.NORM_ROWS)
    dx, shares = torch.empty_like(total), total.new_empty(len(units), weight.shape[0])
    fixed = (
        dout.data_ptr(),
        0 if dtotal is None else dtotal.data_ptr(),
        total.data_ptr(),
        weight.data_ptr(),
    )
    vectors = weight.shape[0] // LANES

    def task(unit: int, worker: int) -> None:
        share = shares.data_ptr() + 4 * unit * weight.shape[0]
        k.norm_backward(*fixed, dx.data_ptr(), share, vectors, eps, *units[unit])

    _pool.run(task, len(units))
    return dx, shares.sum(0)
