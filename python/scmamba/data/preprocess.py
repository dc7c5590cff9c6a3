"""What a cell looks like to a model: its counts over the model's genes, scaled to 10,000, log1p (paper, Methods; spec "Input").

The same function serves training, inference, the server and R. It reads counts or log-normalised values, says which it
found, keeps sparse data sparse and works row block by row block, so a backed file is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ..genes import MIN_COVERAGE, GeneMatch, Vocabulary, match_adata
from ..utils.errors import DataError
from .values import ValueScale, detect_value_scale, log1p_cp10k, to_csr

if TYPE_CHECKING:
    from anndata import AnnData

#: CellReader with fewer counts were left out of training (paper): the model has never seen such a cell.
MIN_TOTAL = 200


@dataclass
class CellReader:
    """Cells as a model reads them, drawn lazily from an AnnData object.

    Attributes
    ----------
    match
        Which column of the data is which gene of the model.
    values
        What the numbers were found to be.
    columns, genes
        (m,) columns of the data that feed the model (first row of each gene) and (m,) their positions in the
        vocabulary, both in the model's order.
    """

    adata: AnnData
    layer: str | None
    match: GeneMatch
    values: ValueScale
    columns: np.ndarray
    genes: np.ndarray

    def __len__(self) -> int:
        return self.adata.n_obs

    def linear(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """(r, n_vars) float64: the cells' counts, or their relative counts where logs were given."""
        block = to_csr(_matrix(self.adata, self.layer)[rows])
        if self.values.kind != "counts":
            block.data = np.expm1(block.data)
        return block

    def counts(self, rows: slice | np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
        """(r, n_vars) counts and (r,) depths. Of logs of scaled counts a cell's smallest value is one count."""
        block = self.linear(rows)
        if self.values.kind == "log1p" and block.nnz:
            block.eliminate_zeros()
            size = np.diff(block.indptr)
            full = size > 0
            one = np.ones(block.shape[0])
            one[full] = np.minimum.reduceat(block.data, block.indptr[:-1][full])
            block.data /= np.repeat(one, size)
        return block, np.asarray(block.sum(axis=1)).ravel()

    def to_model(self, linear: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Map a block of :meth:`linear` to the model's genes.

        Returns
        -------
        (r, m) float32 CSR of log1p(CP10k) over the measured genes of the model, in its order (see ``genes``), and
        (r,) float64 the cells' totals over those genes.
        """
        ours = (linear @ self.gather).tocsr()
        ours.sort_indices()
        totals = np.asarray(ours.sum(axis=1)).ravel()
        return log1p_cp10k(ours, totals), totals

    @property
    def gather(self) -> sparse.csr_matrix:
        """(n_vars, m) 0/1: sums the rows of one gene, drops what the model does not know."""
        known = self.match.matched
        slot = np.full(len(self.match.vocabulary), -1)
        slot[self.genes] = np.arange(len(self.genes))
        return sparse.csr_matrix(
            (np.ones(len(known)), (known, slot[self.match.positions[known]])),
            shape=(self.adata.n_vars, len(self.genes)),
        )

    def blocks(self, size: int) -> Iterator[slice]:
        """Consecutive row slices of at most ``size`` cells."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def read_cells(
    adata: AnnData,
    vocabulary: Vocabulary,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    force: bool = False,
    min_coverage: float = MIN_COVERAGE,
) -> CellReader:
    """Check the data, match its genes and make the cells readable for a model.

    Parameters
    ----------
    adata
        CellReader x genes, in memory or backed. ``layer`` names the matrix to read; default ``X``.
    force
        Accept few genes and logs of an unknown scale; never another species, NaN or negative values.

    Raises
    ------
    DataError
        Empty object, repeated cell names, NaN, negative or scaled values, logs on a scale that cannot be recovered.
    GeneError
        Genes that do not fit (see :meth:`scmamba.genes.GeneMatch.check`).
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(
            f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes. At least one of each is needed."
        )
    if not adata.obs_names.is_unique:
        again = adata.obs_names[adata.obs_names.duplicated()]
        raise DataError(
            f"{len(again)} cell names stand more than once ({', '.join(map(str, again[:3]))}, ...). Make them unique first: "
            "adata.obs_names_make_unique()."
        )
    if layer is not None and layer not in adata.layers:
        raise DataError(
            f"There is no layer '{layer}'; the layers are {list(adata.layers) or 'none'}. Leave layer out to use X."
        )
    if layer is None and adata.X is None:
        raise DataError(f"X is empty; name one of the layers {list(adata.layers)} with layer=...")
    match = match_adata(adata, vocabulary, gene_column=gene_column)
    match.check(force=force, min_coverage=min_coverage)
    values = detect_value_scale(_matrix(adata, layer), force=force)
    if values.kind == "log1p" and match.duplicates:
        raise DataError(
            f"{match.duplicates} genes stand in more than one row, and logarithms cannot be added up. Give raw counts "
            "(they are summed), or keep one row per gene."
        )
    known = match.matched
    genes, first = np.unique(match.positions[known], return_index=True)
    return CellReader(adata, layer, match, values, known[first], genes)


def _matrix(adata: AnnData, layer: str | None) -> Any:
    return adata.X if layer is None else adata.layers[layer]
