"""Plots of results, as functions that take an AnnData (or a table) and return matplotlib axes, like ``scanpy.pl``."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._cells import annotation, coverage, doublets, imputation
    from ._comparison import power
    from ._genes import markers, volcano
    from ._report import write_report
    from ._robustness import robustness

__all__ = [
    "annotation",
    "coverage",
    "doublets",
    "imputation",
    "markers",
    "power",
    "robustness",
    "volcano",
    "write_report",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "annotation": "_cells",
        "coverage": "_cells",
        "doublets": "_cells",
        "imputation": "_cells",
        "markers": "_genes",
        "power": "_comparison",
        "robustness": "_robustness",
        "volcano": "_genes",
        "write_report": "_report",
    },
)
