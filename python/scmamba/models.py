"""Former place of the list of models; :func:`scmamba.list_models` and :mod:`scmamba.model` replace it.

``scmamba.models()`` worked in version 0.1. The name is kept for one version: as a module that can be imported, and
that returns the list when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from .model.hub import fetch_model, list_models, model_folder, pack_model, registry
from .utils.deprecation import warn_renamed

__all__ = ["fetch_model", "list_models", "model_folder", "pack_model", "registry"]


class _CallableModule(ModuleType):
    """A module that still works as the function that had its name."""

    def __call__(self) -> dict[str, Path]:
        """Return :func:`scmamba.list_models`, with a warning."""
        warn_renamed("scmamba.models()", "scmamba.list_models()")
        return list_models()


sys.modules[__name__].__class__ = _CallableModule
