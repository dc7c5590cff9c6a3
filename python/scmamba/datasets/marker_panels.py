"""Marker genes of brain cell types."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def brain_markers(*, more: bool = False) -> dict[str, list[str]]:
    """The default panel: eight major brain types and genes each expresses (paper, marker genes; common knowledge of the field).

    ``more``: further genes of the same types, which stand in where few of the panel's were measured.
    """
    name = "brain_markers_more.tsv" if more else "brain_markers.tsv"
    text = (resources.files("scmamba") / "resources" / name).read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:] if line]
    return {name: genes.split(",") for name, genes in rows}
