"""The plain binary form that needs no HDF5: R writes and reads it with ``writeBin`` and ``readBin``.

``SCMB1\\n``, the length of a JSON header (8 bytes, little-endian), the header, then raw little-endian arrays in the header's order:
int32 or float64. An upload holds ``p``, ``i``, ``x`` of a genes x cells column-compressed matrix; a result what its header names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file; every length is checked against the file's before anything is allocated.

    Raises
    ------
    DataError
        What is wrong with it.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DataError("This is not a file of scMamba's plain form.")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _HEADER_LIMIT):
            raise DataError("The file's header claims to be longer than the file; it is cut off or damaged.")
        try:
            header = json.loads(file.read(length))
            wanted = [(str(a["name"]), _KINDS[a["kind"]], tuple(int(n) for n in a["shape"])) for a in header["arrays"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError("The file's header cannot be read; it is damaged.") from error
        if any(n < 0 for _, _, shape in wanted for n in shape):
            raise DataError("The file's header names a negative size.")
        needed = file.tell() + sum(kind.itemsize * _product(shape) for _, kind, shape in wanted)
        if needed != size:
            raise DataError(f"The file has {size} bytes and its header promises {needed}; it is cut off or damaged.")
        arrays = {}
        for name, kind, shape in wanted:
            raw = np.frombuffer(file.read(kind.itemsize * _product(shape)), dtype=kind)
            arrays[name] = raw.reshape(shape, order="F")
    return header, arrays


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def to_adata(path: Path) -> AnnData:
    """An upload as AnnData (cells x genes)."""
    import pandas as pd

    from ..interop.slots import adata_from_slots

    header, arrays = read(path)
    if not {"x", "i", "p"} <= set(arrays):
        raise DataError("The file holds no matrix (x, i, p).")
    genes, cells = header.get("genes"), header.get("cells")
    if not isinstance(genes, list) or not isinstance(cells, list):
        raise DataError("The file names no genes or cells.")
    x, i, p = arrays["x"], arrays["i"], arrays["p"]
    if p.ndim != 1 or len(p) != len(cells) + 1 or (len(p) and (p[0] != 0 or p[-1] != len(i) or (np.diff(p) < 0).any())) or len(i) != len(x):
        raise DataError("The matrix in the file is not a column-compressed one; it is damaged.")
    if len(i) and (i.min() < 0 or i.max() >= len(genes)):
        raise DataError("The matrix in the file points outside its genes; it is damaged.")
    obs = header.get("obs")
    table = None
    if isinstance(obs, dict) and obs:
        if any(not isinstance(v, list) or len(v) != len(cells) for v in obs.values()):
            raise DataError("A column about the cells has another length than the cells.")
        table = pd.DataFrame({str(k): v for k, v in obs.items()}, index=[str(c) for c in cells])
    return adata_from_slots(x.copy(), i.copy(), p.copy(), (len(genes), len(cells)), genes, cells, table)
