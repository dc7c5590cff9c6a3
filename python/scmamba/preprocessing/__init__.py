"""From matrices of several studies to one set of labeled cells."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._prepare import prepare
    from .options import PrepareConfig, PrepareOptions

__all__ = [
    "PrepareConfig",
    "PrepareOptions",
    "prepare",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PrepareConfig": "options",
        "PrepareOptions": "options",
        "prepare": "_prepare",
    },
)
