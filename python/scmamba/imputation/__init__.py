"""Imputation: the rate of every gene expected in a cell where nothing was counted."""

from ._impute import impute, impute_file
from .options import ImputeOptions

__all__ = ["ImputeOptions", "impute", "impute_file"]
