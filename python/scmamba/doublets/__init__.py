"""Droplets that hold two cells: the detector, its features, the fine-tuned network, and simulated doublets."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ..data.doublet_simulation import Simulated, simulate_doublets
    from ._find import detect_doublets, find_doublets
    from .options import DoubletOptions

__all__ = [
    "DoubletOptions",
    "Simulated",
    "detect_doublets",
    "find_doublets",
    "simulate_doublets",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DoubletOptions": "options",
        "Simulated": ".data.doublet_simulation",  # training reads it as well
        "detect_doublets": "_find",
        "find_doublets": "_find",
        "simulate_doublets": ".data.doublet_simulation",
    },
)
