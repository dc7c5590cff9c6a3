"""An h5ad file in, a copy of it with one more layer out, without holding either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from scipy import sparse

from ..utils.atomic import atomic_path
from ..utils.h5_output import OutputFile, write_anndata
from .h5ad_files import (
    check_readable,
    check_writable,
    open_backed,
    report,
    writable,
    writable_frame,
)

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK = 1 << 16


def write_with_layers(
    source: Path,
    target: Path,
    adata: AnnData,
    names: Sequence[str],
    blocks: Iterable[Sequence[sparse.csr_matrix]],
    finish: Callable[[AnnData, int], None],
    *,
    drop: Sequence[str] = (),
    verbose: bool = True,
) -> None:
    """Copy ``source`` to ``target`` with ``layers[name]`` of every name, made of ``blocks`` (in order, one CSR per name).

    Layers in ``drop``, of an earlier result, are not copied.

    ``finish(annotations, stored)`` edits ``obs`` and ``uns`` of an object without a matrix once all blocks are written; both are
    then stored. ``stored`` counts the values of the first layer. The copy keeps everything else of the file as it is, whatever it holds.
    """
    check_writable(adata)
    with atomic_path(target) as temporary:
        notes = _copy(source, temporary, adata)
        with OutputFile(temporary, "r+") as file:
            for name in drop:
                if name in file.get("layers", {}):
                    del file["layers"][name]
            stored = append_layers(file, names, blocks, (adata.n_obs, adata.n_vars))
            notes += _write_annotations(file, adata, finish, stored)
        check_readable(temporary, target.name)
    report(notes, verbose)


def write_with_annotations(
    source: Path,
    target: Path,
    adata: AnnData,
    finish: Callable[[AnnData], object],
    *,
    verbose: bool = True,
) -> None:
    """Copy ``source`` to ``target`` with the ``obs``, ``uns`` and new ``obsm`` that ``finish(annotations)`` made."""
    check_writable(adata)
    with atomic_path(target) as temporary:
        notes = _copy(source, temporary, adata)
        with OutputFile(temporary, "r+") as file:
            notes += _write_annotations(file, adata, lambda annotations, _: finish(annotations), 0)
        check_readable(temporary, target.name)
    report(notes, verbose)


def _copy(source: Path, temporary: Path, adata: AnnData) -> list[str]:
    """Group by group through HDF5, so that a file open for reading elsewhere is copied consistently.

    What is not a file of anndata 0.8 or later is written again from ``adata``: older ones hold references, which a copy breaks.
    Returns a sentence for each annotation that had to be changed.
    """
    notes: list[str] = []
    if not (adata.isbacked and source.is_file() and _is_current(source)):
        # Read once more: to_memory() would close the file whose blocks are still to be read.
        memory = open_backed(source).to_memory() if adata.isbacked else adata
        write_anndata(writable(memory, notes), temporary)
        return notes
    with h5py.File(source, "r") as old, OutputFile(temporary) as new:
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for key in old:
            old.copy(old[key], new, name=key)
    frames = {"var": adata.var} | ({} if adata.raw is None else {"raw/var": adata.raw.var})
    with OutputFile(temporary, "r+") as file:
        for key, frame in frames.items():
            if (made := writable_frame(frame, key.replace("/", "."), notes)) is not frame:
                _replace(file, key, made)
    return notes


def _is_current(path: Path) -> bool:
    """Written by anndata 0.8 or later, which mark the root of the file; no frame in it holds references."""
    with h5py.File(path, "r") as file:
        frames = [file[key] for key in ("obs", "var", "raw/var") if key in file]
        return "encoding-type" in file.attrs and not any(
            isinstance(frame, h5py.Dataset) or "__categories" in frame for frame in frames
        )


class CsrWriter:
    """A CSR matrix of the h5ad layout in an HDF5 group, written in blocks of rows.

    Parameters
    ----------
    group
        An empty group.
    shape
        Rows and columns of the whole matrix.
    dtype
        Type of the values.
    compression
        HDF5 filter: ``"gzip"`` for files that stay, ``"lzf"``, which is faster, for temporary ones.
    """

    def __init__(
        self,
        group: h5py.Group,
        shape: tuple[int, int],
        dtype: np.dtype | type = np.float32,
        compression: str = "gzip",
    ) -> None:
        group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": np.array(shape, dtype=np.int64),
            }
        )
        options = dict(maxshape=(None,), chunks=(_CHUNK,), compression=compression, shuffle=True)
        if compression == "gzip":
            options["compression_opts"] = 1
        self.group = group
        self._data = group.create_dataset("data", (0,), dtype=dtype, **options)
        self._indices = group.create_dataset("indices", (0,), dtype=np.int32, **options)
        self._indptr = [np.zeros(1, dtype=np.int64)]
        self.stored = 0

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return sum(len(part) for part in self._indptr) - 1

    def append(self, block: sparse.csr_matrix) -> None:
        """Add the next rows."""
        for dataset, values in ((self._data, block.data), (self._indices, block.indices)):
            dataset.resize((self.stored + len(values),))
            dataset[self.stored :] = values
        self._indptr.append(block.indptr[1:].astype(np.int64) + self.stored)
        self.stored += block.nnz

    def finish(self) -> int:
        """Write where rows begin; returns the number of stored values."""
        self.group.create_dataset("indptr", data=np.concatenate(self._indptr))
        return self.stored


def append_layers(
    file: OutputFile,
    names: Sequence[str],
    blocks: Iterable[Sequence[sparse.csr_matrix]],
    shape: tuple[int, int],
) -> int:
    """Write CSR matrices of the h5ad layout block by block; returns the number of values of the first."""
    layers = file.require_group("layers")
    if "encoding-type" not in layers.attrs:
        layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    for name in set(names) & set(layers):
        del layers[name]
    writers = [CsrWriter(layers.create_group(name), shape) for name in names]
    for block in blocks:
        for writer, part in zip(writers, block, strict=True):
            writer.append(part)
        file.check()
    return [writer.finish() for writer in writers][0]


def _write_annotations(
    file: h5py.File, adata: AnnData, finish: Callable[[AnnData, int], object], stored: int
) -> list[str]:
    """Replace ``obs`` and ``uns`` by what ``finish`` made of them; returns what had to be changed."""
    import anndata

    annotations = anndata.AnnData(obs=adata.obs.copy(), uns=dict(adata.uns))
    finish(annotations, stored)
    notes: list[str] = []
    obs = writable_frame(annotations.obs, "obs", notes)
    for key, value in (("obs", obs), ("uns", dict(annotations.uns))):
        _replace(file, key, value)
    for key, value in annotations.obsm.items():
        _replace(file, f"obsm/{key}", value)
    return notes


def _replace(file: h5py.File, key: str, value: object) -> None:
    import anndata

    # anndata 0.13 takes no path for a key.
    folder, _, name = key.rpartition("/")
    group = file.require_group(folder) if folder else file
    if name in group:
        del group[name]
    anndata.io.write_elem(group, name, value)
