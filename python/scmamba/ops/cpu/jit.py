"""Load the numba kernels with their machine code cached in a folder of the user's.

Compiling takes seconds, loading from the cache a fraction of one. The package's own folder may be
read-only, so the cache goes to ``$XDG_CACHE_HOME/scmamba`` (``~/.cache/scmamba``), or to a temporary folder
where that cannot be written. ``NUMBA_CACHE_DIR`` wins when it is set. The folder's name holds a digest of
the sources: numba itself looks only at the file of the kernel, not at the files it is built from.

A cache that is damaged, or cannot be written because the disk is full, costs a compilation and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ...utils.compiled_code import make_tolerant, private_folder

_lock = threading.Lock()


def cache_folder() -> Path:
    """A writable folder for compiled kernels."""
    return private_folder("numba-" + _digest())


def _tolerant(module: ModuleType) -> ModuleType:
    """The caches of the module's kernels, made tolerant."""
    for value in vars(module).values():
        make_tolerant(value)
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
