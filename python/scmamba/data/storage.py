"""Row by row access to matrices on disk: h5ad, 10x HDF5, zarr, and what has to be converted once first (mtx, .rds, CSC)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.atomic import atomic_path
from ..utils.columns import require_adata
from ..utils.errors import DataError
from ..utils.h5_output import write_anndata
from ..utils.layers import layer_names
from ..utils.progress import say
from .file_kinds import file_kind, local_path, tenx_groups
from .selection import recorded_scale, select_matrix
from .values import to_numbers

if TYPE_CHECKING:
    from anndata import AnnData

#: Name of an AnnData object that has none in ``uns["name"]``.
UNNAMED = "cells"
#: Values read at once while a file is looked through or converted (8 bytes each).
_MAX_VALUES = 4_000_000


class Store(ABC):
    """Counts of one file, cells x genes, read by consecutive rows.

    Attributes
    ----------
    name, source
        Stem of the file, and its name as it was given.
    shape
        Cells, genes.
    var
        Gene names: index and the columns that may hold better ones.
    """

    name: str
    source: str
    shape: tuple[int, int]
    var: pd.DataFrame
    path_given: Path | None = None

    @abstractmethod
    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """(stop - start, n_vars) CSR of consecutive rows, own arrays."""

    def recorded(self) -> dict[str, Any]:
        """``name``, ``base`` and ``logged`` of :func:`scmamba.data.values.classify_values`, as far as the file has them."""
        return {}

    @abstractmethod
    def column(self, name: str) -> np.ndarray | None:
        """(n,) strings of a column of ``obs``, '' where missing; ``None`` if there is no such column."""

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Consecutive row ranges of bounded memory."""
        step = max(1, min(4096, _MAX_VALUES // max(1, self.shape[1])))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])

    def close(self) -> None:  # noqa: B027 (what is in memory has nothing to close)
        """Let go of open files."""


class MemoryStore(Store):
    """An AnnData object, in memory or backed."""

    def __init__(self, adata: AnnData, layer: str | None, name: str) -> None:
        self.adata, self.layer, self.name = adata, layer, name
        self.source = name
        try:
            self.selected = select_matrix(adata, layer)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        self.shape, self.var = self.selected.matrix.shape, self.selected.var

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Consecutive rows."""
        rows = self.selected.matrix[start:stop]
        if hasattr(rows, "compute"):  # dask, also with sparse chunks
            rows = rows.compute()
        return sparse.csr_matrix(rows if sparse.issparse(rows) else to_numbers(rows), copy=True)

    def recorded(self) -> dict[str, Any]:
        """What was recorded with the values."""
        chosen = self.selected
        return {"name": chosen.name, "base": chosen.base, "logged": chosen.logged}

    def column(self, name: str) -> np.ndarray | None:
        """A column of ``obs``."""
        return _strings(self.adata.obs[name]) if name in self.adata.obs else None


class _FileStore(Store):
    """What h5ad, zarr and 10x files have in common: a matrix opened when first read, again in every process."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.source = path, stem(path), path.name
        self.path_given = path
        self._opened: tuple[int, Any] | None = None

    @abstractmethod
    def _open(self) -> Any:
        """The matrix of the file."""

    @property
    def _matrix(self) -> Any:
        # A file opened before a fork must not be read after it.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def close(self) -> None:
        """Let go of the file."""
        self._opened = None


class _Csr:
    """Compressed rows in an HDF5 or zarr group.

    By hand: anndata's ``sparse_dataset`` takes thirty times as long for blocks of 64 rows (benchmarks/results/library_calls.md).
    """

    def __init__(self, group: Any, n_columns: int) -> None:
        self.data, self.indices = group["data"], group["indices"]
        self.indptr = np.asarray(group["indptr"][:], dtype=np.int64)
        self.n_columns = n_columns

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indices = self.indices[first:last].astype(np.int32, copy=False)
        # 64-bit row starts would make scipy copy the column numbers to 64 bits.
        parts = (
            to_numbers(self.data[first:last]),
            indices,
            (self.indptr[start : stop + 1] - first).astype(np.int32),
        )
        return sparse.csr_matrix(parts, shape=(stop - start, self.n_columns))


class _Dense:
    """A dense HDF5 or zarr array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        return sparse.csr_matrix(to_numbers(self.array[start:stop]))


class AnnDataStore(_FileStore):
    """An h5ad file or an AnnData zarr folder whose matrix is dense or CSR."""

    def __init__(self, path: Path, layer: str | None = None) -> None:
        super().__init__(path)
        self.layer = layer
        self._obs: pd.DataFrame | None = None
        root = _open_root(path)
        try:
            element = self._element(root)
            if self.encoding(element) == "csc":
                raise _ColumnsFirst
            self.shape = _shape(element)
            self.var = (
                _frame(root["raw"]["var"] if "raw" in root else root["raw.var"])
                if self._reads_raw(root)
                else _old_frame(path, root, "var")
                if _is_old(root)
                else _frame(root["var"])
            )
        except (KeyError, OSError) as error:
            raise DataError(
                f"{path.name} cannot be read as AnnData ({error}). Is it truncated?"
            ) from error

    def _element(self, root: Any) -> Any:
        if self._reads_raw(root):
            return root["raw"]["X"] if "raw" in root else root["raw.X"]
        if self.layer is None or (self.layer == "X" and "X" not in root.get("layers", {})):
            if "X" not in root:
                raise DataError(
                    f"{self.path.name} has no X; name one of its layers {layer_names(root.get('layers', {}))} with layer=..."
                )
            return root["X"]
        layers = layer_names(root["layers"]) if "layers" in root else []
        if self.layer not in layers:
            raise DataError(
                f"{self.path.name} has no layer '{self.layer}'; its layers are {layers or 'none'}."
            )
        return root["layers"][self.layer]

    def _reads_raw(self, root: Any) -> bool:
        """``layer="raw"`` is ``adata.raw`` (``raw.X`` in files of anndata 0.5 and 0.6), unless a layer is called so."""
        has_raw = "raw" in root or "raw.X" in root
        return self.layer == "raw" and has_raw and "raw" not in root.get("layers", {})

    @staticmethod
    def encoding(element: Any) -> str:
        """``csr``, ``csc`` or ``dense``."""
        kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
        return "csr" if kind.startswith("csr") else "csc" if kind.startswith("csc") else "dense"

    def _open(self) -> Any:
        element = self._element(_open_root(self.path))
        return _Csr(element, self.shape[1]) if self.encoding(element) == "csr" else _Dense(element)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Consecutive rows."""
        return self._matrix.read(start, stop)

    def recorded(self) -> dict[str, Any]:
        """What was recorded with the values, read alone."""
        from anndata.io import read_elem

        root = _open_root(self.path)
        raw, layer = self._reads_raw(root), self.layer
        of_x = raw or layer is None or (layer == "X" and "X" not in root.get("layers", {}))
        name = "raw" if raw else "X" if of_x else f"layers['{layer}']"
        wanted = ["log1p", *(["scmamba"] if layer == "scmamba" else [])]
        present = [key for key in wanted if f"uns/{key}" in root]
        uns = {key: read_elem(root[f"uns/{key}"]) for key in present}
        return {"name": name, **recorded_scale(uns, name)}

    def column(self, name: str) -> np.ndarray | None:
        """A column of ``obs``, read alone."""
        from anndata.io import read_elem

        root = _open_root(self.path)
        if _is_old(root):  # a column alone is codes or bytes; its categories are elsewhere
            if self._obs is None:
                self._obs = _old_frame(self.path, root, "obs")
            return _strings(self._obs[name]) if name in self._obs else None
        obs = root["obs"]
        return _strings(pd.Series(read_elem(obs[name]))) if name in obs else None

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Row ranges of about as many stored values each."""
        if not isinstance(self._matrix, _Csr):
            yield from super().blocks()
            return
        yield from _even(self._matrix.indptr, self.shape[0])


class TenxStore(_FileStore):
    """CellRanger's HDF5 (version 3, or 2 with one genome): compressed columns of genes x cells are compressed rows of cells x genes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with h5py.File(path, "r") as file:
            found = tenx_groups(file)
            if len(found) > 1:
                raise DataError(
                    f"{path.name} holds the genomes {', '.join(found)}. Read the human one and save it: "
                    f"scanpy.read_10x_h5({path.name!r}, genome={found[0]!r}).write_h5ad('cells.h5ad')"
                )
            self.group = found[0]
            group = file[self.group]
            if "features" not in group and not {"genes", "gene_names"} <= set(group):
                raise DataError(
                    f"{path.name} holds a 10x matrix that has no names of genes ({self.group}/features, or genes and gene_names)."
                )
            n_genes, n_cells = (int(v) for v in group["shape"][:])
            self._wanted: np.ndarray | None = None
            if "features" in group:
                ids, names = (_decode(group["features"][k][:]) for k in ("id", "name"))
                types = (
                    _decode(group["features"]["feature_type"][:])
                    if "feature_type" in group["features"]
                    else None
                )
                if types is not None and (types != "Gene Expression").any():
                    self._wanted = np.flatnonzero(types == "Gene Expression")
                    ids, names = ids[self._wanted], names[self._wanted]
            else:
                ids, names = _decode(group["genes"][:]), _decode(group["gene_names"][:])
            if len(ids) != len(self._wanted if self._wanted is not None else range(n_genes)):
                raise DataError(
                    f"{path.name} names {len(ids):,} genes and holds {n_genes:,}. Is it truncated?"
                )
            self._n_stored = n_genes
        self.var = pd.DataFrame({"symbol": names}, index=pd.Index(ids))
        self.shape = n_cells, len(ids)

    def _open(self) -> Any:
        return _Csr(h5py.File(self.path, "r")[self.group], self._n_stored)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Consecutive rows; antibody and other features are omitted."""
        rows = self._matrix.read(start, stop)
        return rows if self._wanted is None else sparse.csr_matrix(rows[:, self._wanted])

    def column(self, name: str) -> np.ndarray | None:
        """These files do not annotate their cells."""
        return None

    def barcodes(self) -> pd.Index:
        """(n,) names of the cells."""
        with h5py.File(self.path, "r") as file:
            return pd.Index(_decode(file[self.group]["barcodes"][:]))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Row ranges of about as many stored values each."""
        yield from _even(self._matrix.indptr, self.shape[0])


class _ColumnsFirst(Exception):
    """The matrix is stored by genes: rows cannot be read without reading everything."""


def open_store(
    source: str | os.PathLike[str] | AnnData,
    *,
    layer: str | None = None,
    cache: Path | None = None,
    verbose: bool = True,
) -> Store:
    """Open cells of any kind.

    Parameters
    ----------
    source
        ``.h5ad``, 10x ``.h5``, ``.zarr`` folder, ``.mtx(.gz)`` or the folder CellRanger puts it in, ``.rds`` (Seurat or
        SingleCellExperiment), or an AnnData object.
    cache
        Where files that cannot be read by rows (.mtx, .rds, CSC matrices) are kept as h5ad once converted; default :func:`cache_folder`.

    Raises
    ------
    DataError
        No such file, or one of a kind that is not known.
    """
    if not isinstance(source, (str, os.PathLike)):
        require_adata(source, "A collection")
        return MemoryStore(source, layer, str(source.uns.get("name", UNNAMED)))
    path = local_path(source)
    kind = file_kind(path)
    try:
        if kind == "10x":
            return TenxStore(path)
        if kind in ("h5ad", "zarr"):
            return AnnDataStore(path, layer)
    except _ColumnsFirst:
        kind = "csc"
    target = (cache or cache_folder()) / f"{stem(path)}-{fingerprint(path, layer or '')}.h5ad"
    with only_one(target):
        if not target.is_file():
            say(f"converting {path.name} once, to {target}", verbose)
            with atomic_path(target) as temporary:
                _convert(path, kind, layer, temporary)
    store = AnnDataStore(target)
    store.name, store.source, store.path_given = stem(path), path.name, path
    return store


def stem(path: Path) -> str:
    """Name of a file without the ending of its format; other dots stay.

    Parameters
    ----------
    path
        The file.

    Examples
    --------
    >>> stem(Path("GSM1.brain.h5ad"))
    'GSM1.brain'
    """
    name = path.name.removesuffix(".gz")
    for end in (".h5ad", ".h5", ".hdf5", ".zarr", ".mtx", ".rds"):
        if name.lower().endswith(end):
            return name[: -len(end)] or name
    return name


def name_apart(stores: Sequence[Store]) -> None:
    """Give stores of one name different ones: the folders that differ, else a number.

    Parameters
    ----------
    stores
        The stores; their ``name`` is changed.
    """
    groups: dict[str, list[Store]] = {}
    for store in stores:
        groups.setdefault(store.name, []).append(store)
    for group in groups.values():
        if len(group) < 2:
            continue
        folders = [
            () if store.path_given is None else store.path_given.resolve().parent.parts
            for store in group
        ]
        first = os.path.commonprefix(folders)  # of tuples: the leading folders that all share
        last = os.path.commonprefix([f[len(first) :][::-1] for f in folders])
        for store, parts in zip(group, folders, strict=True):
            differ = parts[len(first) : len(parts) - len(last)]
            store.name = "/".join([*differ, store.name])
    taken = [store.name for store in stores]
    for name in {name for name in taken if taken.count(name) > 1}:
        for number, store in enumerate([s for s in stores if s.name == name], start=1):
            store.name = f"{name}{'' if name == UNNAMED else '#'}{number}"


def cache_folder() -> Path:
    """``SCMAMBA_CACHE``, or ``scmamba`` in the user's cache folder."""
    base = os.environ.get("SCMAMBA_CACHE")
    return (
        Path(base)
        if base
        else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "scmamba"
    )


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """One of several processes makes ``target``, the others wait for it; none waits for a process that died."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows: each makes its own, the last one stays
        yield
        return
    lock = target.parent / f".{target.name}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def fingerprint(path: Path, *more: str) -> str:
    """Sixteen hex digits that change with the file's place, size, time of change, and ``more``."""
    parts = [str(path.resolve()), *more]
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        state = file.stat()
        parts.append(f"{state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_adata(path: Path, kind: str) -> AnnData:
    """A 10x HDF5 file or an mtx folder in memory, genes only.

    Parameters
    ----------
    path
        File or folder.
    kind
        ``"10x"`` or ``"mtx"``.

    Returns
    -------
    AnnData
    """
    import anndata

    if kind == "mtx":
        return _read_mtx(path)
    store = TenxStore(path)
    counts = store.read(0, store.shape[0])
    return anndata.AnnData(counts, obs=pd.DataFrame(index=store.barcodes()), var=store.var)


def _convert(path: Path, kind: str, layer: str | None, target: Path) -> None:
    """Write ``path`` as an h5ad of compressed rows; takes the memory of the matrix, once."""
    import anndata

    if kind == "rds":
        # In a separate process: R does not leave the one it was started in, nor its memory.
        command = [
            sys.executable,
            "-m",
            "scmamba",
            "convert",
            str(path),
            str(target),
            "--overwrite",
            "--no-compress",
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DataError(
                f"{path.name} cannot be read: {done.stderr.strip().removeprefix('Error: ')}"
            )
        converted = anndata.read_h5ad(target)
    elif kind == "mtx":
        converted = _read_mtx(path)
    else:
        converted = anndata.read_h5ad(path) if path.is_file() else anndata.read_zarr(path)
    chosen = select_matrix(converted, layer)
    uns = {key: converted.uns[key] for key in ("log1p",) if key in converted.uns}
    made = anndata.AnnData(
        sparse.csr_matrix(chosen.matrix), obs=converted.obs, var=chosen.var, uns=uns
    )
    write_anndata(made, target)


def _read_mtx(path: Path) -> AnnData:
    """CellRanger's three files, or an .mtx beside them (genes x cells)."""
    import anndata
    from scipy.io import mmread

    folder = path if path.is_dir() else path.parent
    matrix_file = path
    if path.is_dir():
        matrix_file = next(
            file for file in (folder / "matrix.mtx", folder / "matrix.mtx.gz") if file.is_file()
        )
    prefix = matrix_file.name.split("matrix.mtx")[0] if "matrix.mtx" in matrix_file.name else ""

    def table(*names: str) -> pd.DataFrame:
        for name in names:
            for end in ("", ".gz"):
                file = folder / f"{prefix}{name}.tsv{end}"
                if file.is_file():
                    return pd.read_csv(
                        file, sep="\t", header=None, dtype=str, keep_default_na=False
                    )
        raise DataError(f"Beside {matrix_file.name} there is no {prefix}{names[0]}.tsv(.gz).")

    features, barcodes = table("features", "genes"), table("barcodes")
    try:
        counts = sparse.csr_matrix(mmread(matrix_file).T)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(
            f"{matrix_file.name} cannot be read as a MatrixMarket file ({error})."
        ) from error
    if counts.shape != (len(barcodes), len(features)):
        raise DataError(
            f"{matrix_file.name} is {counts.shape[1]} x {counts.shape[0]}; its tables of names have {len(features)} genes x {len(barcodes)} cells."
        )
    var = pd.DataFrame(
        {"symbol": features[min(1, features.shape[1] - 1)].to_numpy()}, index=pd.Index(features[0])
    )
    wanted = (
        (features[2] == "Gene Expression").to_numpy()
        if features.shape[1] > 2
        else np.ones(len(features), bool)
    )
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=pd.Index(barcodes[0])), var=var)
    adata.var.index.name = adata.obs.index.name = None
    return adata[:, wanted].copy() if not wanted.all() else adata


def _open_root(path: Path) -> Any:
    if path.is_dir():
        import zarr

        return zarr.open_group(str(path), mode="r")
    return h5py.File(path, "r")


def _shape(element: Any) -> tuple[int, int]:
    if hasattr(element, "shape") and not hasattr(element, "keys"):
        return int(element.shape[0]), int(element.shape[1])
    shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
    return int(shape[0]), int(shape[1])


def _is_old(root: Any) -> bool:
    """Written before anndata 0.8: columns and their categories are stored apart."""
    frames = [root[key] for key in ("obs", "var") if key in root]
    return any(isinstance(f, h5py.Dataset) or "__categories" in f for f in frames)


def _old_frame(path: Path, root: Any, name: str) -> pd.DataFrame:
    """``obs`` or ``var`` as anndata reads it, with its categories."""
    import anndata

    if isinstance(root, h5py.File) and isinstance(root[name], h5py.Dataset):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(anndata.read_h5ad(path, backed="r"), name)
    return _frame(root[name])


def _frame(element: Any) -> pd.DataFrame:
    from anndata.io import read_elem

    if isinstance(element, h5py.Dataset):
        frame = pd.DataFrame(element[:])
        for name in frame:
            if frame[name].dtype == object:
                frame[name] = _decode(frame[name].to_numpy())
        return frame.set_index(frame.columns[0])
    return read_elem(element)


def _strings(column: Any) -> np.ndarray:
    """Strings of any column; missing values and bytes made plain."""
    series = pd.Series(column)
    text = series.map(lambda v: v.decode() if isinstance(v, bytes) else v).astype(object)
    return np.where(series.isna(), "", text.astype(str)).astype(object)


def _decode(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)


def _even(indptr: np.ndarray, n: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < n:
        stop = int(np.searchsorted(indptr, indptr[start] + _MAX_VALUES, side="right")) - 1
        stop = min(n, start + 65536, max(stop, start + 1))
        yield start, stop
        start = stop
