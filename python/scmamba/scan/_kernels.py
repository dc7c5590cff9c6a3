"""The fused scan as numba kernels: one job is one cell, one direction and one block of channels.

A job is a row of 64-bit integers (addresses, byte strides, sizes; see ``Field``). The state of a block of
channels, (vectors, N, 16), stays in the first-level cache for the whole sequence; nothing of size
L x E x N ever exists. Rows of one job group (the two directions of one block) run one after the other on
the same thread, so the sum over directions and the gate need no second pass and no lock.
"""

from __future__ import annotations


from enum import IntEnum

import numba as nb
from numba import types

from ._vector import (
    bload,
    fstore,
    iload,
    prefetch,
    vadd,
    vconst_ln2,
    vec,
    vexp2,
    vexp2_product,
    vfma,
    vload,
    vmul,
    vsigmoid,
    vsoftplus,
    vstore,
    vsub,
    vsum,
    vzero,
    within,
)

TILE = 32  # time steps between two kept states; the backward pass recomputes this many at a time
AHEAD = 12  # rows to prefetch ahead



class Field(IntEnum):
    """What a job's integers mean. Addresses point at the first element of the job's block of channels."""

    U = 0
    DELTA = 1
    B = 2
    C = 3
    Z = 4  # 0: no gate
    Y = 5
    KEPT = 6  # states before every tile, 0: do not keep
    A = 7  # (vectors, N, 16), times log2(e)
    D = 8
    BIAS = 9
    LIMIT = 10  # (channels,): the largest dt for which no exponent leaves the normal range
    STRIDE_U = 11
    STRIDE_DELTA = 12
    STRIDE_B = 13
    STRIDE_C = 14
    STRIDE_Z = 15
    STRIDE_Y = 16
    STRIDE_KEPT = 17
    LENGTH = 18
    STATES = 19
    VECTORS = 20
    REVERSE = 21
    FIRST = 22  # first direction of the group: write y (and dz), do not add
    LAST = 23  # last direction of the group: apply the gate
    DOUT = 24
    DU = 25
    DDELTA = 26
    DB = 27
    DC = 28
    DZ = 29
    DA = 30
    DD = 31
    DBIAS = 32
    STRIDE_DOUT = 33
    STRIDE_DX = 34  # rows of du, ddelta and dz
    STRIDE_DBC = 35


FIELDS = len(Field)

# numba reads IntEnum members slowly at compile time; plain integers compile fast
U, DELTA, B_, C_, Z, Y, KEPT, A_, D_, BIAS, LIMIT = (8 * int(f) for f in list(Field)[:11])
S_U, S_DELTA, S_B, S_C, S_Z, S_Y, S_KEPT = (8 * int(f) for f in list(Field)[11:18])
LENGTH, STATES, VECTORS, REVERSE, FIRST, LAST = (8 * int(f) for f in list(Field)[18:24])
DOUT, DU, DDELTA, DB, DC, DZ, DA, DD, DBIAS, S_DOUT, S_DX, S_DBC = (8 * int(f) for f in list(Field)[24:])
ROW = 8 * FIELDS

_i64 = types.int64
_options = {"nogil": True, "cache": True, "error_model": "numpy"}


def scratch_bytes(states: int, vectors: int) -> int:
    """Room one thread needs for either kernel."""
    column = 64 * states
    return column * (vectors + (2 * TILE + 1) + 2 * TILE + 1) + 3 * 64 * TILE + 4096


@nb.njit(vec(_i64, _i64, _i64, _i64, vec, vec, vec, _i64), inline="always", **_options)
def _steps(h, a, b, c, dt, dtu, y, states):
    """All states of one vector of channels, one time step; returns y + C h."""
    for n in range(states):
        decay = vexp2_product(dt, vload(a + 64 * n))
        state = vfma(decay, vload(h + 64 * n), vmul(dtu, bload(b + 4 * n)))
        vstore(h + 64 * n, state)
        y = vfma(state, bload(c + 4 * n), y)
    return y


@nb.njit(vec(_i64, _i64, _i64, _i64, vec, vec, vec, _i64), inline="always", **_options)
def _steps_any(h, a, b, c, dt, dtu, y, states):
    """``_steps`` for any exponent: underflow to 0, NaN stays NaN."""
    for n in range(states):
        decay = vexp2(vmul(dt, vload(a + 64 * n)))
        state = vfma(decay, vload(h + 64 * n), vmul(dtu, bload(b + 4 * n)))
        vstore(h + 64 * n, state)
        y = vfma(state, bload(c + 4 * n), y)
    return y


