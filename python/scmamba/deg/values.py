"""What the tests see: log-normalised values, cells x genes, and how they were recognised."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from ..utils.errors import DataError

Scale = Literal["auto", "counts", "log"]
TARGET = 1e4
# log1p(10,000) is 9.2 and log2 of a million 20: larger fractional values are neither, but TPM, CPM or the
# like.
_LARGEST_LOG = 20.0
_log = logging.getLogger(__name__)


def resolve_layer(adata: Any, layer: str | None) -> tuple[Any, str]:
    """The matrix behind a layer's name; None, ``"X"`` and a missing ``"counts"`` or ``"raw"`` mean X."""
    if layer in adata.layers:
        return adata.layers[layer], f"layers[{layer!r}]"
    if layer is None or layer in ("X", "counts", "raw"):
        return adata.X, "X"
    raise DataError(
        f"There is no layer {layer!r}. The object has X and the layers "
        f"{', '.join(adata.layers) or '(none)'}. The imputed values of scMamba are layers['scmamba'], "
        "written by scmamba.impute()."
    )


def as_csr(matrix: Any) -> sp.csr_matrix:
    """Any matrix as CSR without explicit zeros; the caller's object is never changed."""
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    out = sp.csr_matrix(matrix)
    if out.nnz and not out.data.all():
        out = (
            out.copy() if sp.issparse(matrix) else out
        )  # it may share its arrays with the caller's
        out.eliminate_zeros()
    return out


def recognise(data: np.ndarray, source: str) -> str:
    """``"counts"`` or ``"log"``, from the non-zero values.

    Raises
    ------
    DataError
        If the values are neither: infinite, or fractional and far too large for logarithms.
    """
    if np.issubdtype(data.dtype, np.integer) or data.dtype == bool:
        return "counts" if data.size and data.min() >= 0 else "log"
    whole, largest, smallest = data.size > 0, -np.inf, np.inf
    for start in range(0, data.size, 1 << 22):  # in pieces: a copy of all values may not fit
        part = data[start : start + (1 << 22)]
        if np.isinf(part).any():
            raise DataError(
                f"{source} holds infinite values. Recompute the normalisation before testing."
            )
        part = part[~np.isnan(part)]
        if part.size:
            whole = whole and bool(np.all(part % 1 == 0))
            largest, smallest = max(largest, float(part.max())), min(smallest, float(part.min()))
    if whole and smallest >= 0:
        return "counts"
    if largest > _LARGEST_LOG:
        raise DataError(
            f"The values of {source} go up to {largest:,.0f} and are not whole numbers: neither counts nor "
            "logarithms. Pass raw counts or log1p of counts per 10,000; if these values are what you want "
            "tested, say scale='log'."
        )
    return "log"


class Source(NamedTuple):
    """A (cells, genes) CSR matrix and the ``totals`` (cells,) to normalise it by; None: log values."""

    matrix: sp.csr_matrix
    totals: np.ndarray | None

    def logs(self, cells: Any = slice(None), genes: Any = slice(None)) -> sp.csr_matrix:
        """Log values, float64, of some cells and genes; counts are normalised by the totals of all genes."""
        part = self.matrix[cells][:, genes] if not _is_all(genes) else self.matrix[cells]
        return (
            part.astype(np.float64) if self.totals is None else normalise(part, self.totals[cells])
        )


def _is_all(index: Any) -> bool:
    return isinstance(index, slice) and index == slice(None)


def layer_source(adata: Any, layer: str | None = None, scale: Scale = "auto") -> Source:
    """One layer of an AnnData (None: X), recognised but not yet normalised.

    Raises
    ------
    DataError
        If the values are neither counts nor logs, or negative where counts were promised.
    """
    matrix, where = resolve_layer(adata, layer)
    if matrix is None:
        raise DataError("This AnnData has no X. Name a layer that holds the values: layer='...'.")
    return as_source(matrix, where, scale)


def as_source(matrix: Any, where: str, scale: Scale = "auto") -> Source:
    """Any matrix of counts or log values, recognised; ``where`` names it in messages."""
    csr = as_csr(matrix)
    kind = recognise(csr.data, where) if scale == "auto" else scale
    if kind == "log":
        _log.info("%s: taken as log values, used as they are", where)
        return Source(csr, None)
    if csr.nnz and csr.data.min() < 0:
        raise DataError(
            f"{where} holds negative values ({csr.data.min():g}): these are not counts."
        )
    _log.info("%s: raw counts, normalised to log1p of 10,000 per cell", where)
    return Source(csr, np.asarray(csr.sum(axis=1, dtype=np.float64)).ravel())


def normalise(counts: sp.csr_matrix, totals: np.ndarray | None = None) -> sp.csr_matrix:
    """log1p(10,000 x count / the cell's total), float64; ``totals`` (cells,) if genes were taken out."""
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    out = sp.csr_matrix(
        (counts.data.astype(np.float64), counts.indices, counts.indptr), shape=counts.shape
    )
    # The order of operations is R's (count / total * 10,000), so that the last digit agrees too.
    with np.errstate(divide="ignore", invalid="ignore"):
        out.data /= np.repeat(totals, np.diff(out.indptr))
        out.data *= TARGET
    np.log1p(out.data, out=out.data)
    return out
