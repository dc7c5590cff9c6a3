"""Sixteen float32 lanes as one numba value, so that a kernel says which loop is the vector loop.

Auto-vectorisation of the scan is fragile (changing the order of two loops costs a factor of nine), so
the kernels in ``_kernels.py`` are written with explicit vectors. LLVM lowers the sixteen lanes to
whatever the processor has: one AVX-512 register, two AVX registers, four NEON registers.
Memory is addressed by plain 64-bit addresses: numba's array indexing adds a wrap-around test to every
access. Operations with long chains of dependent instructions work on several vectors at a time, because
one chain alone leaves the multipliers idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
BYTES = 4 * LANES
WIDE = 4  # vectors per call of the elementwise functions

# States per call of the scan's inner step: registers decide (32 of sixteen lanes with AVX-512).
INTERLEAVED = 4 if binding.get_host_cpu_features().get("avx512f") else 2

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VEC = ir.VectorType(_F32, LANES)
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low mantissa bits

Value = Any  # an llvmlite value; the library has no types
Builder = Any  # an llvmlite IRBuilder


class Float16Lanes(types.Type):
    """The numba type of a vector of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Float32x16")


vec = Float16Lanes()


@register_model(Float16Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VEC)


# --- building blocks: LLVM instructions on vectors of any width ------------------------------------


def _const(x: float, like: Value) -> ir.Constant:
    """``x`` in every lane of a vector like ``like``; rounded first, LLVM rejects inexact constants."""
    return ir.Constant(like.type, [ir.Constant(_F32, float(np.float32(x)))] * like.type.count)


def _ints(like: Value) -> ir.VectorType:
    return ir.VectorType(_I32, like.type.count)


def _call(builder: Builder, name: str, args: list[Value]) -> Value:
    """Call an elementwise LLVM intrinsic; the type is that of its arguments."""
    ty = args[0].type
    function = ir.FunctionType(ty, [ty] * len(args))
    return builder.call(
        builder.module.declare_intrinsic(f"llvm.{name}.v{ty.count}f32", (), function), args
    )


def _fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """``a * b + c``; fused where the processor can, two operations (never a library call) where not."""
    return _call(builder, "fmuladd", [a, b, c])


