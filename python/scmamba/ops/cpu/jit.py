"""Load the numba kernels with their machine code cached in a folder of the user's.

Compiling takes seconds, loading from the cache a fraction of one. The package's own folder may be
read-only, so the cache goes to ``$XDG_CACHE_HOME/scmamba`` (``~/.cache/scmamba``), or to a temporary folder
where that cannot be written. ``NUMBA_CACHE_DIR`` wins when it is set. The folder's name holds a digest of
the sources: numba itself looks only at the file of the kernel, not at the files it is built from.

A cache that is damaged, or cannot be written because the disk is full, costs a compilation and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ...utils.compiled_code import private_folder

_lock = threading.Lock()


def cache_folder() -> Path:
    """A writable folder for compiled kernels."""
    return private_folder("numba-" + _digest())


@contextlib.contextmanager
def tolerate_bad_cache(cache: Any) -> Iterator[None]:
    """Replaces the guard of numba around reading and writing its cache: on any failure the kernel is compiled.

    Parameters
    ----------
    cache
        The cache of one function (``numba.core.caching.FunctionCache``).
    """
    try:
        yield
    except OSError:  # no room, no permission
        pass
    except Exception:  # cut off or damaged: pickle raises many kinds
        with contextlib.suppress(Exception):
            cache.flush()


def _tolerant(module: ModuleType) -> ModuleType:
    """The caches of the module's kernels, made tolerant."""
    from numba.core.caching import FunctionCache

    class TolerantCache(FunctionCache):
        _guard_against_spurious_io_errors = tolerate_bad_cache

    for value in vars(module).values():
        if type(getattr(value, "_cache", None)) is FunctionCache:
            value._cache.__class__ = TolerantCache
    return module


def _digest() -> str:
    sources = (
        Path(__file__).with_name(name).read_bytes()
        for name in (
            "kernels.py",
            "llvm.py",
            "vector_math.py",
            "vector.py",
            "amx.py",
            "lookup_kernels.py",
        )
    )
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


@cache
def kernels(module: str = "kernels") -> ModuleType:
    """A module of compiled kernels; the first call of each kernel compiles or loads it."""
    import numba

    config: Any = numba.config
    with _lock:
        before = config.CACHE_DIR
        if not before:
            config.CACHE_DIR = str(cache_folder())
        try:  # the folder is read when a function is decorated, so other users of numba keep theirs
            return _tolerant(importlib.import_module("." + module, __package__))
        finally:
            config.CACHE_DIR = before
