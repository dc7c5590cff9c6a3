"""From matrices of several studies to one set of labeled cells, and the ambient RNA in each sample."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._prepare import prepare
    from .ambient import ambient_rna, ambient_table
    from .options import AmbientOptions, PrepareConfig, PrepareOptions

__all__ = [
    "AmbientOptions",
    "PrepareConfig",
    "PrepareOptions",
    "ambient_rna",
    "ambient_table",
    "prepare",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AmbientOptions": "options",
        "PrepareConfig": "options",
        "PrepareOptions": "options",
        "ambient_rna": "ambient",
        "ambient_table": "ambient",
        "prepare": "_prepare",
    },
)
