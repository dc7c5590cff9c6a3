"""A scan for any device in plain torch: all chunks step together, then a short scan over the chunks.

With about sqrt(L) chunks of sqrt(L) steps the Python loop has 2 sqrt(L) turns, each on all chunks at once.
Memory: the decays of the whole sequence (B L E N) in the forward pass, several times that for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Direction
from .reference import state_dtype


def _chunks(x: Tensor, count: int, size: int) -> Sequence[Tensor]:
    """(B, L, K) -> ``size`` tensors (B, count, K): step i of every chunk; zeros beyond L."""
    missing = count * size - x.shape[1]
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    result: Sequence[Tensor] = x.unflatten(1, (count, size)).unbind(2)
    return result


def _direction(d: Direction) -> Tensor:
    dtype = state_dtype(d.u.dtype)
    u, delta, A, B, C, D, bias = (t.to(dtype) for t in d.tensors)
    if d.reverse:
        u, delta, B, C = (t.flip(1) for t in (u, delta, B, C))
    batch, length, channels = u.shape
    size = max(1, math.isqrt(length))
    count = -(-length // size)
    dt = F.softplus(
        delta + bias
    )  # padded with zeros AFTER softplus: a step of length 0 changes nothing
    steps = zip(*(_chunks(x, count, size) for x in (dt, dt * u, B)))
    reads = [c[..., None] for c in _chunks(C, count, size)]
    state = u.new_zeros(batch, count, channels, A.shape[1])
    decays, outputs = [], []
    for (dt_t, dtu_t, B_t), C_t in zip(steps, reads):
        decay = torch.exp(dt_t[..., None] * A)
        state = torch.addcmul(decay * state, dtu_t[..., None], B_t[:, :, None, :])
        outputs.append((state @ C_t)[..., 0])
        decays.append(decay)
    if count > 1:
        carried = _carry(state, torch.exp(sum(_chunks(dt, count, size))[..., None] * A))  # type: ignore[index]
        for i, (decay, C_t) in enumerate(zip(decays, reads)):
            carried = carried * decay
            outputs[i] = outputs[i] + (carried @ C_t)[..., 0]
    y = torch.stack(outputs, 2).flatten(1, 2)[:, :length] + D * u
    return y.flip(1) if d.reverse else y


def _carry(ends: Tensor, decays: Tensor) -> Tensor:
    """State that enters each chunk, from the chunks' own end states and total decays (B, chunks, E, N)."""
    state = torch.zeros_like(ends[:, 0])
    entering = [state]
    for end, decay in zip(ends.unbind(1)[:-1], decays.unbind(1)[:-1]):
        state = torch.addcmul(end, decay, state)
        entering.append(state)
    return torch.stack(entering, 1)


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` in chunks; takes every floating type and device."""
    out = _direction(directions[0])
    for d in directions[1:]:
        out = out + _direction(d)
    if z is not None:
        out = out * F.silu(z.to(out.dtype))
    return out.to(directions[0].u.dtype)
