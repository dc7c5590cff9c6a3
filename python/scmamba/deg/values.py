"""What the tests read: log-normalized values, cells x genes."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..data.file_rows import FileRows
from ..data.row_store import is_in_memory
from ..data.selection import SelectedMatrix, select_matrix
from ..data.values import ValueScale, log1p_cp10k, to_numbers
from ..utils.errors import DataError

Scale = Literal["auto", "counts", "log"]
_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A (cells, genes) matrix that is normalized when it is read.

    Attributes
    ----------
    matrix
        CSR of counts, or of natural logarithms; in memory, or :class:`~scmamba.data.file_rows.FileRows`.
    totals
        (cells,) totals of the counts over all genes; ``None``: the matrix holds logarithms.
    genes
        (genes,) names; of an AnnData only the rows that are genes.
    values
        What the values were found to be, one sentence.
    base
        Base of the logarithms that were read; e for counts.
    """

    matrix: Any
    totals: np.ndarray | None
    genes: pd.Index = pd.Index([])
    values: str = ""
    base: float = np.e

    def logs(self, cells: Any = slice(None), genes: Any = slice(None)) -> sp.csr_matrix:
        """Natural logarithms, float64; counts are normalized by the totals over all genes.

        Parameters
        ----------
        cells, genes
            Which ones: slice, positions or bool.
        """
        if isinstance(self.matrix, FileRows):
            return self._logs_of_file(cells, genes)
        part = self.matrix[cells][:, genes] if not _is_all(genes) else self.matrix[cells]
        if self.totals is None:
            return part.astype(np.float64)
        return log1p_cp10k(part, self.totals[cells], dtype=np.float64)

    def _logs_of_file(self, cells: Any, genes: Any) -> sp.csr_matrix:
        part = self.matrix.take(cells, genes)
        if self.totals is None:
            return part
        return log1p_cp10k(part, self.totals[cells], dtype=np.float64)


def has_odd_values(matrix: Any) -> bool:
    """Whether a matrix holds negative or missing values; one in a file never does (:func:`layer_source`).

    Parameters
    ----------
    matrix
        Of a :class:`Source`.
    """
    return not isinstance(matrix, FileRows) and bool(matrix.nnz > 0 and not matrix.data.min() >= 0)


def _is_all(index: Any) -> bool:
    return isinstance(index, slice) and index == slice(None)


def as_csr(matrix: Any) -> sp.csr_matrix:
    """Any matrix as CSR without explicit zeros; the caller's object is never changed.

    Parameters
    ----------
    matrix
        Dense, sparse or backed.

    Raises
    ------
    DataError
        It does not hold numbers.
    """
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    elif hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if not sp.issparse(matrix):
        matrix = to_numbers(matrix)
    out = sp.csr_matrix(matrix)
    repeated = not out.has_canonical_format
    if repeated or (out.nnz and not out.data.all()):
        # It may share its arrays with the caller's; entries that are stored twice may not fit into their type together.
        out = out.astype(np.float64) if repeated else out.copy()
        out.sum_duplicates()
        out.eliminate_zeros()
    return out


def layer_source(
    adata: Any, layer: str | None = None, scale: Scale = "auto", *, in_blocks: bool = False
) -> Source:
    """One matrix of an AnnData, judged but not yet normalized.

    Parameters
    ----------
    adata
        The object.
    layer
        See :func:`scmamba.data.selection.select_matrix`.
    scale
        ``"auto"``: by the values; ``"counts"`` or ``"log"``: what the caller states.
    in_blocks
        Leave a matrix that is in a file there (:class:`~scmamba.data.file_rows.FileRows`).

    Raises
    ------
    DataError
        There is no such layer; the values are neither counts nor logarithms, or negative, whatever ``scale`` is.
    """
    selected = select_matrix(adata, layer)
    if in_blocks and not is_in_memory(selected.matrix):
        return _source_in_file(selected, scale)
    return _source(selected, scale)


def _source_in_file(selected: SelectedMatrix, scale: Scale) -> Source:
    """As :func:`_source`, without reading the matrix whole; negative values are refused with a stated scale, too."""
    found = None
    if scale == "auto":
        found = selected.classify()
        found.require_usable()
    matrix = FileRows(selected)
    totals, smallest = np.zeros(matrix.shape[0]), 0.0
    for rows, part in matrix.blocks():
        totals[rows] = np.asarray(part.sum(axis=1)).ravel()
        # Missing values stay missing.
        smallest = float(np.minimum(smallest, part.data.min() if part.nnz else 0.0))
    if not smallest >= 0:
        return _source(selected, scale)
    if selected.is_gene is not None:
        _log.info(selected.left_out)
    if _is_logs(found, scale):
        base = np.e if found is None else found.base
        if found is not None and base != np.e:
            matrix = FileRows(selected, found.natural_logs)
        text = f"{_sentence(found, selected, scale)}; used as they are"
        _log.info(text)
        return Source(matrix, None, selected.genes, text, base)
    text = f"{_sentence(found, selected, scale)}; normalized to log1p of 10,000 per cell"
    _log.info(text)
    return Source(matrix, totals, selected.genes, text)


def as_source(
    matrix: Any, where: str, scale: Scale = "auto", genes: pd.Index | None = None
) -> Source:
    """Any matrix of counts or logarithms, judged but not yet normalized.

    Parameters
    ----------
    matrix
        (cells, genes).
    where
        What to call it in messages.
    scale
        As in :func:`layer_source`.
    genes
        (genes,) names; numbers if not given.

    Raises
    ------
    DataError
        As :func:`layer_source`.
    """
    csr = as_csr(matrix)
    names = pd.RangeIndex(csr.shape[1]).map(str) if genes is None else genes
    return _source(SelectedMatrix(csr, pd.DataFrame(index=names), where), scale)


def _source(selected: SelectedMatrix, scale: Scale) -> Source:
    csr, found = as_csr(selected.matrix), None
    if scale == "auto":
        found = selected.classify()
        found.require_usable()
    elif csr.nnz and csr.data.min() < 0:
        raise DataError(
            f"{selected.name} holds negative values ({csr.data.min():g}): these are neither counts nor logarithms of counts."
        )
    if selected.is_gene is not None:
        csr = sp.csr_matrix(csr[:, selected.is_gene])
        _log.info(selected.left_out)
    if _is_logs(found, scale):
        if found is not None and found.base != np.e:
            csr = csr.astype(np.float64)
            csr.data = found.natural_logs(csr.data)
        text = f"{_sentence(found, selected, scale)}; used as they are"
        _log.info(text)
        return Source(csr, None, selected.genes, text, np.e if found is None else found.base)
    text = f"{_sentence(found, selected, scale)}; normalized to log1p of 10,000 per cell"
    _log.info(text)
    totals = np.asarray(csr.sum(axis=1, dtype=np.float64)).ravel()
    return Source(csr, totals, selected.genes, text)


def _is_logs(found: ValueScale | None, scale: Scale) -> bool:
    return scale == "log" if found is None else found.kind != "counts"


def _sentence(found: ValueScale | None, selected: SelectedMatrix, scale: Scale) -> str:
    return f"{selected.name} was stated to hold {scale}" if found is None else found.sentence
