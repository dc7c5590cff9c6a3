"""LLVM instructions on vectors of float32, of which the kernels' own functions are built; see ``vector``."""

# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

LANES = 16

F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
VEC = ir.VectorType(F32, LANES)

Value = Any  # an llvmlite value; the library has no types
Builder = Any  # an llvmlite IRBuilder


def constant(x: float, like: Value) -> ir.Constant:
    """``x`` in every lane of a vector like ``like``; rounded first, LLVM rejects inexact constants."""
    return ir.Constant(like.type, [ir.Constant(F32, float(np.float32(x)))] * like.type.count)


def integers(like: Value) -> ir.VectorType:
    """The type of as many 32-bit integers as ``like`` has lanes."""
    return ir.VectorType(I32, like.type.count)


def call(builder: Builder, name: str, args: list[Value]) -> Value:
    """Call an elementwise LLVM intrinsic; the type is that of its arguments."""
    ty = args[0].type
    function = ir.FunctionType(ty, [ty] * len(args))
    return builder.call(
        builder.module.declare_intrinsic(f"llvm.{name}.v{ty.count}f32", (), function), args
    )


def fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """``a * b + c``; fused where the processor can, two operations (never a library call) where not."""
    return call(builder, "fmuladd", [a, b, c])


def splat(builder: Builder, scalar: Value) -> Value:
    """A vector with ``scalar`` in every lane."""
    undefined = ir.Constant(VEC, ir.Undefined)
    one = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(
        one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    )


def shuffle(builder: Builder, a: Value, b: Value, order: list[int]) -> Value:
    """Lanes of ``a`` and ``b`` in an ``order``; those of ``b`` follow those of ``a``."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def pointer(builder: Builder, address: Value, pointee: ir.Type, offset: int = 0) -> Value:
    """The ``address``, ``offset`` bytes on, as a pointer."""
    if offset:
        address = builder.add(address, ir.Constant(I64, offset))
    return builder.inttoptr(address, ir.PointerType(pointee))


def load(builder: Builder, address: Value, vectors: int = 1, offset: int = 0) -> Value:
    """Read ``vectors`` times sixteen lanes as one value; memory need not be aligned."""
    ty = ir.VectorType(F32, LANES * vectors)
    return builder.load(pointer(builder, address, ty, offset), align=4)


def store(builder: Builder, address: Value, value: Value, offset: int = 0) -> None:
    """Write all lanes of ``value``; memory need not be aligned."""
    builder.store(value, pointer(builder, address, value.type, offset), align=4)


def broadcast(builder: Builder, address: Value, offset: int = 0) -> Value:
    """Read one float32 into every lane."""
    return splat(builder, builder.load(pointer(builder, address, F32, offset), align=4))
