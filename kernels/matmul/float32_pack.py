"""Packing of the operands of the float32 product: a panel of B, and strips of A as high as a tile.

Everything is copied in whole vectors, at the edges too: a vector that reaches past the end of a row reads the beginning
of the next one, which is memory of the same matrix, and a square of a transpose with too few rows reads the last one
again. What such lanes hold is multiplied, but never stored in a result.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.matmul.float32_tile import VECTORS, WIDTH
from threadloom.kernels.matmul.operands import GemmArgs, Op
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT32_VECTOR,
    LANES,
    exchange_lanes,
    int64,
    load_float32,
    pointer,
    store_float32,
    transpose_uint32,
)


def _copier(vectors: int) -> Any:
    """Return an intrinsic that copies vectors; LLVM would copy number by number, since the addresses may overlap."""

    @intrinsic
    def copy(typing_context: Any, source: Any, target: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, target = arguments
            offsets = [int64(4 * LANES * v) for v in range(vectors)]
            values = [builder.load(pointer(builder, FLOAT32_VECTOR, source, offset), align=4) for offset in offsets]
            for value, offset in zip(values, offsets, strict=True):
                builder.store(value, pointer(builder, FLOAT32_VECTOR, target, offset), align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return copy


_copy_vector, _copy_line = _copier(1), _copier(VECTORS)


@intrinsic
def _transpose_some(typing_context: Any, source: Any, stride: Any, rows: Any, target: Any, target_stride: Any) -> Any:
    """Transpose as `transpose_uint32`, of `rows` rows: the last of them is read in place of those that are missing."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, rows, target, target_stride = arguments
        last = builder.mul(stride, builder.sub(rows, int64(1)))

        def row(i: int) -> Any:
            offset = builder.select(builder.icmp_signed("<", int64(i), rows), builder.mul(stride, int64(i)), last)
            return builder.load(pointer(builder, INT32_VECTOR, source, offset), align=4)

        for i, value in enumerate(exchange_lanes(builder, [row(i) for i in range(LANES)])):
            place = pointer(builder, INT32_VECTOR, target, builder.mul(target_stride, int64(i)))
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@jit_kernel
def _transpose(source: int, stride: int, rows: int, depth: int, target: int, target_stride: int) -> None:
    """Transpose (rows, depth) floats, at most `LANES` rows; each of the `depth` results is stored as a whole vector."""
    if depth < LANES:
        for k in range(depth):
            for j in range(rows):
                store_float32(target + k * target_stride, j, load_float32(source + j * stride, k))
        return
    if rows == LANES:
        for k in range(0, depth, LANES):
            k0 = min(k, depth - LANES)  # the last square overlaps with the one before
            transpose_uint32(source + 4 * k0, stride, target + k0 * target_stride, target_stride)
    else:
        for k in range(0, depth, LANES):
            k0 = min(k, depth - LANES)
            _transpose_some(source + 4 * k0, stride, rows, target + k0 * target_stride, target_stride)


@jit_kernel
def _readable_rows(inside: bool, k0: int, depth: int, inner: int, row: int) -> int:
    """Return how many rows of a block can be read in whole vectors.

    All, if the vectors are `inside` the rows of the matrix; otherwise not the last of its `inner` rows, nor any if a
    `row` has fewer elements than a vector may reach into the next one.
    """
    if inside:
        return depth
    return min(depth, inner - 1 - k0) if row >= LANES else 0


@jit_kernel
def pack_panel(panel: int, p: GemmArgs, k0: int, depth: int, j0: int, width: int) -> None:
    """Copy op(b)[k0 : k0 + depth, j0 : j0 + width] to the panel, rows of `WIDTH` floats, of which others are undefined.

    Only the first vector of each row is written if `width` is not above `LANES`.
    """
    if p.op_b == Op.T:
        for j in range(0, width, LANES):
            source = p.b.address + (j0 + j) * p.b.stride + 4 * k0
            _transpose(source, p.b.stride, min(LANES, width - j), depth, panel + 4 * j, 4 * WIDTH)
        return
    vectors = -(-width // LANES)
    whole = _readable_rows(width == vectors * LANES, k0, depth, p.inner, p.columns)
    source = p.b.address + k0 * p.b.stride + 4 * j0
    if vectors == VECTORS:
        for k in range(whole):
            _copy_line(source + k * p.b.stride, panel + 4 * k * WIDTH)
    else:
        for k in range(whole):
            _copy_vector(source + k * p.b.stride, panel + 4 * k * WIDTH)
    for k in range(whole, depth):
        for j in range(width):
            store_float32(panel, k * WIDTH + j, load_float32(source + k * p.b.stride, j))


@jit_kernel
def pack_strip(strip: int, p: GemmArgs, i0: int, height: int, k0: int, depth: int) -> None:
    """Copy `height` rows of op(a) from row `i0`, or as many as there are, to a strip of `height` floats per k.

    Whole vectors reach into the place of the next k, or of the next strip, which is written later.
    """
    if p.op_a == Op.T:
        source = p.a.address + k0 * p.a.stride + 4 * i0
        whole = _readable_rows(i0 + LANES <= p.rows, k0, depth, p.inner, p.rows)
        for k in range(whole):
            _copy_vector(source + k * p.a.stride, strip + 4 * k * height)
        for k in range(whole, depth):
            for i in range(min(height, p.rows - i0)):
                store_float32(strip, k * height + i, load_float32(source + k * p.a.stride, i))
        return
    _transpose(p.a.address + i0 * p.a.stride + 4 * k0, p.a.stride, min(LANES, p.rows - i0), depth, strip, 4 * height)
