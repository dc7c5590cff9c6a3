"""Marker genes of brain cell types, and marker panels of the user's own."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: What the columns of types and of genes of a table are called, if its first line is a heading.
_TYPE_HEADINGS = {
    "type",
    "types",
    "cell_type",
    "cell_types",
    "celltype",
    "cluster",
    "label",
    "group",
}
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
        second column is a description; a ``.json`` file holds the types with lists of genes.

    Returns
    -------
    Genes by cell type, each gene once, in the order given. Where a heading names a column of types and one of genes (``cluster`` and
    ``gene`` of Seurat's FindAllMarkers), these two are read, wherever they are.

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
        path = Path(markers).expanduser()
        if path.suffix.lower() == ".json" and path.is_file():
            return read_marker_panel(_json_of(path))
        return _panel_of(_rows_of_file(path))
    if isinstance(markers, Mapping):
        return _panel_of((name, _listed(name, genes)) for name, genes in markers.items())
    if not hasattr(markers, "iloc") or not hasattr(markers, "columns"):
        raise DataError(
            f"markers is {type(markers).__name__}; expected a mapping of cell types to their genes, a table (type, gene), or a file."
        )
    markers = markers.iloc[:, _by_heading(list(map(str, markers.columns)))]
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


def _json_of(path: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(_text_of(path))
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{path} holds a {type(found).__name__}; expected cell types with their genes."
        )
    return found


def _rows_of_file(path: Path) -> list[tuple[str, list[str]]]:
    if not path.is_file():
        raise DataError(
            f"{path} is a folder. markers= takes a file with a cell type, a tab and its genes on each line."
            if path.is_dir()
            else f"There is no file {path}. markers= takes a file, a mapping of cell types to genes, "
            'or "panel" for the panel of the human brain.'
        )
    rows, is_first, order = [], True, None
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        separator = _separator(line)
        if separator is None:
            raise DataError(
                f"Line {number} of {path} has no tab and no comma; expected a cell type, a tab, and genes separated by commas."
            )
        cells = next(csv.reader([line], delimiter=separator))
        if is_first and (order := _headings(cells)) is not None:
            is_first = False
            continue
        name, *fields = cells if order is None else [cells[i] for i in order if i < len(cells)]
        if path.suffix.lower() == ".gmt":
            fields = fields[1:]
        own = _genes_of(" ".join(fields))
        if not (is_first and own and own[0].casefold() in _GENE_HEADINGS):
            rows.append((name, own))
        is_first = False
    return rows


def _listed(name: object, genes: object) -> list[str]:
    """Genes of a type in a mapping: a list, or one text with commas or spaces between them; missing ones are dropped."""
    if isinstance(genes, str):
        return _genes_of(genes)
    if not isinstance(genes, Iterable):
        raise DataError(f"markers has {genes!r} for {name!r}; expected a list of genes.")
    return [str(gene).strip() for gene in genes if isinstance(gene, str) and gene.strip()]


def _headings(cells: list[str]) -> list[int] | None:
    """Positions of the columns of types and of genes, where a line names both (as Seurat's FindAllMarkers does)."""
    words = [cell.strip().casefold().replace(" ", "_").replace(".", "_") for cell in cells]
    kinds = [i for i, word in enumerate(words) if word in _TYPE_HEADINGS]
    genes = [i for i, word in enumerate(words) if word in _GENE_HEADINGS]
    return [kinds[0], genes[0]] if kinds and genes else None


def _by_heading(names: list[str]) -> Any:
    """The columns of types and genes by their names, else the columns as they are."""
    found = _headings(names)
    return slice(None) if found is None else found


def _text_of(path: Path) -> str:
    """The text of a file in any of the encodings that spreadsheets write."""
    data = path.read_bytes()
    if data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise DataError(
            f"{path} is a workbook of a spreadsheet. Save the sheet as text (tab or comma separated) and give that file."
        )
    if (
        data[:2] == b"\x1f\x8b"
        or data[:8] == b"\x89HDF\r\n\x1a\n"
        or (b"\0" in data[:1024] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"))
    ):
        raise DataError(
            f"{path} is no text (a compressed file, an object or a picture). Give a text table: a cell type, a tab, and its genes."
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
