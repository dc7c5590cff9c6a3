"""A sparse matrix in a temporary file, of which some rows at a time are in memory.

It answers the products and sums that the methods need of a CSR matrix, so that the same code serves matrices in memory and
matrices of files that do not fit there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from ..utils.atomic import no_room
from ..utils.errors import ScMambaError

#: Rows that are in memory at a time.
BLOCK = 2000


def is_in_memory(matrix: Any) -> bool:
    """Whether a matrix of an object is a NumPy array or a sparse matrix of SciPy, not one of a file or of dask.

    Parameters
    ----------
    matrix
        ``X`` or a layer.
    """
    return isinstance(matrix, np.ndarray) or sparse.issparse(matrix)


class RowStore:
    """A CSR matrix of float64 in a temporary file; the file is removed with the object, or with the process.

    The folder is that of :mod:`tempfile` (the environment variable ``TMPDIR``); 12 bytes are written for each value.

    Parameters
    ----------
    columns
        Number of columns.

    Attributes
    ----------
    nnz
        Number of stored values.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> store = RowStore(3)
    >>> store.append(sparse.csr_matrix([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
    >>> (store @ np.array([1.0, 1.0, 1.0])).tolist()
    [2.0, 4.0]
    >>> store[np.array([1])].toarray().tolist()
    [[1.0, 0.0, 3.0]]
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.nnz = columns, 0
        self._values: Any = tempfile.TemporaryFile(prefix="scmamba-")  # noqa: SIM115 (lives as long)
        self._indices: Any = tempfile.TemporaryFile(prefix="scmamba-")  # noqa: SIM115
        self._starts = [np.zeros(1, dtype=np.int64)]
        self._change: Callable[[np.ndarray], np.ndarray] | None = None

    def append(self, block: sparse.csr_matrix) -> None:
        """Add the next rows.

        Raises
        ------
        ScMambaError
            The disk of temporary files is full.
        """
        try:
            self._values.write(np.ascontiguousarray(block.data, dtype=np.float64))
            self._indices.write(np.ascontiguousarray(block.indices, dtype=np.int32))
            self._values.flush()
            self._indices.flush()
        except OSError as error:
            full = no_room(error, Path(tempfile.gettempdir()) / "the temporary copy")
            raise ScMambaError(
                full or f"A temporary file cannot be written: {error.strerror}."
            ) from error
        self._starts.append(block.indptr[1:].astype(np.int64) + self.nnz)
        self.nnz += block.nnz

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> RowStore:
        """The same rows with a function of the stored values, which is computed as they are read; zeros must stay zeros."""
        other = object.__new__(RowStore)
        other.__dict__.update(self.__dict__)
        former = self._change
        other._change = change if former is None else lambda values: change(former(values))
        return other

    @property
    def indptr(self) -> np.ndarray:
        """(rows + 1,) where rows begin."""
        if len(self._starts) > 1:
            self._starts = [np.concatenate(self._starts)]
        return self._starts[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.indptr) - 1, self.columns

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield consecutive rows: which they are, and their values."""
        for start in range(0, self.shape[0], size):
            rows = slice(start, min(start + size, self.shape[0]))
            yield rows, self._rows(rows)

    def __getitem__(self, index: Any) -> sparse.csr_matrix:
        """Rows, or ``[rows, columns]``: a CSR matrix in memory. ``[:, columns]`` reads all rows, block by block."""
        rows, columns = index if isinstance(index, tuple) else (index, None)
        if isinstance(rows, slice) and rows == slice(None) and columns is not None:
            parts = [part[:, columns] for _, part in self.blocks()]
            return sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        found = self._rows(rows)
        return found if columns is None else found[:, columns]

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        """(rows, k) product with a dense (columns, k) matrix, or (rows,) with a vector."""
        out = np.empty((self.shape[0], *dense.shape[1:]))
        for rows, part in self.blocks():
            out[rows] = part @ dense
        return out

    @property
    def T(self) -> Transposed:
        """The transposed matrix, for products with dense ones."""
        return Transposed(self)

    def sum(self, axis: int) -> np.ndarray:
        """(columns,) sums for ``axis=0``, (rows,) for ``axis=1``."""
        ones = np.ones(self.shape[axis])
        return self.T @ ones if axis == 0 else self @ ones

    def _rows(self, rows: Any) -> sparse.csr_matrix:
        """Any rows, by a slice, positions or bool."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        indptr = np.concatenate([[0], np.cumsum(np.diff(self.indptr)[rows])])
        data = np.empty(indptr[-1], dtype=np.float64)
        indices = np.empty(indptr[-1], dtype=np.int32)
        # Each run of consecutive rows by itself: pages of a mapped file would count as memory of the process.
        cuts = np.flatnonzero(np.diff(rows, prepend=-2, append=-2) != 1)
        for lo, hi in pairwise(cuts):
            part, first = slice(indptr[lo], indptr[hi]), int(self.indptr[rows[lo]])
            _read(self._values, first, data[part])
            _read(self._indices, first, indices[part])
        return self._matrix(data, indices, indptr)

    def _matrix(
        self, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray
    ) -> sparse.csr_matrix:
        values = data if self._change is None else self._change(data)
        return sparse.csr_matrix(
            (values, indices, indptr), shape=(len(indptr) - 1, self.columns), copy=False
        )


class Transposed:
    """A :class:`RowStore` with rows and columns exchanged.

    Parameters
    ----------
    store
        The matrix.
    """

    def __init__(self, store: RowStore) -> None:
        self.store = store

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        """(columns, k) product with a dense (rows, k) matrix, or (columns,) with a vector."""
        out = np.zeros((self.store.columns, *dense.shape[1:]))
        for rows, part in self.store.blocks():
            out += part.T @ dense[rows]
        return out


def _read(file: Any, first: int, out: np.ndarray) -> None:
    """Fill an array with the values of a file from the ``first`` one on."""
    file.seek(first * out.itemsize)
    file.readinto(out.data.cast("B"))


#: What methods read: in memory, or in a temporary file.
Rows: TypeAlias = sparse.csr_matrix | RowStore


def collect(blocks: Iterator[sparse.csr_matrix], columns: int, *, on_disk: bool) -> Rows:
    """Blocks of rows as one matrix, in memory or in a temporary file.

    Parameters
    ----------
    blocks
        CSR matrices of consecutive rows.
    columns
        Number of columns.
    on_disk
        Keep them in a temporary file.

    Returns
    -------
    float64 CSR matrix, or a :class:`RowStore`.
    """
    if not on_disk:
        return sparse.csr_matrix(sparse.vstack(list(blocks), format="csr"), dtype=np.float64)
    store = RowStore(columns)
    for block in blocks:
        store.append(block)
    return store


def with_values(matrix: Rows, change: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """The matrix with a function of its stored values, which must leave zeros zeros; ``matrix`` is not changed.

    Parameters
    ----------
    matrix
        In memory or in a temporary file.
    change
        Of an array of values; returns a new one.
    """
    if isinstance(matrix, RowStore):
        return matrix.mapped(change)
    out = matrix.copy()
    out.data = change(out.data)
    return out
