"""Innermost bfloat16 product: one tile of the result in vector registers.

For each pair along k, vectors of the packed B are multiplied by the pairs of A's rows, each broadcast to all lanes::

                            panel of B, row p:  | pair pair ... pair | pair pair ... pair |
                                                  vector 0             vector 1
    A, row i: pair p  -> broadcast  ---------->  tile[i][0] +=  .      tile[i][1] +=  .        i = 0 .. rows - 1

On a Zen 5 it runs at 99 % of the peak of VDPBF16PS, which is twice that of float32 multiply-add.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import numba_type
from threadloom.kernels.matmul.operands import MatrixRef
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

_VECTOR_BYTES = 4 * LANES
_BIT = ir.IntType(1)


class TileShape(NamedTuple):
    """Rows of a tile, and vectors of `LANES` columns in each."""

    rows: int
    vectors: int

    @property
    def columns(self) -> int:
        """Columns of the tile."""
        return self.vectors * LANES


# AVX-512: 16 accumulators of 32 registers. AVX2 (12 of 16 registers) works on half a panel. NEON: as AVX2, in 24 of 32.
WIDE_TILE = TileShape(rows=8 if LANES == 16 else 6, vectors=2)
TILE_ROWS, TILE_COLUMNS = WIDE_TILE.rows, WIDE_TILE.columns


class _Accumulators:
    """Vectors of one tile while it is computed: stack slots, which LLVM promotes to registers."""

    def __init__(self, builder: Any, shape: TileShape, out: Any) -> None:
        self._builder = builder
        self._address, self._stride = cgutils.unpack_tuple(builder, out, 2)
        self.rows = [
            [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(shape.vectors)] for _ in range(shape.rows)
        ]

    def _places(self) -> Iterator[tuple[Any, Any]]:
        """Yield each slot with the pointer to its vector in the result."""
        builder = self._builder
        for i, row in enumerate(self.rows):
            line = builder.add(self._address, builder.mul(self._stride, int64(i)))
            for v, slot in enumerate(row):
                yield slot, pointer(builder, FLOAT32_VECTOR, line, int64(v * _VECTOR_BYTES))

    def clear(self) -> None:
        for row in self.rows:
            for slot in row:
                self._builder.store(ir.Constant(FLOAT32_VECTOR, None), slot)

    def load(self) -> None:
        for slot, place in self._places():
            self._builder.store(self._builder.load(place, align=4), slot)

    def store(self) -> None:
        for slot, place in self._places():
            self._builder.store(self._builder.load(slot), place, align=4)

    def store_sum(self) -> None:
        for slot, place in self._places():
            value = self._builder.load(slot)
            self._builder.store(self._builder.fadd(self._builder.load(place, align=4), value), place, align=4)

    def prefetch(self) -> None:
        """Fetch the result's cache lines: its rows are far apart, each on its own page if the result is wide."""
        builder = self._builder
        for i, row in enumerate(self.rows):
            line = builder.add(self._address, builder.mul(self._stride, int64(i)))
            for v in range(0, len(row) * _VECTOR_BYTES, 64):
                prefetch(builder, builder.add(line, int64(v)))


def _multiply_pairs(builder: Any, starts: list[Any], panel: Any, inner: Any, sums: _Accumulators, native: bool) -> None:
    """Emit the loop over the pairs along k; of an odd `inner` the last element of a row of A is read alone."""

    def multiply(pair: Any, kind: Any) -> None:
        line = builder.add(panel, builder.mul(pair, int64(4 * PANEL)))
        columns = [
            builder.load(pointer(builder, INT32_VECTOR, line, int64(v * _VECTOR_BYTES)), align=4)
            for v in range(len(sums.rows[0]))
        ]
        along_k = builder.mul(pair, int64(4))
        for start, row in zip(starts, sums.rows, strict=True):
            value = builder.load(pointer(builder, kind, start, along_k), align=2)
            factor = broadcast(builder, value if kind is INT32 else builder.zext(value, INT32), INT32_VECTOR)
            for column, slot in zip(columns, row, strict=True):
                builder.store(dot_pairs(builder, factor, column, builder.load(slot), native), slot)

    pairs = builder.lshr(inner, int64(1))
    with cgutils.for_range(builder, pairs) as loop:
        multiply(loop.index, INT32)
    with builder.if_then(builder.trunc(inner, _BIT), likely=False):
        multiply(pairs, INT16)


def _row_starts(builder: Any, rows: int, a: Any, last_row: Any) -> list[Any]:
    """Return the addresses of the rows of A; rows after `last_row` repeat it."""
    address, stride = cgutils.unpack_tuple(builder, a, 2)
    starts = []
    for i in range(rows):
        beyond = builder.icmp_signed(">", int64(i), last_row)
        starts.append(builder.add(address, builder.mul(stride, builder.select(beyond, last_row, int64(i)))))
    return starts


def make_tile(shape: TileShape, *, native: bool, cached_result: bool) -> Any:
    """Return the intrinsic ``tile(a, last_row, panel, inner, out, accumulate)``.

    It multiplies `shape.rows` rows of `a` with the columns of a panel that start at the address `panel`, along `inner`
    elements, and writes the whole tile at `out`, or adds to it if `accumulate` is not 0. `a` and `out` are of type
    `MatrixRef`. Rows after `last_row` repeat it, so that nothing outside of `a` is read; their results are written too.

    `native`: use the instruction VDPBF16PS instead of float32 arithmetic. `cached_result`: the result is in the L1
    cache, so the sums start from it; otherwise its lines are prefetched and the finished sums are added to it.
    """

    @intrinsic
    def tile(typing_context: Any, a: Any, last_row: Any, panel: Any, inner: Any, out: Any, accumulate: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, last_row, panel, inner, out, accumulate = arguments
            starts = _row_starts(builder, shape.rows, a, last_row)
            sums = _Accumulators(builder, shape, out)
            adds = builder.icmp_signed("!=", accumulate, int64(0))
            if cached_result:
                with builder.if_else(adds) as (then, otherwise):
                    with then:
                        sums.load()
                    with otherwise:
                        sums.clear()
                _multiply_pairs(builder, starts, panel, inner, sums, native)
                sums.store()
            else:
                sums.prefetch()
                sums.clear()
                _multiply_pairs(builder, starts, panel, inner, sums, native)
                with builder.if_else(adds) as (then, otherwise):
                    with then:
                        sums.store_sum()
                    with otherwise:
                        sums.store()
            return context.get_dummy_value()

        matrix = numba_type(MatrixRef)
        return types.void(matrix, types.intp, types.intp, types.intp, matrix, types.intp), codegen

    return tile


tile_float32 = make_tile(WIDE_TILE, native=False, cached_result=False)
tile_avx512 = make_tile(WIDE_TILE, native=True, cached_result=False) if HAS_AVX512_BF16 else tile_float32
