"""LLVM vector code of the passes over rows of attention: masks.

The exponential is a power of two (`exp2_vector`): the scale of the scores and log2(e) are one factor.
"""

from typing import Any

from llvmlite import ir

from threadloom.kernels.simd import (
    INT32,
    INT32_VECTOR,
    LANES,
    broadcast,
    int64,
)


def column_numbers(builder: Any, vector: Any) -> Any:
    """Return the numbers of the columns in vector number `vector` of a row, an int64."""
    first = broadcast(builder, builder.trunc(builder.mul(vector, int64(LANES)), INT32), INT32_VECTOR)
    return builder.add(first, ir.Constant(INT32_VECTOR, list(range(LANES))))


def broadcast_int(builder: Any, value: Any) -> Any:
    """Return the vector of int32 with the int64 `value` in every lane."""
    return broadcast(builder, builder.trunc(value, INT32), INT32_VECTOR)
