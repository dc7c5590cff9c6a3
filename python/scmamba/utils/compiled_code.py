"""Folders for the machine code that numba compiles, and a UMAP that is compiled once per machine.

A cache of numba holds pickles, so a folder that another user owns or can change is never used.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
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

    Raises
    ------
    OSError
        There is none: no home folder, and no room in the temporary ones.
    """
    for place in (_cache_home, _temporary_home):
        try:
            folder = place() / name
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if os.access(folder, os.W_OK) and is_ours(folder) and is_ours(folder.parent):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="scmamba-numba-"))


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "scmamba"


def _temporary_home() -> Path:
    return Path(tempfile.gettempdir()) / f"scmamba-{_user()}"  # looked for by writing a file


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


def make_tolerant(function: Any) -> None:
    """Make the cache of a compiled function tolerant of damage and of a full disk.

    Parameters
    ----------
    function
        What numba made of it; anything else is left as it is.
    """
    from numba.core.caching import FunctionCache

    class TolerantCache(FunctionCache):
        _guard_against_spurious_io_errors = tolerate_bad_cache

    if type(getattr(function, "_cache", None)) is FunctionCache:
        function._cache.__class__ = TolerantCache


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as ``numba.njit(cache=True)`` does, with the machine code in a private folder.

    numba itself keeps it beside the source, or below the home folder, whoever owns what is there, and refuses to import the function
    if neither can be written: a package that root installed, used by a service without a home folder.

    Parameters
    ----------
    **options
        Options of ``numba.njit``. A division by zero is infinite or NaN, as in numpy, if ``error_model`` is not given.

    Returns
    -------
    A decorator.
    """
    import numba

    config: Any = numba.config

    def decorate(function: Callable[..., Any]) -> Any:
        package, cached = Path(function.__code__.co_filename).parent, True
        with _lock:
            before = config.CACHE_DIR
            if not before:
                try:
                    config.CACHE_DIR = str(functions_folder(package))
                except OSError:  # nowhere: it is compiled in each process
                    cached = False
            try:  # the folder is read when a function is decorated
                made = numba.njit(cache=cached, **{"error_model": "numpy", **options})(function)
            finally:
                config.CACHE_DIR = before
        make_tolerant(made)
        return made

    return decorate


@functools.cache
def functions_folder(package: Path) -> Path:
    """The private folder for the machine code of the functions of a package.

    Parameters
    ----------
    package
        Folder of the package. A digest of its sources is in the name, as numba itself looks only at the file of a function, not at
        the files of the functions it calls.
    """
    digest = hashlib.sha256()
    for source in sorted(package.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return private_folder(f"{package.name}-{digest.hexdigest()[:12]}")
