"""Droplets that hold two cells."""

from typing import TYPE_CHECKING, Any

from .options import DoubletOptions

if TYPE_CHECKING:
    from ._find import detect_doublets, find_doublets

__all__ = [
    "DoubletOptions",
    "detect_doublets",
    "find_doublets",
]


def __getattr__(name: str) -> Any:
    # The options are read by the command line, which must not wait for torch.
    if name in ("find_doublets", "detect_doublets"):
        from . import _find

        return getattr(_find, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
