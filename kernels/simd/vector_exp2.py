"""Power of two of a vector, as LLVM code: `kernels.simd.exponential.exp2_32` for hand-written vector code."""

from typing import Any

from threadloom.kernels.simd.constants import (
    EXP2_LOWEST,
    EXP2_POLYNOMIAL,
    INTEGER_ROUNDER,
    MANTISSA_BITS,
    ONE_BITS,
)
from threadloom.kernels.simd.vector import (
    FLOAT32_VECTOR,
    INT32_VECTOR,
    float32_vector,
    fused_multiply_add,
    int32_vector,
)


def exp2_vector(builder: Any, x: Any) -> Any:
    """Return 2**x for x up to 127.4; at least 2**-126; NaN stays NaN."""
    y = builder.select(builder.fcmp_ordered("<", x, float32_vector(EXP2_LOWEST)), float32_vector(EXP2_LOWEST), x)
    t = builder.fadd(y, float32_vector(INTEGER_ROUNDER))
    f = builder.fsub(y, builder.fsub(t, float32_vector(INTEGER_ROUNDER)))
    p = float32_vector(EXP2_POLYNOMIAL[0])
    for coefficient in (*EXP2_POLYNOMIAL[1:], 1.0):
        p = fused_multiply_add(builder, p, f, float32_vector(coefficient))
    exponent = builder.shl(builder.bitcast(t, INT32_VECTOR), int32_vector(MANTISSA_BITS))
    return builder.fmul(p, builder.bitcast(builder.add(exponent, int32_vector(ONE_BITS)), FLOAT32_VECTOR))
