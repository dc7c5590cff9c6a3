"""File to file: ``.rds`` to ``.h5ad`` and back."""

from __future__ import annotations

from pathlib import Path

from ..data.h5ad_files import write_h5ad
from ..utils.errors import DataError


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
    """Convert by the names' endings; returns a description of what was written.

    Raises
    ------
    DataError
        Endings other than .rds and .h5ad, a missing or damaged source, a target that exists already.
    """
    ends = source.suffix.lower(), target.suffix.lower()
    if ends not in ((".rds", ".h5ad"), (".h5ad", ".rds")):
        raise DataError(
            f"{source.name} to {target.name}: one file must end in .rds and the other in .h5ad."
        )
    if not source.is_file():
        raise DataError(f"There is no file {source}.")
    if to not in ("seurat", "sce"):
        raise DataError(f"--to is '{to}'; it must be 'seurat' or 'sce'.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists already. Choose another name, or add --overwrite.")
    if ends[0] == ".rds":
        return _to_h5ad(source, target, assay, compress, verbose)
    return _to_rds(source, target, assay, to, compress, verbose)


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
    return f"{target}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"


def _to_rds(source: Path, target: Path, assay: str, to: str, compress: bool, verbose: bool) -> str:
    import anndata

    from .sce import write_sce
    from .seurat import write_seurat

    try:
        adata = anndata.read_h5ad(source)
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise DataError(f"{source} cannot be read as .h5ad: {error}") from error
    if to == "sce":
        write_sce(adata, target, compress=compress, verbose=verbose)
    else:
        write_seurat(adata, target, assay=assay or "RNA", compress=compress, verbose=verbose)
    return f"{target}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"