def _splat(builder: Builder, scalar: Value) -> Value:
    undefined = ir.Constant(_VEC, ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(
        one, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    )


def _shuffle(builder: Builder, a: Value, b: Value, order: list[int]) -> Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _pointer(builder: Builder, address: Value, pointee: ir.Type, offset: int = 0) -> Value:
    if offset:
        address = builder.add(address, ir.Constant(_I64, offset))
    return builder.inttoptr(address, ir.PointerType(pointee))


def _load(builder: Builder, address: Value, vectors: int = 1, offset: int = 0) -> Value:
    ty = ir.VectorType(_F32, LANES * vectors)
    return builder.load(_pointer(builder, address, ty, offset), align=4)


def _store(builder: Builder, address: Value, value: Value, offset: int = 0) -> None:
    builder.store(value, _pointer(builder, address, value.type, offset), align=4)


def _broadcast(builder: Builder, address: Value, offset: int = 0) -> Value:
    return _splat(builder, builder.load(_pointer(builder, address, _F32, offset), align=4))


# --- functions ----------------------------------------------------------------------------------


def _fit(
    f: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> list[float]:
    """Near-minimax polynomial of ``f`` on [low, high], highest power first (computed in float64)."""
    fit = np.polynomial.Chebyshev.interpolate(f, degree, domain=[low, high])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef[::-1]]


def _slope_at_zero(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """f(x) / x, without the hole at 0 (f is smooth and f(0) = 0)."""
    return lambda x: f(np.where(np.abs(x) < 1e-9, 1e-9, x)) / np.where(np.abs(x) < 1e-9, 1e-9, x)


# 2**r = 1 + r q(r): exact at 0, so long memories (decays near 1) do not drift
_EXP2 = [*_fit(_slope_at_zero(lambda r: np.expm1(r * math.log(2))), -0.5, 0.5, 4), 1.0]
# Near 0 the whole exponent goes into a polynomial, nothing to split off and put back: (how far below 0, degree, whether it is of the
# square root). Six, seven and eight operations each, relative errors below 3e-7, 4e-7 and 6e-7.
_NEAR = (0.8, 5, False), (1.5, 6, False), (2.6, 6, True)
NEAR = tuple(end for end, _, _ in _NEAR)


def _near(end: float, degree: int, root: bool) -> list[float]:
    return [
        *_fit(
            _slope_at_zero(lambda r: np.expm1(r * math.log(2) / (2 if root else 1))),
            -end,
            0.0,
            degree - 1,
        ),
        1.0,
    ]


# log1p(w) = w q(w): full relative accuracy for small w
_LOG1P = _fit(_slope_at_zero(np.log1p), 0.0, 1.0, 10)
SMALL = -1.4  # exp of less is below 0.25
_LOG1P_SMALL = _fit(_slope_at_zero(np.log1p), 0.0, 0.25, 5)
_RECIPROCAL = _fit(lambda w: 1 / (1 + w), 0.0, 1.0, 4)  # 1 / (1 + w), before one Newton step


def _horner(builder: Builder, x: Value, coefficients: list[float]) -> Value:
    """Evaluate a polynomial, highest power first."""
    p: Value = _const(coefficients[0], x)
    for c in coefficients[1:]:
        p = _fma(builder, p, x, _const(c, x))
    return p


def _exp2_many(builder: Builder, a: Value, bs: list[Value]) -> list[Value]:
    """2**(a b) for several ``bs``, stage by stage, valid where -125 <= a b <= 127.

    Ten operations each, relative error below 2e-7. One exponential is a chain of dependent operations;
    written one after another, the chains fill the processor's scheduler before the next one can start.
    """
    magic = _const(_MAGIC, a)
    ts = [_fma(builder, a, b, magic) for b in bs]
    ns = [builder.fneg(builder.fsub(t, magic)) for t in ts]
    rs = [_fma(builder, a, b, n) for b, n in zip(bs, ns)]
    ps: list[Value] = [_const(_EXP2[0], a)] * len(bs)
    for c in _EXP2[1:]:
        ps = [_fma(builder, p, r, _const(c, a)) for p, r in zip(ps, rs)]
    ints = _ints(a)
    places = ir.Constant(ints, [ir.Constant(_I32, 23)] * a.type.count)
    shifts = [builder.shl(builder.bitcast(t, ints), places) for t in ts]
    return [
        builder.bitcast(builder.add(builder.bitcast(p, ints), s), a.type)
        for p, s in zip(ps, shifts)
    ]


def _exp2(builder: Builder, x: Value) -> Value:
    """2**x for every x: 0 below the normal range, inf above it, NaN for NaN."""
    small = builder.fcmp_ordered("<", x, _const(-126.0, x))
    large = builder.fcmp_ordered(">", x, _const(127.0, x))
    nan = builder.fcmp_unordered("uno", x, x)
    inside = builder.select(builder.or_(builder.or_(small, large), nan), _const(0.0, x), x)
    y = _exp2_many(builder, inside, [_const(1.0, x)])[0]
    y = builder.select(small, _const(0.0, x), y)
    infinity = ir.Constant(x.type, [ir.Constant(_F32, float("inf"))] * x.type.count)
    return builder.select(nan, x, builder.select(large, infinity, y))


def _exp_of_minus_magnitude(builder: Builder, x: Value) -> Value:
    """exp(-|x|), never below 2**-126."""
    y = builder.fmul(_call(builder, "fabs", [x]), _const(-1.0 / math.log(2), x))
    low = _const(-126.0, x)
    y = builder.select(builder.fcmp_ordered("<", y, low), low, y)
    return _exp2_many(builder, y, [_const(1.0, x)])[0]


def _logistic(builder: Builder, x: Value, w: Value) -> Value:
    """1 / (1 + exp(-x)), given w = exp(-|x|): no division, they are slow on wide vectors."""
    one = _const(1.0, x)
    r = _horner(builder, w, _RECIPROCAL)
    miss = builder.fsub(one, _fma(builder, w, r, r))  # 1 - (1 + w) r
    r = _fma(builder, r, miss, r)
    return builder.fmul(builder.select(builder.fcmp_ordered("<", x, _const(0.0, x)), w, one), r)


def _softplus(builder: Builder, x: Value, w: Value) -> Value:
    """log(1 + exp(x)), given w = exp(-|x|)."""
    zero = _const(0.0, x)
    positive = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)  # this order keeps NaN
    return _fma(builder, w, _horner(builder, w, _LOG1P), positive)


# --- values in kernels --------------------------------------------------------------------------


def _binary(name: str) -> Any:
    """Make the intrinsic for one of the builder's two-operand instructions."""

    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return vec(vec, vec), codegen

    return operation


vadd: Any = _binary("fadd")
vmul: Any = _binary("fmul")


def _constant(x: float) -> Any:
    @intrinsic
    def constant(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return ir.Constant(_VEC, [ir.Constant(_F32, float(np.float32(x)))] * LANES)

        return vec(), codegen

    return constant


vzero: Any = _constant(0.0)
vln2: Any = _constant(math.log(2))


@intrinsic
def vload(typingctx: Any, address: Any) -> Any:
    """Load sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(builder, args[0])

    return vec(types.int64), codegen


@intrinsic
def vstore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, vec), codegen


@intrinsic
def vfma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return vec(vec, vec, vec), codegen


@intrinsic
def iload(typingctx: Any, address: Any) -> Any:
    """Load one 64-bit integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def istore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one 64-bit integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _I64), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def vsplat(typingctx: Any, scalar: Any) -> Any:
    """One float32 in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vec(types.float32), codegen


@intrinsic
def vsum(typingctx: Any, x: Any) -> Any:
    """Sum of the lanes, added in a fixed order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _sum_of_lanes(builder, args[0])

    return types.float32(vec), codegen


@intrinsic
def within(typingctx: Any, x: Any, limit: Any) -> Any:
    """True when ``x <= limit`` in every lane (false as soon as one is NaN)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes, mask = builder.fcmp_ordered("<=", *args), ir.IntType(LANES)
        return builder.icmp_unsigned("==", builder.bitcast(lanes, mask), mask(2**LANES - 1))

    return types.boolean(vec, vec), codegen


@intrinsic
def vmax(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of two, lane by lane; not to be asked where one may be NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vec(vec, vec), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for a cache line: strided channel blocks defeat the hardware's prefetcher."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], ir.IntType(8))
        fnty = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), fnty)
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# --- elementwise work on several vectors, memory to memory ------------------------------------------


def _memory(arguments: int, body: Callable[..., None]) -> Any:
    """An intrinsic that takes two, three or four addresses and returns nothing."""

    def typed() -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            body(builder, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * arguments), codegen

    # numba counts the arguments by their names, so *args will not do
    typers: dict[int, Callable[..., Any]] = {
        2: lambda typingctx, a, b: typed(),
        3: lambda typingctx, a, b, c: typed(),
        4: lambda typingctx, a, b, c, d: typed(),
    }
    return intrinsic(typers[arguments])


def _steps_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, delta: Value, bias: Value, dt: Value, slope: Value) -> None:
        x = builder.fadd(_load(builder, delta, vectors), _load(builder, bias, vectors))
        w = _exp_of_minus_magnitude(builder, x)
        _store(builder, dt, _softplus(builder, x, w))
        _store(builder, slope, _logistic(builder, x, w))

    return body


def _steps_only_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, delta: Value, bias: Value, dt: Value) -> None:
        x = builder.fadd(_load(builder, delta, vectors), _load(builder, bias, vectors))
        lanes, mask = x.type.count, ir.IntType(x.type.count)
        small = builder.and_(
            builder.fcmp_ordered("<=", x, _const(SMALL, x)),
            builder.fcmp_ordered(">=", x, _const(-80.0, x)),
        )
        with builder.if_else(
            builder.icmp_unsigned("==", builder.bitcast(small, mask), mask(2**lanes - 1))
        ) as (here, otherwise):
            with here:  # as at initialisation and mostly afterwards
                w = _exp2_many(builder, x, [_const(1 / math.log(2), x)])[0]
                _store(builder, dt, builder.fmul(w, _horner(builder, w, _LOG1P_SMALL)))
            with otherwise:
                _store(builder, dt, _softplus(builder, x, _exp_of_minus_magnitude(builder, x)))

    return body


def _silu(builder: Builder, z: Value) -> tuple[Value, Value]:
    """SiLU and its slope."""
    s = _logistic(builder, z, _exp_of_minus_magnitude(builder, z))
    gate = builder.fmul(z, s)
    # s (1 + z (1 - s)) = s + gate - gate s
    return gate, _fma(builder, builder.fneg(gate), s, builder.fadd(s, gate))


def _gated_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, y: Value, z: Value, out: Value) -> None:
        gate, _ = _silu(builder, _load(builder, z, vectors))
        _store(builder, out, builder.fmul(_load(builder, y, vectors), gate))

    return body


def _ungated_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, dout: Value, z: Value, dy: Value, dgate: Value) -> None:
        gate, slope = _silu(builder, _load(builder, z, vectors))
        out = _load(builder, dout, vectors)
        _store(builder, dy, builder.fmul(out, gate))
        _store(builder, dgate, builder.fmul(out, slope))

    return body


def _slope_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, dout: Value, z: Value, out: Value) -> None:
        _, slope = _silu(builder, _load(builder, z, vectors))
        _store(builder, out, builder.fmul(_load(builder, dout, vectors), slope))

    return body


# dt = softplus(delta + bias) and its slope
steps_wide, steps_one = _memory(4, _steps_of(WIDE)), _memory(4, _steps_of(1))
# the same without the slope
steps_only_wide, steps_only_one = _memory(3, _steps_only_of(WIDE)), _memory(3, _steps_only_of(1))
# out = y silu(z)
gated_wide, gated_one = _memory(3, _gated_of(WIDE)), _memory(3, _gated_of(1))
# dy = dout silu(z), and dout times the slope of silu
ungated_wide, ungated_one = _memory(4, _ungated_of(WIDE)), _memory(4, _ungated_of(1))

# out = dout times the slope of silu at z
slope_wide, slope_one = _memory(3, _slope_of(WIDE)), _memory(3, _slope_of(1))


# --- small sums of products ---------------------------------------------------------------------------

ROWS = 8  # rows per call of ``project_many``: every weight is loaded once for all of them


def _accumulate(
    builder: Builder, count: Value, zeros: list[Value], terms: Callable[[Value], list[Any]]
) -> list[Value]:
    """``zeros[i] + sum over n < count of a product``; ``terms(n)`` gives the two factors for every i."""
    totals = [cgutils.alloca_once_value(builder, zero) for zero in zeros]
    with cgutils.for_range(builder, count, intp=_I64) as loop:
        for total, (x, y) in zip(totals, terms(loop.index)):
            builder.store(_fma(builder, x, y, builder.load(total)), total)
    return [builder.load(total) for total in totals]


def _project_of(rows: int) -> Any:
    """Rows of a thin matrix times (rank, 16) weights; strides are in bytes."""

    @intrinsic
    def project(
        ctx: Any, x: Any, stride: Any, weight: Any, rank: Any, out: Any, out_stride: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, stride, weight, rank, out, out_stride = args
            at = [ir.Constant(_I64, i) for i in range(rows)]
            starts = [builder.add(x, builder.mul(stride, i)) for i in at]

            def terms(n: Value) -> list[Any]:
                w = _load(builder, builder.add(weight, builder.mul(n, ir.Constant(_I64, BYTES))))
                offset = builder.mul(n, ir.Constant(_I64, 4))
                return [(_broadcast(builder, builder.add(start, offset)), w) for start in starts]

            zero = ir.Constant(_VEC, [0.0] * LANES)
            for i, total in zip(at, _accumulate(builder, rank, [zero] * rows, terms)):
                _store(builder, builder.add(out, builder.mul(out_stride, i)), total)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return project


project_many, project_one = _project_of(ROWS), _project_of(1)


def _convolve_of(vectors: int, silu: bool) -> Any:
    """``bias + sum over k < taps of weight[-k] x[-k]``; every k is one row and one tap further back."""

    @intrinsic
    def convolve(
        ctx: Any, x: Any, back: Any, weight: Any, tap: Any, taps: Any, bias: Any, out: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, back, weight, tap, taps, bias, out = args

            def terms(k: Value) -> list[Any]:
                row = _load(builder, builder.sub(x, builder.mul(k, back)), vectors)
                return [(row, _load(builder, builder.sub(weight, builder.mul(k, tap)), vectors))]

            total = _accumulate(builder, taps, [_load(builder, bias, vectors)], terms)[0]
            _store(builder, out, _silu(builder, total)[0] if silu else total)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return convolve


TAPS = 4  # of the usual convolution


@intrinsic
def tap_shares(
    ctx: Any, x: Any, back: Any, g: Any, line: Any, rows: Any, last: Any, tap: Any, bias: Any
) -> Any:
    """Add ``sum over rows of g[t] x[t - k]`` to the gradients of the four taps, k = 0 at ``last``, and that of g to ``bias``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, back, g, line, rows, last, tap, bias = args

        def behind(address: Value, step: Value, k: int) -> Value:
            return builder.sub(address, builder.mul(step, ir.Constant(_I64, k)))

        places = [*(behind(last, tap, k) for k in range(TAPS)), bias]
        totals = [cgutils.alloca_once_value(builder, _load(builder, place)) for place in places]
        with cgutils.for_range(builder, rows, intp=_I64) as loop:
            slope = _load(builder, builder.add(g, builder.mul(line, loop.index)))
            here = builder.add(x, builder.mul(back, loop.index))
            for k in range(TAPS):
                value = _load(builder, behind(here, back, k))
                builder.store(_fma(builder, slope, value, builder.load(totals[k])), totals[k])
            builder.store(builder.fadd(slope, builder.load(totals[TAPS])), totals[TAPS])
        for place, total in zip(places, totals):
            _store(builder, place, builder.load(total))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


convolve_wide, convolve_one = _convolve_of(WIDE, False), _convolve_of(1, False)
convolve_silu_wide, convolve_silu_one = _convolve_of(WIDE, True), _convolve_of(1, True)


# --- all states of one step, several at a time --------------------------------------------------------

Addresses = dict[str, Value]
# group(addresses of the group's first state, how many states) -> per state, what it adds to each sum
Group = Callable[[Addresses, int], list[list[tuple[Value, Value]]]]


def _over_states(
    builder: Builder, states: Value, addresses: Addresses, sums: int, group: Group
) -> list[Value]:
    """Run ``group`` over all states, ``INTERLEAVED`` at a time and the rest one by one; returns the sums.

    State n is at 64 n in the arrays of vectors and at 4 n in "b" and "c". Every place in the group has its
    own accumulator: one chain of additions over all states would take longer than the rest of the step.
    """
    zero = ir.Constant(_VEC, [0.0] * LANES)
    totals = [
        [cgutils.alloca_once_value(builder, zero) for _ in range(INTERLEAVED)] for _ in range(sums)
    ]
    whole = builder.sub(states, builder.srem(states, ir.Constant(_I64, INTERLEAVED)))
    for start, stop, count in ((ir.Constant(_I64, 0), whole, INTERLEAVED), (whole, states, 1)):
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_I64, count), inc=True) as (
            n,
            _,
        ):
            rows, scalars = (builder.mul(n, ir.Constant(_I64, size)) for size in (BYTES, 4))
            here = {
                name: builder.add(x, scalars if name in ("b", "c") else rows)
                for name, x in addresses.items()
            }
            for i, products in enumerate(group(here, count)):
                for total, (x, y) in zip(totals, products):
                    builder.store(_fma(builder, x, y, builder.load(total[i])), total[i])
    return [_tree_sum(builder, [builder.load(x) for x in total]) for total in totals]


