"""Threads for the numba kernels: torch's own, as many as torch uses; safe under fork.

numba's thread layers are not used: one aborts in a forked child, one is not thread-safe, and the first
parallel call resets torch's number of threads. A second set of threads is no good either: between two matrix
products torch's threads spin while they wait, and steal the processor from ours. So the kernels, which
release the interpreter lock, run on the team of threads of the GNU OpenMP library torch has loaded, and on
plain Python threads if there is none (or with ``SCMAMBA_THREADS=python``), and in a forked child, where
the team is gone.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_pool: ThreadPoolExecutor | None = None
_size = 0
_forked = False


def _forget() -> None:
    """A forked child has no threads: make new ones at the first call there."""
    global _pool, _size, _forked
    _pool, _size, _forked = None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team() -> Callable[..., Any] | None:
    """``GOMP_parallel`` of the OpenMP library torch uses, if it is one that has it."""
    library = next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)
    if library is None or os.environ.get("SCMAMBA_THREADS") == "python":
        return None
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [_ENTRY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


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
    units, arrivals = (
        itertools.count(),
        itertools.count(),
    )  # next() is atomic: the next free thread takes it
    errors: list[BaseException] = []

    def work(_: Any = None) -> None:
        try:
            if (unit := next(units)) < count:
                worker = next(arrivals)  # only threads that got a unit are counted
                while unit < count:
                    task(unit, worker)
                    unit = next(units)
        except BaseException as error:  # it must not cross the OpenMP library
            errors.append(error)

    team = None if _forked else _team()
    if team is not None:
        # the whole team even for fewer units: another size would end threads and start them again
        team(_ENTRY(work), None, torch.get_num_threads(), 0)
    else:
        futures = [_helpers(threads - 1).submit(work) for _ in range(1, threads)]
        work()
        for future in futures:
            future.result()
    if errors:
        raise errors[0]


def workers(count: int) -> int:
    """How many threads ``run`` uses for ``count`` units."""
    return max(1, min(count, torch.get_num_threads()))
