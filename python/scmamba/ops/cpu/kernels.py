"""The fused scan as numba kernels: one job is one cell, one direction and one block of channels.

A job is a row of 64-bit integers (addresses, byte strides, sizes; see ``Field``). The state of a block of
channels, (vectors, N, 16), stays in the first-level cache for the whole sequence; nothing of size
L x E x N ever exists. Rows of one job group (the two directions of one block) run one after the other on
the same thread, so the sum over directions and the gate need no second pass and no lock.

No signatures: a kernel compiles at its first call, so inference never waits for the backward pass.
"""

# mypy: ignore-errors

from __future__ import annotations

from enum import IntEnum

import numba as nb
import numpy as np

from .vector import (
    ANY,
    BY_DECAY,
    BY_INPUT,
    DGATE,
    DTU,
    DY,
    INTERLEAVED,
    LANES,
    NORMAL,
    PLANES,
    READ,
    ROWS,
    SLOPE,
    TAPS,
    WIDE,
    convolve_one,
    convolve_silu_one,
    convolve_silu_wide,
    convolve_wide,
    gated_one,
    gated_wide,
    gradients_group,
    gradients_one,
    iload,
    istore,
    prefetch,
    project_many,
    project_one,
    recompute_any,
    recompute_near,
    recompute_normal,
    recompute_one,
    slope_one,
    slope_wide,
    step,
    steps_one,
    steps_only_one,
    steps_only_wide,
    sum_one,
    sum_steps,
    tap_shares,
    ungated_one,
    vadd,
    vfma,
    vln2,
    vload,
    vmax,
    vmul,
    vsplat,
    vstore,
    vsum,
    vzero,
    within,
)
from .vector_math import NEAR

TILE = 32  # time steps between two kept states; the backward pass recomputes this many at a time
SPAN = 8  # time steps the forward pass takes a block of channels through at a time: more of them leave the first-level cache
PLANE = 64 * TILE


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
    WEIGHT = 36  # (vectors, RANK, 16): delta is (B, L, RANK) and is projected here; 0: delta is (B, L, E)
    RANK = 37
    STEEP = 38  # (vectors, N, 16): the largest |A| log2(e) of the state's group, inf where one is positive


FIELDS = len(Field)

# numba reads IntEnum members slowly at compile time; plain integers compile fast
U, DELTA, B_, C_, Z, Y, KEPT, A_, D_, BIAS, LIMIT = (8 * int(f) for f in list(Field)[:11])
S_U, S_DELTA, S_B, S_C, S_Z, S_Y, S_KEPT = (8 * int(f) for f in list(Field)[11:18])
LENGTH, STATES, VECTORS, REVERSE, FIRST, LAST = (8 * int(f) for f in list(Field)[18:24])
DOUT, DU, DDELTA, DB, DC, DZ, DA, DD, DBIAS, S_DOUT, S_DX, S_DBC = (
    8 * int(f) for f in list(Field)[24:36]
)
WEIGHT, RANK, STEEP = 8 * Field.WEIGHT, 8 * Field.RANK, 8 * Field.STEEP
ROW = 8 * FIELDS

OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


_END_0, _END_1, _END_2 = (np.float32(end) for end in NEAR)


def scratch_bytes(states: int, vectors: int) -> int:
    """Room one thread needs for either kernel: see the layout at the top of ``backward_job``."""
    return (
        64 * (2 * states * vectors + INTERLEAVED * (4 * TILE + 2) + vectors * PLANES * TILE) + 4096
    )


@nb.njit(inline="always", **OPTIONS)
def _steps(delta, bias, dt, vectors):
    """dt of one row of the block."""
    whole = vectors - vectors % WIDE
    for v in range(0, whole, WIDE):
        steps_only_wide(delta + 64 * v, bias + 64 * v, dt + 64 * v)
    for v in range(whole, vectors):
        steps_only_one(delta + 64 * v, bias + 64 * v, dt + 64 * v)


