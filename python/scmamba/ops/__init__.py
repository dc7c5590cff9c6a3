"""The selective scan: one operator, many backends.

The model calls ``selective_scan`` and ``causal_conv1d``; ``available_backends`` and
``choose_backend`` list and choose their implementations. Preference: ``cpu`` (fused, numba), ``triton`` (fused, NVIDIA),
``mamba_ssm`` (the CUDA package's ops), ``chunked`` (plain torch), ``reference`` (plain torch, step by step).
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

from . import mamba_ssm_backend as _mamba_ssm
from .backends import (
    Backend,
    Direction,
    available_backends,
    choose_backend,
    floating,
    lazy,
    register,
)
from .convolution import causal_conv1d
from .cpu import memory as _memory
from .cpu.matmul import linear
from .normalization import add_rms_norm
from .operator import selective_scan

__all__ = [
    "Direction",
    "add_rms_norm",
    "available_backends",
    "causal_conv1d",
    "choose_backend",
    "linear",
    "selective_scan",
]

_memory.large_pages()

_HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_ANY = (*_HALF_OR_SINGLE, torch.float64)


def _numba_missing() -> str:
    return "" if importlib.util.find_spec("numba") else "numba is not installed (pip install numba)"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_missing() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton; it comes with torch for CUDA)"
    if _interpreted():
        return ""
    return (
        _triton_checked()
        if torch.cuda.is_available()
        else "there is no NVIDIA GPU that torch can use"
    )


@cache
def _triton_checked() -> str:
    """Compile the kernels and compare a small problem with plain torch, once per process."""
    from .triton_backend import self_check

    return self_check()


def _triton_refuses(tensor: torch.Tensor) -> str:
    return floating(*_HALF_OR_SINGLE, device="cpu" if _interpreted() else "cuda")(tensor)


register(
    Backend("cpu", _numba_missing, floating(*_HALF_OR_SINGLE, device="cpu"), lazy("cpu.scan"), True)
)
register(Backend("triton", _triton_missing, _triton_refuses, lazy("triton_backend")))
register(
    Backend(
        "mamba_ssm",
        _mamba_ssm.missing,
        floating(*_HALF_OR_SINGLE, device="cuda"),
        lazy("mamba_ssm_backend"),
    )
)
register(Backend("chunked", lambda: "", floating(*_ANY), lazy("chunked")))
register(Backend("reference", lambda: "", floating(*_ANY), lazy("reference")))
