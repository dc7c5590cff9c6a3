"""Imputation: the rate of every gene expected in a cell where nothing was counted."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._impute import impute, impute_file, impute_or_write
    from .options import ImputeOptions

__all__ = ["ImputeOptions", "impute", "impute_file", "impute_or_write"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ImputeOptions": "options",
        "impute": "_impute",
        "impute_file": "_impute",
        "impute_or_write": "_impute",
    },
)
