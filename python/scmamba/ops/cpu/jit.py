"""Load the numba kernels with their machine code cached in a folder of the user's.

Compiling takes seconds, loading from the cache a fraction of one. The package's own folder may be
read-only, so the cache goes to ``$XDG_CACHE_HOME/scmamba`` (``~/.cache/scmamba``), or to a temporary folder
where that cannot be written. ``NUMBA_CACHE_DIR`` wins when it is set. The folder's name holds a digest of
the sources: numba itself looks only at the file of the kernel, not at the files it is built from.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib
import os
import tempfile
import threading
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
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="scmamba-numba-"))


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
            return importlib.import_module("." + module, __package__)
        finally:
            config.CACHE_DIR = before
