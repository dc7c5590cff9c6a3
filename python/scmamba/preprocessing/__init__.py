"""From matrices of several studies to one set of labelled cells."""

from ._prepare import PrepareConfig, prepare

__all__ = [
    "PrepareConfig",
    "prepare",
]
