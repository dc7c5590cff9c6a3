"""Opening files of cells, with an answer for what is not one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def open_backed(path: Path) -> AnnData:
    """Open an h5ad file without reading its matrix.

    Raises
    ------
    DataError
        No such file, or not an (intact) h5ad file.
    """
    import anndata

    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    if not h5py.is_hdf5(path):
        hint = (
            " It looks like an R object: convert it with 'scmamba convert'."
            if path.suffix.lower() in (".rds", ".rdata")
            else ""
        )
        raise DataError(
            f"{path.name} is not an h5ad (HDF5) file.{hint or ' Save the object with adata.write_h5ad().'}"
        )
    try:
        adata = anndata.read_h5ad(path, backed="r")
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise DataError(
            f"{path.name} is HDF5 but cannot be read as h5ad ({type(error).__name__}: {error}). Is it truncated?"
        ) from error
    return adata
