"""Freed memory is kept for the next layer instead of being given back to the system.

glibc maps every block above 32 MB afresh, and the system then clears it page by page: for the 40 MB tensors
of a whole cell that costs more than the arithmetic of the convolution. ``keep`` raises glibc's thresholds
once per process; the process then holds on to its peak memory. ``SCMAMBA_MALLOC=0`` leaves the allocator
alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

LARGE = 4 << 20  # bytes; smaller tensors never leave the heap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def keep() -> bool:
    """Set glibc to keep large freed blocks; False without glibc or if the user turned it off."""
    if os.environ.get("SCMAMBA_MALLOC") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def large_pages() -> None:
    """Set torch to use 2 MB pages, which fault and miss less; torch reads this at its first large tensor."""
    if os.environ.get("SCMAMBA_MALLOC") != "0":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
