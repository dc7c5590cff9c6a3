"""Cell types from a labeled reference, a model that classifies, or marker genes."""

from typing import TYPE_CHECKING, Any

from .options import AnnotateOptions

if TYPE_CHECKING:
    from ._annotate import annotate
    from .brain_reference import references
    from .result import UNASSIGNED, Annotation

__all__ = [
    "AnnotateOptions",
    "Annotation",
    "UNASSIGNED",
    "annotate",
    "references",
]


def __getattr__(name: str) -> Any:
    # The options are read by the command line, which must not wait for torch.
    if name == "annotate":
        from ._annotate import annotate

        return annotate
    if name == "references":
        from .brain_reference import references

        return references
    if name in ("Annotation", "UNASSIGNED"):
        from . import result

        return getattr(result, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
