"""Droplets that hold two cells."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._find import detect_doublets, find_doublets
    from .options import DoubletOptions

__all__ = [
    "DoubletOptions",
    "detect_doublets",
    "find_doublets",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DoubletOptions": "options",
        "detect_doublets": "_find",
        "find_doublets": "_find",
    },
)
