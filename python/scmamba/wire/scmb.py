"""The plain binary form that needs no HDF5: R writes and reads it with ``writeBin`` and ``readBin``.

``SCMB1\\n``, the length of a JSON header (8 bytes, little-endian), the header, then raw little-endian arrays in the header's order:
int32 or float64. An upload holds ``p``, ``i``, ``x`` of a genes x cells column-compressed matrix, perhaps ``layer/p``, ``layer/i``,
``layer/x`` of a second one (the layer ``scmamba``), and columns of cells: text in the header's ``obs``, numbers as the arrays
``obs/NAME``, factors as codes from 0 in ``obs/NAME`` with the header's ``levels[NAME]``, truths as 0 and 1 with ``NAME`` in ``flags``.
A result holds what its header names.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

MAGIC = b"SCMB1\n"
_KINDS: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "float64": np.dtype("<f8")}
_HEADER_LIMIT = 256 << 20
_LAYER, _OBS = "layer/", "obs/"


def write(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file; the header gets the list of arrays."""
    kinds = {name: "int32" if a.dtype.kind in "iub" else "float64" for name, a in arrays.items()}
    about = {
        **header,
        "arrays": [
            {"name": n, "kind": kinds[n], "shape": list(a.shape)} for n, a in arrays.items()
        ],
    }
    text = json.dumps(missing_as_null(about), allow_nan=False).encode()
    with open(path, "wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            # R is column-major: a matrix goes out column by column.
            file.write(np.asarray(array, dtype=_KINDS[kinds[name]]).tobytes(order="F"))


def missing_as_null(value: Any) -> Any:
    """The same value with ``None`` for NaN and infinities: JSON has none, and browsers and R refuse a text with them."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: missing_as_null(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [missing_as_null(each) for each in value]
    return value


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
            # Not frombuffer, whose arrays cannot be written to: numba would compile its functions for such ones anew.
            raw = np.fromfile(file, dtype=kind, count=_product(shape))
            arrays[name] = raw.reshape(shape, order="F")
    return header, arrays


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], _Wanted]:
    """The header and the arrays that follow; the file stands at the first of them."""
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError("This is not a file of scMamba's plain form.")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _HEADER_LIMIT):
        raise DataError(
            "The file's header claims to be longer than the file; it is cut off or damaged."
        )
    try:
        header = json.loads(file.read(length))
        wanted = [
            (str(a["name"]), _KINDS[a["kind"]], tuple(int(n) for n in a["shape"]))
            for a in header["arrays"]
        ]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError("The file's header cannot be read; it is damaged.") from error
    if any(not 0 <= n < 1 << 48 for _, _, shape in wanted for n in shape) or any(
        len(shape) > 4 for _, _, shape in wanted
    ):
        raise DataError("The file's header names a negative size, or one beyond any file.")
    if len({name for name, _, _ in wanted}) < len(wanted):
        raise DataError("The file's header names an array twice.")
    needed = file.tell() + sum(kind.itemsize * _product(shape) for _, kind, shape in wanted)
    if needed != size:
        raise DataError(
            f"The file has {size} bytes and its header promises {needed}; it is cut off or damaged."
        )
    return header, wanted


def read_shape(path: Path) -> tuple[int, int]:
    """Genes and cells of an upload, from its header alone.

    Raises
    ------
    DataError
        The header is inconsistent or impossible.
    """
    with open(path, "rb") as file:
        header, wanted = _header(file, path.stat().st_size)
    genes, cells = _names(header)
    about = {name: (kind, shape) for name, kind, shape in wanted}
    if not {"x", "i", "p"} <= set(about):
        raise DataError("The file holds no matrix (x, i, p).")
    for place in ("", _LAYER) if any(name.startswith(_LAYER) for name in about) else ("",):
        parts = [about.get(place + name) for name in "xip"]
        if any(part is None for part in parts):
            raise DataError(
                "The second matrix in the file is not whole (layer/x, layer/i, layer/p)."
            )
        (_, x), (kind_i, i), (kind_p, p) = (part for part in parts if part is not None)
        if p != (len(cells) + 1,) or len(i) != 1 or i != x:
            raise DataError("The matrix in the file is not a column-compressed one; it is damaged.")
        if kind_i != _KINDS["int32"] or kind_p != _KINDS["int32"]:
            raise DataError(
                "The matrix in the file is not a column-compressed one: its indices are no whole numbers."
            )
    text = _columns(header, len(cells))
    for name, (kind, shape) in about.items():
        if name.startswith(_OBS):
            _check_column(header, name.removeprefix(_OBS), kind, shape, len(cells), text)
    return len(genes), len(cells)


def _check_column(
    header: dict[str, Any],
    name: str,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    cells: int,
    text: dict[str, Any],
) -> None:
    _check_name(name)
    if shape != (cells,) or name in text:
        raise DataError(
            f"The column {name[:60]!a} about the cells has another length than the cells, or is there twice."
        )
    levels, flags = header.get("levels") or {}, header.get("flags") or []
    if not isinstance(levels, dict) or not isinstance(flags, list):
        raise DataError("'levels' or 'flags' of the file is not what it must be.")
    if name in levels:
        names = levels[name]
        if (
            not isinstance(names, list)
            or not all(map(_is_text, names))
            or len(set(names)) < len(names)
            or kind != _KINDS["int32"]
        ):
            raise DataError(
                f"The levels of the column {name[:60]!a} about the cells are not names."
            )


def _check_name(name: Any) -> None:
    if not _is_text(name) or not name or "/" in name or name == "_index":
        raise DataError(f"A column about the cells cannot be called {str(name)[:60]!a}.")


def _names(header: dict[str, Any]) -> tuple[list[str], list[str]]:
    genes, cells = header.get("genes"), header.get("cells")
    if not isinstance(genes, list) or not isinstance(cells, list):
        raise DataError("The file names no genes or cells.")
    if not all(_is_text(name) for names in (genes, cells) for name in names):
        raise DataError("The names of genes and cells must be text, without zero characters.")
    return genes, cells


def _is_text(value: Any) -> bool:
    # Lone surrogates and zero characters pass JSON and cannot be written to a file.
    return (
        isinstance(value, str)
        and "\0" not in value
        and not any("\ud800" <= c <= "\udfff" for c in value if not c.isascii())
    )


def _columns(header: dict[str, Any], cells: int) -> dict[str, list[Any]]:
    """Columns of cells: for each column one value a cell, all text, or all numbers, or missing."""
    about = header.get("obs") or {}
    if not isinstance(about, dict):
        raise DataError("'obs' of the file is no table of columns.")
    for name, values in about.items():
        _check_name(name)
        if not isinstance(values, list) or len(values) != cells:
            raise DataError("A column about the cells has another length than the cells.")
        kept = [v for v in values if v is not None]
        if not (
            all(map(_is_text, kept))
            or all(isinstance(v, (int, float)) and abs(v) < 1 << 53 for v in kept)
        ):
            raise DataError(
                f"The column {name[:60]!a} about the cells is neither text nor numbers."
            )
    return about


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def to_adata(path: Path) -> AnnData:
    """An upload as AnnData (cells x genes)."""
    import pandas as pd

    from .slots import adata_from_slots

    read_shape(path)
    header, arrays = read(path)
    genes, cells = _names(header)
    obs = {**_columns(header, len(cells)), **_typed(header, arrays)}
    table = pd.DataFrame(obs, index=cells) if obs else None
    adata = adata_from_slots(
        *_slots(arrays, "", genes, cells), (len(genes), len(cells)), genes, cells, table
    )
    if f"{_LAYER}x" in arrays:
        adata.layers["scmamba"] = adata_from_slots(
            *_slots(arrays, _LAYER, genes, cells), (len(genes), len(cells)), genes, cells
        ).X
    return adata


def _slots(
    arrays: dict[str, np.ndarray], place: str, genes: list[str], cells: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, i, p = (arrays[place + name] for name in "xip")
    if (
        p.ndim != 1
        or len(p) != len(cells) + 1
        or (len(p) and (p[0] != 0 or p[-1] != len(i) or (np.diff(p) < 0).any()))
        or len(i) != len(x)
    ):
        raise DataError("The matrix in the file is not a column-compressed one; it is damaged.")
    if len(i) and (i.min() < 0 or i.max() >= len(genes)):
        raise DataError("The matrix in the file points outside its genes; it is damaged.")
    return x.copy(), i.copy(), p.copy()


def _typed(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The columns that came as arrays."""
    import pandas as pd

    levels, flags, found = header.get("levels") or {}, header.get("flags") or [], {}
    for place, values in arrays.items():
        name = place.removeprefix(_OBS)
        if name == place:
            continue
        if name in levels:
            if len(values) and (values.min() < -1 or values.max() >= len(levels[name])):
                raise DataError(
                    f"The column {name[:60]!a} about the cells points outside its levels; the file is damaged."
                )
            found[name] = pd.Categorical.from_codes(values, levels[name])
        else:
            found[name] = values.astype(bool) if name in flags else values.copy()
    return found
