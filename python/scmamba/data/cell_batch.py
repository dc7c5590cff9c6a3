"""A block of cells read from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    pass


@dataclass
class CellBatch:
    """Some cells.

    Attributes
    ----------
    values
        (r, L) float32 CSR of log1p(CP10k) over the whole vocabulary.
    totals
        (r,) counts over the vocabulary's genes.
    cells, files
        (r,) numbers of the cells in the collection's files taken together, and of their files.
    """

    values: sparse.csr_matrix
    totals: np.ndarray
    cells: np.ndarray
    files: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: np.ndarray) -> CellBatch:
        """The cells at ``rows``."""
        return CellBatch(self.values[rows], self.totals[rows], self.cells[rows], self.files[rows])
