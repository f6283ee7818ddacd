"""LLVM vector code of the passes over rows of attention: exponential, rounding, masks and reductions.

The exponential is a power of two: the scale of the scores and log2(e) are one factor, so that the range reduction is a
subtraction.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    HAS_AVX512_BF16,
    INT16_VECTOR,
    INT32,
    INT32_VECTOR,
    INTEGER_ROUNDER,
    LANES,
    MANTISSA_BITS,
    ONE_BITS,
    Bfloat,
    broadcast,
    float32_vector,
    fused_multiply_add,
    int32_vector,
    int64,
    pointer,
    round_vector,
)

VECTOR_BYTES = 4 * LANES
"""Bytes of a vector of float32; one of bfloat16 has half as many."""

# 2**f = 1 + f (c0 + f (c1 + ...)) for |f| <= 1/2, to a relative error of 9.2e-8: found by reweighted least squares.
_POWERS = (0.6931469775973306, 0.24022242082675874, 0.055507337448247575, 0.009671512812595753, 0.001326472721392479)
_LOWEST = -126.0  # below it the power of two would not be a normal number


def load_floats(builder: Any, *address: Any) -> Any:
    """Return the vector of float32 at the sum of the address and the offsets."""
    return builder.load(pointer(builder, FLOAT32_VECTOR, *address), align=4)


def exp2(builder: Any, x: Any) -> Any:
    """Return 2**x for x up to 127; at least 2**-126; NaN stays NaN."""
    y = builder.select(builder.fcmp_ordered("<", x, float32_vector(_LOWEST)), float32_vector(_LOWEST), x)
    t = builder.fadd(y, float32_vector(INTEGER_ROUNDER))
    f = builder.fsub(y, builder.fsub(t, float32_vector(INTEGER_ROUNDER)))
    p = float32_vector(_POWERS[-1])
    for coefficient in _POWERS[-2::-1]:
        p = fused_multiply_add(builder, p, f, float32_vector(coefficient))
    p = fused_multiply_add(builder, p, f, float32_vector(1.0))
    power = builder.add(
        builder.shl(builder.bitcast(t, INT32_VECTOR), int32_vector(MANTISSA_BITS)), int32_vector(ONE_BITS)
    )
    return builder.fmul(p, builder.bitcast(power, FLOAT32_VECTOR))


def round_bf16(builder: Any, x: Any) -> Any:
    """Return the nearest bfloat16 numbers as int16; the instruction, if there is one, flushes subnormals to zero."""
    if not HAS_AVX512_BF16 or LANES != 16:
        return round_vector(builder, x)
    result = ir.VectorType(Bfloat(), LANES)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [FLOAT32_VECTOR]), f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * LANES}"
    )
    return builder.bitcast(builder.call(function, [x]), INT16_VECTOR)


def store_bf16(builder: Any, x: Any, *address: Any) -> Any:
    """Round a vector to bfloat16 and store it at the sum of the address and the offsets; return the rounded vector."""
    rounded = round_bf16(builder, x)
    builder.store(rounded, pointer(builder, INT16_VECTOR, *address), align=2)
    return rounded


def column_numbers(builder: Any, vector: Any) -> Any:
    """Return the numbers of the columns in vector number `vector` of a row, an int64."""
    first = broadcast(builder, builder.trunc(builder.mul(vector, int64(LANES)), INT32), INT32_VECTOR)
    return builder.add(first, ir.Constant(INT32_VECTOR, list(range(LANES))))


def broadcast_int(builder: Any, value: Any) -> Any:
    """Return the vector of int32 with the int64 `value` in every lane."""
    return broadcast(builder, builder.trunc(value, INT32), INT32_VECTOR)


def reduce_lanes(builder: Any, x: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Return the lanes of a vector of float32 joined into one number."""
    distance = LANES // 2
    while distance:
        mask = ir.Constant(INT32_VECTOR, [(lane + distance) % LANES for lane in range(LANES)])
        x = join(x, builder.shuffle_vector(x, x, mask))
        distance //= 2
    return builder.extract_element(x, ir.Constant(INT32, 0))


def maximum(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger of each lane, `b` if one is NaN, as one instruction does. NaN shows in the exponentials."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)