@nb.njit(inline="always", **OPTIONS)
def _project(x, stride, weight, rank, out, s_row, s_vector, vectors, count):
    """``count`` rows of the thin delta times the weights of the block."""
    whole = count - count % ROWS
    for v in range(vectors):
        w = weight + v * rank * 64
        for i in range(0, whole, ROWS):
            project_many(x + i * stride, stride, w, rank, out + i * s_row + v * s_vector, s_row)
        for i in range(whole, count):
            project_one(x + i * stride, stride, w, rank, out + i * s_row + v * s_vector, s_row)


@nb.njit(inline="always", **OPTIONS)
def _gate(y, z, out, vectors):
    """One row of the block times silu(z)."""
    whole = vectors - vectors % WIDE
    for v in range(0, whole, WIDE):
        gated_wide(y + 64 * v, z + 64 * v, out + 64 * v)
    for v in range(whole, vectors):
        gated_one(y + 64 * v, z + 64 * v, out + 64 * v)


@nb.njit(inline="always", **OPTIONS)
def _reaches(dt, stride, count, limit, steep, states, out):
    """How far the exponents of each group of states go in ``count`` steps of one vector, to ``out`` (states, 64 bytes each)."""
    inside, top = True, vzero()
    for i in range(count):
        here = vload(dt + i * stride)
        inside &= within(here, limit)
        top = vmax(here, top)
    n = 0
    while n < states:
        reach = ANY
        if inside:
            far = vmul(top, vload(steep + 64 * n))
            reach = NORMAL
            if within(far, vsplat(_END_0)):
                reach = 0
            elif within(far, vsplat(_END_1)):
                reach = 1
            elif within(far, vsplat(_END_2)):
                reach = 2
        istore(out + 64 * n, reach)
        n += INTERLEAVED if n + INTERLEAVED <= states else 1


@nb.njit(**OPTIONS)
def forward_job(job, scratch):
    """Scan one block of channels of one cell in one direction."""
    length, states, vectors = iload(job + LENGTH), iload(job + STATES), iload(job + VECTORS)
    u0, delta0, b0, c0 = iload(job + U), iload(job + DELTA), iload(job + B_), iload(job + C_)
    z0, y0, kept = iload(job + Z), iload(job + Y), iload(job + KEPT)
    a0, d0, bias0, limit0, steep0 = (
        iload(job + A_),
        iload(job + D_),
        iload(job + BIAS),
        iload(job + LIMIT),
        iload(job + STEEP),
    )
    s_u, s_delta, s_b, s_c = (
        iload(job + S_U),
        iload(job + S_DELTA),
        iload(job + S_B),
        iload(job + S_C),
    )
    s_z, s_y, s_kept = iload(job + S_Z), iload(job + S_Y), iload(job + S_KEPT)
    reverse, first, gate = iload(job + REVERSE), iload(job + FIRST), iload(job + LAST) * z0
    weight, rank = iload(job + WEIGHT), iload(job + RANK)
    sign = -1 if reverse else 1
    column, row = 64 * states, 64 * vectors
    h0 = scratch
    dt0 = h0 + vectors * column
    reach = dt0 + SPAN * row
    for i in range(vectors * states):
        vstore(h0 + 64 * i, vzero())
    for start in range(0, length, SPAN):
        count = min(SPAN, length - start)
        origin = length - 1 - start if reverse else start
        if kept != 0 and start % TILE == 0:
            for i in range(vectors * states):
                vstore(kept + 64 * i, vload(h0 + 64 * i))
            kept += s_kept
        if weight != 0:
            _project(
                delta0 + origin * s_delta,
                sign * s_delta,
                weight,
                rank,
                dt0,
                row,
                64,
                vectors,
                count,
            )
        for i in range(count):
            t = origin + sign * i
            if weight != 0:
                _steps(dt0 + i * row, bias0, dt0 + i * row, vectors)
            else:
                _steps(delta0 + t * s_delta, bias0, dt0 + i * row, vectors)
        for v in range(vectors):
            o = 64 * v
            skip, limit = vload(d0 + o), vload(limit0 + o)
            h, a = h0 + v * column, a0 + v * column
            _reaches(dt0 + o, row, count, limit, steep0 + v * column, states, reach)
            for i in range(count):
                t = origin + sign * i
                prefetch(u0 + (t + sign * SPAN) * s_u + o)
                if weight == 0:
                    prefetch(delta0 + (t + sign * SPAN) * s_delta + o)
                dt, u = vload(dt0 + i * row + o), vload(u0 + t * s_u + o)
                y = vmul(skip, u)
                prefetch(y0 + (t + sign * SPAN) * s_y + o)
                if not first:
                    y = vadd(y, vload(y0 + t * s_y + o))
                vstore(
                    y0 + t * s_y + o,
                    vadd(y, step(h, a, b0 + t * s_b, c0 + t * s_c, dt, vmul(dt, u), states, reach)),
                )
        if gate != 0:
            for i in range(count):
                t = origin + sign * i
                _gate(y0 + t * s_y, z0 + t * s_z, y0 + t * s_y, vectors)
                for v in range(vectors):
                    prefetch(z0 + (t + sign * SPAN) * s_z + 64 * v)


