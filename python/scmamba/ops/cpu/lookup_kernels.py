"""Scaled rows of a table, as a numba kernel; see ``lookup``."""

# mypy: ignore-errors

from __future__ import annotations

import numba as nb
import numpy as np

from .kernels import OPTIONS
from .vector import iload, vadd, vfma, vload, vmul, vsplat, vstore, vsum, vzero

ROWS = 128  # rows of one unit of work


@nb.njit(**OPTIONS)
def look_up(
    hidden, width, table, columns, rows, length, values, slope, masked, shift, out, eps, start, stop
):
    """Rows ``start`` to ``stop`` of the result, all arrays dense; ``rows`` 0: row t of a sequence is row t of the table."""
    s_hidden, s_out = 64 * width, 64 * columns
    for t in range(start, stop):
        squares = vzero()
        for o in range(t * s_hidden, (t + 1) * s_hidden, 64):
            x = vload(hidden + o)
            squares = vfma(x, x, squares)
        scale = vsplat(np.float32(1.0 / np.sqrt(np.float64(vsum(squares)) / (16 * width) + eps)))
        source = table + s_out * (iload(rows + 8 * t) if rows != 0 else t % length)
        to = out + s_out * t
        if masked[t]:
            for o in range(0, s_out, 64):
                vstore(to + o, vmul(vadd(vload(source + o), vload(shift + o)), scale))
        else:
            value = vsplat(values[t])
            for o in range(0, s_out, 64):
                vstore(to + o, vmul(vfma(value, vload(slope + o), vload(source + o)), scale))
