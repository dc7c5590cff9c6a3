"""Marker genes of brain cell types, and marker panels of the user's own."""

from __future__ import annotations

import csv
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
        each gene: the type, a tab or comma, and genes separated by commas, semicolons, tabs or spaces; a name with a comma stands in quotes. A heading such
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
    kept = markers[markers.iloc[:, 1].notna().to_numpy()]
    first, second = kept.iloc[:, 0], kept.iloc[:, 1]
    if first.isna().any():
        raise DataError(
            f"markers has no cell type in {int(first.isna().sum())} rows; write it into every row."
        )
    return _panel_of((name, _genes_of(str(genes))) for name, genes in zip(first, second))


def _panel_of(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Genes by type, each once."""
    panel: dict[str, list[str]] = {}
    for name, genes in rows:
        if not str(name).strip():
            raise DataError(
                f"markers has no cell type beside {', '.join(map(str, genes)) or 'a gene'}; write it into every line."
            )
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
    rows, is_first = [], True
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        separator = _separator(line)
        if separator is None:
            raise DataError(
                f"Line {number} of {path} has no tab and no comma; expected a cell type, a tab, and genes separated by commas."
            )
        name, *fields = next(csv.reader([line], delimiter=separator))
        if path.suffix.lower() == ".gmt":
            fields = fields[1:]
        own = _genes_of(" ".join(fields))
        if not (is_first and own and own[0].casefold() in _GENE_HEADINGS):
            rows.append((name, own))
        is_first = False
    return rows


def _text_of(path: Path) -> str:
    """The text of a file in any of the encodings that spreadsheets write."""
    data = path.read_bytes()
    if data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise DataError(
            f"{path} is a workbook of a spreadsheet. Save the sheet as text (tab or comma separated) and give that file."
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _separator(line: str) -> str | None:
    """What ends the cell type: a tab, else a semicolon or comma, whichever is first; a comma before a space belongs to the name."""
    outside = re.sub(r'"[^"]*"', lambda quoted: "x" * len(quoted.group()), line)
    if "\t" in outside:
        return "\t"
    semicolon, comma = outside.find(";"), outside.find(",")
    if semicolon < 0 or comma < 0:
        return ";" if semicolon >= 0 else "," if comma >= 0 else None
    return "," if comma < semicolon and not outside[comma + 1 :].startswith(" ") else ";"


def _genes_of(text: str) -> list[str]:
    return [gene for gene in re.split(r"[\s,;\"]+", text) if gene]
