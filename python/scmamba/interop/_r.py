"""One quiet R inside this Python: started on first use, never imported where R itself is the host."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from ..utils.errors import DataError, ScMambaError

_bridge: Any = None


def bridge() -> Any:
    """The functions of ``bridge.R``, as an R environment; R is started if it is not running yet.

    Raises
    ------
    ScMambaError
        rpy2 is not installed or cannot start R; the message gives the command that helps.
    """
    global _bridge
    if _bridge is None:
        rinterface = _rpy2()
        code = resources.files(__package__).joinpath("bridge.R").read_text(encoding="utf-8")
        _bridge = rinterface.baseenv["eval"](rinterface.parse(code), envir=rinterface.globalenv)
    return _bridge


@contextmanager
def _kept_library_path() -> Iterator[None]:
    """Take back what R's start adds to the path of shared libraries.

    Programs started later would load the system's libraries in place of their own: another Python cannot import ssl then. R has
    what it needs from the path once it runs, and its own programs set it anew.
    """
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@_kept_library_path()
def _rpy2() -> Any:
    if "rpytools" in sys.modules:
        raise ScMambaError(
            "This Python runs inside R (reticulate); a second R cannot be started in it. Use the R package's "
            "functions there, or run Python on its own."
        )
    try:
        import rpy2.rinterface_lib.callbacks as callbacks
        from rpy2 import rinterface
    except ImportError as error:
        raise ScMambaError(
            f"Reading and writing R objects needs R and rpy2 ({error}). Install R, then: pip install 'scmamba[r]' "
            "(with R before 4.3 also: pip install 'rpy2-rinterface<3.6.6')."
        ) from error
    except Exception as error:
        raise ScMambaError(
            f"rpy2 could not start R: {error}. Check that 'R --version' works in this terminal."
        ) from error
    callbacks.logger.setLevel(logging.ERROR)
    rinterface.initr()
    _quiet(rinterface)
    return rinterface


def _quiet(rinterface: Any) -> None:
    """Suppress R's own messages; those for the user are returned as values."""
    import rpy2.rinterface_lib.callbacks as callbacks

    def nothing(*_: Any) -> None:
        return None

    callbacks.consolewrite_print = nothing  # type: ignore[assignment]
    callbacks.consolewrite_warnerror = nothing  # type: ignore[assignment]


def call(name: str, *arguments: Any) -> Any:
    """Call a function of ``bridge.R`` with rpy2 objects.

    Raises
    ------
    ScMambaError
        With R's own words, when R stops.
    """
    return run(bridge()[name], *arguments)


def run(function: Any, *arguments: Any, **named: Any) -> Any:
    """Call an R function; an error of R becomes one of ours."""
    from rpy2.rinterface_lib.embedded import RRuntimeError

    try:
        return function(*arguments, **named)
    except RRuntimeError as error:
        words = " ".join(str(error).replace("Error in ", "").split())
        raise ScMambaError(f"R could not do it: {words}") from error


def r(name: str, package: str = "base") -> Any:
    """A function of an R package.

    Raises
    ------
    ScMambaError
        The package is not installed in R.
    """
    rinterface = _rpy2() if _bridge is None else __import__("rpy2.rinterface", fromlist=["baseenv"])
    bridge()
    try:
        return run(rinterface.baseenv["getExportedValue"], _string(package), _string(name))
    except ScMambaError as error:
        raise ScMambaError(
            f"R has no package '{package}'. In R: install.packages(\"{package}\") "
            "(Debian: apt-get install r-cran-seurat r-bioc-singlecellexperiment)."
        ) from error


def need(package: str) -> None:
    """Load an R package quietly, so that its classes are known.

    Raises
    ------
    ScMambaError
        It is not installed.
    """
    loaded = run(r("requireNamespace"), _string(package), quietly=_logical(True))
    if not bool(loaded[0]):
        raise ScMambaError(
            f"R has no package '{package}'. In R: install.packages(\"{package}\") "
            "(Debian: apt-get install r-cran-seurat r-bioc-singlecellexperiment)."
        )


def read_rds(path: str | os.PathLike[str]) -> Any:
    """The object in an .rds file.

    Raises
    ------
    DataError
        The file is missing or not an .rds file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise DataError(f"There is no file {path}.")
    bridge()
    try:
        value = run(r("readRDS"), _string(path))
        # The package that defines the object's class, and only that one: loading both takes seconds.
        package = run(r("attr"), run(r("class"), value), _string("package"))
        if package.__class__.__name__ != "NULLType":
            need(str(package[0]))
        return value
    except ScMambaError as error:
        if error.__cause__ is None:  # a package is missing, and the message names it
            raise
        raise DataError(
            f"{path} is not an .rds file that this R can read ({error.__cause__}).".replace(
                "\n", " "
            )
        ) from error


def classes(value: Any) -> list[str]:
    """All classes an R object belongs to, parents included."""
    return [str(c) for c in run(r("is", "methods"), value)]


def _string(text: str) -> Any:
    from rpy2.rinterface import StrSexpVector

    return StrSexpVector([text])


def _logical(value: bool) -> Any:
    from rpy2.rinterface import BoolSexpVector

    return BoolSexpVector([value])
