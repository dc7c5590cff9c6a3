"""Cell types from a labeled reference, a model that classifies, or marker genes."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._annotate import annotate
    from .brain_reference import references
    from .ontology import ontology_terms
    from .options import AnnotateOptions
    from .result import UNASSIGNED, Annotation

__all__ = [
    "AnnotateOptions",
    "Annotation",
    "UNASSIGNED",
    "annotate",
    "ontology_terms",
    "references",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AnnotateOptions": "options",
        "Annotation": "result",
        "UNASSIGNED": "result",
        "annotate": "_annotate",
        "ontology_terms": "ontology",
        "references": "brain_reference",
    },
)
