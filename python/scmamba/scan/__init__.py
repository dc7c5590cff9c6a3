"""The selective scan: one operator, many backends.

``selective_scan`` and ``causal_conv1d`` are what the model calls; ``available_backends`` and
``choose_backend`` say what computes them. Preference: ``cpu`` (fused, numba), ``triton`` (fused, NVIDIA),
``mamba_ssm`` (the CUDA package's ops), ``chunked`` (plain torch), ``reference`` (plain torch, step by step).
"""

from __future__ import annotations

import importlib.util

import torch

from . import _memory
from .conv import causal_conv1d
from .norm import add_rms_norm
from .operator import selective_scan
from .registry import (
    Backend,
    Direction,
    available_backends,
    choose_backend,
    floating,
    lazy,
    register,
)

__all__ = [
    "Direction",
    "add_rms_norm",
    "available_backends",
    "causal_conv1d",
    "choose_backend",
    "selective_scan",
]

_memory.large_pages()

_HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_ANY = (*_HALF_OR_SINGLE, torch.float64)


def _numba_missing() -> str:
    return "" if importlib.util.find_spec("numba") else "numba is not installed (pip install numba)"


register(Backend("cpu", _numba_missing, floating(*_HALF_OR_SINGLE, device="cpu"), lazy("cpu"), True))
register(Backend("chunked", lambda: "", floating(*_ANY), lazy("chunked")))
register(Backend("reference", lambda: "", floating(*_ANY), lazy("reference")))
