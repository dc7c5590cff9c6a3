"""The fused scan on an NVIDIA GPU, in Triton: no compiler has to be installed.

A block of channels keeps its states as an (N, channels) tile whose columns belong to one thread each: the
sum over the states stays inside a thread and no inner loop has shuffles. Time is cut into chunks, because a
whole cell's channels fill only a corner of the chip: every chunk finds its end state from zero, a short scan
over the chunks finds the states that enter them, and every chunk runs again with both directions and the
gate. The backward pass does the same with the gradient of the state, and recomputes the states ``STEPS`` at a
time into registers. The gradients of B and C are sums over channels, not states: their own kernel runs
the two recurrences once more with the tile turned, so that a thread holds channels of few states and these
sums stay inside it too.

Runs on CPU tensors with ``TRITON_INTERPRET=1`` (for tests; keep the length below 64).
"""

# mypy: ignore-errors

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .backends import Direction

CHUNK = 128  # time steps per program
STEPS = 4  # states kept in registers by the backward pass
BLOCK, WARPS = 64, 2  # channels and warps per program: one channel per thread
LANES, HELD, TILE = (
    32,
    2,
    32,
)  # threads of a program of ``row_gradients``, states per thread, their (state, channel) pairs
# Knowing that neighbors are contiguous, the compiler would give a thread four channels of a quarter of the
# states, to load 16 bytes at once, and pay with shuffles and shared memory at every step; a warp's 4-byte
# loads side by side are as fast. So the index that runs over the lanes is multiplied by an argument ``one``
# that it cannot derive, and one that runs inside a thread is declared not contiguous (``_inside``):
# its values stay constants, which cost neither registers nor arithmetic.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# --- device functions -----------------------------------------------------------------------------


@triton.jit
def _inside(size: tl.constexpr):
    """0 to ``size`` along a dimension a thread holds all of; see ``one`` above."""
    return tl.max_contiguous(tl.arange(0, size), [1])


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) without losing small values (Kahan's log1p)."""
    w = tl.exp(-tl.abs(x))
    v = 1.0 + w
    log1p = tl.where(v == 1.0, w, tl.log(v) * w / tl.where(v == 1.0, 1.0, v - 1.0))
    return tl.where(x < 0.0, 0.0, x) + log1p


@triton.jit
def _step_size(delta, bias, at, inside):
    """dt of one row; 0, a step that changes nothing, where ``inside`` is false."""
    x = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32) + bias
    return tl.where(inside, _softplus(x), 0.0)


@triton.jit
def _rates(A, e, n, E, N: tl.constexpr):
    """A log2(e) as an (N, channels) tile; 0 outside, a state that never decays and is never fed."""
    inside = (n < N)[:, None] & (e < E)[None, :]
    return tl.load(A + e[None, :] * N + n[:, None], mask=inside, other=0.0) * 1.4426950408889634


@triton.jit
def _vector(x, e, E):
    return tl.load(x + e, mask=e < E, other=0.0).to(tl.float32)


