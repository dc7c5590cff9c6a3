"""Sixteen float32 lanes as one numba value, so that a kernel states which loop is the vector loop.

Auto-vectorisation of the scan is fragile (changing the order of two loops costs a factor of nine), so
the kernels in ``kernels.py`` are written with explicit vectors. LLVM lowers the sixteen lanes to
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

from . import llvm, vector_math
from .llvm import LANES, Builder, Value

BYTES = 4 * LANES
WIDE = 4  # vectors per call of the elementwise functions

# States per call of the scan's inner step: registers decide (32 of sixteen lanes with AVX-512).
INTERLEAVED = 4 if binding.get_host_cpu_features().get("avx512f") else 2


class Float16Lanes(types.Type):
    """The numba type of a vector of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Float32x16")


vec = Float16Lanes()


@register_model(Float16Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, llvm.VEC)


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
            return ir.Constant(llvm.VEC, [ir.Constant(llvm.F32, float(np.float32(x)))] * LANES)

        return vec(), codegen

    return constant


vzero: Any = _constant(0.0)
vln2: Any = _constant(math.log(2))


@intrinsic
def vload(typingctx: Any, address: Any) -> Any:
    """Load sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm.load(builder, args[0])

    return vec(types.int64), codegen


@intrinsic
def vstore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store sixteen float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        llvm.store(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, vec), codegen


@intrinsic
def vfma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm.fma(builder, *args)

    return vec(vec, vec, vec), codegen


@intrinsic
def iload(typingctx: Any, address: Any) -> Any:
    """Load one 64-bit integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(llvm.pointer(builder, args[0], llvm.I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def istore(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one 64-bit integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], llvm.pointer(builder, args[0], llvm.I64), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def vsplat(typingctx: Any, scalar: Any) -> Any:
    """One float32 in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return llvm.splat(builder, args[0])

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
    """The larger of two, lane by lane; undefined where one may be NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vec(vec, vec), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Prefetch a cache line: strided channel blocks defeat the hardware's prefetcher."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = llvm.pointer(builder, args[0], ir.IntType(8))
        fnty = ir.FunctionType(ir.VoidType(), [pointer.type, llvm.I32, llvm.I32, llvm.I32])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), fnty)
        builder.call(function, [pointer, llvm.I32(0), llvm.I32(3), llvm.I32(1)])
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
        x = builder.fadd(llvm.load(builder, delta, vectors), llvm.load(builder, bias, vectors))
        w = vector_math.exp_of_minus_magnitude(builder, x)
        llvm.store(builder, dt, vector_math.softplus(builder, x, w))
        llvm.store(builder, slope, vector_math.logistic(builder, x, w))

    return body


def _steps_only_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, delta: Value, bias: Value, dt: Value) -> None:
        x = builder.fadd(llvm.load(builder, delta, vectors), llvm.load(builder, bias, vectors))
        lanes, mask = x.type.count, ir.IntType(x.type.count)
        small = builder.and_(
            builder.fcmp_ordered("<=", x, llvm.constant(vector_math.SMALL, x)),
            builder.fcmp_ordered(">=", x, llvm.constant(-80.0, x)),
        )
        with builder.if_else(
            builder.icmp_unsigned("==", builder.bitcast(small, mask), mask(2**lanes - 1))
        ) as (here, otherwise):
            with here:  # as at initialization and mostly afterwards
                w = vector_math.exp2_many(builder, x, [llvm.constant(1 / math.log(2), x)])[0]
                llvm.store(
                    builder,
                    dt,
                    builder.fmul(w, vector_math.horner(builder, w, vector_math.LOG1P_SMALL)),
                )
            with otherwise:
                llvm.store(
                    builder,
                    dt,
                    vector_math.softplus(
                        builder, x, vector_math.exp_of_minus_magnitude(builder, x)
                    ),
                )

    return body


def _silu(builder: Builder, z: Value) -> tuple[Value, Value]:
    """SiLU and its slope."""
    s = vector_math.logistic(builder, z, vector_math.exp_of_minus_magnitude(builder, z))
    gate = builder.fmul(z, s)
    # s (1 + z (1 - s)) = s + gate - gate s
    return gate, llvm.fma(builder, builder.fneg(gate), s, builder.fadd(s, gate))


def _gated_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, y: Value, z: Value, out: Value) -> None:
        gate, _ = _silu(builder, llvm.load(builder, z, vectors))
        llvm.store(builder, out, builder.fmul(llvm.load(builder, y, vectors), gate))

    return body


