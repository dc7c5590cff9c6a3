"""Sixteen float32 lanes as one numba value, so that a kernel says which loop is the vector loop.

Auto-vectorisation of the scan is fragile (changing the order of two loops costs a factor of nine), so
the kernels in ``_kernels.py`` are written with explicit vectors. LLVM lowers the sixteen lanes to
whatever the processor has: one AVX-512 register, two AVX registers, four NEON registers.
Memory is addressed by plain 64-bit addresses: numba's array indexing adds a wrap-around test to every
access.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16
BYTES = 4 * LANES

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VEC = ir.VectorType(_F32, LANES)
_IVEC = ir.VectorType(_I32, LANES)
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low mantissa bits


class Float16Lanes(types.Type):
    """The numba type of a vector of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Float32x16")


vec = Float16Lanes()


@register_model(Float16Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VEC)


def _f32(x: float) -> float:
    """Round to float32 first: LLVM rejects float constants that are not exact."""
    return float(np.float32(x))


def _const(x: float) -> ir.Constant:
    return ir.Constant(_VEC, [ir.Constant(_F32, _f32(x))] * LANES)


def _iconst(x: int) -> ir.Constant:
    return ir.Constant(_IVEC, [ir.Constant(_I32, x)] * LANES)


def _call(builder: ir.IRBuilder, name: str, ret: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    fnty = ir.FunctionType(ret, [a.type for a in args])
    return builder.call(builder.module.declare_intrinsic(name, (), fnty), args)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """``a * b + c``; fused where the processor can, two operations (never a library call) where not."""
    return _call(builder, f"llvm.fmuladd.v{LANES}f32", _VEC, [a, b, c])


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_VEC, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, ir.Constant(_VEC, ir.Undefined), ir.Constant(_IVEC, [0] * LANES))


def _horner(builder: ir.IRBuilder, r: ir.Value, coefficients: list[float]) -> ir.Value:
    """Evaluate a polynomial, highest power first."""
    p = _const(coefficients[0])
    for c in coefficients[1:]:
        p = _fma(builder, p, r, _const(c))
    return p


def _chebyshev_fit(f: Any, low: float, high: float, degree: int) -> list[float]:
    """Near-minimax polynomial of ``f`` on [low, high], highest power first (computed in float64)."""
    fit = np.polynomial.Chebyshev.interpolate(f, degree, domain=[low, high])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef[::-1]]


def _exp2_coefficients() -> list[float]:
    """2**r = 1 + r q(r) on [-1/2, 1/2]: exact at 0, so long memories (2**r near 1) do not drift."""

    def q(r: np.ndarray) -> np.ndarray:
        safe = np.where(r == 0, 1.0, r)
        return np.where(r == 0, math.log(2), np.expm1(safe * math.log(2)) / safe)

    return [*_chebyshev_fit(q, -0.5, 0.5, 4), 1.0]


def _atanh_coefficients() -> list[float]:
    """atanh(s) / s as a polynomial in s**2 on [0, 1/9], for log1p(w) = 2 atanh(w / (2 + w))."""

    def g(x: np.ndarray) -> np.ndarray:
        s = np.sqrt(np.maximum(x, 1e-30))
        return np.arctanh(s) / s

    return _chebyshev_fit(g, 0.0, 1.0 / 9.0, 6)


_EXP2 = _exp2_coefficients()
_ATANH = _atanh_coefficients()


