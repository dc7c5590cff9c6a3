"""Linear models of many genes, fitted in as many dimensions as there are cells.

With a ridge penalty the weights of the best linear model are a sum of the cells' own values: of ``n`` cells with ``g`` genes only
the ``n x n`` inner products count, and a fit to rows ``L`` with ``L L' = X X'`` has the same optimum as one to ``X``, turned. All base
classifiers and all folds share one matrix of inner products; a fold's is a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import cholesky, solve_triangular

#: More cells are fitted gene by gene: their inner products would take too much memory and time.
MOST_CELLS = 3000
_GENES = 2000  # columns that are dense at a time
_POWERS = 5  # of the inner products, to separate leading components
_JITTER = 1e-10  # of the mean squared length of a cell, added to the diagonal


@dataclass
class CellProducts:
    """Cells and their inner products.

    Attributes
    ----------
    x
        (n, g) values, sparse or dense.
    products
        (n, n) inner products of the rows.
    """

    x: sparse.csr_matrix | np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, x: sparse.csr_matrix | np.ndarray) -> CellProducts | None:
        """From (n, g) values; ``None`` where a fit gene by gene is as fast: more than 3,000 cells, or fewer genes than cells."""
        n, genes = x.shape
        if n > MOST_CELLS or genes <= n:
            return None
        if isinstance(x, np.ndarray):
            dense = np.asarray(x, dtype=np.float64)
            return cls(x, dense @ dense.T)
        products, columns = np.zeros((n, n)), x.tocsc()
        for start in range(0, genes, _GENES):
            part = columns[:, start : start + _GENES].toarray().astype(np.float64, copy=False)
            products += part @ part.T
        return cls(x, products)

    def within(self, rows: np.ndarray) -> CellProducts:
        """Some of the cells: (n,) bool or (r,) positions."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return CellProducts(self.x[rows], self.products[np.ix_(rows, rows)])

    def coordinates(self) -> np.ndarray:
        """(n, n) rows with the same inner products, a lower triangle."""
        n = len(self.products)
        jitter = _JITTER * max(np.trace(self.products) / n, 1e-12)
        lower: np.ndarray = cholesky(self.products + jitter * np.eye(n), lower=True)
        return lower

    def to_genes(self, coordinates: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(k, g) weights of genes from (k, n) weights of :meth:`coordinates`."""
        by_cell = solve_triangular(coordinates, weight.T, lower=True, trans="T")
        return np.ascontiguousarray(np.asarray(self.x.T @ by_cell).T)

    def components(self, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, number) scores and (g, number) basis of the truncated singular value decomposition.

        As :func:`scmamba.neighbors.principal_components` (Halko, Martinsson and Tropp 2011), on the inner products.
        """
        n = len(self.products)
        number = min(number, min(self.x.shape) - 1)
        left = np.random.default_rng(seed).standard_normal((n, min(number + 10, n)))
        for _ in range(_POWERS):
            left = np.linalg.qr(self.products @ left)[0]
        values, turn = np.linalg.eigh(left.T @ self.products @ left)
        size = np.sqrt(np.maximum(values[::-1][:number], 1e-300))
        scores = (left @ turn[:, ::-1][:, :number]) * size
        basis = np.asarray(self.x.T @ (scores / size**2))
        return scores, basis
