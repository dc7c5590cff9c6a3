"""Matrix products of float32 by the matrix unit of recent Intel processors (AMX), which computes in bfloat16 only.

A float32 x is split into hi = bf16(x) and lo = bf16(x - hi), sixteen bits of mantissa together; a product is then
``hi hi + hi lo + lo hi``, summed in float32. The error is 2**-17 of each term, so that a sum over hundreds of terms agrees
with float32 to some 1e-6 of its size, for a quarter of the time: the unit does sixteen times the multiply-adds.

Tiles are 16 rows of 64 bytes, in scratch one after another, hi before lo. A "rows" tile holds 16 rows of 32 terms of the
sum, a "pairs" tile 16 pairs of terms for 16 columns (the layout that the unit needs for its two operands).
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import llvm
from .llvm import LANES
from .vector import vload, vstore

TERMS = 32  # of the sum in one tile
TILE = 1024  # bytes
BOTH = 2 * TILE  # hi and lo
ROWS = 32  # rows split at a time: with their terms they stay in the first-level cache
DEPTH = 256  # terms of the sum over rows (the gradient of a weight) split at a time

_I8, _I16 = ir.IntType(8), ir.IntType(16)
_INTS = ir.VectorType(llvm.I32, LANES)
_options = {"nogil": True, "cache": True, "error_model": "numpy"}


# --- the unit's instructions -------------------------------------------------------------------------


def _call(builder: Any, name: str, *args: Any) -> None:
    function = ir.FunctionType(ir.VoidType(), [a.type for a in args])
    builder.call(builder.module.declare_intrinsic("llvm.x86." + name, (), function), args)


def _bytes(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(_I8))


@intrinsic
def configure(ctx, address):
    """Set the shapes of the eight tiles from 64 bytes at ``address``."""

    def codegen(context, builder, sig, args):
        _call(builder, "ldtilecfg", _bytes(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def release(ctx):
    """Give the unit back; the system then has less to save."""

    def codegen(context, builder, sig, args):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


def _multiply(columns: int, add: bool) -> Any:
    """Two tiles of rows times one or two of columns, over ``count`` tiles of terms; sums are written, or added, to ``out``."""

    @intrinsic
    def multiply(ctx, a, a_step, b, b_step, count, out, stride):
        def codegen(context, builder, sig, args):
            a, a_step, b, b_step, count, out, stride = args
            line = ir.Constant(llvm.I64, 64)
            places = [(i, j) for i in range(2) for j in range(columns)]

            def plus(address, n):
                return builder.add(address, ir.Constant(llvm.I64, n)) if n else address

            def fetch(tile, address):
                _call(builder, "tileloadd64", _I8(tile), _bytes(builder, address), line)

            def fetch_all(first, address, step, many, part):
                for i in range(many):
                    there = builder.add(address, step) if i else address
                    fetch(first + i, plus(there, part * TILE))

            def all_products():
                for i, j in places:
                    _call(builder, "tdpbf16ps", _I8(2 * i + j), _I8(4 + i), _I8(6 + j))

            def target(i, j):
                rows = builder.mul(stride, ir.Constant(llvm.I64, 16 * i))
                return _bytes(builder, plus(builder.add(out, rows), 64 * j))

            for i, j in places:
                if add:
                    _call(builder, "tileloadd64", _I8(2 * i + j), target(i, j), stride)
                else:
                    _call(builder, "tilezero", _I8(2 * i + j))
            with cgutils.for_range(builder, count, intp=llvm.I64) as loop:
                shift = builder.mul(loop.index, ir.Constant(llvm.I64, BOTH))
                rows, pairs = builder.add(a, shift), builder.add(b, shift)
                fetch_all(4, rows, a_step, 2, 0)
                fetch_all(6, pairs, b_step, columns, 0)
                all_products()
                fetch_all(6, pairs, b_step, columns, 1)
                all_products()
                fetch_all(4, rows, a_step, 2, 1)
                fetch_all(6, pairs, b_step, columns, 0)
                all_products()
            for i, j in places:
                _call(builder, "tilestored64", _I8(2 * i + j), target(i, j), stride)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return multiply


multiply_two, multiply_one, multiply_add = (
    _multiply(2, False),
    _multiply(1, False),
    _multiply(2, True),
)


# --- splitting ------------------------------------------------------------------------------------------


def _rounded(builder: Any, x: Any) -> Any:
    """The bits of ``x`` rounded to bfloat16 (to nearest even), the lower half zero; NaN stays NaN."""
    bits = builder.bitcast(x, _INTS)

    def every(n):
        return ir.Constant(_INTS, [ir.Constant(llvm.I32, n)] * LANES)

    odd = builder.and_(builder.lshr(bits, every(16)), every(1))
    up = builder.add(bits, builder.add(odd, every(0x7FFF)))
    up = builder.select(builder.fcmp_unordered("uno", x, x), every(0x7FC00000), up)
    return builder.and_(up, every(-65536))


def _split(builder: Any, x: Any) -> tuple[Any, Any]:
    hi = _rounded(builder, x)
    return hi, _rounded(builder, builder.fsub(x, builder.bitcast(hi, x.type)))


@intrinsic
def split_row(ctx, x, out):
    """Thirty-two floats of one row as a line of the hi and one of the lo tile."""

    def codegen(context, builder, sig, args):
        x, out = args
        halves = [_split(builder, llvm.load(builder, x, 1, 64 * i)) for i in range(2)]
        order = ir.Constant(ir.VectorType(llvm.I32, 2 * LANES), list(range(2 * LANES)))
        sixteen = ir.VectorType(_I16, LANES)
        for part in range(2):
            shift = ir.Constant(_INTS, [ir.Constant(llvm.I32, 16)] * LANES)
            low, high = (builder.trunc(builder.lshr(h[part], shift), sixteen) for h in halves)
            line = builder.shuffle_vector(low, high, order)
            builder.store(line, llvm.pointer(builder, out, line.type, TILE * part), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def split_pair(ctx, first, second, out):
    """Sixteen columns of two rows as a line of pairs, hi and lo."""

    def codegen(context, builder, sig, args):
        first, second, out = args
        a, b = (_split(builder, llvm.load(builder, x)) for x in (first, second))
        shift = ir.Constant(_INTS, [ir.Constant(llvm.I32, 16)] * LANES)
        for part in range(2):
            line = builder.or_(builder.lshr(a[part], shift), b[part])
            builder.store(line, llvm.pointer(builder, out, _INTS, TILE * part), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def transpose(ctx, tile):
    """A tile of pairs becomes a tile of rows, in place: 16 x 16 pairs transposed."""

    def codegen(context, builder, sig, args):
        lines = [
            builder.load(llvm.pointer(builder, args[0], _INTS, 64 * i), align=64)
            for i in range(LANES)
        ]
        for step in (8, 4, 2, 1):  # swap the off-diagonal halves of blocks of twice the step
            low = [i + (LANES if i & step else 0) - (step if i & step else 0) for i in range(LANES)]
            high = [i + step if not i & step else i + LANES for i in range(LANES)]
            new = list(lines)
            for i in range(LANES):
                if not i & step:
                    a, b = lines[i], lines[i + step]
                    new[i] = _reorder(builder, a, b, low)
                    new[i + step] = _reorder(builder, a, b, high)
            lines = new
        for i, line in enumerate(lines):
            builder.store(line, llvm.pointer(builder, args[0], _INTS, 64 * i), align=64)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _reorder(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(llvm.I32, LANES), order))


@intrinsic
def zero_line(ctx, out):
    """64 zero bytes."""

    def codegen(context, builder, sig, args):
        builder.store(ir.Constant(_INTS, None), llvm.pointer(builder, args[0], _INTS), align=64)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def fload(ctx, address):
    """Load one float32."""

    def codegen(context, builder, sig, args):
        return builder.load(llvm.pointer(builder, args[0], ir.FloatType()), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def fstore(ctx, address, value):
    """Store one float32."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], llvm.pointer(builder, args[0], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