def _exp2_of_product(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """2**(a b) for -125 <= a b <= 127; ten operations, relative error below 2e-7."""
    magic = _const(_MAGIC)
    t = _fma(builder, a, b, magic)
    n = builder.fsub(t, magic)
    r = _fma(builder, a, b, builder.fneg(n))
    p = _horner(builder, r, _EXP2)
    bits = builder.add(builder.bitcast(p, _IVEC), builder.shl(builder.bitcast(t, _IVEC), _iconst(23)))
    return builder.bitcast(bits, _VEC)


def _exp2_any(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """2**x for every x: 0 below the normal range, inf above it, NaN for NaN."""
    low, high, one = _const(-126.0), _const(127.0), _const(1.0)
    small = builder.fcmp_ordered("<", x, low)
    large = builder.fcmp_ordered(">", x, high)
    nan = builder.fcmp_unordered("uno", x, x)
    inside = builder.select(builder.or_(builder.or_(small, large), nan), _const(0.0), x)
    y = _exp2_of_product(builder, inside, one)
    y = builder.select(small, _const(0.0), y)
    y = builder.select(large, ir.Constant(_VEC, [ir.Constant(_F32, float("inf"))] * LANES), y)
    return builder.select(nan, x, y)


def _softplus(builder: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Softplus and its slope, the logistic function, sharing one exponential."""
    one = _const(1.0)
    negative = builder.fcmp_ordered("<", x, _const(0.0))
    magnitude = _call(builder, f"llvm.fabs.v{LANES}f32", _VEC, [x])
    w = _exp2_any(builder, builder.fmul(magnitude, _const(-1.0 / math.log(2))))
    s = builder.fdiv(w, builder.fadd(w, _const(2.0)))
    log1p = builder.fmul(builder.fadd(s, s), _horner(builder, builder.fmul(s, s), _ATANH))
    positive_part = builder.select(negative, _const(0.0), x)
    slope = builder.fdiv(builder.select(negative, w, one), builder.fadd(one, w))
    return builder.fadd(positive_part, log1p), slope


def _pointer(builder: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    return builder.inttoptr(address, ir.PointerType(pointee))


def _binary(name: str) -> Any:
    """Make the intrinsic for one of the builder's two-operand instructions."""

    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return vec(vec, vec), codegen

    return operation


vadd = _binary("fadd")
vsub = _binary("fsub")
vmul = _binary("fmul")
vdiv = _binary("fdiv")


@intrinsic
def vload(typingctx: Any, address: Any) -> Any:
    """Load sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _VEC), align=4)

    return vec(types.int64), codegen


@intrinsic
def vstore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _VEC), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vec), codegen


@intrinsic
def bload(typingctx: Any, address: Any) -> Any:
    """Load one float32 into all lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.load(_pointer(builder, args[0], _F32), align=4))

    return vec(types.int64), codegen


@intrinsic
def fstore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def vsum(typingctx: Any, value: Any) -> Any:
    """Sum of the lanes, as a tree (fixed order: the same numbers every time)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total, width = args[0], LANES
        while width > 1:
            width //= 2
            order = [i + width if i < width else 0 for i in range(LANES)]
            upper = builder.shuffle_vector(total, ir.Constant(_VEC, ir.Undefined), ir.Constant(_IVEC, order))
            total = builder.fadd(total, upper)
        return builder.extract_element(total, _I32(0))

    return types.float32(vec), codegen


@intrinsic
def vzero(typingctx: Any) -> Any:
    """Sixteen zeros."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _const(0.0)

    return vec(), codegen


@intrinsic
def vfma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return vec(vec, vec, vec), codegen


@intrinsic
def vexp2_product(typingctx: Any, a: Any, b: Any) -> Any:
    """2**(a b), valid only where -125 <= a b <= 127 (see ``within``)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _exp2_of_product(builder, *args)

    return vec(vec, vec), codegen


@intrinsic
def vexp2(typingctx: Any, x: Any) -> Any:
    """2**x for every x."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _exp2_any(builder, args[0])

    return vec(vec), codegen


@intrinsic
def vsoftplus(typingctx: Any, x: Any) -> Any:
    """log(1 + exp(x)), with full relative accuracy for very negative x."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _softplus(builder, args[0])[0]

    return vec(vec), codegen


@intrinsic
def vsigmoid(typingctx: Any, x: Any) -> Any:
    """1 / (1 + exp(-x))."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _softplus(builder, args[0])[1]

    return vec(vec), codegen


@intrinsic
def within(typingctx: Any, x: Any, limit: Any) -> Any:
    """True when ``x <= limit`` in every lane (false as soon as one is NaN)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = builder.fcmp_ordered("<=", *args)
        return builder.icmp_unsigned("==", builder.bitcast(lanes, ir.IntType(LANES)), ir.IntType(LANES)(0xFFFF))

    return types.boolean(vec, vec), codegen


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


@intrinsic
def iload(typingctx: Any, address: Any) -> Any:
    """Load one 64-bit integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], ir.IntType(64)), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def vconst_ln2(typingctx: Any) -> Any:
    """log(2) in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _const(math.log(2))

    return vec(), codegen
