"""Cell types from a reference, a classifier or marker genes."""

from ._annotate import annotate
from .result import UNASSIGNED, Annotation

__all__ = [
    "Annotation",
    "UNASSIGNED",
    "annotate",
]
