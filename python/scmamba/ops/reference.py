"""The truth: the recurrence as it is written, one step after another, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Direction


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half-precision inputs keep a float32 state; float64 stays float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _direction(d: Direction) -> Tensor:
    dtype = state_dtype(d.u.dtype)
    u, delta, A, B, C, D, bias = (t.to(dtype) for t in d.tensors)
    dt = F.softplus(delta + bias)
    # unbind, not x[:, t]: the gradient of indexing is quadratic in the length
    columns = zip(dt.unbind(1), u.unbind(1), B.unbind(1), C.unbind(1))
    steps = list(columns)[::-1] if d.reverse else list(columns)
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for dt_t, u_t, B_t, C_t in steps:
        state = torch.exp(dt_t[..., None] * A) * state + (dt_t * u_t)[..., None] * B_t[:, None, :]
        outputs.append((state * C_t[:, None, :]).sum(-1))
    if d.reverse:
        outputs.reverse()
    return torch.stack(outputs, 1) + D * u


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` step by step; takes every floating type and device."""
    out = _direction(directions[0])
    for d in directions[1:]:
        out = out + _direction(d)
    if z is not None:
        out = out * F.silu(z.to(out.dtype))
    return out.to(directions[0].u.dtype)
