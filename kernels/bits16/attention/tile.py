"""The innermost product of attention in bfloat16: tiles as in `kernels.matmul.tile`, and narrow ones for small heads.

Addresses and strides count bytes. All of a tile is written, so results are padded to whole tiles.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.matmul import PANEL
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    HAS_AVX512_BF16,
    INT16,
    INT32,
    INT32_VECTOR,
    LANES,
    broadcast,
    dot_pairs,
    int64,
    pointer,
)

_VECTOR_BYTES = 4 * LANES
_BIT = ir.IntType(1)


def _make_tile(native: bool, rows: int, vectors: int) -> Any:
    @intrinsic
    def tile(
        typing_context: Any,
        a: Any,
        row_bytes: Any,
        last_row: Any,
        panel: Any,
        inner: Any,
        out: Any,
        out_bytes: Any,
        accumulate: Any,
    ) -> Any:
        """Multiply rows of A with columns of a panel as `kernels.matmul.tile` does; all of the tile is written."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, row_bytes, last_row, panel, inner, out, out_bytes, accumulate = arguments
            starts = []
            for i in range(rows):
                beyond = builder.icmp_signed(">", int64(i), last_row)
                row = builder.select(beyond, last_row, int64(i))
                starts.append(builder.add(a, builder.mul(row_bytes, row)))
            slots = [[cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(vectors)] for _ in starts]

            def places() -> Any:
                for i, row in enumerate(slots):
                    line = builder.add(out, builder.mul(out_bytes, int64(i)))
                    for v, slot in enumerate(row):
                        yield slot, pointer(builder, FLOAT32_VECTOR, line, int64(v * _VECTOR_BYTES))

            adds = builder.icmp_signed("!=", accumulate, int64(0))
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    for slot, place in places():
                        builder.store(builder.load(place, align=4), slot)
                with otherwise:
                    for slot, _ in places():
                        builder.store(ir.Constant(FLOAT32_VECTOR, None), slot)

            def multiply(pair: Any, kind: Any) -> None:
                line = builder.add(panel, builder.mul(pair, int64(4 * PANEL)))
                columns = [
                    builder.load(pointer(builder, INT32_VECTOR, line, int64(v * _VECTOR_BYTES)), align=4)
                    for v in range(vectors)
                ]
                along_k = builder.mul(pair, int64(4))
                for start, row in zip(starts, slots, strict=True):
                    value = builder.load(pointer(builder, kind, start, along_k), align=2)
                    factor = broadcast(builder, value if kind is INT32 else builder.zext(value, INT32), INT32_VECTOR)
                    for column, slot in zip(columns, row, strict=True):
                        builder.store(dot_pairs(builder, factor, column, builder.load(slot), native), slot)

            pairs = builder.lshr(inner, int64(1))
            with cgutils.for_range(builder, pairs) as loop:
                multiply(loop.index, INT32)
            with builder.if_then(builder.trunc(inner, _BIT), likely=False):
                multiply(pairs, INT16)
            for slot, place in places():
                builder.store(builder.load(slot), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), codegen

    return tile


# As in `kernels.matmul.tile`. The narrow tile is for the last half of a panel, where D is an odd multiple of 16.
TILE_ROWS, NARROW_ROWS = (8, 16) if LANES == 16 else (6, 6)
TILE_COLUMNS, NARROW_COLUMNS = 2 * LANES, LANES
tile_float32 = _make_tile(False, TILE_ROWS, 2)
narrow_float32 = _make_tile(False, NARROW_ROWS, 1)
tile_native = _make_tile(True, TILE_ROWS, 2) if HAS_AVX512_BF16 else tile_float32
narrow_native = _make_tile(True, NARROW_ROWS, 1) if HAS_AVX512_BF16 else narrow_float32