def _tree_sum(builder: Builder, terms: list[Value]) -> Value:
    while len(terms) > 1:
        terms = [builder.fadd(a, b) for a, b in zip(terms[::2], terms[1::2])]
    return terms[0]


# How far the exponents of a tile reach: one of _NEAR, or
NORMAL, ANY = len(NEAR), len(NEAR) + 1


def _decays(builder: Builder, reach: int, dt: Value, rates: list[Value]) -> list[Value]:
    """2 to the power of dt times each rate, stage by stage."""
    if reach == ANY:
        return [_exp2(builder, builder.fmul(dt, r)) for r in rates]
    if reach == NORMAL:
        return _exp2_many(builder, dt, rates)
    xs = [builder.fmul(dt, r) for r in rates]
    first, *rest = _near(*_NEAR[reach])
    ps: list[Value] = [_const(first, dt)] * len(xs)
    for c in rest:
        ps = [_fma(builder, p, x, _const(c, dt)) for p, x in zip(ps, xs)]
    return [builder.fmul(p, p) for p in ps] if _NEAR[reach][2] else ps


def _decays_of(builder: Builder, reach: Value, dt: Value, rates: list[Value]) -> list[Value]:
    """The same, for a ``reach`` that is known when it runs; the same from step to step of a tile, so that the branch is foreseen."""
    found = [cgutils.alloca_once(builder, dt.type) for _ in rates]

    def put(values: list[Value]) -> None:
        for place, value in zip(found, values):
            builder.store(value, place)

    def choose(which: int) -> None:
        if which == ANY:
            put(_decays(builder, ANY, dt, rates))
            return
        with builder.if_else(builder.icmp_signed("==", reach, ir.Constant(_I64, which))) as (
            here,
            further,
        ):
            with here:
                put(_decays(builder, which, dt, rates))
            with further:
                choose(which + 1)

    choose(0)
    return [builder.load(place) for place in found]


