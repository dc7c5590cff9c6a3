"""What the values of a matrix are: raw counts, corrected counts, logarithms, or something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from ..utils.errors import DataError

if TYPE_CHECKING:
    pass

#: Counts of a cell are scaled to this total before log1p (paper, Methods).
SCALE = 1e4
#: ValueScale above this cannot be natural logs of CP10k: log1p(1e4) = 9.2; a little room for other scales.
_LOG_CEILING = 20.0
ValueKind = Literal["counts", "log1p", "log1p_counts"]


@dataclass(frozen=True)
class ValueScale:
    """What the numbers of a matrix are, and the sentence that says so."""

    kind: ValueKind
    scale: float
    sentence: str


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


def detect_value_scale(matrix: Any, *, force: bool = False, block: int = 2000) -> ValueScale:
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
        rows = to_csr(matrix[start : start + block])
        data = rows.data
        if not np.isfinite(data).all():
            bad = int((~np.isfinite(data)).sum())
            raise DataError(
                f"{bad} values are NaN or infinite. Raw counts are expected; remove or repair those entries first."
            )
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
            log_integer = log_integer and bool(
                np.allclose(back, np.rint(back), atol=1e-3, rtol=1e-5)
            )
            rows.data = back
            sums.append(np.asarray(rows.sum(axis=1)).ravel())
    if largest <= 0:
        raise DataError("Every value is zero: there is nothing to read in this matrix.")
    if integer:
        return ValueScale("counts", SCALE, f"X holds raw counts (integers, largest {largest:.0f})")
    if largest > _LOG_CEILING:
        return ValueScale(
            "counts",
            SCALE,
            f"X holds non-integer counts (largest {largest:.1f}), read as corrected counts",
        )
    if log_integer:
        return ValueScale(
            "log1p_counts", SCALE, "X holds log1p of counts; the counts are taken back from it"
        )
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
    return ValueScale(
        "log1p", scale, f"X holds log-normalised values (expm1 sums to about {scale:,.0f} per cell)"
    )


def to_csr(block: Any) -> sparse.csr_matrix:
    """A float64 CSR copy of a block of rows, dense, sparse or backed, without stored zeros."""
    if not sparse.issparse(block):
        block = np.asarray(block)
        if block.dtype.kind not in "iufb":
            raise DataError(f"The matrix holds {block.dtype} values; numbers are expected.")
    result = sparse.csr_matrix(block, dtype=np.float64, copy=True)
    result.sum_duplicates()
    result.eliminate_zeros()
    return result
