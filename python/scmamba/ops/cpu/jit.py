"""Load the numba kernels with their machine code cached in a folder of the user's.

Compiling takes seconds, loading from the cache a fraction of one. The package's own folder may be
read-only, so the cache goes to ``$XDG_CACHE_HOME/scmamba`` (``~/.cache/scmamba``), or to a temporary folder
where that cannot be written. ``NUMBA_CACHE_DIR`` wins when it is set. The folder's name holds a digest of
the sources: numba itself looks only at the file of the kernel, not at the files it is built from.

The cache holds pickles, so a folder that another user owns or can change is never used. A cache that is damaged, or cannot be written
because the disk is full, costs a compilation and nothing else.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_lock = threading.Lock()


def cache_folder() -> Path:
    """A writable folder for compiled kernels."""
    name = "numba-" + _digest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (
        Path(home) / "scmamba" / name,
        Path(tempfile.gettempdir()) / f"scmamba-{_user()}" / name,
    ):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if os.access(folder, os.W_OK) and is_ours(folder) and is_ours(folder.parent):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="scmamba-numba-"))


def is_ours(folder: Path) -> bool:
    """Whether this user owns a folder, itself no link, and no other user can change what is in it."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or not hasattr(os, "geteuid"):
        return stat.S_ISDIR(about.st_mode)
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextlib.contextmanager
def tolerate_bad_cache(cache: Any) -> Iterator[None]:
    """Stands in for the guard that numba puts around reading and writing its cache: whatever fails, the kernel is compiled.

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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id, as in many containers
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


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