@intrinsic
def step(
    ctx: Any, h: Any, a: Any, b: Any, c: Any, dt: Any, dtu: Any, states: Any, reach: Any
) -> Any:
    """All states of one vector of channels, one step; returns C h. ``reach``: of the exponents, at the first state of every group."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        addresses = dict(zip("habc", args)) | {"reach": args[7]}
        dt, dtu, states = args[4:7]

        def group(at: Addresses, count: int) -> list[list[tuple[Value, Value]]]:
            each = range(count)
            reach = builder.load(_pointer(builder, at["reach"], _I64, 0))
            factors = _decays_of(
                builder, reach, dt, [_load(builder, at["a"], 1, BYTES * i) for i in each]
            )
            inputs = [builder.fmul(dtu, _broadcast(builder, at["b"], 4 * i)) for i in each]
            before = [_load(builder, at["h"], 1, BYTES * i) for i in each]
            values = [_fma(builder, f, h, x) for f, h, x in zip(factors, before, inputs)]
            for i in each:
                _store(builder, at["h"], values[i], BYTES * i)
            return [[(values[i], _broadcast(builder, at["c"], 4 * i))] for i in each]

        return _over_states(builder, states, addresses, 1, group)[0]

    return vec(*[types.int64] * 4, vec, vec, types.int64, types.int64), codegen


# --- a few states of one vector of channels, all steps of a tile -------------------------------------------
#
# The backward pass keeps a group of states in registers while it walks through a tile. What is one vector per step lies in
# "planes": plane p of step i is at planes + p * plane + i * row.

DT, SLOPE, DY, DGATE, DTU, READ, BY_INPUT, BY_DECAY = range(8)
PLANES = 8


class _Walk:
    """A loop over the steps of a tile, with variables that stay in registers."""

    def __init__(self, builder: Builder, planes: Value, row: Value, plane: Value) -> None:
        self.builder, self.planes, self.row, self.plane = builder, planes, row, plane

    def at(self, which: int, i: Value) -> Value:
        b = self.builder
        start = b.add(self.planes, b.mul(self.plane, ir.Constant(_I64, which)))
        return b.add(start, b.mul(self.row, i))

    def get(self, which: int, i: Value) -> Value:
        return _load(self.builder, self.at(which, i))

    def add(self, which: int, i: Value, products: list[tuple[Value, Value]]) -> None:
        """Add a sum of products to a plane, in two chains."""
        b = self.builder
        total, other = self.get(which, i), None
        for j, (x, y) in enumerate(products):
            if j % 2 == 0:
                total = _fma(b, x, y, total)
            else:
                other = b.fmul(x, y) if other is None else _fma(b, x, y, other)
        _store(b, self.at(which, i), total if other is None else b.fadd(total, other))

    def group(self, address: Value, i: Value, count: int) -> Value:
        """Where the vectors of a group of states of step i are."""
        return self.builder.add(address, self.builder.mul(i, ir.Constant(_I64, BYTES * count)))


def _recompute(count: int, reach: int) -> Any:
    """States and decays of a tile from the states before it: to ``h`` (steps + 1, count) and ``decay`` (steps, count); adds
    what C reads of them to plane READ.
    """

    @intrinsic
    def recompute(
        ctx: Any,
        planes: Any,
        row: Any,
        plane: Any,
        a: Any,
        kept: Any,
        b: Any,
        b_step: Any,
        c: Any,
        c_step: Any,
        h: Any,
        decay: Any,
        steps: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            planes, row, plane, a, kept, b, b_step, c, c_step, h, decay, steps = args
            walk, each = _Walk(builder, planes, row, plane), range(count)
            rates = [_load(builder, a, 1, BYTES * n) for n in each]
            states = [
                cgutils.alloca_once_value(builder, _load(builder, kept, 1, BYTES * n)) for n in each
            ]
            for n in each:
                _store(builder, h, builder.load(states[n]), BYTES * n)
            with cgutils.for_range(builder, steps, intp=_I64) as loop:
                i = loop.index
                factors = _decays(builder, reach, walk.get(DT, i), rates)
                dtu, reads = walk.get(DTU, i), []
                there, factor_at = walk.group(h, i, count), walk.group(decay, i, count)
                b_at, c_at = (
                    builder.add(b, builder.mul(i, b_step)),
                    builder.add(c, builder.mul(i, c_step)),
                )
                for n in each:
                    fed = builder.fmul(dtu, _broadcast(builder, b_at, 4 * n))
                    value = _fma(builder, factors[n], builder.load(states[n]), fed)
                    builder.store(value, states[n])
                    _store(builder, factor_at, factors[n], BYTES * n)
                    _store(builder, there, value, BYTES * (count + n))
                    reads.append((value, _broadcast(builder, c_at, 4 * n)))
                walk.add(READ, i, reads)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), codegen

    return recompute


def _gradients(count: int) -> Any:
    """Back through a tile: updates the state's gradient ``g`` and ``da`` (count each), adds to the lanes' shares ``db`` and ``dc``
    (steps, count), and to planes BY_INPUT (the gradient of dt u) and BY_DECAY (what reaches dt through the decays).
    """

    @intrinsic
    def gradients(
        ctx: Any,
        planes: Any,
        row: Any,
        plane: Any,
        a: Any,
        g: Any,
        da: Any,
        b: Any,
        b_step: Any,
        c: Any,
        c_step: Any,
        h: Any,
        decay: Any,
        db: Any,
        dc: Any,
        steps: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            planes, row, plane, a, g, da, b, b_step, c, c_step, h, decay, db, dc, steps = args
            walk, each = _Walk(builder, planes, row, plane), range(count)

            def variables(address: Value) -> list[Value]:
                return [
                    cgutils.alloca_once_value(builder, _load(builder, address, 1, BYTES * n))
                    for n in each
                ]

            rates = [_load(builder, a, 1, BYTES * n) for n in each]
            carried, shares, after = (
                variables(g),
                variables(da),
                variables(walk.group(h, steps, count)),
            )
            with cgutils.for_range(builder, steps, intp=_I64) as loop:
                i = builder.sub(builder.sub(steps, loop.index), ir.Constant(_I64, 1))
                dt, dy, dtu = walk.get(DT, i), walk.get(DY, i), walk.get(DTU, i)
                h_at, factor_at, db_at, dc_at = (
                    walk.group(x, i, count) for x in (h, decay, db, dc)
                )
                b_at, c_at = (
                    builder.add(b, builder.mul(i, b_step)),
                    builder.add(c, builder.mul(i, c_step)),
                )
                by_input, by_decay = [], []
                for n in each:
                    o = BYTES * n
                    grad = _fma(
                        builder, dy, _broadcast(builder, c_at, 4 * n), builder.load(carried[n])
                    )
                    _store(
                        builder,
                        dc_at,
                        _fma(builder, dy, builder.load(after[n]), _load(builder, dc_at, 1, o)),
                        o,
                    )
                    _store(builder, db_at, _fma(builder, grad, dtu, _load(builder, db_at, 1, o)), o)
                    before, next_one = (
                        _load(builder, h_at, 1, o),
                        builder.fmul(grad, _load(builder, factor_at, 1, o)),
                    )
                    through = builder.fmul(next_one, before)
                    builder.store(_fma(builder, through, dt, builder.load(shares[n])), shares[n])
                    builder.store(next_one, carried[n])
                    builder.store(before, after[n])
                    by_input.append((grad, _broadcast(builder, b_at, 4 * n)))
                    by_decay.append((through, rates[n]))
                walk.add(BY_INPUT, i, by_input)
                walk.add(BY_DECAY, i, by_decay)
            for n in each:
                _store(builder, g, builder.load(carried[n]), BYTES * n)
                _store(builder, da, builder.load(shares[n]), BYTES * n)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 15), codegen

    return gradients


recompute_near = _recompute(
    INTERLEAVED, len(NEAR) - 1
)  # of little weight in the backward pass: one for all of them
recompute_normal, recompute_any = _recompute(INTERLEAVED, NORMAL), _recompute(INTERLEAVED, ANY)
recompute_one = _recompute(1, ANY)
gradients_group, gradients_one = _gradients(INTERLEAVED), _gradients(1)


# --- sums over the lanes ------------------------------------------------------------------------


def _lane_sums(builder: Builder, vectors: list[Value]) -> Value:
    """Lane i of the result is the sum of the lanes of ``vectors[i]``, for sixteen vectors.

    Each round folds neighbours: the low half of a result is a folded in two, the high half b. 30 shuffles
    where sixteen separate sums take 64; the order of additions is fixed.
    """
    size = LANES
    while len(vectors) > 1:
        starts = [lane for lane in range(2 * LANES) if lane % size < size // 2]
        ends = [lane + size // 2 for lane in starts]
        vectors = [
            builder.fadd(_shuffle(builder, a, b, starts), _shuffle(builder, a, b, ends))
            for a, b in zip(vectors[::2], vectors[1::2])
        ]
        size //= 2
    return vectors[0]


def _sum_of_lanes(builder: Builder, total: Value) -> Value:
    """One sum, in the same order of additions as ``_lane_sums``."""
    width = LANES
    while width > 1:
        width //= 2
        upper = _shuffle(builder, total, total, [(i + width) % LANES for i in range(LANES)])
        total = builder.fadd(total, upper)
    return builder.extract_element(total, _I32(0))


def _sum_one(builder: Builder, shares: Value, out: Value) -> None:
    builder.store(
        _sum_of_lanes(builder, _load(builder, shares)), _pointer(builder, out, _F32), align=4
    )


def _sum_steps(builder: Builder, shares: Value, out: Value, step: Value) -> None:
    """Sixteen vectors, groups of states of a few steps; every step's sums go to its row of ``out``."""
    sums = _lane_sums(builder, [_load(builder, shares, 1, BYTES * i) for i in range(LANES)])
    for first in range(0, LANES, INTERLEAVED):
        piece = _shuffle(builder, sums, sums, list(range(first, first + INTERLEAVED)))
        row = builder.add(out, builder.mul(step, ir.Constant(_I64, first // INTERLEAVED)))
        builder.store(piece, _pointer(builder, row, piece.type), align=4)


sum_steps, sum_one = _memory(3, _sum_steps), _memory(2, _sum_one)
