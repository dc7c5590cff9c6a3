"""Inspecting an upload before it becomes a job, in a confined process with little memory and time.

``python -m scmamba.serve.validation FILE MAX_CELLS MAX_GENES MAX_BYTES [unconfined] [columns]`` prints one JSON line:
``{"kind": ..., "cells": ..., "genes": ...}``, with the columns of the cells if they are wanted, or ``{"error": ...}``. Of an HDF5 file every object, attribute and string is read and no link
is followed; of its large numeric arrays only the claimed sizes, since reading them takes as long as the file is large. Their values are
checked by the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

_MEMORY = 2 << 30
_SECONDS = 20  # of processor time; real files take less than one, damaged ones can hold the HDF5 library for ever
_INFLATION = (
    1000  # times a file's size that its arrays may claim: gzip's best on counts is far below
)
_OBJECTS = 10_000
_DEPTH = 50
_SMALL = 1 << 20  # bytes of an array that is read whole, to see whether it can be
_STRINGS = 4096  # strings read at once
_STRINGS_MAX = 100_000_000


def look(
    path: Path, max_cells: int, max_genes: int, max_bytes: int | None = None
) -> dict[str, Any]:
    """What the file is and how large.

    Raises
    ------
    DataError
        What is wrong with it.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"SCMB1\n"):
        from ..wire.scmb import read_shape

        genes, cells = read_shape(path)
        about: dict[str, Any] = {"kind": "scmb", "cells": cells, "genes": genes}
    elif start == b"\x89HDF\r\n\x1a\n":
        about = _hdf5(path, max_bytes or memory_limit())
    elif start.startswith(b"PK\x03\x04"):
        from . import read_10x as tenx

        about = tenx.look(path, max_bytes or memory_limit())
    else:
        raise DataError(
            "The upload is neither an .h5ad or 10x .h5 file, nor a zipped 10x folder, nor scMamba's plain form. "
            "Save the object with adata.write_h5ad()."
        )
    if about["cells"] < 1 or about["genes"] < 1:
        raise DataError(
            f"The upload holds {about['cells']} cells x {about['genes']} genes; there is nothing to work on."
        )
    if about["cells"] > max_cells or about["genes"] > max_genes:
        raise DataError(
            f"The upload holds {about['cells']:,} cells x {about['genes']:,} genes; "
            f"this server takes at most {max_cells:,} x {max_genes:,}."
        )
    return about


