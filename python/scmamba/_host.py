"""What a process that is not Python's own (R with reticulate) does to our libraries, and how they are kept apart."""

from __future__ import annotations

import ctypes
import os
import sys


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
    if "torch" in sys.modules or not has_foreign_blas():
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        import torch  # noqa: F401
    except (ImportError, OSError):
        pass  # whoever needs it will say so
    finally:
        sys.setdlopenflags(flags)
