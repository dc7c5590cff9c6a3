"""Row by row access to matrices on disk: h5ad, 10x HDF5, zarr, and what has to be converted once first (mtx, .rds, CSC)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.atomic import atomic_path
from ..utils.errors import DataError
from ..utils.progress import say

if TYPE_CHECKING:
    from anndata import AnnData

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

    @abstractmethod
    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """(stop - start, n_vars) CSR of consecutive rows, own arrays."""

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
        if layer is not None and layer not in adata.layers:
            raise DataError(
                f"{name} has no layer '{layer}'; its layers are {list(adata.layers) or 'none'}."
            )
        self.shape, self.var = adata.shape, adata.var

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Consecutive rows."""
        matrix: Any = self.adata.X if self.layer is None else self.adata.layers[self.layer]
        return sparse.csr_matrix(matrix[start:stop], copy=True)

    def column(self, name: str) -> np.ndarray | None:
        """A column of ``obs``."""
        return _strings(self.adata.obs[name]) if name in self.adata.obs else None


class _FileStore(Store):
    """What h5ad, zarr and 10x files have in common: a matrix opened when first read, again in every process."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.source = path, path.name.split(".")[0], path.name
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
    """Compressed rows in an HDF5 or zarr group."""

    def __init__(self, group: Any, n_columns: int) -> None:
        self.data, self.indices = group["data"], group["indices"]
        self.indptr = np.asarray(group["indptr"][:], dtype=np.int64)
        self.n_columns = n_columns

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indices = self.indices[first:last].astype(np.int32, copy=False)
        # 64-bit row starts would make scipy copy the column numbers to 64 bits.
        parts = (
            self.data[first:last],
            indices,
            (self.indptr[start : stop + 1] - first).astype(np.int32),
        )
        return sparse.csr_matrix(parts, shape=(stop - start, self.n_columns))


class _Dense:
    """A dense HDF5 or zarr array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        return sparse.csr_matrix(self.array[start:stop])


class AnnDataStore(_FileStore):
    """An h5ad file or an AnnData zarr folder whose matrix is dense or CSR."""

    def __init__(self, path: Path, layer: str | None = None) -> None:
        super().__init__(path)
        self.layer = layer
        root = _open_root(path)
        try:
            element = self._element(root)
            if self.encoding(element) == "csc":
                raise _ColumnsFirst
            self.shape = _shape(element)
            self.var = _frame(root["var"])
        except (KeyError, OSError) as error:
            raise DataError(
                f"{path.name} cannot be read as AnnData ({error}). Is it truncated?"
            ) from error

    def _element(self, root: Any) -> Any:
        if self.layer is None:
            if "X" not in root:
                raise DataError(
                    f"{self.path.name} has no X; name one of its layers {list(root.get('layers', {}))} with layer=..."
                )
            return root["X"]
        layers = list(root["layers"]) if "layers" in root else []
        if self.layer not in layers:
            raise DataError(
                f"{self.path.name} has no layer '{self.layer}'; its layers are {layers or 'none'}."
            )
        return root["layers"][self.layer]

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

    def column(self, name: str) -> np.ndarray | None:
        """A column of ``obs``, read alone."""
        from anndata.io import read_elem

        obs = _open_root(self.path)["obs"]
        if isinstance(obs, h5py.Dataset):  # written before anndata 0.7
            return _strings(pd.Series(obs[name])) if name in (obs.dtype.names or ()) else None
        return (
            _strings(pd.Series(read_elem(obs[name])))
            if name in obs and name != "__categories"
            else None
        )

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
            self.group = "matrix" if "matrix" in file else next(iter(file))
            group = file[self.group]
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
            self._n_stored = n_genes
        self.var = pd.DataFrame({"symbol": names}, index=pd.Index(ids))
        self.shape = n_cells, len(ids)

    def _open(self) -> Any:
        return _Csr(h5py.File(self.path, "r")[self.group], self._n_stored)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Consecutive rows; antibody and other features are left out."""
        rows = self._matrix.read(start, stop)
        return rows if self._wanted is None else sparse.csr_matrix(rows[:, self._wanted])

    def column(self, name: str) -> np.ndarray | None:
        """These files know nothing of their cells."""
        return None

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
        return MemoryStore(source, layer, str(source.uns.get("name", "cells")))
    path = Path(source)
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    kind = _kind(path)
    try:
        if kind == "10x":
            return TenxStore(path)
        if kind == "anndata":
            return AnnDataStore(path, layer)
    except _ColumnsFirst:
        kind = "csc"
    target = (
        cache or cache_folder()
    ) / f"{path.name.split('.')[0]}-{fingerprint(path, layer or '')}.h5ad"
    with only_one(target):
        if not target.is_file():
            say(f"converting {path.name} once, to {target}", verbose)
            with atomic_path(target) as temporary:
                _convert(path, kind, layer, temporary)
    store = AnnDataStore(target)
    store.name, store.source = path.name.split(".")[0], path.name
    return store


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
    """Of several processes that want to make ``target`` at once all but one wait, and find it made; none waits for one that died."""
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
    for file in sorted(path.rglob("*")) if path.is_dir() and path.suffix != ".zarr" else [path]:
        state = file.stat()
        parts.append(f"{state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _kind(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        if (path / ".zgroup").exists() or (path / "zarr.json").exists():
            return "anndata"
        if any((path / f"matrix.mtx{end}").is_file() for end in ("", ".gz")):
            return "mtx"
        raise DataError(
            f"The folder {path} is neither an AnnData zarr nor a matrix.mtx with its barcodes and features."
        )
    if name.endswith((".mtx", ".mtx.gz")):
        return "mtx"
    if name.endswith(".rds"):
        return "rds"
    if not h5py.is_hdf5(path):
        raise DataError(
            f"{path.name} is not a file of cells that can be read here: .h5ad, 10x .h5, .zarr, .mtx, .rds."
        )
    try:
        with h5py.File(path, "r") as file:
            if "obs" in file and "var" in file:
                return "anndata"
            if any(
                isinstance(file[k], h5py.Group)
                and {"indptr", "indices", "data", "shape"} <= set(file[k])
                for k in file
            ):
                return "10x"
            found = list(file)
    except OSError as error:
        raise DataError(
            f"{path.name} is HDF5 but cannot be read ({error}). Is it truncated?"
        ) from error
    raise DataError(
        f"{path.name} is HDF5, but neither AnnData nor 10x (it holds {', '.join(found[:5]) or 'nothing'})."
    )


def _convert(path: Path, kind: str, layer: str | None, target: Path) -> None:
    """Write ``path`` as an h5ad of compressed rows; takes the memory of the matrix, once."""
    import anndata

    if kind == "rds":
        # In a process of its own: R does not leave the one it was started in, nor its memory.
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
    matrix: Any = converted.X if layer is None else converted.layers[layer]
    anndata.AnnData(sparse.csr_matrix(matrix), obs=converted.obs, var=converted.var).write_h5ad(
        target
    )


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
            f"{matrix_file.name} is {counts.shape[1]} x {counts.shape[0]}; its names say {len(features)} genes x {len(barcodes)} cells."
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
