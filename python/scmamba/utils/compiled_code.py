"""Folders for the machine code that numba compiles, and a UMAP that is compiled once per machine.

A cache of numba holds pickles, so a folder that another user owns or can change is never used.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_lock = threading.RLock()


def is_ours(folder: Path) -> bool:
    """Whether this user owns a folder, itself no link, and no other user can change what is in it."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or not hasattr(os, "geteuid"):
        return stat.S_ISDIR(about.st_mode)
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def private_folder(name: str) -> Path:
    """A writable folder of this user: below the user's cache, else below the temporary folder.

    Parameters
    ----------
    name
        Of the folder; with a digest or version of what is kept in it.
    """
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


def import_umap(folder: Path | None = None) -> ModuleType:
    """umap-learn, with its compiled functions kept between processes.

    umap-learn compiles its functions again in every process, which takes some twenty seconds of processor time; scanpy's
    ``pp.neighbors`` and ``tl.umap`` import it. Imported here first, the functions are read from a cache. What was imported
    before is left alone.

    Parameters
    ----------
    folder
        For the machine code. Default: ``NUMBA_CACHE_DIR``, or a private folder named after the versions of umap-learn,
        pynndescent and numba, as numba itself looks only at the file of a function, not at the functions it calls.

    Returns
    -------
    The module ``umap``.

    Raises
    ------
    ImportError
        If umap-learn is not installed.

    Examples
    --------
    >>> from scmamba.utils.compiled_code import import_umap
    >>> import_umap().UMAP(n_components=2).n_components
    2
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        versions = "-".join(version(name) for name in ("umap-learn", "pynndescent", "numba"))
    except PackageNotFoundError as error:
        raise ImportError("umap-learn is not installed", name="umap-learn") from error
    import numba

    config: Any = numba.config
    with _lock:
        if "umap" in sys.modules:
            return sys.modules["umap"]
        kept = folder or config.CACHE_DIR or private_folder(f"umap-{versions}")
        with _kept_between_processes(Path(kept)):
            return importlib.import_module("umap")


@contextlib.contextmanager
def _kept_between_processes(folder: Path) -> Iterator[None]:
    """Within: functions that numba decorates are cached in a folder unless they were given a choice."""
    import numba

    config: Any = numba.config
    before, decorators = config.CACHE_DIR, {n: getattr(numba, n) for n in ("njit", "jit")}

    def cached(decorate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(decorate)
        def decorator(*arguments: Any, **options: Any) -> Any:
            return decorate(*arguments, **{"cache": True, **options})

        return decorator

    config.CACHE_DIR = str(folder)
    for name, decorate in decorators.items():
        setattr(numba, name, cached(decorate))
    try:
        yield
    finally:
        config.CACHE_DIR = before
        for name, decorate in decorators.items():
            setattr(numba, name, decorate)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id, as in many containers
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
