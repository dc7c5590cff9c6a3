"""File to file: ``.rds`` to ``.h5ad`` and back, and 10x HDF5, mtx folders and zarr stores to either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.file_kinds import file_kind, local_path
from ..data.h5ad_files import open_backed, write_h5ad
from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def convert_file(
    source: Path,
    target: Path,
    *,
    assay: str = "",
    to: str = "seurat",
    overwrite: bool = False,
    compress: bool = True,
    verbose: bool = True,
) -> str:
    """Convert a file to the format of the target's ending; returns a description of what was written.

    Raises
    ------
    DataError
        A missing or damaged source or one of an unknown kind, a target that does not end in .rds or .h5ad, or exists already.
    """
    end = target.suffix.lower()
    if end not in (".rds", ".h5ad"):
        raise DataError(f"{source.name} to {target.name}: the target must end in .h5ad or .rds.")
    path = local_path(source)
    # What costs nothing is checked before the file is opened.
    if source.suffix.lower() == end:
        raise DataError(_same_format(source, end))
    if to not in ("seurat", "sce"):
        raise DataError(f"--to is '{to}'; it must be 'seurat' or 'sce'.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists already. Choose another name, or add --overwrite.")
    kind = file_kind(path)
    if f".{kind}" == end:
        raise DataError(_same_format(source, end))
    if end == ".rds":
        return _to_rds(path, target, assay, to, compress, verbose)
    if kind == "rds":
        return _to_h5ad(path, target, assay, compress, verbose)
    adata = open_backed(path).to_memory()
    write_h5ad(adata, target, compress=compress, verbose=verbose)
    return _sentence(adata, target)


def _same_format(source: Path, end: str) -> str:
    return f"{source.name} is {end} already: one file must end in .rds and the other in .h5ad."


def _to_h5ad(source: Path, target: Path, assay: str, compress: bool, verbose: bool) -> str:
    from . import _r
    from .sce import from_sce
    from .seurat import from_seurat

    found = _r.read_rds(source)
    kinds = _r.classes(found)
    if "Seurat" in kinds:
        adata = from_seurat(found, assay=assay or None, verbose=verbose)
    elif "SingleCellExperiment" in kinds:
        adata = from_sce(found, verbose=verbose)
    else:
        raise DataError(
            f"{source} holds a {kinds[0]}; a Seurat object or a SingleCellExperiment is expected."
        )
    write_h5ad(adata, target, compress=compress, verbose=verbose)
    return _sentence(adata, target)


def _to_rds(source: Path, target: Path, assay: str, to: str, compress: bool, verbose: bool) -> str:
    from .sce import write_sce
    from .seurat import write_seurat

    adata = open_backed(source).to_memory()
    if to == "sce":
        write_sce(adata, target, compress=compress, verbose=verbose)
    else:
        write_seurat(adata, target, assay=assay or "RNA", compress=compress, verbose=verbose)
    return _sentence(adata, target)


def _sentence(adata: AnnData, target: Path) -> str:
    return f"{target}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"
