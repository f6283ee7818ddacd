"""LLVM vector code of passes over rows of float32: loads, rounding to bfloat16, and reductions of a vector."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.simd.vector import (
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32,
    INT32_VECTOR,
    LANES,
    broadcast,
    int64,
    pointer,
    round_result,
)

VECTOR_BYTES = 4 * LANES
"""Bytes of a vector of float32; one of bfloat16 has half as many."""


def load_floats(builder: Any, *address: Any) -> Any:
    """Return the vector of float32 at the sum of the address and the offsets."""
    return builder.load(pointer(builder, FLOAT32_VECTOR, *address), align=4)


def store_bf16(builder: Any, x: Any, *address: Any) -> Any:
    """Round a vector to bfloat16 and store it at the sum of the address and the offsets; return the rounded vector."""
    rounded = round_result(builder, x)
    builder.store(rounded, pointer(builder, INT16_VECTOR, *address), align=2)
    return rounded


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


@intrinsic
def round_row(typing_context: Any, source: Any, factor: Any, out: Any, vectors: Any) -> Any:
    """Write ``factor * source``, `vectors` vectors of float32, to `out` as bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, factor, out, vectors = arguments
        factors = broadcast(builder, factor, FLOAT32_VECTOR)
        with cgutils.for_range(builder, vectors) as loop:
            x = load_floats(builder, source, builder.mul(loop.index, int64(VECTOR_BYTES)))
            store_bf16(builder, builder.fmul(x, factors), out, builder.mul(loop.index, int64(VECTOR_BYTES // 2)))
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp, types.intp), codegen
