"""The environment of the processes that open what users send: what Python and its libraries need, and no secrets."""

from __future__ import annotations

import os

_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONHASHSEED",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "XDG_CACHE_HOME",
    "SCMAMBA_CACHE",
    "SCMAMBA_MODELS",
    "SCMAMBA_MALLOC",
    "SCMAMBA_OFFLINE",
    "SCMAMBA_REGISTRY",
    "SCMAMBA_THREADS",
    "THP_MEM_ALLOC_ENABLE",
    "COVERAGE_PROCESS_START",
)
#: Families of variables: threads, kernels, drivers.
_FAMILIES = ("OMP_", "OPENBLAS_", "MKL_", "NUMBA_", "NVIDIA_", "KMP_", "MPL", "TORCH_", "TRITON_")


def clean_environment() -> dict[str, str]:
    """The variables that are passed on."""
    return {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_FAMILIES)}
