"""Cells as a model reads them: counts over the model's genes, scaled to 10,000, log1p (paper, Methods).

The same function serves training, inference, the server and R. It reads counts or log-normalized values, names what it found, keeps
sparse data sparse and reads one block of rows at a time, so that a backed file is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..genes import MIN_COVERAGE, GeneMatch, Vocabulary, match_adata
from ..utils.errors import DataError
from .selection import SelectedMatrix, select_matrix
from .values import ValueScale, log1p_cp10k

if TYPE_CHECKING:
    from anndata import AnnData

#: Cells with fewer counts were not used for training (paper).
MIN_TOTAL = 200


@dataclass
class CellReader:
    """Cells as a model reads them, block by block from an AnnData object.

    Attributes
    ----------
    adata
        The object; where ``adata.raw`` is read, an object that holds it with its own genes.
    selected
        The matrix that is read.
    match
        Which column of the data is which gene of the model.
    values
        What the numbers were found to be.
    columns, genes
        (m,) columns of the data that are input of the model (first row of each gene) and (m,) their positions in the
        vocabulary, both in the model's order.
    """

    adata: AnnData
    selected: SelectedMatrix
    match: GeneMatch
    values: ValueScale
    columns: np.ndarray
    genes: np.ndarray

    def __len__(self) -> int:
        result: int = self.adata.n_obs
        return result

    def linear(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Counts of some cells, or their relative counts if the values are logarithms.

        Parameters
        ----------
        rows
            Slice or positions of cells.

        Returns
        -------
        (r, n_vars) float64 CSR.
        """
        block = self.selected.rows(rows)
        block.data = self.values.linear(block.data)
        return block

    def counts(self, rows: slice | np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts of some cells. If the values are logarithms of scaled counts, a cell's smallest value counts as one.

        Parameters
        ----------
        rows
            Slice or positions of cells.

        Returns
        -------
        (r, n_vars) counts and (r,) total counts.
        """
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

        Parameters
        ----------
        linear
            (r, n_vars) CSR.

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
        """(n_vars, m) 0/1: sums the rows of one gene, drops genes outside the model's list."""
        known = self.match.matched
        slot = np.full(len(self.match.vocabulary), -1)
        slot[self.genes] = np.arange(len(self.genes))
        return sparse.csr_matrix(
            (np.ones(len(known)), (known, slot[self.match.positions[known]])),
            shape=(self.adata.n_vars, len(self.genes)),
        )

    def blocks(self, size: int) -> Iterator[slice]:
        """Consecutive ranges of cells.

        Parameters
        ----------
        size
            Maximum number of cells of each.

        Yields
        ------
        Slices of rows.
        """
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
    same_genes: bool = False,
    any_genes: bool = False,
) -> CellReader:
    """Check the data, match its genes and make the cells readable for a model.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    vocabulary
        Genes of the model.
    layer
        Matrix to read: a layer, ``"raw"`` (``adata.raw`` with its genes), or ``X`` by default.
    gene_column
        Column of ``var`` with the gene names; by default the index or the common column that matches most genes.
    force
        Accept few genes and logarithms of an unknown scale; never another species, NaN or negative values.
    min_coverage
        Smallest share of the model's genes that the data have to measure.
    same_genes
        The result has a value for every gene of ``adata``: refuse ``layer="raw"`` if ``adata.raw`` has other genes.
    any_genes
        For verbs that use all measured genes and normalize over them: accept any number of human genes, and logarithms whose cells
        have different totals.

    Returns
    -------
    CellReader

    Raises
    ------
    DataError
        Empty object, repeated cell names, no such layer, NaN, negative or scaled values, logarithms on a scale that cannot be recovered.
    GeneError
        Genes that do not fit (see :meth:`scmamba.genes.GeneMatch.check`).

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scmamba.genes import Vocabulary
    >>> genes = ["ENSG00000132639", "ENSG00000131095"]
    >>> cells = anndata.AnnData(np.array([[3, 1], [0, 2]]), var=pd.DataFrame(index=genes))
    >>> reader = read_cells(cells, Vocabulary.from_ids(genes))
    >>> reader.values.sentence
    'X holds raw counts (integers, largest 3)'
    """
    check_cells(adata)
    selected = select_matrix(adata, layer)
    if selected.name == "raw":
        adata = _with_raw(adata, selected, same_genes)
    match = match_adata(adata, vocabulary, gene_column=gene_column)
    if selected.is_gene is not None:
        match.ignore(~selected.is_gene)
    match.check(force=force or any_genes, min_coverage=min_coverage)
    values = selected.detect(force=force, any_total=any_genes)
    known = match.matched
    genes, first = np.unique(match.positions[known], return_index=True)
    return CellReader(adata, selected, match, values, known[first], genes)


def check_cells(adata: AnnData) -> None:
    """Refuse an object without cells or genes, and repeated cell names.

    Parameters
    ----------
    adata
        Cells x genes.

    Raises
    ------
    DataError
        What was found, what is expected, and what to do.
    """
    if hasattr(adata, "mod") or not isinstance(adata.obs, pd.DataFrame):
        select_matrix(adata)  # refuses a MuData object, or one that was read lazily
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(
            f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes. At least one of each is needed."
        )
    if not adata.obs_names.is_unique:
        again = adata.obs_names[adata.obs_names.duplicated()]
        raise DataError(
            f"{len(again)} cell names are duplicated ({', '.join(map(str, again[:3]))}, ...). Make them unique first: "
            "adata.obs_names_make_unique()."
        )


def _with_raw(adata: AnnData, selected: SelectedMatrix, same_genes: bool) -> AnnData:
    """An object that has ``adata.raw`` as its matrix, without a copy."""
    import anndata

    same = selected.matrix.shape[1] == adata.n_vars and selected.var.index.equals(adata.var.index)
    if same_genes and not same:
        raise DataError(
            f"adata.raw holds {selected.matrix.shape[1]:,} genes and the object {adata.n_vars:,}, so values for raw's genes have no place in "
            "it. Make an object of them first: adata.raw.to_adata()."
        )
    return adata if same else anndata.AnnData(selected.matrix, obs=adata.obs, var=selected.var)