@nb.njit(inline="always", **OPTIONS)
def _lane_sums(shares, out, step, count, states):
    """Sums of the lanes of ``count`` rows of ``states`` vectors (a group, or one)."""
    together = LANES // INTERLEAVED if states == INTERLEAVED else 1
    whole = count - count % together if states == INTERLEAVED else 0
    for i in range(0, whole, together):
        sum_steps(shares + 64 * i * states, out + i * step, step)
    for i in range(whole, count):
        for n in range(states):
            sum_one(shares + 64 * (i * states + n), out + i * step + 4 * n)


@nb.njit(inline="always", **OPTIONS)
def _prepare(job, planes, vectors, origin, sign, count):
    """A tile's dt with its slope, dt u, and the gradient before the gate; empty the planes for sums."""
    u0, delta0, z0, dout0 = iload(job + U), iload(job + DELTA), iload(job + Z), iload(job + DOUT)
    s_u, s_delta, s_z, s_dout = (
        iload(job + S_U),
        iload(job + S_DELTA),
        iload(job + S_Z),
        iload(job + S_DOUT),
    )
    bias0, weight, rank = iload(job + BIAS), iload(job + WEIGHT), iload(job + RANK)
    if weight != 0:
        _project(
            delta0 + origin * s_delta,
            sign * s_delta,
            weight,
            rank,
            planes,
            64,
            PLANES * PLANE,
            vectors,
            count,
        )
    for i in range(count):
        t = origin + sign * i
        before = t - sign * TILE
        for v in range(vectors):
            o, dt = 64 * v, planes + v * PLANES * PLANE + 64 * i
            steps_one(
                dt if weight != 0 else delta0 + t * s_delta + o, bias0 + o, dt, dt + SLOPE * PLANE
            )
            dout = dout0 + t * s_dout + o
            if z0 != 0:
                ungated_one(dout, z0 + t * s_z + o, dt + DY * PLANE, dt + DGATE * PLANE)
            else:
                vstore(dt + DY * PLANE, vload(dout))
            vstore(dt + DTU * PLANE, vmul(vload(dt), vload(u0 + t * s_u + o)))
            vstore(dt + READ * PLANE, vzero())
            vstore(dt + BY_INPUT * PLANE, vzero())
            vstore(dt + BY_DECAY * PLANE, vzero())
            prefetch(dout0 + before * s_dout + o)
            prefetch(u0 + before * s_u + o)
            prefetch(z0 + before * s_z + o)
            if weight == 0:
                prefetch(delta0 + before * s_delta + o)


