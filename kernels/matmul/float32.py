"""Blocked float32 GEMM in Numba alone: independent of BLAS, and on AVX-512 the default.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008): a panel
of B, `DEPTH` rows deep and `WIDTH` columns wide, is packed contiguously on the stack, where it stays in the L1 cache
while every tile of `_HEIGHT` rows of A is multiplied by it. The tile of the result is held in vector registers, with
explicit LLVM vectors. Edges are padded with zeros, computed in full, and stored element by element. A is read in place,
unless it is transposed: its next k is then a row, and mostly a page, further on, and a block of it is packed first.

On an AMD Zen 5 it runs at the speed of OpenBLAS's AVX-512 kernels, and at twice that of its AVX2 ones.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.matmul.float32_tile import VECTORS, WIDTH, RowsOfA, make_float32_tile
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op, shifted
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    LANES,
    int64,
    load_float32,
    pointer,
    stack_buffer,
    store_float32,
    transpose_uint32,
)

# AVX-512: 16 accumulators of 32 registers. AVX2: 12 of 16. NEON: 24 of 32, each vector being two registers.
_HEIGHT = 8 if LANES == 16 else 6
DEPTH = 256  # rows of a packed panel: 32 KiB at most, on the stack
_ROWS = 512  # rows of A that are multiplied by all panels before the next ones: 512 KiB of A stay in the L2 cache
_PACKED_ROWS = 256 // _HEIGHT * _HEIGHT  # the same if they are packed: 256 KiB, on the stack
_COLUMNS = 512  # columns of the result that are finished before the next ones

_panel_buffer = stack_buffer(4 * DEPTH * WIDTH)
_tile_buffer = stack_buffer(4 * _HEIGHT * WIDTH)
_edge_buffer = stack_buffer(4 * _HEIGHT * DEPTH)
_block_buffer = stack_buffer(4 * (_PACKED_ROWS * DEPTH + LANES))  # whole vectors are stored past the last strip


_tile = make_float32_tile(_HEIGHT)


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


copy_vector, _copy_line = _copier(1), _copier(VECTORS)


@jit_kernel
def pack_panel(panel: int, p: GemmArgs, k0: int, depth: int, j0: int, width: int) -> None:
    """Copy op(b)[k0 : k0 + depth, j0 : j0 + width] to the panel, rows of `WIDTH` floats, padded with zeros."""
    if p.op_b == Op.T:
        whole_k = depth - depth % LANES
        whole_j = width - width % LANES
        for j in range(0, whole_j, LANES):
            for k in range(0, whole_k, LANES):
                source = p.b.address + (j0 + j) * p.b.stride + 4 * (k0 + k)
                transpose_uint32(source, p.b.stride, panel + 4 * (k * WIDTH + j), 4 * WIDTH)
        for j in range(width):
            source = p.b.address + (j0 + j) * p.b.stride + 4 * k0
            for k in range(whole_k if j < whole_j else 0, depth):
                store_float32(panel, k * WIDTH + j, load_float32(source, k))
    else:
        for k in range(depth):
            source = p.b.address + (k0 + k) * p.b.stride + 4 * j0
            if width == WIDTH:
                _copy_line(source, panel + 4 * k * WIDTH)
            else:
                for j in range(width):
                    store_float32(panel, k * WIDTH + j, load_float32(source, j))
    if width < WIDTH:
        for k in range(depth):
            for j in range(width, WIDTH):
                store_float32(panel, k * WIDTH + j, 0.0)


@jit_kernel
def _copy_edge(edge: int, source: RowsOfA, height: int, depth: int) -> None:
    """Copy the last `height` rows of op(A) to `edge`, `_HEIGHT` per k, with the last row in place of missing ones."""
    for k in range(depth):
        for i in range(_HEIGHT):
            index = min(i, height - 1) * source.row_stride + k * source.k_stride
            store_float32(edge, k * _HEIGHT + i, load_float32(source.address, index))


@jit_kernel
def _pack_transposed(block: int, p: GemmArgs, rows0: int, rows1: int, k0: int, depth: int) -> None:
    """Copy whole tiles of op(A)[rows0 : rows1, k0 : k0 + depth] to the block; op(A) is the transpose of a.

    Each tile is a strip of `_HEIGHT` floats per k. The vector that is stored for a k may reach into the place of the
    next one, which is written later.
    """
    for i0 in range(rows0, rows1 - _HEIGHT + 1, _HEIGHT):
        strip = block + 4 * (i0 - rows0) * depth
        for k in range(depth):
            source, target = p.a.address + (k0 + k) * p.a.stride + 4 * i0, strip + 4 * k * _HEIGHT
            if i0 + LANES <= p.rows:
                copy_vector(source, target)
            else:
                for i in range(_HEIGHT):
                    store_float32(target, i, load_float32(source, i))


@jit_kernel
def merge_tile(tile: int, out: MatrixRef, height: int, width: int, beta: np.float32) -> None:
    """Store ``tile + beta * out`` for the part of the tile that is inside `out`."""
    for i in range(height):
        source, target = tile + 4 * i * WIDTH, out.address + i * out.stride
        if beta == 0.0:
            for j in range(width):
                store_float32(target, j, load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, load_float32(source, j) + beta * load_float32(target, j))


@jit_kernel
def gemm_blocked(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out``. Reached through `kernels.matmul.blas.gemm`."""
    panel, tile, edge, block = _panel_buffer(), _tile_buffer(), _edge_buffer(), _block_buffer()
    lda = p.a.stride // 4
    row_stride, k_stride = (1, lda) if p.op_a == Op.T else (lda, 1)
    packed = p.op_a == Op.T and p.columns > 2 * WIDTH  # for fewer panels it takes as long as it saves
    step = _PACKED_ROWS if packed else _ROWS
    for rows0 in range(0, p.rows, step):
        rows1 = min(rows0 + step, p.rows)
        for columns0 in range(0, p.columns, _COLUMNS):
            columns1 = min(columns0 + _COLUMNS, p.columns)
            for k0 in range(0, p.inner, DEPTH):
                depth = min(DEPTH, p.inner - k0)
                beta = p.beta if k0 == 0 else np.float32(1.0)
                if packed:
                    _pack_transposed(block, p, rows0, rows1, k0, depth)
                for j0 in range(columns0, columns1, WIDTH):
                    width = min(WIDTH, columns1 - j0)
                    pack_panel(panel, p, k0, depth, j0, width)
                    for i0 in range(rows0, rows1, _HEIGHT):
                        height = min(_HEIGHT, rows1 - i0)
                        source = RowsOfA(p.a.address + 4 * (i0 * row_stride + k0 * k_stride), row_stride, k_stride)
                        target = shifted(p.out, i0, 4 * j0)
                        if height < _HEIGHT:  # a full tile would read past the end of A
                            _copy_edge(edge, source, height, depth)
                            source = RowsOfA(edge, 1, _HEIGHT)
                        elif packed:
                            source = RowsOfA(block + 4 * (i0 - rows0) * depth, 1, _HEIGHT)
                        if height == _HEIGHT and width == WIDTH:
                            _tile(source, panel, depth, target, p.alpha, beta)
                        else:
                            _tile(source, panel, depth, MatrixRef(tile, 4 * WIDTH), p.alpha, np.float32(0.0))
                            merge_tile(tile, target, height, width, beta)
