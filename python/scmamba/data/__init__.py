"""From counts to tensors: the one definition of what a cell looks like to a model."""

from .collection import Collection
from .masking import interleaved_groups, interleaved_values
from .preprocess import Cells, describe_values, read_cells

__all__ = ["Cells", "Collection", "describe_values", "interleaved_groups", "interleaved_values", "read_cells"]
