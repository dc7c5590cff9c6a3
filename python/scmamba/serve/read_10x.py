"""A zipped 10x folder: ``matrix.mtx``, ``features.tsv`` (or ``genes.tsv``) and ``barcodes.tsv``, each plain or ``.gz``, as Cell Ranger
writes it; what many GEO records hold.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

MAGIC = b"PK\x03\x04"
_PARTS = {
    "matrix": ("matrix.mtx",),
    "features": ("features.tsv", "genes.tsv"),
    "barcodes": ("barcodes.tsv",),
}
_ENTRIES = 100
_LEAST = 6  # bytes of a line of the matrix: "1 1 1\n"
_LONGEST = 64  # bytes of a line of the matrix, on average


def peek(path: Path, max_bytes: int) -> tuple[int, int]:
    """Genes and cells, from the head of the matrix and the numbers of names.

    Raises
    ------
    DataError
        A part is missing or damaged, they do not fit, or they claim more than they can hold.
    """
    with _parts(path, max_bytes) as parts:
        genes, cells, values, start = _head(parts["matrix"])
        room = parts["matrix"].size(start)
        if values * _LEAST > room:
            raise DataError(
                f"matrix.mtx promises {values:,} values and holds {room:,} bytes; it is cut off or damaged."
            )
        if room > _LONGEST * (values + 1024):
            raise DataError(
                f"matrix.mtx promises {values:,} values and holds {room:,} bytes, most of them blank; it is refused."
            )
        for name, n, what in (("features", genes, "genes"), ("barcodes", cells, "cells")):
            found = len(_lines(parts[name]))
            if found != n:
                raise DataError(
                    f"The file of {name} has {found:,} lines and the matrix {n:,} {what}; they do not fit."
                )
    return genes, cells


def to_adata(path: Path, max_bytes: int) -> AnnData:
    """Cells x genes of an inspected file (:func:`peek`); only gene expression, if there are features of other types. Symbols are
    the names, ``var["gene_ids"]`` the IDs.
    """
    import anndata
    import pandas as pd
    from scipy import io as mtx
    from scipy import sparse

    with _parts(path, max_bytes) as parts:
        matrix = sparse.csr_matrix(mtx.mmread(io.BytesIO(parts["matrix"].all())).T)
        features = [line.split("\t") for line in _lines(parts["features"])]
        barcodes = [line.split("\t")[0] for line in _lines(parts["barcodes"])]
    ids, names = [f[0] for f in features], [f[1] if len(f) > 1 else f[0] for f in features]
    adata = anndata.AnnData(
        matrix, obs=pd.DataFrame(index=barcodes), var=pd.DataFrame({"gene_ids": ids}, index=names)
    )
    kinds = {f[2] for f in features if len(f) > 2}
    if len(kinds) > 1 and "Gene Expression" in kinds:
        adata = adata[:, [f[2] == "Gene Expression" for f in features]].copy()
    adata.var_names_make_unique()
    return adata


def from_h5(path: Path) -> AnnData:
    """Cells x genes of a 10x .h5 file (Cell Ranger 3 and later) that was inspected; only gene expression, if features of other types are
    there. Symbols are the names, ``var["gene_ids"]`` the IDs. Written here because scanpy's reader would make the server need scanpy.
    """
    import anndata
    import h5py
    import numpy as np
    import pandas as pd
    from scipy import sparse

    with h5py.File(path, "r") as file:
        group = file["matrix"]
        genes, cells = (int(n) for n in group["shape"][:2])
        # Genes x cells by columns is cells x genes by rows.
        matrix = sparse.csr_matrix(
            (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]),
            shape=(cells, genes),
        )
        features = {
            name: _texts(values)
            for name, values in group["features"].items()
            if values.shape == (genes,)
        }
        barcodes = _texts(group["barcodes"])
    columns = {"gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
    table = pd.DataFrame(
        {new: features[old] for new, old in columns.items() if old in features},
        index=pd.Index(features["name"], dtype=str),
    )
    adata = anndata.AnnData(matrix, obs=pd.DataFrame(index=barcodes), var=table)
    kinds = set(table["feature_types"]) if "feature_types" in table else set()
    if len(kinds) > 1 and "Gene Expression" in kinds:
        adata = adata[:, (table["feature_types"] == "Gene Expression").to_numpy()].copy()
    adata.var_names_make_unique()
    return adata


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values[:]]


class _Part:
    """One file of the folder, unpacked as far as it is read and never beyond a limit, whatever size it claims."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> None:
        self.archive, self.entry, self.limit = archive, entry, limit

    def chunks(self) -> Iterator[bytes]:
        gz = zlib.decompressobj(wbits=31) if self.entry.filename.endswith(".gz") else None
        given = 0
        with self.archive.open(self.entry) as file:
            while chunk := file.read(1 << 18):
                while chunk:
                    out = chunk if gz is None else gz.decompress(chunk, 1 << 20)
                    chunk = b"" if gz is None else gz.unconsumed_tail
                    given += len(out)
                    if given > self.limit:
                        raise DataError(
                            f"'{_base(self.entry)}' unpacks to more than this server has room for; that is refused."
                        )
                    yield out
        if gz is not None and not gz.eof:
            raise DataError(f"'{_base(self.entry)}' is cut off.")

    def all(self) -> bytes:
        return b"".join(self.chunks())

    def size(self, start: int) -> int:
        """Bytes of text after ``start``."""
        return sum(map(len, self.chunks())) - start


