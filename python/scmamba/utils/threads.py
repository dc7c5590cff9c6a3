"""Threads: how many cores there are, and pools of BLAS, OpenMP, numba and torch that do not fight for them."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from .control_groups import group_folders

# Steps of an inner loop, about a nanosecond each. Below this a single thread is done before others have
# started, and on a busy machine the loop would wait for threads that are not scheduled.
_SMALL = 1e7


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, within the quota of its container or batch job.

    Returns
    -------
    At least 1. A quota of 1.5 cores counts as 2.

    Examples
    --------
    >>> available_cores() >= 1
    True
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [_quota(folder, version) for folder, version in group_folders("cpu")]
    return max(1, min([bound or 1, *(math.ceil(q) for q in quotas if q is not None)]))


def _quota(folder: Path, version: int) -> float | None:
    """Cores' worth of time that a control group gets; None without a limit."""
    try:
        if version == 2:
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        quota = float(time) / float(period)
    except (OSError, ValueError):  # "max" is no limit
        return None
    return quota if quota > 0 else None


@lru_cache(maxsize=1)
def _pools(modules: int) -> ThreadpoolController:
    """The thread pools in the process; looked up again when ``modules`` were imported, which may bring others."""
    return ThreadpoolController()


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Run a block, or as a decorator a function, with one BLAS thread; the former number is restored.

    Annotation, doublets and differential expression fit thousands of small models. Waking the threads of BLAS for
    each of their products takes longer than the product, on an idle machine already, and many times longer where
    other processes keep the cores busy: a thread that is not scheduled holds up all others. Torch's and numba's
    threads are not touched.
    """
    with _pools(len(sys.modules)).limit(limits=1, user_api="blas"):
        yield


@contextmanager
def single_thread() -> Iterator[None]:
    """Run a block with one thread of BLAS and of OpenMP: for small fits of a library that starts both."""
    with _pools(len(sys.modules)).limit(limits=1):
        yield


@contextmanager
def within_cores() -> Iterator[None]:
    """Run a block, or as a decorator a function, with no pool larger than the cores that the process may use.

    Libraries size their pools by the machine. In a container with a quota of 2 cores on a host of 64 each would start
    64 threads, which the quota then stops in turn. Where the quota allows all cores nothing is changed.
    """
    cores = available_cores()
    if cores >= (os.cpu_count() or 1):
        yield
        return
    former = [(pool, pool.num_threads) for pool in _pools(len(sys.modules)).lib_controllers]
    libraries: list[Any] = [sys.modules[n] for n in ("torch", "numba") if n in sys.modules]
    threads = [(library, library.get_num_threads()) for library in libraries]
    try:
        for pool, number in former:
            pool.set_num_threads(min(number, cores))
        for library, number in threads:
            library.set_num_threads(min(number, cores))
        yield
    finally:
        for library, number in threads:
            library.set_num_threads(number)
        for pool, number in former:
            if number > cores:
                pool.set_num_threads(number)


@contextmanager
def threads_for(steps: float) -> Iterator[int]:
    """One thread for the parallel numba loops of a block if they take fewer steps than pay.

    Parameters
    ----------
    steps
        Steps of the inner loops, about a nanosecond each.

    Yields
    ------
    The number of threads.
    """
    from numba import get_num_threads, set_num_threads

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
