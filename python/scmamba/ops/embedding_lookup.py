"""Projections of embedded genes, looked up and scaled instead of multiplied; no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu import memory as _memory
from .cpu import pool as _pool

LANES = 16


def lookup(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor | None,
    values: Tensor,
    slope: Tensor,
    masked: Tensor | None,
    shift: Tensor,
    eps: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """``(table[rows] + values * slope) / rms(hidden)``, and ``table[rows] + shift`` instead where ``masked``.

    ``hidden`` (B, L, D); ``table`` (G, K); ``rows`` (B, L) or ``None``, row t for position t; ``values`` and ``masked`` (B, L) or ``None``;
    ``slope`` and ``shift`` (K,). (B, L, K) in the type of ``table``. ``backend`` None or a scan backend's name; only ``cpu`` has a
    kernel of its own.
    """
    from .backends import choose_backend

    whole = hidden.shape[-1] % LANES == table.shape[1] % LANES == 0
    if (
        choose_backend(hidden, backend) == "cpu"
        and hidden.dtype == table.dtype == torch.float32
        and whole
        and hidden.numel()
    ):
        return _fused(hidden.contiguous(), table, rows, values, slope, masked, shift, eps)
    scale = (hidden.square().mean(-1, keepdim=True) + eps).rsqrt()
    source = table[: hidden.shape[1]] if rows is None else table[rows]
    if masked is None:
        return torch.addcmul(source, values.unsqueeze(-1), slope).mul_(scale)
    shown = values.masked_fill(masked, 0).unsqueeze(-1)  # also where a hidden value is not a number
    return (
        torch.addcmul(source, shown, slope)
        .addcmul_(masked.unsqueeze(-1).to(shift.dtype), shift)
        .mul_(scale)
    )


def _fused(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor | None,
    values: Tensor,
    slope: Tensor,
    masked: Tensor | None,
    shift: Tensor,
    eps: float,
) -> Tensor:
    from .cpu.jit import kernels

    k = kernels("lookup_kernels")
    batch, length, width = hidden.shape
    columns, count = table.shape[1], batch * length
    out = table.new_empty(batch, length, columns)
    if out.nbytes >= _memory.LARGE:
        _memory.keep()
    rows = None if rows is None else rows.long().contiguous()
    numbers = values.float().reshape(-1).numpy()
    hides = (
        (torch.zeros(batch, length, dtype=torch.bool) if masked is None else masked)
        .reshape(-1)
        .numpy()
    )
    sources = (
        hidden.data_ptr(),
        width // LANES,
        table.data_ptr(),
        columns // LANES,
        0 if rows is None else rows.data_ptr(),
        length,
    )
    row = (numbers, slope.data_ptr(), hides, shift.data_ptr(), out.data_ptr(), eps)

    def task(unit: int, worker: int) -> None:
        k.look_up(*sources, *row, k.ROWS * unit, min(count, k.ROWS * unit + k.ROWS))

    _pool.run(task, -(-count // k.ROWS))
    return out
