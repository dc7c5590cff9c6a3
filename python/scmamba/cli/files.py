"""Files that commands read: cells and their columns."""

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
