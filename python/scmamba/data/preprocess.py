"""What a cell looks like to a model: its counts over the model's genes, scaled to 10,000, log1p (paper, Methods; spec "Input").

The same function serves training, inference, the server and R. It reads counts or log-normalised values, says which it
found, keeps sparse data sparse and works row block by row block, so a backed file is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .._errors import DataError
from ..genes import MIN_COVERAGE, GeneMatch, Vocabulary, match_adata

if TYPE_CHECKING:
    from anndata import AnnData

#: Counts of a cell are scaled to this total before log1p (paper, Methods).
SCALE = 1e4
#: Cells with fewer counts were left out of training (paper): the model has never seen such a cell.
MIN_TOTAL = 200
#: Values above this cannot be natural logs of CP10k: log1p(1e4) = 9.2; a little room for other scales.
_LOG_CEILING = 20.0

Kind = Literal["counts", "log1p", "log1p_counts"]


@dataclass(frozen=True)
class Values:
    """What the numbers of a matrix are, and the sentence that says so."""

    kind: Kind
    scale: float
    sentence: str


@dataclass
class Cells:
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
    values: Values
    columns: np.ndarray
    genes: np.ndarray

    def __len__(self) -> int:
        return self.adata.n_obs

    def linear(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """(r, n_vars) float64: the cells' counts, or their relative counts where logs were given."""
        block = _to_csr(_matrix(self.adata, self.layer)[rows])
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
            (np.ones(len(known)), (known, slot[self.match.positions[known]])), shape=(self.adata.n_vars, len(self.genes))
        )

    def blocks(self, size: int) -> Iterator[slice]:
        """Consecutive row slices of at most ``size`` cells."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def log1p_cp10k(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """log1p(1e4 * counts / totals), float32, same sparsity; a cell without counts stays empty.

    ``counts`` (r, m) CSR, ``totals`` (r,). Computed in float64, rounded once.
    """
    factor = np.divide(SCALE, totals, out=np.zeros(len(totals)), where=totals > 0)
    result = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    result.data *= np.repeat(factor, np.diff(result.indptr))
    np.log1p(result.data, out=result.data)
    result = result.astype(np.float32)
    result.eliminate_zeros()
    return result


def read_cells(
    adata: AnnData,
    vocabulary: Vocabulary,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    force: bool = False,
    min_coverage: float = MIN_COVERAGE,
) -> Cells:
    """Check the data, match its genes and make the cells readable for a model.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed. ``layer`` names the matrix to read; default ``X``.
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
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes. At least one of each is needed.")
    if not adata.obs_names.is_unique:
        again = adata.obs_names[adata.obs_names.duplicated()]
        raise DataError(
            f"{len(again)} cell names stand more than once ({', '.join(map(str, again[:3]))}, ...). Make them unique first: "
            "adata.obs_names_make_unique()."
        )
    if layer is not None and layer not in adata.layers:
        raise DataError(f"There is no layer '{layer}'; the layers are {list(adata.layers) or 'none'}. Leave layer out to use X.")
    if layer is None and adata.X is None:
        raise DataError(f"X is empty; name one of the layers {list(adata.layers)} with layer=...")
    match = match_adata(adata, vocabulary, gene_column=gene_column)
    match.check(force=force, min_coverage=min_coverage)
    values = describe_values(_matrix(adata, layer), force=force)
    if values.kind == "log1p" and match.duplicates:
        raise DataError(
            f"{match.duplicates} genes stand in more than one row, and logarithms cannot be added up. Give raw counts "
            "(they are summed), or keep one row per gene."
        )
    known = match.matched
    genes, first = np.unique(match.positions[known], return_index=True)
    return Cells(adata, layer, match, values, known[first], genes)


def describe_values(matrix: Any, *, force: bool = False, block: int = 2000) -> Values:
    """Tell counts from log-normalised values, reading the whole matrix once, ``block`` cells at a time.

    Counts: non-negative integers (non-integers above 20 pass as corrected counts). Logs: values up to 20 whose expm1 sums to one
    constant per cell (log1p of CP10k, CPM, ...) or is integer itself (log1p of counts, as SCTransform stores).

    Raises
    ------
    DataError
        NaN or infinite, negative (scaled or centred) values, all zero, or logs on a scale that cannot be recovered.
    """
    smallest, largest, integer, log_integer = np.inf, -np.inf, True, True
    sums = []
    for start in range(0, matrix.shape[0], block):
        rows = _to_csr(matrix[start : start + block])
        data = rows.data
        if not np.isfinite(data).all():
            bad = int((~np.isfinite(data)).sum())
            raise DataError(f"{bad} values are NaN or infinite. Raw counts are expected; remove or repair those entries first.")
        if len(data):
            smallest, largest = min(smallest, float(data.min())), max(largest, float(data.max()))
            integer = integer and bool((data == np.rint(data)).all())
        if smallest < 0:
            raise DataError(
                f"The values go down to {smallest:.3g}: this looks like scaled or centred data (ScaleData, sc.pp.scale). "
                "Give raw counts, or log-normalised values before scaling."
            )
        if not integer and largest <= _LOG_CEILING:
            back = np.expm1(data)
            log_integer = log_integer and bool(np.allclose(back, np.rint(back), atol=1e-3, rtol=1e-5))
            rows.data = back
            sums.append(np.asarray(rows.sum(axis=1)).ravel())
    if largest <= 0:
        raise DataError("Every value is zero: there is nothing to read in this matrix.")
    if integer:
        return Values("counts", SCALE, f"X holds raw counts (integers, largest {largest:.0f})")
    if largest > _LOG_CEILING:
        return Values("counts", SCALE, f"X holds non-integer counts (largest {largest:.1f}), read as corrected counts")
    if log_integer:
        return Values("log1p_counts", SCALE, "X holds log1p of counts; the counts are taken back from it")
    totals = np.concatenate(sums)
    totals = totals[totals > 0]
    scale = float(np.median(totals))
    spread = float(np.quantile(totals, 0.95) / max(np.quantile(totals, 0.05), 1e-12))
    if spread > 1.5 and not force:
        raise DataError(
            f"The values look like logarithms, but expm1 of a cell sums to anything between {np.quantile(totals, 0.05):,.0f} and "
            f"{np.quantile(totals, 0.95):,.0f}; log1p of values normalised to one total per cell (10,000) is expected. Give raw counts (R: "
            'layer = "counts"), or normalise all genes before selecting some. force=True takes them as they are.'
        )
    return Values("log1p", scale, f"X holds log-normalised values (expm1 sums to about {scale:,.0f} per cell)")


def _matrix(adata: AnnData, layer: str | None) -> Any:
    return adata.X if layer is None else adata.layers[layer]


def _to_csr(block: Any) -> sparse.csr_matrix:
    """A float64 CSR copy of a block of rows, dense, sparse or backed, without stored zeros."""
    if not sparse.issparse(block):
        block = np.asarray(block)
        if block.dtype.kind not in "iufb":
            raise DataError(f"The matrix holds {block.dtype} values; numbers are expected.")
    result = sparse.csr_matrix(block, dtype=np.float64, copy=True)
    result.sum_duplicates()
    result.eliminate_zeros()
    return result