@nb.njit(inline="always", **OPTIONS)
def _finish(job, planes, vectors, origin, sign, count):
    """A tile's gradients of u, delta and z, and its share of those of D and the bias."""
    u0, s_u, du0, ddelta0, dz0 = (
        iload(job + U),
        iload(job + S_U),
        iload(job + DU),
        iload(job + DDELTA),
        iload(job + DZ),
    )
    d0, dd0, dbias0, s_dx = iload(job + D_), iload(job + DD), iload(job + DBIAS), iload(job + S_DX)
    gated, first = iload(job + Z), iload(job + FIRST)
    for v in range(vectors):
        o = 64 * v
        skip, dd, dbias = vload(d0 + o), vzero(), vzero()
        for i in range(count - 1, -1, -1):
            t = origin + sign * i
            at = planes + v * PLANES * PLANE + 64 * i
            u, dy, by_input = (
                vload(u0 + t * s_u + o),
                vload(at + DY * PLANE),
                vload(at + BY_INPUT * PLANE),
            )
            ddt = vfma(by_input, u, vmul(vload(at + BY_DECAY * PLANE), vln2()))
            ddelta = vmul(ddt, vload(at + SLOPE * PLANE))
            vstore(du0 + t * s_dx + o, vfma(by_input, vload(at), vmul(dy, skip)))
            vstore(ddelta0 + t * s_dx + o, ddelta)
            dd = vfma(dy, u, dd)
            dbias = vadd(dbias, ddelta)
            if gated != 0:
                dz = vmul(vfma(skip, u, vload(at + READ * PLANE)), vload(at + DGATE * PLANE))
                if not first:
                    dz = vadd(dz, vload(dz0 + t * s_dx + o))
                vstore(dz0 + t * s_dx + o, dz)
        vstore(dd0 + o, vadd(vload(dd0 + o), dd))
        vstore(dbias0 + o, vadd(vload(dbias0 + o), dbias))


