"""Innermost float32 product: a tile of the result in vector registers, of any height; two, one or half a vector wide.

For each k, the vectors of a packed row of B are multiplied by the elements of A's rows, each broadcast to all lanes.
Each element of the tile is one chain of fused multiply-adds along k, then ``alpha * sum + beta * out``: its bits depend
on neither the size of the tile nor the place of A.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import numba_type
from threadloom.kernels.matmul.operands import MatrixRef
from threadloom.kernels.simd import (
    FLOAT32,
    FLOAT32_VECTOR,
    LANES,
    broadcast,
    fused_multiply_add,
    int64,
    pointer,
)

VECTORS = 2
WIDTH = VECTORS * LANES
"""Columns of a full tile, and of a packed panel of B."""


class RowsOfA(NamedTuple):
    """Block of op(A): its address, and its strides as counts of floats."""

    address: int
    row_stride: int
    k_stride: int


def _element(builder: Any, base: Any, index: Any) -> Any:
    """Return a pointer to the float at `index` of an array at the address `base`."""
    return builder.gep(builder.inttoptr(base, FLOAT32.as_pointer()), [index])


HALF = LANES // 2
"""Columns of the narrowest tile: many processors multiply two vectors of half the size in the time of one."""


class _Size(NamedTuple):
    """Rows of a tile, and its columns as vectors of a type."""

    height: int
    vectors: int
    kind: Any


def _size(height: int, columns: int) -> _Size:
    lanes = min(columns, LANES)
    return _Size(height, columns // lanes, ir.VectorType(FLOAT32, lanes))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c for vectors of any type."""
    if a.type == FLOAT32_VECTOR:
        return fused_multiply_add(builder, a, b, c)
    kind = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fmuladd.v{a.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _emit_sums(builder: Any, size: _Size, source: Any, panel: Any, depth: Any) -> list[list[Any]]:
    """Emit the loop along k; return the stack slots of the accumulators, which LLVM promotes to registers."""
    height, vectors, kind = size
    a, row_stride, k_stride = cgutils.unpack_tuple(builder, source, 3)
    sums = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(height)]
    for row in sums:
        for slot in row:
            builder.store(ir.Constant(kind, None), slot)
    with cgutils.for_range(builder, depth) as loop:
        line = builder.mul(loop.index, int64(4 * WIDTH))
        columns = [
            builder.load(pointer(builder, kind, panel, line, int64(4 * v)), align=4 * kind.count)
            for v in range(0, vectors * kind.count, kind.count)
        ]
        along_k = builder.mul(loop.index, k_stride)
        for i, row in enumerate(sums):
            index = builder.add(along_k, builder.mul(row_stride, int64(i)))
            factor = broadcast(builder, builder.load(_element(builder, a, index)), kind)
            for column, slot in zip(columns, row, strict=True):
                builder.store(_multiply_add(builder, factor, column, builder.load(slot)), slot)
    return sums


def _emit_tile(builder: Any, size: _Size, arguments: Sequence[Any]) -> None:
    """Emit the sums of a tile and their storing; the arguments are those of `make_float32_tile`."""
    source, panel, depth, out, alpha, beta = arguments
    sums = _emit_sums(builder, size, source, panel, depth)
    address, stride = cgutils.unpack_tuple(builder, out, 2)
    alphas, betas = broadcast(builder, alpha, size.kind), broadcast(builder, beta, size.kind)
    overwrite = builder.fcmp_ordered("==", beta, ir.Constant(FLOAT32, 0.0))
    with builder.if_else(overwrite) as (then, otherwise):
        for branch, reads in ((then, False), (otherwise, True)):
            with branch:
                for i, row in enumerate(sums):
                    for v, slot in enumerate(row):
                        offset = builder.mul(stride, int64(i))
                        place = pointer(builder, size.kind, address, offset, int64(4 * size.kind.count * v))
                        value = builder.fmul(alphas, builder.load(slot))
                        if reads:
                            value = _multiply_add(builder, betas, builder.load(place, align=4), value)
                        builder.store(value, place, align=4)


def _types_of_tile() -> tuple[Any, ...]:
    return (numba_type(RowsOfA), types.intp, types.intp, numba_type(MatrixRef), types.float32, types.float32)


def make_float32_tile(height: int) -> Any:
    """Return the intrinsic ``tile(source, panel, depth, out, alpha, beta)`` for `height` rows of `WIDTH` columns.

    It computes ``out = alpha * op(A) @ panel + beta * out`` for a `RowsOfA` and the address of a packed panel; `out` is
    a `MatrixRef`. With ``beta == 0`` the tile is not read.
    """

    @intrinsic
    def tile(typing_context: Any, source: Any, panel: Any, depth: Any, out: Any, alpha: Any, beta: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_tile(builder, _size(height, WIDTH), arguments)
            return context.get_dummy_value()

        return types.void(*_types_of_tile()), codegen

    return tile


def make_float32_tiles(heights: Sequence[int], columns: int) -> Any:
    """Return the intrinsic ``tile(height, source, panel, depth, out, alpha, beta)``, a tile of one of `heights` rows.

    It has the first `columns` columns of the panel: `WIDTH`, `LANES` or `HALF`. Otherwise it is a tile of
    `make_float32_tile`; for another height it does nothing.
    """

    @intrinsic
    def tile(
        typing_context: Any, height: Any, source: Any, panel: Any, depth: Any, out: Any, alpha: Any, beta: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            height, *others = arguments
            end = builder.append_basic_block("tiles.end")
            choice = builder.switch(height, end)
            for rows in heights:
                block = builder.append_basic_block(f"tile.{rows}")
                choice.add_case(int64(rows), block)
                builder.position_at_end(block)
                _emit_tile(builder, _size(rows, columns), others)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(types.intp, *_types_of_tile()), codegen

    return tile
