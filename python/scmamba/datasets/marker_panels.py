"""Marker genes of brain cell types, and marker panels of the user's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: What the second column of a table of markers is called, if its first line is a heading.
_GENE_HEADINGS = {"gene", "genes", "marker", "markers", "symbol", "symbols", "gene_symbol"}


def brain_markers(*, more: bool = False) -> dict[str, list[str]]:
    """Genes that the eight major cell types of the human brain express.

    Parameters
    ----------
    more
        Further, less specific genes of the same types, which complete the panel where few of its genes were measured.

    Returns
    -------
    Gene symbols by cell type (marker genes of the paper; common knowledge of the field).

    Examples
    --------
    >>> from scmamba.datasets.marker_panels import brain_markers
    >>> brain_markers()["Oligodendrocyte"][:2]
    ['MBP', 'MOBP']
    """
    name = "brain_markers_more.tsv" if more else "brain_markers.tsv"
    text = (resources.files("scmamba") / "resources" / name).read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:] if line]
    return {name: genes.split(",") for name, genes in rows}


def read_marker_panel(
    markers: Mapping[str, Sequence[str]] | pd.DataFrame | str | PathLike[str],
) -> dict[str, list[str]]:
    """Read a marker panel from whatever holds it.

    Parameters
    ----------
    markers
        A mapping of cell types to genes; a DataFrame whose first two columns are the type and a gene (or several genes
        with commas between them); ``"panel"`` for :func:`brain_markers`; or a text file with one line for each type or
        each gene: the type, a tab or comma, and genes separated by commas, semicolons, tabs or spaces. A heading such
        as ``type<TAB>genes``, empty lines and lines that begin with ``#`` are skipped; of a ``.gmt`` file the
        second column is a description.

    Returns
    -------
    Genes by cell type, each gene once, in the order given.

    Raises
    ------
    DataError
        There is no such file, a line has no separator, or no gene is given.

    Examples
    --------
    >>> import pandas as pd
    >>> from scmamba.datasets.marker_panels import read_marker_panel
    >>> read_marker_panel(pd.DataFrame({"type": ["Neuron", "Neuron", "Glia"], "gene": ["RBFOX3", "SNAP25", "GFAP"]}))
    {'Neuron': ['RBFOX3', 'SNAP25'], 'Glia': ['GFAP']}
    """
    if isinstance(markers, (str, PathLike)):
        if str(markers) == "panel":
            return brain_markers()
        return _panel_of(_rows_of_file(Path(markers).expanduser()))
    if isinstance(markers, Mapping):
        return _panel_of(
            (name, [genes] if isinstance(genes, str) else genes) for name, genes in markers.items()
        )
    if markers.shape[1] < 2:
        raise DataError(
            "markers has one column; expected two, the cell type and its gene (or genes)."
        )
    first, second = markers.iloc[:, 0], markers.iloc[:, 1]
    return _panel_of((name, _genes_of(str(genes))) for name, genes in zip(first, second))


def _panel_of(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Genes by type, each once."""
    panel: dict[str, list[str]] = {}
    for name, genes in rows:
        own = panel.setdefault(str(name).strip(), [])
        own.extend(gene for gene in dict.fromkeys(map(str, genes)) if gene not in own)
    if not any(panel.values()):
        raise DataError("markers holds no gene; expected cell types and the genes of each.")
    return panel


def _rows_of_file(path: Path) -> list[tuple[str, list[str]]]:
    if not path.is_file():
        raise DataError(
            f"There is no file {path}. markers= takes a file, a mapping of cell types to genes, "
            'or "panel" for the panel of the human brain.'
        )
    rows = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, genes = line.partition("\t")
        if not separator:
            name, separator, genes = line.partition(";" if ";" in line else ",")
        if not separator:
            raise DataError(
                f"Line {number} of {path} has no tab and no comma; expected a cell type, a tab, and genes separated by commas."
            )
        if path.suffix.lower() == ".gmt":
            genes = genes.partition("\t")[2]
        own = _genes_of(genes)
        if number == 1 and own and own[0].casefold() in _GENE_HEADINGS:
            continue
        rows.append((name.strip().strip('"'), own))
    return rows


def _genes_of(text: str) -> list[str]:
    return [gene for gene in re.split(r"[\s,;\"]+", text) if gene]