def _ungated_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, dout: Value, z: Value, dy: Value, dgate: Value) -> None:
        gate, slope = _silu(builder, llvm.load(builder, z, vectors))
        out = llvm.load(builder, dout, vectors)
        llvm.store(builder, dy, builder.fmul(out, gate))
        llvm.store(builder, dgate, builder.fmul(out, slope))

    return body


def _slope_of(vectors: int) -> Callable[..., None]:
    def body(builder: Builder, dout: Value, z: Value, out: Value) -> None:
        _, slope = _silu(builder, llvm.load(builder, z, vectors))
        llvm.store(builder, out, builder.fmul(llvm.load(builder, dout, vectors), slope))

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
    with cgutils.for_range(builder, count, intp=llvm.I64) as loop:
        for total, (x, y) in zip(totals, terms(loop.index)):
            builder.store(llvm.fma(builder, x, y, builder.load(total)), total)
    return [builder.load(total) for total in totals]


def _project_of(rows: int) -> Any:
    """Rows of a thin matrix times (rank, 16) weights; strides are in bytes."""

    @intrinsic
    def project(
        ctx: Any, x: Any, stride: Any, weight: Any, rank: Any, out: Any, out_stride: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, stride, weight, rank, out, out_stride = args
            at = [ir.Constant(llvm.I64, i) for i in range(rows)]
            starts = [builder.add(x, builder.mul(stride, i)) for i in at]

            def terms(n: Value) -> list[Any]:
                w = llvm.load(
                    builder, builder.add(weight, builder.mul(n, ir.Constant(llvm.I64, BYTES)))
                )
                offset = builder.mul(n, ir.Constant(llvm.I64, 4))
                return [
                    (llvm.broadcast(builder, builder.add(start, offset)), w) for start in starts
                ]

            zero = ir.Constant(llvm.VEC, [0.0] * LANES)
            for i, total in zip(at, _accumulate(builder, rank, [zero] * rows, terms)):
                llvm.store(builder, builder.add(out, builder.mul(out_stride, i)), total)
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
                row = llvm.load(builder, builder.sub(x, builder.mul(k, back)), vectors)
                return [
                    (row, llvm.load(builder, builder.sub(weight, builder.mul(k, tap)), vectors))
                ]

            total = _accumulate(builder, taps, [llvm.load(builder, bias, vectors)], terms)[0]
            llvm.store(builder, out, _silu(builder, total)[0] if silu else total)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return convolve


TAPS = 4  # width of the convolution


@intrinsic
def tap_shares(
    ctx: Any, x: Any, back: Any, g: Any, line: Any, rows: Any, last: Any, tap: Any, bias: Any
) -> Any:
    """Add ``sum over rows of g[t] x[t - k]`` to the gradients of the four taps, k = 0 at ``last``, and that of g to ``bias``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, back, g, line, rows, last, tap, bias = args

        def behind(address: Value, step: Value, k: int) -> Value:
            return builder.sub(address, builder.mul(step, ir.Constant(llvm.I64, k)))

        places = [*(behind(last, tap, k) for k in range(TAPS)), bias]
        totals = [cgutils.alloca_once_value(builder, llvm.load(builder, place)) for place in places]
        with cgutils.for_range(builder, rows, intp=llvm.I64) as loop:
            slope = llvm.load(builder, builder.add(g, builder.mul(line, loop.index)))
            here = builder.add(x, builder.mul(back, loop.index))
            for k in range(TAPS):
                value = llvm.load(builder, behind(here, back, k))
                builder.store(llvm.fma(builder, slope, value, builder.load(totals[k])), totals[k])
            builder.store(builder.fadd(slope, builder.load(totals[TAPS])), totals[TAPS])
        for place, total in zip(places, totals):
            llvm.store(builder, place, builder.load(total))
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
    zero = ir.Constant(llvm.VEC, [0.0] * LANES)
    totals = [
        [cgutils.alloca_once_value(builder, zero) for _ in range(INTERLEAVED)] for _ in range(sums)
    ]
    whole = builder.sub(states, builder.srem(states, ir.Constant(llvm.I64, INTERLEAVED)))
    for start, stop, count in ((ir.Constant(llvm.I64, 0), whole, INTERLEAVED), (whole, states, 1)):
        with cgutils.for_range_slice(
            builder, start, stop, ir.Constant(llvm.I64, count), inc=True
        ) as (
            n,
            _,
        ):
            rows, scalars = (builder.mul(n, ir.Constant(llvm.I64, size)) for size in (BYTES, 4))
            here = {
                name: builder.add(x, scalars if name in ("b", "c") else rows)
                for name, x in addresses.items()
            }
            for i, products in enumerate(group(here, count)):
                for total, (x, y) in zip(totals, products):
                    builder.store(llvm.fma(builder, x, y, builder.load(total[i])), total[i])
    return [_tree_sum(builder, [builder.load(x) for x in total]) for total in totals]


def _tree_sum(builder: Builder, terms: list[Value]) -> Value:
    while len(terms) > 1:
        terms = [builder.fadd(a, b) for a, b in zip(terms[::2], terms[1::2])]
    return terms[0]


# How far the exponents of a tile reach: one of vector_math.NEAR_ZERO, or
NORMAL, ANY = len(vector_math.NEAR), len(vector_math.NEAR) + 1


def _decays(builder: Builder, reach: int, dt: Value, rates: list[Value]) -> list[Value]:
    """2 to the power of dt times each rate, stage by stage."""
    if reach == ANY:
        return [vector_math.exp2(builder, builder.fmul(dt, r)) for r in rates]
    if reach == NORMAL:
        return vector_math.exp2_many(builder, dt, rates)
    xs = [builder.fmul(dt, r) for r in rates]
    first, *rest = vector_math.near_zero(*vector_math.NEAR_ZERO[reach])
    ps: list[Value] = [llvm.constant(first, dt)] * len(xs)
    for c in rest:
        ps = [llvm.fma(builder, p, x, llvm.constant(c, dt)) for p, x in zip(ps, xs)]
    return [builder.fmul(p, p) for p in ps] if vector_math.NEAR_ZERO[reach][2] else ps


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
        with builder.if_else(builder.icmp_signed("==", reach, ir.Constant(llvm.I64, which))) as (
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
            reach = builder.load(llvm.pointer(builder, at["reach"], llvm.I64, 0))
            factors = _decays_of(
                builder, reach, dt, [llvm.load(builder, at["a"], 1, BYTES * i) for i in each]
            )
            inputs = [builder.fmul(dtu, llvm.broadcast(builder, at["b"], 4 * i)) for i in each]
            before = [llvm.load(builder, at["h"], 1, BYTES * i) for i in each]
            values = [llvm.fma(builder, f, h, x) for f, h, x in zip(factors, before, inputs)]
            for i in each:
                llvm.store(builder, at["h"], values[i], BYTES * i)
            return [[(values[i], llvm.broadcast(builder, at["c"], 4 * i))] for i in each]

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
        start = b.add(self.planes, b.mul(self.plane, ir.Constant(llvm.I64, which)))
        return b.add(start, b.mul(self.row, i))

    def get(self, which: int, i: Value) -> Value:
        return llvm.load(self.builder, self.at(which, i))

    def add(self, which: int, i: Value, products: list[tuple[Value, Value]]) -> None:
        """Add a sum of products to a plane, in two chains."""
        b = self.builder
        total, other = self.get(which, i), None
        for j, (x, y) in enumerate(products):
            if j % 2 == 0:
                total = llvm.fma(b, x, y, total)
            else:
                other = b.fmul(x, y) if other is None else llvm.fma(b, x, y, other)
        llvm.store(b, self.at(which, i), total if other is None else b.fadd(total, other))

    def group(self, address: Value, i: Value, count: int) -> Value:
        """Where the vectors of a group of states of step i are."""
        return self.builder.add(address, self.builder.mul(i, ir.Constant(llvm.I64, BYTES * count)))


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
            rates = [llvm.load(builder, a, 1, BYTES * n) for n in each]
            states = [
                cgutils.alloca_once_value(builder, llvm.load(builder, kept, 1, BYTES * n))
                for n in each
            ]
            for n in each:
                llvm.store(builder, h, builder.load(states[n]), BYTES * n)
            with cgutils.for_range(builder, steps, intp=llvm.I64) as loop:
                i = loop.index
                factors = _decays(builder, reach, walk.get(DT, i), rates)
                dtu, reads = walk.get(DTU, i), []
                there, factor_at = walk.group(h, i, count), walk.group(decay, i, count)
                b_at, c_at = (
                    builder.add(b, builder.mul(i, b_step)),
                    builder.add(c, builder.mul(i, c_step)),
                )
                for n in each:
                    fed = builder.fmul(dtu, llvm.broadcast(builder, b_at, 4 * n))
                    value = llvm.fma(builder, factors[n], builder.load(states[n]), fed)
                    builder.store(value, states[n])
                    llvm.store(builder, factor_at, factors[n], BYTES * n)
                    llvm.store(builder, there, value, BYTES * (count + n))
                    reads.append((value, llvm.broadcast(builder, c_at, 4 * n)))
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
                    cgutils.alloca_once_value(builder, llvm.load(builder, address, 1, BYTES * n))
                    for n in each
                ]

            rates = [llvm.load(builder, a, 1, BYTES * n) for n in each]
            carried, shares, after = (
                variables(g),
                variables(da),
                variables(walk.group(h, steps, count)),
            )
            with cgutils.for_range(builder, steps, intp=llvm.I64) as loop:
                i = builder.sub(builder.sub(steps, loop.index), ir.Constant(llvm.I64, 1))
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
                    grad = llvm.fma(
                        builder, dy, llvm.broadcast(builder, c_at, 4 * n), builder.load(carried[n])
                    )
                    llvm.store(
                        builder,
                        dc_at,
                        llvm.fma(
                            builder, dy, builder.load(after[n]), llvm.load(builder, dc_at, 1, o)
                        ),
                        o,
                    )
                    llvm.store(
                        builder,
                        db_at,
                        llvm.fma(builder, grad, dtu, llvm.load(builder, db_at, 1, o)),
                        o,
                    )
                    before, next_one = (
                        llvm.load(builder, h_at, 1, o),
                        builder.fmul(grad, llvm.load(builder, factor_at, 1, o)),
                    )
                    through = builder.fmul(next_one, before)
                    builder.store(
                        llvm.fma(builder, through, dt, builder.load(shares[n])), shares[n]
                    )
                    builder.store(next_one, carried[n])
                    builder.store(before, after[n])
                    by_input.append((grad, llvm.broadcast(builder, b_at, 4 * n)))
                    by_decay.append((through, rates[n]))
                walk.add(BY_INPUT, i, by_input)
                walk.add(BY_DECAY, i, by_decay)
            for n in each:
                llvm.store(builder, g, builder.load(carried[n]), BYTES * n)
                llvm.store(builder, da, builder.load(shares[n]), BYTES * n)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 15), codegen

    return gradients


recompute_near = _recompute(
    INTERLEAVED, len(vector_math.NEAR) - 1
)  # of little weight in the backward pass: one for all of them
recompute_normal, recompute_any = _recompute(INTERLEAVED, NORMAL), _recompute(INTERLEAVED, ANY)
recompute_one = _recompute(1, ANY)
gradients_group, gradients_one = _gradients(INTERLEAVED), _gradients(1)


# --- sums over the lanes ------------------------------------------------------------------------


def _lane_sums(builder: Builder, vectors: list[Value]) -> Value:
    """Lane i of the result is the sum of the lanes of ``vectors[i]``, for sixteen vectors.

    Each round folds neighbors: the low half of a result is a folded in two, the high half b. 30 shuffles
    where sixteen separate sums take 64; the order of additions is fixed.
    """
    size = LANES
    while len(vectors) > 1:
        starts = [lane for lane in range(2 * LANES) if lane % size < size // 2]
        ends = [lane + size // 2 for lane in starts]
        vectors = [
            builder.fadd(llvm.shuffle(builder, a, b, starts), llvm.shuffle(builder, a, b, ends))
            for a, b in zip(vectors[::2], vectors[1::2])
        ]
        size //= 2
    return vectors[0]


def _sum_of_lanes(builder: Builder, total: Value) -> Value:
    """One sum, in the same order of additions as ``_lane_sums``."""
    width = LANES
    while width > 1:
        width //= 2
        upper = llvm.shuffle(builder, total, total, [(i + width) % LANES for i in range(LANES)])
        total = builder.fadd(total, upper)
    return builder.extract_element(total, llvm.I32(0))


def _sum_one(builder: Builder, shares: Value, out: Value) -> None:
    builder.store(
        _sum_of_lanes(builder, llvm.load(builder, shares)),
        llvm.pointer(builder, out, llvm.F32),
        align=4,
    )


def _sum_steps(builder: Builder, shares: Value, out: Value, step: Value) -> None:
    """Sixteen vectors, groups of states of a few steps; every step's sums go to its row of ``out``."""
    sums = _lane_sums(builder, [llvm.load(builder, shares, 1, BYTES * i) for i in range(LANES)])
    for first in range(0, LANES, INTERLEAVED):
        piece = llvm.shuffle(builder, sums, sums, list(range(first, first + INTERLEAVED)))
        row = builder.add(out, builder.mul(step, ir.Constant(llvm.I64, first // INTERLEAVED)))
        builder.store(piece, llvm.pointer(builder, row, piece.type), align=4)


sum_steps, sum_one = _memory(3, _sum_steps), _memory(2, _sum_one)
