"""Passes over rows of one attention head in bfloat16, as LLVM vectors: dot products, packing, prefetching.

Addresses and strides count bytes.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from threadloom.kernels.matmul import PANEL
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT8,
    INT16_VECTOR,
    INT32,
    INT32_VECTOR,
    LANES,
    VECTOR_BYTES,
    fused_multiply_add,
    int32_vector,
    int64,
    pointer,
    upcast_even,
    upcast_odd,
)


@intrinsic
def dot_columns(typing_context: Any, a: Any, b: Any, pairs: Any, out: Any) -> Any:
    """Write the dot product of each column of a panel `a` with that of `b` to `out`, `PANEL` floats."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, pairs, out = arguments
        slots = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(PANEL // LANES)]
        for slot in slots:
            builder.store(ir.Constant(FLOAT32_VECTOR, None), slot)
        with cgutils.for_range(builder, pairs) as loop:
            for v, slot in enumerate(slots):
                offset = builder.add(builder.mul(loop.index, int64(4 * PANEL)), int64(v * VECTOR_BYTES))
                x, y = (builder.load(pointer(builder, INT32_VECTOR, base, offset), align=4) for base in (a, b))
                total = builder.load(slot)
                for half in (upcast_even, upcast_odd):
                    total = fused_multiply_add(builder, half(builder, x), half(builder, y), total)
                builder.store(total, slot)
        for v, slot in enumerate(slots):
            builder.store(builder.load(slot), pointer(builder, FLOAT32_VECTOR, out, int64(v * VECTOR_BYTES)), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), codegen


@intrinsic
def pack_rows_vector(typing_context: Any, even: Any, odd: Any, target: Any) -> Any:
    """Pack `LANES` elements at `even` and as many at `odd` as pairs in uint32 at `target`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even, odd, target = arguments
        low, high = (
            builder.zext(builder.load(pointer(builder, INT16_VECTOR, row), align=2), INT32_VECTOR)
            for row in (even, odd)
        )
        pairs = builder.or_(low, builder.shl(high, int32_vector(16)))
        builder.store(pairs, pointer(builder, INT32_VECTOR, target), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def prefetch_row(typing_context: Any, address: Any, size: Any, write: Any) -> Any:
    """Prefetch the cache lines of `size` bytes at an address, to read or to write (`write` is a constant).

    The address need not be mapped. The rows of a head are as far apart as the matrix is wide, which the processor's
    prefetcher does not predict.
    """
    if not isinstance(write, types.Literal):
        raise RequireLiteralValue("write must be a constant")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size, _ = arguments
        kind = ir.FunctionType(ir.VoidType(), [INT8.as_pointer(), INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(INT32, value) for value in (int(write.literal_value), 2, 1)]
        with cgutils.for_range_slice(builder, int64(0), size, int64(64)) as (offset, _):
            builder.call(function, [pointer(builder, INT8, address, offset), *hints])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, write), codegen
