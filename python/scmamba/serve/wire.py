"""The plain binary form that needs no HDF5: R writes and reads it with ``writeBin`` and ``readBin``.

``SCMB1\\n``, the length of a JSON header (8 bytes, little-endian), the header, then raw little-endian arrays in the header's order:
int32 or float64. An upload holds ``p``, ``i``, ``x`` of a genes x cells column-compressed matrix; a result what its header names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .._errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

MAGIC = b"SCMB1\n"
_KINDS: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "float64": np.dtype("<f8")}
_HEADER_LIMIT = 256 << 20


def write(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file; the header gets the list of arrays."""
    kinds = {name: "int32" if a.dtype.kind in "iub" else "float64" for name, a in arrays.items()}
    about = {**header, "arrays": [{"name": n, "kind": kinds[n], "shape": list(a.shape)} for n, a in arrays.items()]}
    text = json.dumps(about).encode()
    with open(path, "wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            # R is column-major: a matrix goes out column by column.
            file.write(np.asarray(array, dtype=_KINDS[kinds[name]]).tobytes(order="F"))


_Wanted = list[tuple[str, "np.dtype[Any]", tuple[int, ...]]]


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file; every length is checked against the file's before anything is allocated.

    Raises
    ------
    DataError
        What is wrong with it.
    """
    with open(path, "rb") as file:
        header, wanted = _header(file, path.stat().st_size)
        arrays = {}
        for name, kind, shape in wanted:
            raw = np.frombuffer(file.read(kind.itemsize * _product(shape)), dtype=kind)
            arrays[name] = raw.reshape(shape, order="F")
    return header, arrays


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], _Wanted]:
    """The header and the arrays that follow; the file stands at the first of them."""
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError("This is not a file of scMamba's plain form.")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _HEADER_LIMIT):
        raise DataError("The file's header claims to be longer than the file; it is cut off or damaged.")
    try:
        header = json.loads(file.read(length))
        wanted = [(str(a["name"]), _KINDS[a["kind"]], tuple(int(n) for n in a["shape"])) for a in header["arrays"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError("The file's header cannot be read; it is damaged.") from error
    if any(not 0 <= n < 1 << 48 for _, _, shape in wanted for n in shape) or any(len(shape) > 4 for _, _, shape in wanted):
        raise DataError("The file's header names a negative size, or one beyond any file.")
    if len({name for name, _, _ in wanted}) < len(wanted):
        raise DataError("The file's header names an array twice.")
    needed = file.tell() + sum(kind.itemsize * _product(shape) for _, kind, shape in wanted)
    if needed != size:
        raise DataError(f"The file has {size} bytes and its header promises {needed}; it is cut off or damaged.")
    return header, wanted


def peek(path: Path) -> tuple[int, int]:
    """Genes and cells of an upload, from its header alone.

    Raises
    ------
    DataError
        The header contradicts itself, or says what no matrix has.
    """
    with open(path, "rb") as file:
        header, wanted = _header(file, path.stat().st_size)
    genes, cells = _names(header)
    shapes = {name: shape for name, _, shape in wanted}
    if not {"x", "i", "p"} <= set(shapes):
        raise DataError("The file holds no matrix (x, i, p).")
    if shapes["p"] != (len(cells) + 1,) or len(shapes["i"]) != 1 or shapes["i"] != shapes["x"]:
        raise DataError("The matrix in the file is not a column-compressed one; it is damaged.")
    if any(kind != _KINDS["int32"] for name, kind, _ in wanted if name in "ip"):
        raise DataError("The matrix in the file is not a column-compressed one: its indices are no whole numbers.")
    _columns(header, len(cells))
    return len(genes), len(cells)


def _names(header: dict[str, Any]) -> tuple[list[str], list[str]]:
    genes, cells = header.get("genes"), header.get("cells")
    if not isinstance(genes, list) or not isinstance(cells, list):
        raise DataError("The file names no genes or cells.")
    if not all(_is_text(name) for names in (genes, cells) for name in names):
        raise DataError("The names of genes and cells must be text, without zero characters.")
    return genes, cells


def _is_text(value: Any) -> bool:
    # Lone surrogates and zero characters pass JSON and cannot be written to a file.
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value if not c.isascii())


def _columns(header: dict[str, Any], cells: int) -> dict[str, list[Any]]:
    """What is said about the cells: for each column one value a cell, all text, or all numbers, or missing."""
    about = header.get("obs") or {}
    if not isinstance(about, dict):
        raise DataError("'obs' of the file is no table of columns.")
    for name, values in about.items():
        if not _is_text(name) or not name or "/" in name or name == "_index":
            raise DataError(f"A column about the cells cannot be called {name[:60]!a}.")
        if not isinstance(values, list) or len(values) != cells:
            raise DataError("A column about the cells has another length than the cells.")
        kept = [v for v in values if v is not None]
        if not (all(map(_is_text, kept)) or all(isinstance(v, (int, float)) and abs(v) < 1 << 53 for v in kept)):
            raise DataError(f"The column {name[:60]!a} about the cells is neither text nor numbers.")
    return about


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def to_adata(path: Path) -> AnnData:
    """An upload as AnnData (cells x genes)."""
    import pandas as pd

    from ..interop.slots import adata_from_slots

    peek(path)
    header, arrays = read(path)
    genes, cells = _names(header)
    x, i, p = arrays["x"], arrays["i"], arrays["p"]
    if p.ndim != 1 or len(p) != len(cells) + 1 or (len(p) and (p[0] != 0 or p[-1] != len(i) or (np.diff(p) < 0).any())) or len(i) != len(x):
        raise DataError("The matrix in the file is not a column-compressed one; it is damaged.")
    if len(i) and (i.min() < 0 or i.max() >= len(genes)):
        raise DataError("The matrix in the file points outside its genes; it is damaged.")
    obs = _columns(header, len(cells))
    table = pd.DataFrame(obs, index=cells) if obs else None
    return adata_from_slots(x.copy(), i.copy(), p.copy(), (len(genes), len(cells)), genes, cells, table)
