"""Files of cells that commands read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
