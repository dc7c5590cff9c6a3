"""Plots of results, as functions that take an AnnData (or a table) and return matplotlib axes, like ``scanpy.pl``."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._cells import annotation, doublets, imputation
    from ._genes import markers, volcano
    from ._report import write_report

__all__ = ["annotation", "doublets", "imputation", "markers", "volcano", "write_report"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "annotation": "_cells",
        "doublets": "_cells",
        "imputation": "_cells",
        "markers": "_genes",
        "volcano": "_genes",
        "write_report": "_report",
    },
)
