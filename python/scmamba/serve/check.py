"""Looking at an upload before it becomes a job, in a process of its own with little memory and time.

``python -m scmamba.serve.check FILE MAX_CELLS MAX_GENES`` prints one JSON line: ``{"kind": ..., "cells": ..., "genes": ...}`` or
``{"error": ...}``. HDF5 is looked at without following links out of the file and without reading what it holds.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from .._errors import DataError

_MEMORY = 2 << 30
_SECONDS = 60
_INFLATION = 1000  # times a file's size that its arrays may claim: gzip's best on counts is far below
_OBJECTS = 10_000


def look(path: Path, max_cells: int, max_genes: int) -> dict[str, Any]:
    """What the file is and how large.

    Raises
    ------
    DataError
        What is wrong with it.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"SCMB1\n"):
        from .wire import read

        header, _ = read(path)
        genes, cells = header.get("genes"), header.get("cells")
        if not isinstance(genes, list) or not isinstance(cells, list):
            raise DataError("The file names no genes or cells.")
        about: dict[str, Any] = {"kind": "scmb", "cells": len(cells), "genes": len(genes)}
    elif start == b"\x89HDF\r\n\x1a\n":
        about = _hdf5(path)
    else:
        raise DataError("The upload is neither an .h5ad or 10x .h5 file nor scMamba's plain form. Save the object with adata.write_h5ad().")
    if about["cells"] < 1 or about["genes"] < 1:
        raise DataError(f"The upload holds {about['cells']} cells x {about['genes']} genes; there is nothing to work on.")
    if about["cells"] > max_cells or about["genes"] > max_genes:
        raise DataError(
            f"The upload holds {about['cells']:,} cells x {about['genes']:,} genes; "
            f"this server takes at most {max_cells:,} x {max_genes:,}."
        )
    return about


def _hdf5(path: Path) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _walk(file, path.stat().st_size)
            if "matrix" in file and "X" not in file:
                genes, cells = (int(n) for n in file["matrix/shape"][:2])
                return {"kind": "10x", "cells": cells, "genes": genes}
            if "X" not in file or "obs" not in file or "var" not in file:
                raise DataError("The HDF5 file is no .h5ad file: X, obs or var is missing.")
            x = file["X"]
            shape = x.shape if isinstance(x, h5py.Dataset) else x.attrs.get("shape", x.attrs.get("h5sparse_shape"))
            if shape is None or len(shape) != 2:
                raise DataError("The matrix X of the .h5ad file has no shape of two numbers.")
            if isinstance(x, h5py.Group):
                rows = len(x["indptr"]) - 1
                if rows not in (int(shape[0]), int(shape[1])) or len(x["indices"]) != len(x["data"]):
                    raise DataError("The matrix X of the .h5ad file contradicts itself: its shape and its arrays do not fit.")
            return {"kind": "h5ad", "cells": int(shape[0]), "genes": int(shape[1])}
    except DataError:
        raise
    except Exception as error:  # h5py raises many kinds for damaged files
        raise DataError(f"The HDF5 file cannot be read ({type(error).__name__}); it is cut off or damaged. Send it again.") from error


def _walk(file: Any, size: int) -> None:
    """Refuse links out of the file, arrays kept in other files, and claims far beyond the file's size."""
    import h5py

    stack, seen, claimed = [file], 0, 0
    while stack:
        group = stack.pop()
        for name in group:
            seen += 1
            if seen > _OBJECTS:
                raise DataError(f"The file holds more than {_OBJECTS} objects.")
            link = group.get(name, getlink=True)
            if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
                raise DataError(f"'{name}' is a link, which this server does not follow. Save the object anew with adata.write_h5ad().")
            item = group[name]
            if isinstance(item, h5py.Group):
                if item in stack or len(stack) > 1000:
                    raise DataError("The file's groups are nested too deep.")
                stack.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise DataError(f"'{name}' is kept in another file, which this server does not open.")
                claimed += item.size * max(item.dtype.itemsize, 1)
    if claimed > _INFLATION * max(size, 1 << 20):
        raise DataError(f"The file's arrays claim {claimed:,} bytes in a file of {size:,}; that is refused.")


def main() -> None:
    """The confined process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        answer: dict[str, Any] = look(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except DataError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "The file needs more memory to be looked at than it may; it is refused."}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
