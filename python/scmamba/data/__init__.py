"""From counts to tensors: the one definition of what a cell looks like to a model."""

from .collection import Collection
from .masking import interleaved_groups, interleaved_values
from .preprocess import CellReader, read_cells
from .values import detect_value_scale

__all__ = [
    "CellReader",
    "Collection",
    "detect_value_scale",
    "interleaved_groups",
    "interleaved_values",
    "read_cells",
]
