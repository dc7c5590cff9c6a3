"""HDF5 files that are closed properly where the disk is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

if TYPE_CHECKING:
    from anndata import AnnData

# What could not be written is kept for the library to read, up to this size; beyond it only chunks of values are lost, which it
# does not read again.
_KEPT_BYTES = 256 << 20


class OutputFile(h5py.File):  # type: ignore[misc]  # h5py has no types
    """A file that is written, whose failed writes are raised by :meth:`check` and when it is closed.

    The HDF5 library does not survive a write that fails: it cannot close the file, keeps what it freed of it, and the process
    dies when it writes the next one, with all that a user has in memory. Here no failure reaches it.

    Parameters
    ----------
    path
        The file.
    mode
        ``"w"`` makes it anew, ``"r+"`` changes it.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.h5"
    >>> with OutputFile(path) as file:
    ...     file["counts"] = [3, 0, 7]
    >>> with h5py.File(path) as file:
    ...     file["counts"][:].tolist()
    [3, 0, 7]
    """

    def __init__(self, path: str | os.PathLike[str], mode: str = "w") -> None:
        self._disk = _Disk(Path(path), new=mode == "w")
        try:
            super().__init__(self._disk, mode)
        except BaseException:
            self._disk.close()
            raise

    def check(self) -> None:
        """Raise the error of the first write that failed.

        Raises
        ------
        OSError
            As the system gave it.
        """
        if self._disk.error is not None:
            raise self._disk.error

    def close(self) -> None:
        """Close the file.

        Raises
        ------
        OSError
            A write failed; the file is of no use.
        """
        super().close()
        self._disk.close()
        self.check()


class _Disk:
    """A file as h5py reads and writes it; after a write that fails, all others go to memory."""

    def __init__(self, path: Path, *, new: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0) | getattr(os, "O_BINARY", 0)
        # Unbuffered: the library has a cache, and an error belongs to the write that had it.
        self._file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        self._position = 0
        self._end = self._file.seek(0, os.SEEK_END)
        self._lost: dict[int, bytes] = {}
        self._kept = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        block = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write_all(block)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._keep(bytes(block))
        self._position += len(block)
        self._end = max(self._end, self._position)
        return len(block)

    def _write_all(self, block: memoryview) -> None:
        self._file.seek(self._position)
        while len(block):
            block = block[self._file.write(block) or 0 :]

    def _keep(self, block: bytes) -> None:
        former = self._lost.pop(self._position, b"")  # the newest is last: it covers the others
        self._kept -= len(former)
        if self._kept + len(block) <= _KEPT_BYTES:
            self._lost[self._position] = block
            self._kept += len(block)

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        first, last = self._position, min(self._position + len(out), self._end)
        self._file.seek(first)
        done = 0
        while done < last - first and (more := self._file.readinto(out[done : last - first])):
            done += more
        out[done:] = bytes(len(out) - done)
        for start, block in self._lost.items():
            lo, hi = max(start, first), min(start + len(block), last)
            if lo < hi:
                out[lo - first : hi - first] = block[lo - start : hi - start]
        self._position = last
        return last - first

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def truncate(self, size: int) -> int:
        self._end = size
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def write_anndata(
    adata: AnnData, path: str | os.PathLike[str], *, compression: str | None = None
) -> None:
    """Write an object as ``adata.write_h5ad(path)`` does, with a disk that may be full.

    Parameters
    ----------
    adata
        The object.
    path
        File to write.
    compression
        ``"gzip"``, ``"lzf"`` or none.

    Raises
    ------
    OSError
        It was not written.
    """
    import anndata

    # As anndata does: a column of text with missing values can only be written as categories.
    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    parts: dict[str, Any] = {"X": adata.X, "raw": adata.raw, "obs": adata.obs, "var": adata.var}
    for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        # From anndata 0.13 on, X is among the layers, under no name.
        parts[name] = {k: v for k, v in getattr(adata, name).items() if k is not None}
    with OutputFile(path) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, part in parts.items():
            if part is not None:
                anndata.io.write_elem(file, name, part, dataset_kwargs={"compression": compression})
                file.check()
