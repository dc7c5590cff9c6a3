"""Expected expression where nothing was counted."""

from ._impute import impute, impute_file

__all__ = [
    "impute",
    "impute_file",
]
