"""How many threads a compiled loop gets: one for small work, where waking and waiting would cost more."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from numba import get_num_threads, set_num_threads

# Steps of an inner loop, about a nanosecond each. Below this a single thread is done before others have
# started, and on a busy machine the loop would wait for threads that are not scheduled.
_SMALL = 1e7


@contextmanager
def threads_for(steps: float) -> Iterator[int]:
    """One thread for the block's parallel loops if they take fewer steps than pay; yields the number."""
    openmp = _openmp()
    before = openmp.omp_get_max_threads() if openmp else None
    threads = get_num_threads()
    use = 1 if steps < _SMALL else threads
    set_num_threads(use)
    try:
        yield use
    finally:
        set_num_threads(threads)
        # numba's first call gives the OpenMP it shares with torch its own number of threads: the last digits of all that torch
        # computes afterwards would depend on whether a differential expression test came first.
        if openmp and openmp.omp_get_max_threads() != before:
            openmp.omp_set_num_threads(before)


@cache
def _openmp() -> ctypes.CDLL | None:
    """GNU's OpenMP library, on which numba and torch both run on Linux; elsewhere each brings its own."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
