"""What the tests see: log-normalised values, cells x genes, and how they were recognised."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from .._errors import DataError

Scale = Literal["auto", "counts", "log"]
TARGET = 1e4
# log1p(10,000) is 9.2 and log2 of a million 20: larger fractional values are neither, but TPM, CPM or the
# like.
_LARGEST_LOG = 20.0
_log = logging.getLogger(__name__)


class Values(NamedTuple):
    """``matrix`` (cells, genes) CSR float64 on the log scale; ``scale`` says what the input was taken for."""

    matrix: sp.csr_matrix
    scale: str
    source: str


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
        out = out.copy() if out is matrix or out.data is getattr(matrix, "data", None) else out
        out.eliminate_zeros()
    return out


def recognise(data: np.ndarray, source: str) -> str:
    """``"counts"`` or ``"log"``, from the non-zero values.

    Raises
    ------
    DataError
        If the values are neither: infinite, or fractional and far too large for logarithms.
    """
    finite = data[np.isfinite(data)]
    if np.isinf(data).any():
        raise DataError(f"{source} holds infinite values. Recompute the normalisation before testing.")
    if finite.size == 0:
        return "log"
    whole = (
        np.issubdtype(finite.dtype, np.integer)
        or bool(np.all(finite[:100_000] % 1 == 0))
        and bool(np.all(finite % 1 == 0))
    )
    if whole and finite.min() >= 0:
        return "counts"
    if finite.max() > _LARGEST_LOG:
        raise DataError(
            f"The values of {source} go up to {finite.max():,.0f} and are not whole numbers: neither counts "
            "nor logarithms. Pass raw counts or log1p of counts per 10,000; if these values are what you "
            "want tested, say scale='log'."
        )
    return "log"


def normalise(counts: sp.csr_matrix, totals: np.ndarray | None = None) -> sp.csr_matrix:
    """log1p(10,000 x count / the cell's total), float64; ``totals`` (cells,) if genes were taken out."""
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    out = sp.csr_matrix((counts.data.astype(np.float64), counts.indices, counts.indptr), shape=counts.shape)
    # The order of operations is R's (count / total * 10,000), so that the last digit agrees too.
    with np.errstate(divide="ignore", invalid="ignore"):
        out.data /= np.repeat(totals, np.diff(out.indptr))
        out.data *= TARGET
    np.log1p(out.data, out=out.data)
    return out


def log_values(matrix: Any, source: str = "the matrix", scale: Scale = "auto") -> Values:
    """Cells x genes on the natural-log CP10k scale; counts are normalised, log values taken as they are.

    Raises
    ------
    DataError
        If the values are neither counts nor logs, or negative where counts were promised.
    """
    csr = as_csr(matrix)
    kind = recognise(csr.data, source) if scale == "auto" else scale
    if kind == "counts":
        if csr.nnz and csr.data.min() < 0:
            raise DataError(f"{source} holds negative values ({csr.data.min():g}): these are not counts.")
        _log.info("%s: raw counts, normalised to log1p of 10,000 per cell", source)
        return Values(normalise(csr), "counts", source)
    _log.info("%s: taken as log values, used as they are", source)
    return Values(csr.astype(np.float64), "log", source)


def layer_values(adata: Any, layer: str | None = None, scale: Scale = "auto") -> Values:
    """:func:`log_values` of one layer of an AnnData (``None``: X)."""
    matrix, source = resolve_layer(adata, layer)
    if matrix is None:
        raise DataError("This AnnData has no X. Name a layer that holds the values: layer='...'.")
    return log_values(matrix, source, scale)