@nb.njit(types.void(_i64, _i64), **_options)
def forward_job(job, scratch):
    """Scan one block of channels of one cell in one direction."""
    length, states, vectors = iload(job + LENGTH), iload(job + STATES), iload(job + VECTORS)
    u0, delta0, b0, c0 = iload(job + U), iload(job + DELTA), iload(job + B_), iload(job + C_)
    z0, y0, kept = iload(job + Z), iload(job + Y), iload(job + KEPT)
    a0, d0, bias0, limit0 = iload(job + A_), iload(job + D_), iload(job + BIAS), iload(job + LIMIT)
    s_u, s_delta, s_b, s_c = iload(job + S_U), iload(job + S_DELTA), iload(job + S_B), iload(job + S_C)
    s_z, s_y, s_kept = iload(job + S_Z), iload(job + S_Y), iload(job + S_KEPT)
    reverse, first, gate = iload(job + REVERSE), iload(job + FIRST), iload(job + LAST) * z0
    column = 64 * states
    ahead = -AHEAD if reverse else AHEAD
    for i in range(vectors * states):
        vstore(scratch + 64 * i, vzero())
    for step in range(length):
        t = length - 1 - step if reverse else step
        if kept != 0 and step % TILE == 0:
            for i in range(vectors * states):
                vstore(kept + 64 * i, vload(scratch + 64 * i))
            kept += s_kept
        b, c = b0 + t * s_b, c0 + t * s_c
        for v in range(vectors):
            o = 64 * v
            prefetch(delta0 + (t + ahead) * s_delta + o)
            prefetch(u0 + (t + ahead) * s_u + o)
            prefetch(y0 + (t + ahead) * s_y + o)
            dt = vsoftplus(vadd(vload(delta0 + t * s_delta + o), vload(bias0 + o)))
            u = vload(u0 + t * s_u + o)
            y = vmul(vload(d0 + o), u)
            if not first:
                y = vadd(y, vload(y0 + t * s_y + o))
            h, a = scratch + v * column, a0 + v * column
            if within(dt, vload(limit0 + o)):
                y = _steps(h, a, b, c, dt, vmul(dt, u), y, states)
            else:
                y = _steps_any(h, a, b, c, dt, vmul(dt, u), y, states)
            if gate != 0:
                prefetch(z0 + (t + ahead) * s_z + o)
                z = vload(z0 + t * s_z + o)
                y = vmul(y, vmul(z, vsigmoid(z)))
            vstore(y0 + t * s_y + o, y)


@nb.njit(vec(_i64, _i64, _i64, _i64, _i64, vec, vec, vec, vec, _i64), inline="always", **_options)
def _recompute(h, decays, a, b, c, dt, limit, dtu, y, states):
    """One step of the states again, keeping the decays and the states; returns y + C h."""
    column = 64 * states
    fast = within(dt, limit)
    for n in range(states):
        if fast:
            decay = vexp2_product(dt, vload(a + 64 * n))
        else:
            decay = vexp2(vmul(dt, vload(a + 64 * n)))
        vstore(decays + 64 * n, decay)
        state = vfma(decay, vload(h + 64 * n), vmul(dtu, bload(b + 4 * n)))
        vstore(h + column + 64 * n, state)
        y = vfma(state, bload(c + 4 * n), y)
    return y


