"""Exponentials and logarithms of vectors by polynomials; accuracies are relative to float64, see each function."""

# mypy: ignore-errors

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import llvm
from .llvm import Builder, Value

MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low mantissa bits


def polynomial_fit(
    f: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> list[float]:
    """Near-minimax polynomial of ``f`` on [low, high], highest power first (computed in float64)."""
    fit = np.polynomial.Chebyshev.interpolate(f, degree, domain=[low, high])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef[::-1]]


def slope_at_zero(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """f(x) / x, without the hole at 0 (f is smooth and f(0) = 0)."""
    return lambda x: f(np.where(np.abs(x) < 1e-9, 1e-9, x)) / np.where(np.abs(x) < 1e-9, 1e-9, x)


# 2**r = 1 + r q(r): exact at 0, so long memories (decays near 1) do not drift
EXP2 = [*polynomial_fit(slope_at_zero(lambda r: np.expm1(r * math.log(2))), -0.5, 0.5, 4), 1.0]
# Near 0 the whole exponent goes into a polynomial, nothing to split off and put back: (how far below 0, degree, whether it is of the
# square root). Six, seven and eight operations each, relative errors below 3e-7, 4e-7 and 6e-7.
NEAR_ZERO = (0.8, 5, False), (1.5, 6, False), (2.6, 6, True)
NEAR = tuple(end for end, _, _ in NEAR_ZERO)


def near_zero(end: float, degree: int, root: bool) -> list[float]:
    """Coefficients of 2**r (or of its square root) on [-end, 0]."""
    return [
        *polynomial_fit(
            slope_at_zero(lambda r: np.expm1(r * math.log(2) / (2 if root else 1))),
            -end,
            0.0,
            degree - 1,
        ),
        1.0,
    ]


# log1p(w) = w q(w): full relative accuracy for small w
LOG1P = polynomial_fit(slope_at_zero(np.log1p), 0.0, 1.0, 10)
SMALL = -1.4  # exp of less is below 0.25
LOG1P_SMALL = polynomial_fit(slope_at_zero(np.log1p), 0.0, 0.25, 5)
RECIPROCAL = polynomial_fit(
    lambda w: 1 / (1 + w), 0.0, 1.0, 4
)  # 1 / (1 + w), before one Newton step


def horner(builder: Builder, x: Value, coefficients: list[float]) -> Value:
    """Evaluate a polynomial, highest power first."""
    p: Value = llvm.constant(coefficients[0], x)
    for c in coefficients[1:]:
        p = llvm.fma(builder, p, x, llvm.constant(c, x))
    return p


def exp2_many(builder: Builder, a: Value, bs: list[Value]) -> list[Value]:
    """2**(a b) for several ``bs``, stage by stage, valid where -125 <= a b <= 127.

    Ten operations each, relative error below 2e-7. One exponential is a chain of dependent operations;
    written one after another, the chains fill the processor's scheduler before the next one can start.
    """
    magic = llvm.constant(MAGIC, a)
    ts = [llvm.fma(builder, a, b, magic) for b in bs]
    ns = [builder.fneg(builder.fsub(t, magic)) for t in ts]
    rs = [llvm.fma(builder, a, b, n) for b, n in zip(bs, ns)]
    ps: list[Value] = [llvm.constant(EXP2[0], a)] * len(bs)
    for c in EXP2[1:]:
        ps = [llvm.fma(builder, p, r, llvm.constant(c, a)) for p, r in zip(ps, rs)]
    ints = llvm.integers(a)
    places = ir.Constant(ints, [ir.Constant(llvm.I32, 23)] * a.type.count)
    shifts = [builder.shl(builder.bitcast(t, ints), places) for t in ts]
    return [
        builder.bitcast(builder.add(builder.bitcast(p, ints), s), a.type)
        for p, s in zip(ps, shifts)
    ]


def exp2(builder: Builder, x: Value) -> Value:
    """2**x for every x: 0 below the normal range, inf above it, NaN for NaN."""
    small = builder.fcmp_ordered("<", x, llvm.constant(-126.0, x))
    large = builder.fcmp_ordered(">", x, llvm.constant(127.0, x))
    nan = builder.fcmp_unordered("uno", x, x)
    inside = builder.select(builder.or_(builder.or_(small, large), nan), llvm.constant(0.0, x), x)
    y = exp2_many(builder, inside, [llvm.constant(1.0, x)])[0]
    y = builder.select(small, llvm.constant(0.0, x), y)
    infinity = ir.Constant(x.type, [ir.Constant(llvm.F32, float("inf"))] * x.type.count)
    return builder.select(nan, x, builder.select(large, infinity, y))


def exp_of_minus_magnitude(builder: Builder, x: Value) -> Value:
    """exp(-|x|), never below 2**-126."""
    y = builder.fmul(llvm.call(builder, "fabs", [x]), llvm.constant(-1.0 / math.log(2), x))
    low = llvm.constant(-126.0, x)
    y = builder.select(builder.fcmp_ordered("<", y, low), low, y)
    return exp2_many(builder, y, [llvm.constant(1.0, x)])[0]


def logistic(builder: Builder, x: Value, w: Value) -> Value:
    """1 / (1 + exp(-x)), given w = exp(-|x|): no division, they are slow on wide vectors."""
    one = llvm.constant(1.0, x)
    r = horner(builder, w, RECIPROCAL)
    miss = builder.fsub(one, llvm.fma(builder, w, r, r))  # 1 - (1 + w) r
    r = llvm.fma(builder, r, miss, r)
    return builder.fmul(
        builder.select(builder.fcmp_ordered("<", x, llvm.constant(0.0, x)), w, one), r
    )


def softplus(builder: Builder, x: Value, w: Value) -> Value:
    """log(1 + exp(x)), given w = exp(-|x|)."""
    zero = llvm.constant(0.0, x)
    positive = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)  # this order keeps NaN
    return llvm.fma(builder, w, horner(builder, w, LOG1P), positive)
