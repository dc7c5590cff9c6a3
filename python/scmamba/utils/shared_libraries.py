"""Libraries of a host process (R with reticulate) that clash with those of Python, and how they are kept apart."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path


def has_foreign_blas() -> bool:
    """Whether the program itself brought a BLAS whose functions every library loaded later would call instead of its own.

    R does: its ``sgemm_`` is visible to all, and by default it is the reference implementation, thirty times slower than torch's.
    """
    if sys.platform != "linux" or not hasattr(os, "RTLD_DEEPBIND"):
        return False  # elsewhere libraries name the library a function comes from
    try:
        return hasattr(ctypes.CDLL(None), "sgemm_")
    except OSError:
        return False


def load_torch_apart() -> None:
    """Load torch so that it calls its own matrix products: the same numbers and the same speed as in a Python of its own."""
    if "torch" in sys.modules or not has_foreign_blas() or openmp_clash():
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        import torch  # noqa: F401
    except (ImportError, OSError):
        pass  # reported where torch is needed
    finally:
        sys.setdlopenflags(flags)


def openmp_clash() -> str | None:
    """The OpenMP library of torch, if loading it now would end the process: another copy of Intel's or LLVM's runs already.

    These libraries leave a mark in their process when they start and abort when a second copy finds it ("OMP: Error #15"). GNU's, which torch
    brings on Linux, leaves none.
    """
    if (
        "torch" in sys.modules
        or os.environ.get("KMP_DUPLICATE_LIB_OK", "").upper() in ("TRUE", "1")
        or not _kmp_is_running()
    ):
        return None
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    found = sorted(
        p.name for p in folder.glob("lib*omp*") if p.name.startswith(("libomp", "libiomp5"))
    )
    return found[0] if found else None


def _kmp_is_running() -> bool:
    """Whether such a library left its mark: an environment variable of C, or a piece of shared memory."""
    name = f"__KMP_REGISTERED_LIB_{os.getpid()}"
    getenv = ctypes.CDLL(None).getenv if sys.platform != "win32" else None
    if getenv is not None:
        getenv.restype = ctypes.c_char_p
        if getenv(name.encode()):
            return True
    return any(
        next(Path(folder).glob(pattern), None)
        for folder in ("/dev/shm", "/tmp")  # nosec B108: only listed
        for pattern in (name, name + "_*")
    )
