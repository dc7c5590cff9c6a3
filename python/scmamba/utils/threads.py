"""Threads: how many cores there are, and pools of BLAS, OpenMP, numba and torch that do not fight for them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .control_groups import group_folders

# Steps of an inner loop, about a nanosecond each. Below this a single thread is done before others have
# started, and on a busy machine the loop would wait for threads that are not scheduled.
_SMALL = 1e7
# Parts of a loop for each thread: indices may take very different times.
_PARTS = 8


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


def threads_for(steps: float) -> int:
    """Threads for a compiled loop: one where it takes fewer steps than starting others pays.

    Parameters
    ----------
    steps
        Steps of the inner loops, about a nanosecond each.

    Returns
    -------
    At most the cores that the process may use, and ``NUMBA_NUM_THREADS`` where that is set.
    """
    if steps < _SMALL:
        return 1
    import numba

    config: Any = numba.config
    return max(1, min(int(config.NUMBA_NUM_THREADS), available_cores()))


def run_in_threads(kernel: Callable[..., object], n: int, threads: int, *arguments: object) -> None:
    """Call a compiled function for all parts of ``range(n)``, which it fills arrays for.

    The parallel loops of numba itself take far longer to compile, and share the OpenMP of torch: the number of
    threads of one changed that of the other, and a process forked afterwards could wait for threads it does not have.

    Parameters
    ----------
    kernel
        Takes first and last (excluded) index of a part, then ``arguments``; compiled with ``nogil=True``.
    n
        Number of indices.
    threads
        From :func:`threads_for`. With one all is done in this thread.
    *arguments
        The same for all parts.
    """
    if threads == 1:
        kernel(0, n, *arguments)
        return
    cuts = np.unique(np.linspace(0, n, _PARTS * threads + 1).astype(np.int64))
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(kernel, lo, hi, *arguments) for lo, hi in pairwise(cuts)]
        try:
            for part in parts:
                part.result()
        except BaseException:  # on Ctrl-C only the parts that run are waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
