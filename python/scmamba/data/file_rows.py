"""The matrix of a file, read in blocks of rows each time it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from .row_store import BLOCK
from .selection import SelectedMatrix


class FileRows:
    """A (cells, genes) matrix that stays in its file: what differential expression needs of a CSR matrix.

    Parameters
    ----------
    selected
        The matrix; rows of ``var`` that are not genes are omitted.
    change
        Function of the stored values, which leaves zeros zeros.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> values = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    >>> rows = FileRows(SelectedMatrix(values, pd.DataFrame(index=["a", "b"]), "X"))
    >>> rows.take(np.array([2, 0])).toarray().tolist()
    [[3.0, 0.0], [1.0, 0.0]]
    """

    def __init__(
        self,
        selected: SelectedMatrix,
        change: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.selected, self.change = selected, change
        genes = selected.matrix.shape[1] if selected.is_gene is None else selected.is_gene.sum()
        self.shape = (int(selected.matrix.shape[0]), int(genes))

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield consecutive rows: which they are, and their values, float64 without stored zeros."""
        size = size or BLOCK
        for start in range(0, self.shape[0], size):
            rows = slice(start, min(start + size, self.shape[0]))
            part = self.selected.rows(rows)
            if self.selected.is_gene is not None:
                part = sparse.csr_matrix(part[:, self.selected.is_gene])
            if self.change is not None:
                part.data = self.change(part.data)
            yield rows, part

    def take(self, rows: Any, columns: Any = slice(None)) -> sparse.csr_matrix:
        """Some rows and columns in memory.

        Parameters
        ----------
        rows, columns
            Slice, positions or bool.
        """
        wanted = np.arange(self.shape[0])[rows]
        order = np.argsort(wanted, kind="stable")
        sorted_rows, parts = wanted[order], []
        for here, part in self.blocks():
            lo, hi = np.searchsorted(sorted_rows, [here.start, here.stop])
            if hi > lo:
                parts.append(part[sorted_rows[lo:hi] - here.start][:, columns])
        if not parts:
            return sparse.csr_matrix((0, len(np.arange(self.shape[1])[columns])))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        found = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        return found if (np.diff(order) == 1).all() else sparse.csr_matrix(found[back])
