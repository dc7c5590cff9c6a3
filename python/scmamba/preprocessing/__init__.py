"""From matrices of several studies to one set of labelled cells."""

from ._prepare import prepare
from .options import PrepareConfig, PrepareOptions

__all__ = [
    "PrepareConfig",
    "PrepareOptions",
    "prepare",
]
