"""Moving rows of counts to the vocabulary's order, compiled: sorting every row anew would cost more than reading it."""

from __future__ import annotations

import numpy as np

from ..utils.compiled_code import compiled


@compiled(nogil=True)
def remap_columns(
    data: np.ndarray,
    columns: np.ndarray,
    starts: np.ndarray,
    slot: np.ndarray,
    width: int,
    in_order: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a CSR matrix with column j moved to ``slot[j]`` (-1: dropped), columns of one slot summed, zeros dropped, sorted.

    ``in_order``: the columns of every row, and the slots they go to, increase already, so that there is nothing to sum or to sort.

    Returns data (float64), columns (int32) and row starts (int32) of the new matrix of ``width`` columns.
    """
    n = len(starts) - 1
    out, out_columns = np.empty(len(data), np.float64), np.empty(len(data), np.int32)
    out_starts = np.zeros(n + 1, np.int32)
    sums, seen = np.zeros(width), np.zeros(width, np.bool_)
    end = 0
    for i in range(n):
        if in_order:
            for k in range(starts[i], starts[i + 1]):
                if slot[columns[k]] >= 0 and data[k] != 0:
                    out[end], out_columns[end] = data[k], slot[columns[k]]
                    end += 1
            out_starts[i + 1] = end
            continue
        low, high = width, -1
        for k in range(starts[i], starts[i + 1]):
            j = slot[columns[k]]
            if j >= 0 and data[k] != 0:
                sums[j] += data[k]
                seen[j] = True
                low, high = min(low, j), max(high, j)
        for j in range(low, high + 1):
            if seen[j]:
                out[end], out_columns[end] = sums[j], j
                sums[j], seen[j] = 0.0, False
                end += 1
        out_starts[i + 1] = end
    return out[:end].copy(), out_columns[:end].copy(), out_starts