@triton.jit
def _tile(x, at, inside, WHOLE: tl.constexpr):
    """Load where ``inside``, or everywhere if ``WHOLE``: sixteen masks would take more of a thread than the loads."""
    if WHOLE:
        values = tl.load(x + at)
    else:
        values = tl.load(x + at, mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _states(x, at, n, N: tl.constexpr, inside, BD: tl.constexpr):
    """B or C of one row, the same in every column of the tile; 0 where the row is not ``inside`` (None: it is)."""
    whole: tl.constexpr = n.shape[0] == N
    n = tl.broadcast_to(n[:, None], (n.shape[0], BD))
    if inside is None:
        if whole:
            row = tl.load(x + at + n)
        else:
            row = tl.load(x + at + n, mask=n < N, other=0.0)
    else:
        row = tl.load(x + at + n, mask=inside if whole else (n < N) & inside, other=0.0)
    return row.to(tl.float32)


@triton.jit
def _end_state(
    u,
    delta,
    A,
    B,
    bias,
    b_cell,
    b_row,
    ends,
    totals,
    slot,
    cell,
    chunk,
    e,
    L,
    E,
    N: tl.constexpr,
    one,
    REVERSE: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """State at the end of a chunk that was entered with zeros, and the sum of its dt."""
    n = _inside(NP)
    rate, shift = _rates(A, e, n, E, N), _vector(bias, e, E)
    h, total = tl.zeros((NP, BD), tl.float32), tl.zeros((BD,), tl.float32)
    start = chunk * CHUNK
    count = tl.minimum(CHUNK, L - start)
    for i in range(count):
        t = start + count - 1 - i if REVERSE else start + i
        at = (cell * L + t).to(tl.int64) * E + e
        dt = _step_size(delta, shift, at, e < E)
        x = tl.load(u + at, mask=e < E, other=0.0).to(tl.float32)
        h = tl.exp2(dt[None, :] * rate) * h + (dt * x)[None, :] * _states(
            B, cell * b_cell + t * b_row, n, N, None, BD
        )
        total += dt
    tl.store(
        ends + (slot * NP + n)[:, None].to(tl.int64) * E + e[None, :], h, mask=(e < E)[None, :]
    )
    tl.store(totals + slot.to(tl.int64) * E + e, total, mask=e < E)


@triton.jit
def _outputs(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    b_cell,
    b_row,
    c_cell,
    c_row,
    entering,
    slot,
    z,
    z_cell,
    z_row,
    y,
    kept,
    cell,
    chunk,
    e,
    L,
    E,
    N: tl.constexpr,
    one,
    REVERSE: tl.constexpr,
    ADD: tl.constexpr,
    GATE: tl.constexpr,
    KEEP: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A chunk's outputs from the state that enters it; add to what the first direction wrote, then gate."""
    n = _inside(NP)
    rate, shift, skip = _rates(A, e, n, E, N), _vector(bias, e, E), _vector(D, e, E)
    h = tl.load(
        entering + (slot * NP + n)[:, None].to(tl.int64) * E + e[None, :],
        mask=(e < E)[None, :],
        other=0.0,
    )
    start = chunk * CHUNK
    count = tl.minimum(CHUNK, L - start)
    for i in range(count):
        t = start + count - 1 - i if REVERSE else start + i
        at = (cell * L + t).to(tl.int64) * E + e
        dt = _step_size(delta, shift, at, e < E)
        x = tl.load(u + at, mask=e < E, other=0.0).to(tl.float32)
        h = tl.exp2(dt[None, :] * rate) * h + (dt * x)[None, :] * _states(
            B, cell * b_cell + t * b_row, n, N, None, BD
        )
        out = tl.sum(h * _states(C, cell * c_cell + t * c_row, n, N, None, BD), axis=0) + skip * x
        if ADD:
            out += tl.load(kept + at, mask=e < E, other=0.0)
        if KEEP:
            tl.store(kept + at, out, mask=e < E)
        if GATE:
            g = tl.load(z + cell.to(tl.int64) * z_cell + t * z_row + e, mask=e < E, other=0.0).to(
                tl.float32
            )
            out = out * g / (1.0 + tl.exp(-g))
        tl.store(y + at, out.to(y.dtype.element_ty), mask=e < E)


# --- forward kernels ------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["one"])
def end_states(
    u0,
    u1,
    delta0,
    delta1,
    A0,
    A1,
    B0,
    B1,
    bias0,
    bias1,
    b_cell0,
    b_cell1,
    b_row0,
    b_row1,
    ends,
    totals,
    L,
    E,
    N: tl.constexpr,
    chunks,
    one,
    BOTH: tl.constexpr,
    REVERSE0: tl.constexpr,
    REVERSE1: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (channel blocks, chunks, cells x directions)."""
    e = (tl.program_id(0) * BD + tl.arange(0, BD)) * one
    chunk, which = tl.program_id(1), tl.program_id(2)
    slot = which * chunks + chunk
    if BOTH:
        if which % 2 == 0:
            _end_state(
                u0,
                delta0,
                A0,
                B0,
                bias0,
                b_cell0,
                b_row0,
                ends,
                totals,
                slot,
                which // 2,
                chunk,
                e,
                L,
                E,
                N,
                one,
                REVERSE0,
                NP,
                BD,
                CHUNK,
            )
        else:
            _end_state(
                u1,
                delta1,
                A1,
                B1,
                bias1,
                b_cell1,
                b_row1,
                ends,
                totals,
                slot,
                which // 2,
                chunk,
                e,
                L,
                E,
                N,
                one,
                REVERSE1,
                NP,
                BD,
                CHUNK,
            )
    else:
        _end_state(
            u0,
            delta0,
            A0,
            B0,
            bias0,
            b_cell0,
            b_row0,
            ends,
            totals,
            slot,
            which,
            chunk,
            e,
            L,
            E,
            N,
            one,
            REVERSE0,
            NP,
            BD,
            CHUNK,
        )


@triton.jit(do_not_specialize=["one"])
def carry(
    A0,
    A1,
    ends,
    totals,
    E,
    N: tl.constexpr,
    chunks,
    one,
    BOTH: tl.constexpr,
    REVERSE0: tl.constexpr,
    REVERSE1: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
):
    """What enters each chunk, in the place of what left it; grid (channel blocks, cells x directions)."""
    e = (tl.program_id(0) * BD + tl.arange(0, BD)) * one
    which, n = tl.program_id(1), _inside(NP)
    reverse = REVERSE0
    if BOTH:
        if which % 2 == 0:
            rate = _rates(A0, e, n, E, N)
            reverse = REVERSE0
        else:
            rate = _rates(A1, e, n, E, N)
            reverse = REVERSE1
    else:
        rate = _rates(A0, e, n, E, N)
    h = tl.zeros((NP, BD), tl.float32)
    for i in range(chunks):
        slot = which * chunks + tl.where(reverse, chunks - 1 - i, i)
        at = (slot * NP + n)[:, None].to(tl.int64) * E + e[None, :]
        end = tl.load(ends + at, mask=(e < E)[None, :], other=0.0)
        total = tl.load(totals + slot.to(tl.int64) * E + e, mask=e < E, other=0.0)
        tl.store(ends + at, h, mask=(e < E)[None, :])
        h = tl.exp2(total[None, :] * rate) * h + end


@triton.jit(do_not_specialize=["one"])
def outputs(
    u0,
    u1,
    delta0,
    delta1,
    A0,
    A1,
    B0,
    B1,
    C0,
    C1,
    D0,
    D1,
    bias0,
    bias1,
    b_cell0,
    b_cell1,
    b_row0,
    b_row1,
    c_cell0,
    c_cell1,
    c_row0,
    c_row1,
    entering,
    z,
    z_cell,
    z_row,
    y,
    kept,
    L,
    E,
    N: tl.constexpr,
    chunks,
    one,
    BOTH: tl.constexpr,
    REVERSE0: tl.constexpr,
    REVERSE1: tl.constexpr,
    GATE: tl.constexpr,
    KEEP: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (channel blocks, chunks, cells): both directions of a chunk in one program."""
    e = (tl.program_id(0) * BD + tl.arange(0, BD)) * one
    chunk, cell = tl.program_id(1), tl.program_id(2)
    if BOTH:
        _outputs(
            u0,
            delta0,
            A0,
            B0,
            C0,
            D0,
            bias0,
            b_cell0,
            b_row0,
            c_cell0,
            c_row0,
            entering,
            2 * cell * chunks + chunk,
            z,
            z_cell,
            z_row,
            kept,
            kept,
            cell,
            chunk,
            e,
            L,
            E,
            N,
            one,
            REVERSE0,
            False,
            False,
            False,
            NP,
            BD,
            CHUNK,
        )
        tl.debug_barrier()  # the second direction reads what the first one wrote
        _outputs(
            u1,
            delta1,
            A1,
            B1,
            C1,
            D1,
            bias1,
            b_cell1,
            b_row1,
            c_cell1,
            c_row1,
            entering,
            (2 * cell + 1) * chunks + chunk,
            z,
            z_cell,
            z_row,
            y,
            kept,
            cell,
            chunk,
            e,
            L,
            E,
            N,
            one,
            REVERSE1,
            True,
            GATE,
            KEEP,
            NP,
            BD,
            CHUNK,
        )
    else:
        _outputs(
            u0,
            delta0,
            A0,
            B0,
            C0,
            D0,
            bias0,
            b_cell0,
            b_row0,
            c_cell0,
            c_row0,
            entering,
            cell * chunks + chunk,
            z,
            z_cell,
            z_row,
            y,
            kept,
            cell,
            chunk,
            e,
            L,
            E,
            N,
            one,
            REVERSE0,
            False,
            GATE,
            KEEP,
            NP,
            BD,
            CHUNK,
        )


# --- backward kernels (one direction per launch: their gradients share nothing) ---------------------


@triton.jit(do_not_specialize=["one"])
def end_gradients(
    delta,
    A,
    C,
    bias,
    dy,
    c_cell,
    c_row,
    leaving,
    steps,
    L,
    E,
    N: tl.constexpr,
    chunks,
    one,
    REVERSE: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of the state that entered a chunk, from the chunk's own outputs alone; and every dt."""
    e = (tl.program_id(0) * BD + tl.arange(0, BD)) * one
    chunk, cell, n = tl.program_id(1), tl.program_id(2), _inside(NP)
    rate, shift = _rates(A, e, n, E, N), _vector(bias, e, E)
    g = tl.zeros((NP, BD), tl.float32)
    start = chunk * CHUNK
    count = tl.minimum(CHUNK, L - start)
    for i in range(count):
        t = start + i if REVERSE else start + count - 1 - i  # against the direction of the scan
        at = (cell * L + t).to(tl.int64) * E + e
        dt = _step_size(delta, shift, at, e < E)
        tl.store(steps + at, dt, mask=e < E)
        d = tl.load(dy + at, mask=e < E, other=0.0)
        g = tl.exp2(dt[None, :] * rate) * (
            g + d[None, :] * _states(C, cell * c_cell + t * c_row, n, N, None, BD)
        )
    slot = cell * chunks + chunk
    tl.store(
        leaving + (slot * NP + n)[:, None].to(tl.int64) * E + e[None, :], g, mask=(e < E)[None, :]
    )


@triton.jit(do_not_specialize=["one"])
def row_gradients(
    u,
    steps,
    dy,
    A,
    B,
    C,
    b_cell,
    b_row,
    c_cell,
    c_row,
    entering,
    arriving,
    shares,
    L,
    E,
    N: tl.constexpr,
    chunks,
    slot_cell,
    slot_first,
    one,
    REVERSE: tl.constexpr,
    OF_B: tl.constexpr,
    NP: tl.constexpr,
    HELD: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WHOLE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of C, from the states, or of B (``OF_B``), from their gradients: sums over channels.

    A thread holds ``HELD`` states of ``ROWS`` channels, so that these sums too stay inside it: ``NP / HELD`` lanes share the states of
    a row of channels and the other lanes have rows of their own, each with its own share of the sum. Grid as ``gradients``.
    """
    block, chunk, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane, held, channel = tl.arange(0, LANES), _inside(HELD), _inside(ROWS)
    part = lane // (NP // HELD)
    n = held[:, None] * (NP // HELD) + (lane % (NP // HELD) * one)[None, :]  # (HELD, LANES)
    parts: tl.constexpr = LANES * HELD // NP
    e = ((block * parts + part) * one * ROWS)[None, None, :] + channel[
        :, None, None
    ]  # (ROWS, 1, LANES)
    first_share = (block * parts + part).to(tl.int64) * tl.num_programs(2) * L
    channels, states, tile = e < E, n < N, (e < E) & (n < N)[None, :, :]
    filled: tl.constexpr = N == NP
    rate = tl.load(A + e * N + n[None, :, :], mask=tile, other=0.0) * 1.4426950408889634
    start = chunk * CHUNK
    count = tl.minimum(CHUNK, L - start)
    if OF_B:
        first = arriving + (cell * chunks + chunk).to(tl.int64) * NP * E
    else:
        first = entering + (cell * slot_cell + slot_first + chunk).to(tl.int64) * NP * E
    h = tl.load(first + n[None, :, :] * E + e, mask=tile, other=0.0)
    for i in range(count):
        t = start + i if REVERSE == OF_B else start + count - 1 - i
        row = (cell * L + t).to(tl.int64)
        at = row * E + e
        dt = _tile(steps, at, channels, WHOLE)
        x = dt * _tile(u, at, channels, WHOLE)
        d = _tile(dy, at, channels, WHOLE)
        share = (first_share + row)[None, :] * N + n
        if OF_B:
            h += d * _tile(C, cell * c_cell + t * c_row + n, states, filled)[None, :, :]
            sums = tl.sum(h * x, axis=0)
            h *= tl.exp2(dt * rate)
        else:
            h = (
                tl.exp2(dt * rate) * h
                + x * _tile(B, cell * b_cell + t * b_row + n, states, filled)[None, :, :]
            )
            sums = tl.sum(h * d, axis=0)
        tl.store(shares + share, sums, mask=states)


@triton.jit(do_not_specialize=["one"])
def gradients(
    u,
    delta,
    steps,
    A,
    B,
    C,
    D,
    bias,
    dy,
    b_cell,
    b_row,
    c_cell,
    c_row,
    entering,
    arriving,
    kept,
    du,
    ddelta,
    dA,
    dD,
    dbias,
    L,
    E,
    N: tl.constexpr,
    chunks,
    slot_cell,
    slot_first,
    one,
    REVERSE: tl.constexpr,
    NP: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """All gradients but those of B and C. Grid (channel blocks, chunks, cells).

    ``kept`` is scratch: the states before every ``STEPS`` steps.
    """
    block, chunk, cell = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    e, n = (block * BD + tl.arange(0, BD)) * one, _inside(NP)
    channels, tile = e < E, (e < E)[None, :]
    rate, shift, skip = _rates(A, e, n, E, N), _vector(bias, e, E), _vector(D, e, E)
    start = chunk * CHUNK
    count = tl.minimum(CHUNK, L - start)
    groups = (count + STEPS - 1) // STEPS
    slot = cell * chunks + chunk
    states = n[:, None].to(tl.int64) * E + e[None, :]
    first_kept = slot.to(tl.int64) * (CHUNK // STEPS)
    h = tl.load(
        entering + (cell * slot_cell + slot_first + chunk).to(tl.int64) * NP * E + states,
        mask=tile,
        other=0.0,
    )
    for group in range(groups):
        tl.store(kept + (first_kept + group) * NP * E + states, h, mask=tile)
        for j in range(STEPS):
            i = group * STEPS + j
            inside = i < count
            t = start + count - 1 - i if REVERSE else start + i
            at = (cell * L + t).to(tl.int64) * E + e
            dt = tl.load(steps + at, mask=channels & inside, other=0.0)
            x = tl.load(u + at, mask=channels & inside, other=0.0).to(tl.float32)
            b = _states(B, cell * b_cell + t * b_row, n, N, inside, BD)
            h = tl.exp2(dt[None, :] * rate) * h + (dt * x)[None, :] * b
    tl.debug_barrier()
    g = tl.load(arriving + slot.to(tl.int64) * NP * E + states, mask=tile, other=0.0)
    sum_A = tl.zeros((NP, BD), tl.float32)
    sum_D, sum_bias = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for back in range(groups):
        group = groups - 1 - back
        h = tl.load(kept + (first_kept + group) * NP * E + states, mask=tile, other=0.0)
        before = ()
        for j in tl.static_range(STEPS):
            i = group * STEPS + j
            inside = i < count
            t = start + count - 1 - i if REVERSE else start + i
            at = (cell * L + t).to(tl.int64) * E + e
            dt = tl.load(steps + at, mask=channels & inside, other=0.0)
            x = tl.load(u + at, mask=channels & inside, other=0.0).to(tl.float32)
            before = before + (h,)
            b = _states(B, cell * b_cell + t * b_row, n, N, inside, BD)
            h = tl.exp2(dt[None, :] * rate) * h + (dt * x)[None, :] * b
        for k in tl.static_range(STEPS):
            i = group * STEPS + (STEPS - 1 - k)
            inside = i < count
            t = start + count - 1 - i if REVERSE else start + i
            at = (cell * L + t).to(tl.int64) * E + e
            valid = channels & inside
            raw = tl.load(delta + at, mask=valid, other=0.0).to(tl.float32) + shift
            dt = tl.load(steps + at, mask=valid, other=0.0)
            x = tl.load(u + at, mask=valid, other=0.0).to(tl.float32)
            d = tl.load(dy + at, mask=valid, other=0.0)
            b = _states(B, cell * b_cell + t * b_row, n, N, inside, BD)
            c = _states(C, cell * c_cell + t * c_row, n, N, inside, BD)
            g = g + d[None, :] * c
            through_input = tl.sum(g * b, axis=0)
            g = g * tl.exp2(dt[None, :] * rate)
            through_decay = g * before[STEPS - 1 - k]
            sum_A += through_decay * dt[None, :]
            slope = 1.0 / (1.0 + tl.exp(-raw))
            ddt = (
                through_input * x + tl.sum(through_decay * rate, axis=0) * 0.6931471805599453
            ) * slope
            ddt = tl.where(valid, ddt, 0.0)
            tl.store(du + at, (through_input * dt + d * skip).to(du.dtype.element_ty), mask=valid)
            tl.store(ddelta + at, ddt.to(ddelta.dtype.element_ty), mask=valid)
            sum_D += d * x
            sum_bias += ddt
    tl.store(dA + slot.to(tl.int64) * NP * E + states, sum_A, mask=tile)
    tl.store(dD + slot.to(tl.int64) * E + e, sum_D, mask=channels)
    tl.store(dbias + slot.to(tl.int64) * E + e, sum_bias, mask=channels)


# --- host -----------------------------------------------------------------------------------------


class _Sizes:
    """Grid and tile sizes of one call."""

    def __init__(self, u: Tensor, A: Tensor, directions: int) -> None:
        self.batch, self.length, self.channels = u.shape
        self.states = A.shape[1]
        self.padded = max(2, triton.next_power_of_2(self.states))
        self.directions = directions
        # a thread holds one column of states: fewer time steps in registers when the column is long
        self.steps = STEPS if self.padded <= 16 else 1
        self.chunk = 16 if INTERPRETED else CHUNK
        self.chunks = -(-self.length // self.chunk)
        self.blocks = -(-self.channels // BLOCK)
        self.tile = {"NP": self.padded, "BD": BLOCK, "num_warps": WARPS}
        # the turned tile: as many lanes as a row of states takes, the other lanes have channels of their own
        held = max(HELD, self.padded // LANES)
        rows, parts = max(1, TILE // held), LANES * held // self.padded
        self.turned_blocks = -(-self.channels // (rows * parts))
        self.shares = self.turned_blocks * parts
        self.turned_tile = {
            "NP": self.padded,
            "HELD": held,
            "ROWS": rows,
            "LANES": LANES,
            "num_warps": 1,
        }
        self.turned_tile["WHOLE"] = self.channels % (rows * parts) == 0


def scan(directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """``selective_scan`` on the GPU (or, interpreted, on the CPU)."""
    if len(directions) > 2:
        return sum(scan([d], z) for d in directions)  # type: ignore[return-value]
    if len(directions) == 2 and directions[0].A.shape != directions[1].A.shape:
        return scan(directions[:1], z) + scan(directions[1:], z)
    flags = tuple(bool(d.reverse) for d in directions)
    tensors = []
    for d in directions:
        u, delta, A, B, C, D, bias = d.tensors
        dense = [u.contiguous(), delta.contiguous(), A.float().contiguous(), _unit(B), _unit(C)]
        tensors += [*dense, D.float().contiguous(), bias.float().contiguous()]
    gate = None if z is None else _unit(z)
    with torch.cuda.device(u.device) if u.is_cuda else nullcontext():
        return _Scan.apply(flags, gate, *tensors)


def self_check() -> str:
    """ "" when a small problem comes out right on this GPU, else what went wrong.

    The kernels can be compiled and interpreted without a GPU but not run; where they meet a chip or a driver
    that was not tested, plain torch is better than wrong numbers.
    """
    g = torch.Generator().manual_seed(0)
    found = []
    shapes = ((1, 150, 40), (1, 150, 40), (40, 16), (1, 150, 16), (1, 150, 16), (40,), (40,))
    values = [[torch.randn(s, generator=g) for s in shapes] for _ in range(2)]
    try:
        from .chunked import scan as plain

        for function in (scan, plain):
            leaves = [[t.cuda().requires_grad_() for t in one] for one in values]
            directions = [
                Direction(u, delta - 3, -torch.exp(A), *rest, bool(i))
                for i, (u, delta, A, *rest) in enumerate(leaves)
            ]
            out = function(directions, leaves[0][0].detach())
            out.square().sum().backward()
            found.append([out.detach(), *(t.grad for one in leaves for t in one)])
    except Exception as error:
        return f"its self-check failed: {type(error).__name__}: {str(error)[:200]}"
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found))
    return "" if worst < 1e-4 else f"its self-check is off by {worst:.1e} on this GPU"


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(flags: tuple[bool, ...], z: Tensor | None, tensors: Sequence[Tensor], keep: bool):
    """The output, the sum before the gate (when ``keep``), and the states that enter every chunk."""
    first, last = tensors[:7], tensors[-7:]
    u, _, A = first[:3]
    s = _Sizes(u, A, len(flags))
    both = len(flags) == 2
    ends = u.new_empty(s.batch, s.directions, s.chunks, s.padded, s.channels, dtype=torch.float32)
    totals = u.new_empty(s.batch, s.directions, s.chunks, s.channels, dtype=torch.float32)
    out = torch.empty_like(u)
    kept = torch.empty(u.shape, dtype=torch.float32, device=u.device) if both or keep else out
    directions = {"BOTH": both, "REVERSE0": flags[0], "REVERSE1": flags[-1]}
    pairs = [
        x for pair in zip(first, last) for x in pair
    ]  # u0 u1 delta0 delta1 A0 A1 B0 B1 C0 C1 D0 D1 bias0 bias1
    bs = [x.stride(i) for i in (0, 1) for x in (first[3], last[3])]
    cs = [x.stride(i) for i in (0, 1) for x in (first[4], last[4])]
    grid = (s.blocks, s.chunks, s.batch * s.directions)
    end_states[grid](
        *pairs[:8],
        *pairs[12:],
        *bs,
        ends,
        totals,
        s.length,
        s.channels,
        s.states,
        s.chunks,
        1,
        **directions,
        **s.tile,
        CHUNK=s.chunk,
    )
    carry[(s.blocks, s.batch * s.directions)](
        *pairs[4:6], ends, totals, s.channels, s.states, s.chunks, 1, **directions, **s.tile
    )
    gate = u if z is None else z
    outputs[(s.blocks, s.chunks, s.batch)](
        *pairs,
        *bs,
        *cs,
        ends,
        gate,
        gate.stride(0),
        gate.stride(1),
        out,
        kept,
        s.length,
        s.channels,
        s.states,
        s.chunks,
        1,
        **directions,
        GATE=z is not None,
        KEEP=keep,
        **s.tile,
        CHUNK=s.chunk,
    )
    return out, kept if keep else None, ends, totals


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, flags, z, *tensors):
        keep = any(ctx.needs_input_grad)
        out, ctx.kept, ctx.entering, ctx.totals = _forward(flags, z, tensors, keep)
        ctx.flags = flags
        ctx.save_for_backward(z, *tensors)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        z, *tensors = ctx.saved_tensors
        dy, dz = dout.float(), None
        if z is not None:
            gate = F.silu(z.float())
            s = torch.sigmoid(z.float())
            dz = (dy * ctx.kept * (s + gate * (1 - s))).to(z.dtype)
            dy = dy * gate
        dy = dy.contiguous()
        grads = []
        for i in range(len(ctx.flags)):
            grads += _backward(ctx, i, tensors[7 * i : 7 * i + 7], dy)
        return None, dz, *grads


def _backward(ctx, i: int, tensors: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    """Gradients of one direction's seven tensors."""
    u, delta, A, B, C, D, bias = tensors
    s = _Sizes(u, A, len(ctx.flags))
    reverse = ctx.flags[i]
    single = {"device": u.device, "dtype": torch.float32}
    arriving = torch.empty(s.batch, s.chunks, s.padded, s.channels, **single)
    steps = torch.empty(u.shape, **single)
    sizes = (s.length, s.channels, s.states, s.chunks)
    bs, cs = (B.stride(0), B.stride(1)), (C.stride(0), C.stride(1))
    grid = (s.blocks, s.chunks, s.batch)
    end_gradients[grid](
        delta,
        A,
        C,
        bias,
        dy,
        *cs,
        arriving,
        steps,
        *sizes,
        1,
        REVERSE=reverse,
        **s.tile,
        CHUNK=s.chunk,
    )
    carry[(s.blocks, s.batch)](
        A,
        A,
        arriving,
        ctx.totals[:, i].contiguous(),
        s.channels,
        s.states,
        s.chunks,
        1,
        BOTH=False,
        REVERSE0=not reverse,
        REVERSE1=False,
        **s.tile,
    )
    rows = []
    for of_b, like in ((True, B), (False, C)):
        shares = torch.empty(s.shares, s.batch, s.length, s.states, **single)
        row_gradients[(s.turned_blocks, s.chunks, s.batch)](
            u,
            steps,
            dy,
            A,
            B,
            C,
            *bs,
            *cs,
            ctx.entering,
            arriving,
            shares,
            *sizes,
            s.directions * s.chunks,
            i * s.chunks,
            1,
            REVERSE=reverse,
            OF_B=of_b,
            **s.turned_tile,
            CHUNK=s.chunk,
        )
        rows.append(shares.sum(0).to(like.dtype))
    kept = torch.empty(s.batch, s.chunks, s.chunk // s.steps, s.padded, s.channels, **single)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA = torch.empty(s.batch, s.chunks, s.padded, s.channels, **single)
    dD, dbias = (torch.empty(s.batch, s.chunks, s.channels, **single) for _ in range(2))
    gradients[grid](
        u,
        delta,
        steps,
        A,
        B,
        C,
        D,
        bias,
        dy,
        *bs,
        *cs,
        ctx.entering,
        arriving,
        kept,
        du,
        ddelta,
        dA,
        dD,
        dbias,
        *sizes,
        s.directions * s.chunks,
        i * s.chunks,
        1,
        REVERSE=reverse,
        **s.tile,
        CHUNK=s.chunk,
        STEPS=s.steps,
    )
    rates = dA.sum((0, 1))[: s.states].t()
    return [du, ddelta, rates, *rows, dD.sum((0, 1)), dbias.sum((0, 1))]