@nb.njit(**OPTIONS)
def backward_job(job, scratch):
    """Gradients of one block of channels of one cell in one direction, tile by tile from the end.

    Within a tile a group of states goes through all vectors of channels, and stays in registers from step to step; the tile's
    states, decays and shares of dB and dC of one group fill the first-level cache and no more.
    """
    length, states, vectors = iload(job + LENGTH), iload(job + STATES), iload(job + VECTORS)
    b0, c0, kept0, s_b, s_c = (
        iload(job + B_),
        iload(job + C_),
        iload(job + KEPT),
        iload(job + S_B),
        iload(job + S_C),
    )
    a0, limit0, steep0, s_kept, s_dbc = (
        iload(job + A_),
        iload(job + LIMIT),
        iload(job + STEEP),
        iload(job + S_KEPT),
        iload(job + S_DBC),
    )
    db0, dc0, da0, dd0, dbias0 = (
        iload(job + DB),
        iload(job + DC),
        iload(job + DA),
        iload(job + DD),
        iload(job + DBIAS),
    )
    reverse = iload(job + REVERSE)
    sign = -1 if reverse else 1

    column = 64 * states
    g0 = scratch  # (vectors, states) gradient of the state, carried from tile to tile
    h0 = g0 + vectors * column  # (TILE + 1, group) states of one vector of channels in the tile
    decay0 = h0 + (TILE + 1) * 64 * INTERLEAVED  # (TILE, group)
    # apart, and not by whole pages: a load waits for a store whose address ends in the same twelve bits
    db_lanes = (
        decay0 + TILE * 64 * INTERLEAVED + 768
    )  # (TILE, group) the lanes' shares of dB, summed over the vectors
    dc_lanes = db_lanes + TILE * 64 * INTERLEAVED + 2048
    da_tile = (
        dc_lanes + TILE * 64 * INTERLEAVED
    )  # (group) the tile's share of dA: short sums lose fewer digits
    reach0 = da_tile + 64 * INTERLEAVED  # (vectors, states) how far the exponents go
    planes = reach0 + vectors * column
    for i in range(vectors * states):
        vstore(g0 + 64 * i, vzero())
        vstore(da0 + 64 * i, vzero())
    for v in range(vectors):
        vstore(dd0 + 64 * v, vzero())
        vstore(dbias0 + 64 * v, vzero())

    for tile in range((length + TILE - 1) // TILE - 1, -1, -1):
        start = tile * TILE
        count = min(TILE, length - start)
        origin = length - 1 - start if reverse else start
        _prepare(job, planes, vectors, origin, sign, count)
        for v in range(vectors):
            limit, steep = vload(limit0 + 64 * v), steep0 + v * column
            _reaches(
                planes + v * PLANES * PLANE, 64, count, limit, steep, states, reach0 + v * column
            )
        n = 0
        while n < states:
            group = INTERLEAVED if n + INTERLEAVED <= states else 1
            b, c = b0 + origin * s_b + 4 * n, c0 + origin * s_c + 4 * n
            for i in range(count * group):
                vstore(db_lanes + 64 * i, vzero())
                vstore(dc_lanes + 64 * i, vzero())
            for v in range(vectors):
                o = v * column + 64 * n
                here, a, g, kept = (
                    planes + v * PLANES * PLANE,
                    a0 + o,
                    g0 + o,
                    kept0 + tile * s_kept + o,
                )
                for i in range(group):
                    vstore(da_tile + 64 * i, vzero())
                if group == 1:
                    recompute_one(
                        here, 64, PLANE, a, kept, b, sign * s_b, c, sign * s_c, h0, decay0, count
                    )
                    gradients_one(
                        here,
                        64,
                        PLANE,
                        a,
                        g,
                        da_tile,
                        b,
                        sign * s_b,
                        c,
                        sign * s_c,
                        h0,
                        decay0,
                        db_lanes,
                        dc_lanes,
                        count,
                    )
                else:
                    reach = iload(reach0 + o)
                    if reach < NORMAL:
                        recompute_near(
                            here,
                            64,
                            PLANE,
                            a,
                            kept,
                            b,
                            sign * s_b,
                            c,
                            sign * s_c,
                            h0,
                            decay0,
                            count,
                        )
                    elif reach == NORMAL:
                        recompute_normal(
                            here,
                            64,
                            PLANE,
                            a,
                            kept,
                            b,
                            sign * s_b,
                            c,
                            sign * s_c,
                            h0,
                            decay0,
                            count,
                        )
                    else:
                        recompute_any(
                            here,
                            64,
                            PLANE,
                            a,
                            kept,
                            b,
                            sign * s_b,
                            c,
                            sign * s_c,
                            h0,
                            decay0,
                            count,
                        )
                    gradients_group(
                        here,
                        64,
                        PLANE,
                        a,
                        g,
                        da_tile,
                        b,
                        sign * s_b,
                        c,
                        sign * s_c,
                        h0,
                        decay0,
                        db_lanes,
                        dc_lanes,
                        count,
                    )
                for i in range(group):
                    vstore(da0 + o + 64 * i, vadd(vload(da0 + o + 64 * i), vload(da_tile + 64 * i)))
            _lane_sums(db_lanes, db0 + origin * s_dbc + 4 * n, sign * s_dbc, count, group)
            _lane_sums(dc_lanes, dc0 + origin * s_dbc + 4 * n, sign * s_dbc, count, group)
            n += group
        _finish(job, planes, vectors, origin, sign, count)


@nb.njit(**OPTIONS)
def forward(jobs, count, scratch):
    """Run ``count`` jobs that follow one another in memory."""
    for i in range(count):
        forward_job(jobs + i * ROW, scratch)


@nb.njit(**OPTIONS)
def backward(jobs, count, scratch):
    """Run ``count`` gradient jobs that follow one another in memory."""
    for i in range(count):
        backward_job(jobs + i * ROW, scratch)


# --- depthwise causal convolution + SiLU ------------------------------------------------------------

CONV_ROWS = 512  # rows of one unit of work
CONV_AHEAD = 8  # rows to prefetch ahead
CONV_TILE = 64  # rows of the backward pass's window


@nb.njit(**OPTIONS)
def conv_forward(x, s_x, y, s_y, weight, bias, width, vectors, length, start, stop, sign, silu):
    """Rows ``start`` to ``stop`` of one cell: ``bias + sum_k weight[W-1-k] x[t - sign k]``, weight (W, E)."""
    row = 64 * vectors
    last = weight + (width - 1) * row
    whole = vectors - vectors % WIDE
    for t in range(start, stop):
        inside = min(width, t + 1 if sign > 0 else length - t)
        here, there, back = x + t * s_x, y + t * s_y, sign * s_x
        for v in range(vectors):
            prefetch(here + CONV_AHEAD * s_x + 64 * v)
        if silu:
            for o in range(0, 64 * whole, 64 * WIDE):
                convolve_silu_wide(here + o, back, last + o, row, inside, bias + o, there + o)
            for o in range(64 * whole, 64 * vectors, 64):
                convolve_silu_one(here + o, back, last + o, row, inside, bias + o, there + o)
        else:
            for o in range(0, 64 * whole, 64 * WIDE):
                convolve_wide(here + o, back, last + o, row, inside, bias + o, there + o)
            for o in range(64 * whole, 64 * vectors, 64):
                convolve_one(here + o, back, last + o, row, inside, bias + o, there + o)


@nb.njit(inline="always", **OPTIONS)
def _slope(dy, z, vectors):
    """z becomes dy times the slope of silu at z, for one row of the block."""
    if vectors == WIDE:
        slope_wide(dy, z, z)
    else:
        for v in range(vectors):
            slope_one(dy + 64 * v, z + 64 * v, z + 64 * v)


@nb.njit(**OPTIONS)
def conv_backward(
    x,
    s_x,
    dy,
    s_dy,
    dx,
    s_dx,
    weight,
    bias,
    dweight,
    width,
    vectors,
    length,
    start,
    stop,
    sign,
    silu,
    scratch,
):
    """Gradients of rows ``start`` to ``stop``: dx, and this unit's share of dweight (width + 1, channels)."""
    row, line = 64 * vectors, 64 * WIDE
    zeros = scratch + line * (CONV_TILE + width)
    for v in range(WIDE):
        vstore(zeros + 64 * v, vzero())
    for v in range(vectors * (width + 1)):
        vstore(dweight + 64 * v, vzero())
    for low in range(start, stop, CONV_TILE):
        high = min(low + CONV_TILE, stop)
        # gradient before the activation for the tile and for the width - 1 rows that read from it
        first = low if sign > 0 else max(0, low - width + 1)
        last = min(length, high + width - 1) if sign > 0 else high
        for begin in range(0, vectors, WIDE):
            block = min(WIDE, vectors - begin)
            # the columns that come next: a stride of whole pages defeats the hardware's prefetcher
            ahead, later = (begin + WIDE, 0) if begin + WIDE < vectors else (0, CONV_TILE)
            for t in range(first, last):
                g = scratch + line * (t - first)
                o = 64 * begin
                for v in range(WIDE):
                    prefetch(x + (t + later) * s_x + 64 * (ahead + v))
                    prefetch(dy + (t + later) * s_dy + 64 * (ahead + v))
                    prefetch(dx + (t + later) * s_dx + 64 * (ahead + v))
                if silu:
                    inside = min(width, t + 1 if sign > 0 else length - t)
                    at, tap = x + t * s_x + o, weight + (width - 1) * row + o
                    if block == WIDE:
                        convolve_wide(at, sign * s_x, tap, row, inside, bias + o, g)
                    else:
                        for e in range(0, 64 * block, 64):
                            convolve_one(
                                at + e, sign * s_x, tap + e, row, inside, bias + o + e, g + e
                            )
                    _slope(dy + t * s_dy + o, g, block)
                else:
                    for v in range(block):
                        vstore(g + 64 * v, vload(dy + t * s_dy + o + 64 * v))
            for t in range(low, high):  # the gradient of x is the same convolution, the other way
                inside = min(width, length - t if sign > 0 else t + 1)
                g, at, tap = (
                    scratch + line * (t - first),
                    dx + t * s_dx + 64 * begin,
                    weight + (width - 1) * row + 64 * begin,
                )
                if block == WIDE:
                    convolve_wide(g, -sign * line, tap, row, inside, zeros, at)
                else:
                    for e in range(0, 64 * block, 64):
                        convolve_one(g + e, -sign * line, tap + e, row, inside, zeros, at + e)
            # rows all of whose taps are inside the sequence
            begins, ends = (
                (max(low, width - 1), high) if sign > 0 else (low, min(high, length - width + 1))
            )
            if width != TAPS or ends < begins:
                begins, ends = high, high
            for v in range(block):
                o, g = 64 * (begin + v), scratch + 64 * v
                last_tap, bias_at = dweight + (width - 1) * row + o, dweight + width * row + o
                if ends > begins:
                    # always in the direction of time: which rows, not which order, depends on the direction
                    start_row = begins if sign > 0 else ends - 1
                    tap_shares(
                        x + start_row * s_x + o,
                        sign * s_x,
                        g + line * (start_row - first),
                        sign * line,
                        ends - begins,
                        last_tap,
                        row,
                        bias_at,
                    )
                for t in range(low, high):
                    if begins <= t < ends:
                        continue
                    slope = vload(g + line * (t - first))
                    vstore(bias_at, vadd(vload(bias_at), slope))
                    for k in range(min(width, t + 1 if sign > 0 else length - t)):
                        share = vfma(
                            slope, vload(x + (t - sign * k) * s_x + o), vload(last_tap - k * row)
                        )
                        vstore(last_tap - k * row, share)


def conv_scratch_bytes(width: int) -> int:
    """Room one thread needs for ``conv_backward``."""
    return 64 * WIDE * (CONV_TILE + width + 1)


# --- residual + RMSNorm ------------------------------------------------------------------------

NORM_ROWS = 256  # rows of one unit of work


@nb.njit(**OPTIONS)
def norm_forward(hidden, residual, weight, total, out, vectors, eps, start, stop):
    """``total = hidden + residual`` and ``out = total / rms(total) * weight``; rows are dense."""
    row = 64 * vectors
    for t in range(start, stop):
        squares = vzero()
        for o in range(t * row, (t + 1) * row, 64):
            x = vadd(vload(hidden + o), vload(residual + o))
            vstore(total + o, x)
            squares = vfma(x, x, squares)
        scale = vsplat(np.float32(1.0 / np.sqrt(np.float64(vsum(squares)) / (16 * vectors) + eps)))
        for o in range(0, row, 64):
            vstore(
                out + t * row + o, vmul(vmul(vload(total + t * row + o), scale), vload(weight + o))
            )


@nb.njit(**OPTIONS)
def norm_backward(dout, dtotal, total, weight, dx, dweight, vectors, eps, start, stop):
    """Gradient of both addends, (dtotal 0: none) and this unit's share of dweight."""
    row = 64 * vectors
    for o in range(0, row, 64):
        vstore(dweight + o, vzero())
    for t in range(start, stop):
        squares, along = vzero(), vzero()
        for o in range(0, row, 64):
            x = vload(total + t * row + o)
            squares = vfma(x, x, squares)
            along = vfma(vmul(vload(dout + t * row + o), vload(weight + o)), x, along)
        mean = np.float64(vsum(squares)) / (16 * vectors) + eps
        scale = 1.0 / np.sqrt(mean)
        pull = vsplat(np.float32(-scale * np.float64(vsum(along)) / (16 * vectors) / mean))
        scale_ = vsplat(np.float32(scale))
        for o in range(0, row, 64):
            x, g = vload(total + t * row + o), vmul(vload(dout + t * row + o), scale_)
            d = vfma(x, pull, vmul(g, vload(weight + o)))
            if dtotal != 0:
                d = vadd(d, vload(dtotal + t * row + o))
            vstore(dx + t * row + o, d)
            vstore(dweight + o, vfma(g, x, vload(dweight + o)))
