"""This installation: versions, device, scan backends, models."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any


def info() -> dict[str, Any]:
    """Versions, device, scan backends and models of this installation; for bug reports.

    Returns
    -------
    ``scmamba``, ``python``, ``packages``, ``device``, ``scan`` (the backend in use), ``scan backends`` and ``models``.

    Examples
    --------
    >>> import scmamba
    >>> sorted(scmamba.info())
    ['device', 'models', 'packages', 'python', 'scan', 'scan backends', 'scmamba']
    """
    import torch

    from ._version import __version__
    from .model import list_models
    from .ops.backends import available_backends, choose_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "scmamba": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {
            name: _version(name)
            for name in (
                "torch",
                "numpy",
                "scipy",
                "pandas",
                "anndata",
                "numba",
                "mamba-ssm",
                "triton",
            )
        },
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "scan": choose_backend(torch.zeros(1, device=device)),
        "scan backends": available_backends(),
        "models": {name: str(path) for name, path in list_models().items()},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