@nb.njit(types.void(_i64, _i64), **_options)
def backward_job(job, scratch):
    """Gradients of one block of channels of one cell in one direction, tile by tile from the end."""
    length, states, vectors = iload(job + LENGTH), iload(job + STATES), iload(job + VECTORS)
    u0, delta0, b0, c0 = iload(job + U), iload(job + DELTA), iload(job + B_), iload(job + C_)
    z0, kept0, dout0 = iload(job + Z), iload(job + KEPT), iload(job + DOUT)
    a0, d0, bias0, limit0 = iload(job + A_), iload(job + D_), iload(job + BIAS), iload(job + LIMIT)
    s_u, s_delta, s_b, s_c = iload(job + S_U), iload(job + S_DELTA), iload(job + S_B), iload(job + S_C)
    s_z, s_kept, s_dout = iload(job + S_Z), iload(job + S_KEPT), iload(job + S_DOUT)
    s_dx, s_dbc = iload(job + S_DX), iload(job + S_DBC)
    du0, ddelta0, dz0 = iload(job + DU), iload(job + DDELTA), iload(job + DZ)
    db0, dc0 = iload(job + DB), iload(job + DC)
    da0, dd0, dbias0 = iload(job + DA), iload(job + DD), iload(job + DBIAS)
    reverse, first = iload(job + REVERSE), iload(job + FIRST)

    column = 64 * states
    g0 = scratch
    h0 = g0 + vectors * column
    decay0 = h0 + (TILE + 1) * column
    dbl0 = decay0 + TILE * column
    dcl0 = dbl0 + TILE * column
    dal = dcl0 + TILE * column
    dt0 = dal + column
    slope0 = dt0 + TILE * 64
    dy0 = slope0 + TILE * 64
    for i in range(vectors * states):
        vstore(g0 + 64 * i, vzero())
        vstore(da0 + 64 * i, vzero())
    for v in range(vectors):
        vstore(dd0 + 64 * v, vzero())
        vstore(dbias0 + 64 * v, vzero())

    for tile in range((length + TILE - 1) // TILE - 1, -1, -1):
        start = tile * TILE
        count = min(TILE, length - start)
        for v in range(vectors):
            o = 64 * v
            a, g = a0 + v * column, g0 + v * column
            bias, skip, limit = vload(bias0 + o), vload(d0 + o), vload(limit0 + o)
            kept = kept0 + tile * s_kept + v * column
            for n in range(states):
                vstore(h0 + 64 * n, vload(kept + 64 * n))
                vstore(dal + 64 * n, vzero())
            for i in range(count):
                t = length - 1 - start - i if reverse else start + i
                x = vadd(vload(delta0 + t * s_delta + o), bias)
                dt = vsoftplus(x)
                u = vload(u0 + t * s_u + o)
                dout = vload(dout0 + t * s_dout + o)
                vstore(dt0 + 64 * i, dt)
                vstore(slope0 + 64 * i, vsigmoid(x))
                y = _recompute(
                    h0 + i * column,
                    decay0 + i * column,
                    a,
                    b0 + t * s_b,
                    c0 + t * s_c,
                    dt,
                    limit,
                    vmul(dt, u),
                    vmul(skip, u),
                    states,
                )
                if z0 != 0:
                    z = vload(z0 + t * s_z + o)
                    s = vsigmoid(z)
                    gate = vmul(z, s)
                    # d silu = s (1 + z (1 - s)) = s + gate (1 - s) = s + gate - gate s
                    dz = vmul(vmul(dout, y), vadd(s, vsub(gate, vmul(gate, s))))
                    if not first:
                        dz = vadd(dz, vload(dz0 + t * s_dx + o))
                    vstore(dz0 + t * s_dx + o, dz)
                    dout = vmul(dout, gate)
                vstore(dy0 + 64 * i, dout)
            dd, dbias = vzero(), vzero()
            for i in range(count - 1, -1, -1):
                t = length - 1 - start - i if reverse else start + i
                dt, dy, u = vload(dt0 + 64 * i), vload(dy0 + 64 * i), vload(u0 + t * s_u + o)
                dtu = vmul(dt, u)
                b, c = b0 + t * s_b, c0 + t * s_c
                h, decay = h0 + i * column, decay0 + i * column
                dbl, dcl = dbl0 + i * column, dcl0 + i * column
                ddtu, ddt = vzero(), vzero()
                for n in range(states):
                    e = 64 * n
                    grad = vfma(dy, bload(c + 4 * n), vload(g + e))
                    if v == 0:
                        vstore(dcl + e, vmul(dy, vload(h + column + e)))
                        vstore(dbl + e, vmul(grad, dtu))
                    else:
                        vstore(dcl + e, vfma(dy, vload(h + column + e), vload(dcl + e)))
                        vstore(dbl + e, vfma(grad, dtu, vload(dbl + e)))
                    ddtu = vfma(grad, bload(b + 4 * n), ddtu)
                    carried = vmul(grad, vload(decay + e))
                    vstore(g + e, carried)
                    q = vmul(carried, vload(h + e))
                    ddt = vfma(q, vload(a + e), ddt)
                    vstore(dal + e, vfma(q, dt, vload(dal + e)))
                ddt = vfma(ddtu, u, vmul(ddt, vconst_ln2()))
                ddelta = vmul(ddt, vload(slope0 + 64 * i))
                vstore(du0 + t * s_dx + o, vfma(ddtu, dt, vmul(dy, skip)))
                vstore(ddelta0 + t * s_dx + o, ddelta)
                dd = vfma(dy, u, dd)
                dbias = vadd(dbias, ddelta)
            vstore(dd0 + o, vadd(vload(dd0 + o), dd))
            vstore(dbias0 + o, vadd(vload(dbias0 + o), dbias))
            da = da0 + v * column
            for n in range(states):
                vstore(da + 64 * n, vadd(vload(da + 64 * n), vload(dal + 64 * n)))
        for i in range(count):
            t = length - 1 - start - i if reverse else start + i
            for n in range(states):
                fstore(db0 + t * s_dbc + 4 * n, vsum(vload(dbl0 + i * column + 64 * n)))
                fstore(dc0 + t * s_dbc + 4 * n, vsum(vload(dcl0 + i * column + 64 * n)))


@nb.njit(types.void(_i64, _i64, _i64), **_options)
def forward(jobs, count, scratch):
    """Run ``count`` jobs that follow one another in memory."""
    for i in range(count):
        forward_job(jobs + i * ROW, scratch)


@nb.njit(types.void(_i64, _i64, _i64), **_options)
def backward(jobs, count, scratch):
    """Run ``count`` gradient jobs that follow one another in memory."""
    for i in range(count):
        backward_job(jobs + i * ROW, scratch)


# --- depthwise causal convolution + SiLU -------------------------------------------------------------------------

CONV_ROWS = 512  # rows of one unit of work
CONV_TILE = 64  # rows of the backward pass's window


@nb.njit(vec(_i64, _i64, _i64, _i64, _i64, _i64, _i64, _i64, vec), inline="always", **_options)
def _convolved(x, stride, t, length, sign, weight, row, width, total):
    """``bias + sum_k w[W-1-k] x[t - sign k]`` for one vector of channels; ``total`` comes in as the bias."""
    inside = min(width, t + 1 if sign > 0 else length - t)
    for k in range(inside):
        total = vfma(vload(weight + (width - 1 - k) * row), vload(x + (t - sign * k) * stride), total)
    return total


@nb.njit(types.void(*[_i64] * 13), **_options)
def conv_forward(x, s_x, y, s_y, weight, bias, width, vectors, length, start, stop, sign, silu):
    """Rows ``start`` to ``stop`` of one cell; ``weight`` is (width, channels)."""
    row = 64 * vectors
    for t in range(start, stop):
        for v in range(vectors):
            o = 64 * v
            total = _convolved(x + o, s_x, t, length, sign, weight + o, row, width, vload(bias + o))
            if silu:
                total = vmul(total, vsigmoid(total))
            vstore(y + t * s_y + o, total)


@nb.njit(types.void(*[_i64] * 17), **_options)
def conv_backward(
    x, s_x, dy, s_dy, dx, s_dx, weight, bias, dweight, width, vectors, length, start, stop, sign, silu, scratch
):
    """Gradients of rows ``start`` to ``stop``: dx rows, and this unit's share of dweight (width + 1, channels)."""
    row = 64 * vectors
    for v in range(vectors * (width + 1)):
        vstore(dweight + 64 * v, vzero())
    for low in range(start, stop, CONV_TILE):
        high = min(low + CONV_TILE, stop)
        # gradient before the activation for the tile and for the width - 1 rows that read from it
        first = low if sign > 0 else max(0, low - width + 1)
        last = min(length, high + width - 1) if sign > 0 else high
        for v in range(vectors):
            o = 64 * v
            for t in range(first, last):
                g = vload(dy + t * s_dy + o)
                if silu:
                    total = _convolved(x + o, s_x, t, length, sign, weight + o, row, width, vload(bias + o))
                    s = vsigmoid(total)
                    value = vmul(total, s)
                    g = vmul(g, vadd(s, vsub(value, vmul(value, s))))
                vstore(scratch + 64 * (t - first), g)
            dbias = vload(dweight + width * row + o)
            for t in range(low, high):
                g = vload(scratch + 64 * (t - first))
                dbias = vadd(dbias, g)
                total = vzero()
                inside = min(width, length - t if sign > 0 else t + 1)
                for k in range(inside):
                    w = vload(weight + (width - 1 - k) * row + o)
                    total = vfma(w, vload(scratch + 64 * (t + sign * k - first)), total)
                vstore(dx + t * s_dx + o, total)
            vstore(dweight + width * row + o, dbias)
            for k in range(width):
                share = vload(dweight + (width - 1 - k) * row + o)
                for t in range(low, high):
                    source = t - sign * k
                    if 0 <= source < length:
                        g = vload(scratch + 64 * (t - first))
                        share = vfma(g, vload(x + source * s_x + o), share)
                vstore(dweight + (width - 1 - k) * row + o, share)
