"""Write a matrix of the R package to an h5ad file, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.errors import DataError
from ..utils.h5_output import OutputFile
from .h5ad_stream import CsrWriter


class H5adWriter:
    """An h5ad file whose ``X`` is appended in blocks of cells, so that no process holds the whole matrix.

    Parameters
    ----------
    path
        The file to write.
    genes, cells
        Names of all genes and cells.

    Examples
    --------
    >>> import tempfile, pathlib, anndata, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> writer = H5adWriter(path, ["APOE", "GFAP"], ["a", "b", "c"])
    >>> writer.append(np.array([5.0]), np.array([1]), np.array([0, 0, 1]))  # cells a and b
    >>> writer.append(np.array([2.0]), np.array([0]), np.array([0, 1]))  # cell c
    >>> writer.finish()
    >>> anndata.read_h5ad(path).X.toarray().tolist()
    [[0.0, 0.0], [0.0, 5.0], [2.0, 0.0]]
    """

    def __init__(self, path: str | Path, genes: Sequence[str], cells: Sequence[str]) -> None:
        self._genes, self._cells = list(genes), list(cells)
        self._file = OutputFile(path)
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        shape = (len(self._cells), len(self._genes))
        self._x = CsrWriter(self._file.create_group("X"), shape, np.float64, compression="lzf")

    def append(self, x: np.ndarray, i: np.ndarray, p: np.ndarray) -> None:
        """Add the next cells.

        Parameters
        ----------
        x, i, p
            Slots ``@x``, ``@i`` and ``@p`` of a genes x cells ``dgCMatrix`` with all genes.
        """
        shape = (len(p) - 1, len(self._genes))
        self._x.append(sparse.csr_matrix((np.asarray(x), np.asarray(i), np.asarray(p)), shape))
        self._file.check()

    def finish(self, obs: pd.DataFrame | None = None) -> None:
        """Write names and columns, and close the file.

        Parameters
        ----------
        obs
            Columns of the cells, in their order.

        Raises
        ------
        DataError
            Cells are missing.
        """
        import anndata

        if self._x.rows != len(self._cells):
            raise DataError(
                f"{self._x.rows} of {len(self._cells)} cells were written; the matrix has fewer columns than names."
            )
        self._x.finish()
        index = pd.Index(self._cells, dtype=str)
        table = pd.DataFrame(index=index) if obs is None else obs.set_axis(index)
        write = anndata.io.write_elem
        write(self._file, "obs", table)
        write(self._file, "var", pd.DataFrame(index=pd.Index(self._genes, dtype=str)))
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            write(self._file, name, {})
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