# --- kernels ---------------------------------------------------------------------------------------------


@nb.njit(**_options)
def pack(weight, s_column, s_term, columns, terms, out, start, stop, scratch):
    """Blocks ``start`` to ``stop`` of sixteen columns of a weight as tiles of pairs; strides in bytes, zeros outside.

    ``scratch``: 2 KB, a pair of terms of sixteen columns as two rows.
    """
    tiles = (terms + TERMS - 1) // TERMS
    for block in range(start, stop):
        for tile in range(tiles):
            for line in range(16):
                for half in range(2):
                    term = tile * TERMS + 2 * line + half
                    for lane in range(16):
                        column = block * 16 + lane
                        value = nb.float32(0.0)
                        if term < terms and column < columns:
                            value = fload(weight + column * s_column + term * s_term)
                        fstore(scratch + 64 * half + 4 * lane, value)
                split_pair(scratch, scratch + 64, out + (block * tiles + tile) * BOTH + 64 * line)


@nb.njit(inline="always", **_options)
def _split_rows(x, s_x, count, terms, out):
    """``count`` rows, and zeros up to ``ROWS``, as tiles of rows."""
    tiles = (terms + TERMS - 1) // TERMS
    whole = terms // TERMS
    room = (count + 31) // 32 * 32
    for row in range(room):
        there = out + (row // 16 * tiles) * BOTH + 64 * (row % 16)
        if row < count:
            for tile in range(whole):
                split_row(x + row * s_x + 128 * tile, there + tile * BOTH)
        else:
            for tile in range(whole):
                zero_line(there + tile * BOTH)
                zero_line(there + tile * BOTH + TILE)
        if whole < tiles:  # sixteen terms are left
            tail = out + room // 16 * tiles * BOTH
            vstore(tail, vload(x + min(row, count - 1) * s_x + 128 * whole))
            zero_line(tail + 64)
            if row >= count:
                zero_line(tail)
            split_row(tail, there + whole * BOTH)


def product_scratch(terms: int) -> int:
    """Bytes one thread needs for ``product``."""
    return ROWS // 16 * (-(-terms // TERMS)) * BOTH + 128 + 4 * 32 * 32


@nb.njit(**_options)
def product(x, s_x, packed, out, s_out, terms, columns, start, stop, shapes, scratch):
    """Rows ``start`` to ``stop`` of x (rows, terms) times packed weights; ``columns`` and ``terms`` are multiples of 16."""
    configure(shapes)
    tiles = (terms + TERMS - 1) // TERMS
    step = tiles * BOTH
    spare = scratch + ROWS // 16 * step + 128
    for row in range(start, stop, ROWS):
        count = min(ROWS, stop - row)
        _split_rows(x + row * s_x, s_x, count, terms, scratch)
        for column in range(0, columns, 32):
            b = packed + column // 16 * step
            two = column + 32 <= columns
            for r in range(0, count, 32):
                a = scratch + r // 16 * step
                here = out + (row + r) * s_out + 4 * column
                if count - r >= 32:
                    if two:
                        multiply_two(a, step, b, step, tiles, here, s_out)
                    else:
                        multiply_one(a, step, b, step, tiles, here, s_out)
                    continue
                if two:
                    multiply_two(a, step, b, step, tiles, spare, 128)
                else:
                    multiply_one(a, step, b, step, tiles, spare, 128)
                for i in range(count - r):
                    vstore(here + i * s_out, vload(spare + 128 * i))
                    if two:
                        vstore(here + i * s_out + 64, vload(spare + 128 * i + 64))
    release()


@nb.njit(inline="always", **_options)
def _split_pairs(x, s_x, count, columns, out, tiles, turn):
    """``count`` rows, and zeros up to whole tiles, as tiles of pairs (``turn``: of rows) for every sixteen columns."""
    blocks = (columns + 31) // 32 * 2
    for tile in range(tiles):
        for block in range(blocks):
            there = out + (block * tiles + tile) * BOTH
            for line in range(16):
                row = tile * TERMS + 2 * line
                if 16 * block < columns and row + 1 < count:
                    split_pair(
                        x + row * s_x + 64 * block,
                        x + (row + 1) * s_x + 64 * block,
                        there + 64 * line,
                    )
                elif 16 * block < columns and row < count:
                    zero = out + blocks * tiles * BOTH
                    zero_line(zero)
                    split_pair(x + row * s_x + 64 * block, zero, there + 64 * line)
                else:
                    zero_line(there + 64 * line)
                    zero_line(there + TILE + 64 * line)
            if turn:
                transpose(there)
                transpose(there + TILE)


def outer_scratch(few: int, many: int) -> int:
    """Bytes one thread needs for ``outer``."""
    return (-(-few // 32) * 2 + -(-many // 32) * 2) * (DEPTH // TERMS) * BOTH + 128


@nb.njit(**_options)
def outer(x, s_x, few, y, s_y, many, out, s_out, start, stop, shapes, scratch):
    """``x.T @ y`` over rows ``start`` to ``stop``; ``out`` is (few, many), both rounded up to 32, ``many`` the wider one."""
    configure(shapes)
    for i in range((few + 31) // 32 * 32):
        for o in range(0, (many + 31) // 32 * 128, 64):
            zero_line(out + i * s_out + o)
    for row in range(start, stop, DEPTH):
        count = min(DEPTH, stop - row)
        tiles = (count + TERMS - 1) // TERMS
        step = tiles * BOTH
        wide = scratch + (few + 31) // 32 * 2 * (DEPTH // TERMS) * BOTH + 64
        _split_pairs(x + row * s_x, s_x, count, few, scratch, tiles, True)
        _split_pairs(y + row * s_y, s_y, count, many, wide, tiles, False)
        for j in range(0, many, 32):
            for i in range(0, few, 32):
                a, b = scratch + i // 16 * step, wide + j // 16 * step
                multiply_add(a, step, b, step, tiles, out + i * s_out + 4 * j, s_out)
    release()
