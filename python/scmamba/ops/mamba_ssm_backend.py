"""The CUDA package's own kernels, where they really exist: channel-first, one direction per call.

The package installs without its kernels (a wheel for another torch, a build without nvcc), so what counts is
that the extension module loads, not that the package is there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Direction


@cache
def _module(name: str) -> ModuleType | None:
    """An extension module, or None when it is absent or was built for another torch."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def missing() -> str:
    """Why the kernels cannot be used here, or ""."""
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that torch can use"
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed (pip install scmamba[cuda])"
    if _module("selective_scan_cuda") is None:
        return "mamba-ssm is installed without its Mamba-1 kernel for this torch (module selective_scan_cuda)"
    return ""


def _kernel() -> Callable[..., Tensor]:
    result: Callable[..., Tensor] = importlib.import_module(
        "mamba_ssm.ops.selective_scan_interface"
    ).selective_scan_fn
    return result


def _direction(d: Direction, kernel: Callable[..., Tensor]) -> Tensor:
    """(B, E, L); the kernel needs unit stride in L, one type for the inputs, float32 parameters."""
    u, delta, A, B, C, D, bias = d.tensors
    rows = [
        (t.flip(1) if d.reverse else t).to(u.dtype).transpose(1, 2).contiguous()
        for t in (u, delta, B, C)
    ]
    out = kernel(
        *rows[:2],
        A.float(),
        *rows[2:],
        D.float(),
        z=None,
        delta_bias=bias.float(),
        delta_softplus=True,
    )
    return out.flip(2) if d.reverse else out


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` by mamba-ssm's kernel, d_state at most 256."""
    kernel = _kernel()
    out = _direction(directions[0], kernel)
    for d in directions[1:]:
        out = out + _direction(d, kernel)
    out = out.transpose(1, 2)
    return out if z is None else (out.float() * F.silu(z.float())).to(out.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, silu: bool) -> Tensor | None:
    """``causal_conv1d`` by the package of that name; None where its kernel does not exist or does not fit."""
    if _module("causal_conv1d_cuda") is None or weight.shape[1] not in (2, 3, 4):
        return None
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn
    rows = (x.flip(1) if reverse else x).transpose(1, 2)
    out = function(rows, weight.to(x.dtype), bias.to(x.dtype), activation="silu" if silu else None)
    result: Tensor | None = (out.flip(2) if reverse else out).transpose(1, 2)
    return result
