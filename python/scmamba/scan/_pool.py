"""Threads for the numba kernels: as many as torch uses, the caller's own among them, safe under fork.

numba's own thread layers are not used: one aborts in a forked child, one is not thread-safe, and the first
parallel call resets torch's number of threads. The kernels release the interpreter lock, so plain threads do.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_size = 0


def _forget() -> None:
    """A forked child has no threads: make new ones at the first call there."""
    global _pool, _size
    _pool, _size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _size
    if _pool is None or _size < count:
        _pool = ThreadPoolExecutor(count, thread_name_prefix="scmamba-scan")
        _size = count
    return _pool


def run(task: Callable[[int, int], None], count: int) -> None:
    """Call ``task(unit, worker)`` for every unit below ``count``; ``worker`` is below ``workers(count)``."""
    threads = workers(count)
    if threads == 1:
        for unit in range(count):
            task(unit, 0)
        return
    units = itertools.count()  # next() is atomic: whoever is free takes the next unit

    def work(worker: int) -> None:
        while (unit := next(units)) < count:
            task(unit, worker)

    futures = [_helpers(threads - 1).submit(work, i) for i in range(1, threads)]
    work(0)
    for future in futures:
        future.result()


def workers(count: int) -> int:
    """How many threads ``run`` uses for ``count`` units."""
    return max(1, min(count, torch.get_num_threads()))
