"""The operator: one bidirectional selective scan with one gate, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..utils.errors import BackendError
from .backends import Direction, choose_backend, scan_with


def selective_scan(
    directions: Sequence[Direction], z: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Sum over ``directions`` of the Mamba-1 selective scan, times ``silu(z)`` once.

    For each direction, with ``dt = softplus(delta + delta_bias)`` and time running backwards if ``reverse``:
    ``h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]``, ``y[t] = C[t] h[t] + D u[t]`` (Gu and Dao 2023, algorithm 2). The state is
    float32 (float64 for float64 inputs) whatever the type of the inputs. Differentiable in every tensor.

    Parameters
    ----------
    directions
        Inputs of each direction (:class:`Direction`, or tuples in its order).
    z
        (B, L, E) gate; ``None`` for no gate.
    backend
        Name of a backend; see :func:`choose_backend` if not given.

    Returns
    -------
    (B, L, E) in the type of ``u``.

    Raises
    ------
    BackendError
        The shapes disagree, or the requested backend cannot be used.

    Examples
    --------
    >>> import torch
    >>> from scmamba.ops import Direction, selective_scan
    >>> one = torch.ones(1, 3, 2)
    >>> direction = Direction(one, one, -torch.ones(2, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 4), torch.zeros(2), torch.zeros(2))
    >>> y = selective_scan([direction], backend="reference")
    >>> round(float(y[0, 0, 0]), 3)  # 4 states, softplus(1) each
    5.253
    """
    directions = [d if isinstance(d, Direction) else Direction(*d) for d in directions]
    _check(directions, z)
    u = directions[0].u
    name = choose_backend(u, backend)
    if u.numel() == 0:
        return _empty(directions, z)
    return scan_with(name, directions, z)


def _empty(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """No cell or no position: nothing to scan, but every tensor still gets its gradient of zeros."""
    u = directions[0].u
    nothing = sum(t.sum().to(u.dtype) for d in directions for t in d.tensors)
    return u * (nothing if z is None else nothing + z.sum().to(u.dtype))


def _check(directions: Sequence[Direction], z: Tensor | None) -> None:
    if not directions:
        raise BackendError("selective_scan needs at least one direction; got none.")
    shape = directions[0].u.shape
    if len(shape) != 3:
        raise BackendError(f"u must be (batch, length, channels); it has the shape {tuple(shape)}.")
    batch, length, channels = shape
    for d in directions:
        states = d.A.shape[-1]
        rank = channels if d.delta_weight is None else d.delta_weight.shape[1]
        wanted = {
            "u": (batch, length, channels),
            "delta": (batch, length, rank),
            "A": (channels, states),
            "B": (batch, length, states),
            "C": (batch, length, states),
            "D": (channels,),
            "delta_bias": (channels,),
        }
        for name, expected in wanted.items():
            found = tuple(getattr(d, name).shape)
            if found != expected:
                raise BackendError(f"{name} must have the shape {expected}; it has {found}.")
    if z is not None and z.shape != shape:
        raise BackendError(f"z must have the shape {tuple(shape)} of u; it has {tuple(z.shape)}.")
    devices = {t.device for d in directions for t in d.tensors}
    if len(devices) > 1:
        raise BackendError(f"All tensors must be on one device; found {sorted(map(str, devices))}.")
