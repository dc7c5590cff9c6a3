"""Files that commands read: cells, columns, tables of marker genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import ScMambaError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def read_cells_file(path: Path) -> AnnData:
    """Read a file of cells into memory: .h5ad, 10x .h5, .zarr, or an mtx folder.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The object.

    Raises
    ------
    ScMambaError
        There is no such file, or it is of a kind that is not read.
    """
    from ..data.h5ad_files import open_backed

    return open_backed(path).to_memory()


def need_columns(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse columns that a table does not have.

    Parameters
    ----------
    table
        Metadata of cells.
    columns
        Names of columns.

    Raises
    ------
    ScMambaError
        A column is missing; the message lists those that exist.
    """
    for column in columns:
        if column not in table:
            raise ScMambaError(
                f"The data have no column '{column}'; they have {', '.join(map(str, table.columns)) or 'none'}."
            )


def read_markers(path: Path) -> dict[str, list[str]]:
    """Read marker genes from lines of a cell type, a tab, and genes with commas between them.

    Parameters
    ----------
    path
        The file. Empty lines and lines that start with ``#`` are skipped, and so is a first line ``type<TAB>genes``.

    Returns
    -------
    Genes by cell type.

    Raises
    ------
    ScMambaError
        There is no such file, or a line has no tab.
    """
    if not path.is_file():
        raise ScMambaError(f"There is no file {path}.")
    panel: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        heading = number == 1 and line.lower() == "type\tgenes"
        if not line.strip() or line.startswith("#") or heading:
            continue
        name, tab, genes = line.partition("\t")
        if not tab or "\t" in genes:
            raise ScMambaError(
                f"Line {number} of {path} has {'no' if not tab else 'more than one'} tab; each line is a cell type, "
                "a tab, and genes with commas between them."
            )
        panel.setdefault(name.strip(), []).extend(
            gene.strip() for gene in genes.split(",") if gene.strip()
        )
    return panel