@contextmanager
def _parts(path: Path, max_bytes: int) -> Iterator[dict[str, _Part]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _ENTRIES:
                raise DataError(f"The zip holds {len(entries):,} files; a 10x folder has three.")
            found = {}
            for part, names in _PARTS.items():
                here = [
                    e
                    for e in entries
                    if _base(e).removesuffix(".gz") in names and "__MACOSX" not in e.filename
                ]
                if len(here) != 1:
                    number = "none" if not here else f"{len(here)}"
                    raise DataError(
                        f"The zip must hold one {' or '.join(names)} (or .gz), as a 10x folder does; it holds {number}."
                    )
                found[part] = _Part(archive, here[0], max_bytes)
            yield found
    except DataError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        raise DataError(
            f"The zip cannot be read ({type(error).__name__}); it is cut off, damaged or locked. Send it again."
        ) from error


def _base(entry: zipfile.ZipInfo) -> str:
    return entry.filename.rsplit("/", 1)[-1]


def _head(part: _Part) -> tuple[int, int, int, int]:
    """Genes, cells and values of the matrix, and where the values begin."""
    text = b""
    for chunk in part.chunks():
        text += chunk
        at = 0
        while (end := text.find(b"\n", at)) >= 0 and (
            text[at : at + 1] == b"%" or not text[at:end].strip()
        ):
            at = end + 1
        if end >= 0 or len(text) > 1 << 20:
            break
    first = text.partition(b"\n")[0].lower().split()
    if first[:3] != [b"%%matrixmarket", b"matrix", b"coordinate"] or first[3:] not in (
        [b"integer", b"general"],
        [b"real", b"general"],
    ):
        raise DataError(
            "matrix.mtx is no Matrix Market file of counts ('%%MatrixMarket matrix coordinate integer general')."
        )
    sizes = text[at:end].split() if end >= 0 else []
    if len(sizes) != 3 or not all(s.isdigit() and len(s) < 16 for s in sizes):
        raise DataError(
            "matrix.mtx has no line with the numbers of genes, cells and values; it is damaged."
        )
    genes, cells, values = map(int, sizes)
    return genes, cells, values, end + 1


def _lines(part: _Part) -> list[str]:
    try:
        text = part.all().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"'{_base(part.entry)}' holds text that is not UTF-8.") from error
    if "\0" in text:
        raise DataError(f"'{_base(part.entry)}' holds a zero character.")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def limit_of(path: Path, max_bytes: int) -> int:
    """What one part may unpack to: a thousand times the file, as far as memory goes."""
    return min(max_bytes, 1000 * max(path.stat().st_size, 1 << 16))


def look(path: Path, max_bytes: int) -> dict[str, Any]:
    """The result of :func:`scmamba.serve.validation.look` for such a file."""
    genes, cells = peek(path, limit_of(path, max_bytes))
    return {"kind": "mtx", "cells": cells, "genes": genes}
