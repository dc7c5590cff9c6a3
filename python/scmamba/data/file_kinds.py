"""What a path is: the kinds of files that hold cells, and what to do with those that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py

from ..utils.errors import DataError

#: Kinds that :func:`scmamba.data.storage.open_store` and :func:`scmamba.data.h5ad_files.open_backed` read.
READABLE = ("h5ad", "zarr", "10x", "mtx", "rds")
#: What the four datasets of a 10x matrix are called.
TENX_PARTS = frozenset(("indptr", "indices", "data", "shape"))


def local_path(source: str | os.PathLike[str]) -> Path:
    """A path on this machine, with ``~`` expanded.

    Parameters
    ----------
    source
        What the user gave.

    Raises
    ------
    DataError
        It is a URL, or there is no such file.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(
            f"Cells are given as an AnnData object or as the path of a file, or as a list of these; found {type(source).__name__}."
        )
    text = os.fspath(source)
    head = text.split(":", 1)[0].lower()
    if head in ("http", "https", "ftp", "s3", "gs", "gcs", "az") and ":/" in text:
        text = text if "://" in text else text.replace(":/", "://", 1)  # a Path lost a slash
        raise DataError(
            f"{text} is a URL; files on this machine are read. Download it first, for example with: curl -LO {text}"
        )
    path = Path(text).expanduser()
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    return path


def file_kind(path: Path) -> str:
    """The kind of a file or folder of cells.

    Parameters
    ----------
    path
        An existing file or folder.

    Returns
    -------
    One of :data:`READABLE`.

    Raises
    ------
    DataError
        Another kind; names it and the call that reads it.
    """
    if path.is_dir():
        return _folder_kind(path)
    name = path.name.lower()
    if name.endswith((".mtx", ".mtx.gz")):
        return "mtx"
    if name.endswith((".rds", ".rdata", ".rda")):
        if not name.endswith(".rds"):
            raise DataError(
                f"{path.name} is an R workspace. Save the object alone: saveRDS(x, 'x.rds')."
            )
        return "rds"
    if h5py.is_hdf5(path):
        return _hdf5_kind(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        raise DataError(
            f"{path.name} is compressed with gzip. Decompress it first: gunzip {path.name}"
        )
    if start[:2] == b"PK":
        raise DataError(f"{path.name} is a zip archive. Unpack it first: unzip {path.name}")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty (0 bytes).")
    if name.endswith((".csv", ".tsv", ".txt")):
        raise DataError(
            f"{path.name} is a text table. Read it with anndata.io.read_csv() (genes in columns), then save it with write_h5ad()."
        )
    raise DataError(
        f"{path.name} is not an h5ad (HDF5) file, nor another kind that is read here: .h5ad, 10x .h5, .zarr, .mtx, .rds. "
        "Save the object with adata.write_h5ad()."
    )


def _folder_kind(path: Path) -> str:
    if any((path / name).exists() for name in (".zgroup", "zarr.json", ".zattrs", ".zmetadata")):
        return "zarr"
    if any((path / f"matrix.mtx{end}").is_file() for end in ("", ".gz")):
        return "mtx"
    inside = [f"{sub}/" for sub in ("filtered_feature_bc_matrix", "outs") if (path / sub).is_dir()]
    hint = f" Did you mean {path / inside[0]}?" if inside else ""
    raise DataError(
        f"The folder {path} is neither an AnnData zarr nor a matrix.mtx with its barcodes and features.{hint}"
    )


def _hdf5_kind(path: Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            found = list(file)
            if "mod" in found:
                kinds = ", ".join(file["mod"])
                raise DataError(
                    f"{path.name} is a MuData file with the modalities {kinds}. Save the one with the gene counts: "
                    f"mudata.read_h5mu({path.name!r})['{next(iter(file['mod']), 'rna')}'].write_h5ad('rna.h5ad')"
                )
            if "obs" in file and "var" in file:
                return "h5ad"
            if "row_attrs" in found and "col_attrs" in found:
                raise DataError(
                    f"{path.name} is a loom file. Convert it first: anndata.io.read_loom({path.name!r}).write_h5ad('cells.h5ad')"
                )
            if tenx_groups(file):
                return "10x"
            if "assays" in found and ("meta.data" in found or "cell.names" in found):
                raise DataError(
                    f"{path.name} is an h5Seurat file. In R: saveRDS(SeuratDisk::LoadH5Seurat({path.name!r}), 'x.rds'), then scmamba convert."
                )
    except OSError as error:
        raise DataError(
            f"{path.name} is HDF5 but cannot be read ({error}). Is it truncated?"
        ) from error
    raise DataError(
        f"{path.name} is HDF5, but neither AnnData nor 10x (it holds {', '.join(found[:5]) or 'nothing'})."
    )


def tenx_groups(file: Any) -> list[str]:
    """Groups of an HDF5 file that hold a 10x matrix; version 2 has one for each genome.

    Parameters
    ----------
    file
        Open HDF5 file.
    """
    return [
        name
        for name in file
        if isinstance(file[name], h5py.Group) and set(file[name]) >= TENX_PARTS
    ]
