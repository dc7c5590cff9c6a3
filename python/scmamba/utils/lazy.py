"""Public names of a package that are imported when they are first used, so that importing the package is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package.

    The command line reads the options of every verb (``<package>/options.py``) to print its help; without this, each of
    these packages would load torch first.

    Parameters
    ----------
    package
        ``__name__`` of the package.
    homes
        Module of the package, by the public name that it holds; ``.data.values`` is one of a neighboring package.

    Returns
    -------
    The two functions.

    Examples
    --------
    >>> __getattr__, __dir__ = lazy_names("scmamba.utils", {"atomic_path": "atomic"})
    >>> __getattr__("atomic_path").__name__
    'atomic_path'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