def memory_limit() -> int:
    """Half of this machine's memory, in bytes: the most that an upload may take when it is read."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _hdf5(path: Path, max_bytes: int) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _Walk(path.stat().st_size, max_bytes).over(file)
            if "matrix" in file and "X" not in file:
                genes, cells = _shape(file["matrix/shape"][:], "The 10x file")
                _agree(file["matrix"], cells, "The 10x file")
                _length(file["matrix/barcodes"], cells, "barcodes")
                return {"kind": "10x", "cells": cells, "genes": genes}
            if "X" not in file or "obs" not in file or "var" not in file:
                raise DataError("The HDF5 file is no .h5ad file: X, obs or var is missing.")
            x = file["X"]
            shape = (
                x.shape
                if isinstance(x, h5py.Dataset)
                else x.attrs.get("shape", x.attrs.get("h5sparse_shape"))
            )
            cells, genes = _shape(shape, "The matrix X of the .h5ad file")
            if isinstance(x, h5py.Group):
                columns = "csc" in str(
                    x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", ""))
                )
                _agree(x, genes if columns else cells, "The matrix X of the .h5ad file")
            values = x if isinstance(x, h5py.Dataset) else x["data"]
            if values.dtype.kind not in "iufb":
                raise DataError("The matrix X of the .h5ad file holds no numbers.")
            for table, n in (("obs", cells), ("var", genes)):
                _length(file[table], n, table)
            return {"kind": "h5ad", "cells": cells, "genes": genes}
    except (DataError, MemoryError):
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        raise DataError(
            f"The HDF5 file cannot be read ({type(error).__name__}); it is cut off or damaged. Send it again."
        ) from error


def _shape(shape: Any, what: str) -> tuple[int, int]:
    if shape is None or len(shape) != 2 or any(int(n) != n or n < 0 for n in shape):
        raise DataError(f"{what} has no shape of two numbers.")
    return int(shape[0]), int(shape[1])


def _agree(group: Any, lines: int, what: str) -> None:
    """The arrays of a compressed matrix fit each other and its shape."""
    if len(group["indptr"]) != lines + 1 or len(group["indices"]) != len(group["data"]):
        raise DataError(f"{what} contradicts itself: its shape and its arrays do not fit.")
    if any(group[name].dtype.kind not in "iu" for name in ("indptr", "indices")):
        raise DataError(f"{what} contradicts itself: its indices are no whole numbers.")


def _length(table: Any, n: int, name: str) -> None:
    """A table has a line for each cell (gene); tables without an index are left to whoever reads them."""
    import h5py

    index = table
    if isinstance(table, h5py.Group):
        key = table.attrs.get("_index", "_index")
        index = table.get(key) if isinstance(key, (str, bytes)) else None
        if index is None:
            raise DataError(
                f"The table '{name}' of the file names no lines; save the object again with adata.write_h5ad()."
            )
    if isinstance(index, h5py.Dataset) and index.shape != (n,):
        raise DataError(
            f"The table '{name}' of the file has {index.shape} names and the matrix {n:,}; they do not fit."
        )


class _Walk:
    """Every object of an HDF5 file: refuses links, arrays kept in other files and claims beyond what the file can hold."""

    def __init__(self, size: int, max_bytes: int) -> None:
        self.size, self.max_bytes = size, max_bytes
        self.seen, self.claimed, self.text, self.strings = 0, 0, 0, 0

    def over(self, file: Any) -> None:
        """Walk; nothing is returned."""
        import h5py

        stack = [(file, 0)]
        while stack:
            group, depth = stack.pop()
            if depth > _DEPTH:
                raise DataError(f"The file's groups are nested deeper than {_DEPTH}.")
            self._attributes(group)
            for name in group:
                self.seen += 1
                if self.seen > _OBJECTS:
                    raise DataError(f"The file holds more than {_OBJECTS} objects.")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise DataError(
                        f"'{plain(name)}' is a link, which this server does not follow. "
                        "Save the object again with adata.write_h5ad()."
                    )
                item = group[name]
                if isinstance(item, h5py.Group):
                    stack.append((item, depth + 1))
                elif isinstance(item, h5py.Dataset):
                    self._dataset(item, plain(name))
        if self.claimed > _INFLATION * max(self.size, 1 << 20):
            raise DataError(
                f"The file's arrays claim {self.claimed:,} bytes in a file of {self.size:,}; that is refused."
            )
        if self.claimed > self.max_bytes:
            raise DataError(
                f"The file's arrays need {self.claimed:,} bytes of memory and this server has {self.max_bytes:,} for one. "
                "Send fewer cells at once."
            )

    def _attributes(self, item: Any) -> None:
        """Read them all: what does not fit into this process must not reach a worker."""
        for name in item.attrs:
            _ = item.attrs[name]

    def _dataset(self, item: Any, name: str) -> None:
        import h5py

        if item.external or item.is_virtual:
            raise DataError(f"'{name}' is kept in another file, which this server does not open.")
        about = item.id.get_create_plist()
        for k in range(about.get_nfilters()):
            if not h5py.h5z.filter_avail(about.get_filter(k)[0]):
                raise DataError(
                    f"'{name}' is packed in a way this server cannot unpack. Save the object with gzip or without compression."
                )
        self._attributes(item)
        width, chunk = max(item.dtype.itemsize, 1), 1
        for n in item.chunks or (0,):
            chunk *= int(n)
        bytes_ = max(item.size or 0, chunk) * width
        self.claimed += bytes_
        if _holds_pointers(item.dtype):
            raise DataError(
                f"'{name}' holds records with text or arrays of any length, or references; save it as separate columns."
            )
        if (
            h5py.check_string_dtype(item.dtype) is not None
            or h5py.check_vlen_dtype(item.dtype) is not None
        ):
            self._strings(item, name)
        elif bytes_ <= _SMALL:
            _ = item[()]

    def _strings(self, item: Any, name: str) -> None:
        """Strings of any length are kept beside the array: one string may be claimed a million times."""
        import h5py

        if item.shape is None:
            return
        self.strings += item.size
        if self.strings > min(
            _STRINGS_MAX, max(self.size, 1 << 16)
        ):  # each takes a byte of its own, nearly always many
            raise DataError(f"'{name}' claims more strings than the file can hold.")
        kind = h5py.check_string_dtype(item.dtype)
        for start in range(0, len(item) if item.ndim else 1, _STRINGS):
            part = item[start : start + _STRINGS].ravel().tolist() if item.ndim else [item[()]]
            if kind is None or kind.length is None:
                self.text += sum(len(s) for s in part)
            if self.text > self.size:
                raise DataError(f"'{name}' claims more text than the file can hold.")
            if kind is not None and not _readable(part):
                raise DataError(f"'{name}' holds text that is not UTF-8, or a zero character.")


def _holds_pointers(dtype: Any) -> bool:
    """Whether records or arrays hold what is kept elsewhere in the file, so that a small file may claim much memory."""
    import h5py

    if dtype.subdtype is not None:
        dtype = dtype.subdtype[0]
        return _is_pointer(dtype) or _holds_pointers(dtype)
    if dtype.names is None:
        return h5py.check_ref_dtype(dtype) is not None
    members = [dtype.fields[name][0] for name in dtype.names]
    return any(_is_pointer(member) or _holds_pointers(member) for member in members)


def _is_pointer(dtype: Any) -> bool:
    import h5py

    text = h5py.check_string_dtype(dtype)
    return (
        (text is not None and text.length is None)
        or h5py.check_vlen_dtype(dtype) is not None
        or h5py.check_ref_dtype(dtype) is not None
    )


def _readable(strings: list[Any]) -> bool:
    joined = b"\n".join(
        s if isinstance(s, bytes) else str(s).encode("utf-8", "surrogateescape") for s in strings
    )
    try:
        return "\0" not in joined.decode()
    except UnicodeDecodeError:
        return False


def check_content(adata: AnnData) -> None:
    """What only reading reveals: indices of sparse matrices that point outside, which compiled code would follow out of its memory.

    Raises
    ------
    DataError
        Which matrix it is.
    """
    from scipy import sparse

    tables: list[tuple[str, Any]] = [("X", adata.X)]
    if adata.raw is not None:
        tables.append(("raw", adata.raw.X))
    for what in ("layers", "obsm", "varm", "obsp", "varp"):
        tables += [(f"{what}['{plain(k)}']", v) for k, v in getattr(adata, what).items()]
    for name, matrix in tables:
        if sparse.issparse(matrix):
            try:
                matrix.check_format(full_check=True)
            except ValueError as error:
                raise DataError(
                    f"The sparse matrix {name} of the file contradicts itself ({error}); it is damaged."
                ) from error


def plain(text: Any, longest: int = 60) -> str:
    """A name out of an upload, fit for a sentence: printable, short."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text)[:longest])


def whole_text(value: Any) -> Any:
    """A value of JSON in which "?" replaces each half of a character (an unpaired surrogate), which no answer can hold."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def limit_resources() -> None:
    """Little memory and time for this process, and no file may grow."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """The confined process."""
    from .confinement import confine, first_to_go

    first_to_go()
    limit_resources()
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no filter is loaded from anywhere
    if "unconfined" not in sys.argv[5:]:
        confine(read=[Path(sys.argv[1])])
    try:
        answer: dict[str, Any] = look(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
        if "columns" in sys.argv[5:]:
            from .columns import read_columns

            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                answer["columns"] = read_columns(Path(sys.argv[1]))
    except DataError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "Inspecting the file needs more memory than is allowed; it is refused."}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
