"""Blocked float32 GEMM that packs A too, in tiles of two heights, with or without prefetching.

A block of op(A) is copied once into strips, each as high as a tile and contiguous along k, and then multiplied by panel
after panel of B (`kernels.matmul.float32` has the scheme). A tile then reads one stream in place of one a row. While it
is computed, its part of the result and a few lines of the next panel of B are fetched, where the variant asks for that.

It is compiled once and called by address: no kernel contains it, and processes that do not select it never load it. Its
bits are those of `kernels.matmul.float32`.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import Entry, jit_kernel
from threadloom.kernels.matmul.float32 import DEPTH, copy_vector, merge_tile, pack_panel
from threadloom.kernels.matmul.float32_tile import WIDTH, RowsOfA, make_float32_tile
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op, shifted
from threadloom.kernels.matmul.variants import PACKED_PREFETCH, TALL, TALL_PREFETCH, variant_of
from threadloom.kernels.simd import (
    INT8,
    INT32,
    LANES,
    load_float32,
    prefetch,
    stack_buffer,
    store_float32,
    transpose_uint32,
)

LOW, HIGH = (8, 14) if LANES == 16 else (6, 6)
"""Rows of the tiles: 14 x 2 accumulators, 2 vectors of B and a broadcast element take 31 of AVX-512's 32 registers."""
ROWS = 256  # of op(A), packed: 256 KiB and one tile more, on the stack
COLUMNS = 512  # columns of the result that are finished before the next ones if the sums are of several depths
_LINE = 64
_LINES = 4 * WIDTH // _LINE  # cache lines of a row of a tile

_panel_buffer = stack_buffer(4 * DEPTH * WIDTH)
_tile_buffer = stack_buffer(4 * HIGH * WIDTH)
_block_buffer = stack_buffer(4 * ((ROWS + HIGH) * DEPTH + LANES))  # whole vectors are stored past the last strip

_low_tile, _high_tile = make_float32_tile(LOW), make_float32_tile(HIGH)


def _prefetcher(for_writing: bool) -> Any:
    @intrinsic
    def fetch(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if for_writing:
                prefetch(builder, arguments[0])
            else:  # other threads read the same line of B: it must not be taken from them
                kind = ir.FunctionType(ir.VoidType(), [INT8.as_pointer(), INT32, INT32, INT32])
                function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
                place = builder.inttoptr(arguments[0], INT8.as_pointer())
                builder.call(function, [place, *(ir.Constant(INT32, number) for number in (0, 2, 1))])  # to L2
            return context.get_dummy_value()

        return types.void(types.intp), codegen

    return fetch


_fetch_to_write, _fetch_to_read = _prefetcher(for_writing=True), _prefetcher(for_writing=False)


class _Step(NamedTuple):
    """Part of a product: rows of A by one panel of B."""

    rows0: int
    rows1: int
    k0: int
    depth: int
    j0: int
    columns1: int  # end of the columns that are finished before the next ones
    height: int  # of a tile
    fetches: bool


@jit_kernel
def _height(step: _Step, i0: int) -> int:
    """Return the height of the tile at row `i0`: a low one for the last rows, if they fit."""
    return LOW if step.rows1 - i0 <= LOW else step.height


@jit_kernel
def _pack_strip(strip: int, p: GemmArgs, i0: int, height: int, k0: int, depth: int) -> None:
    """Copy `height` rows of op(A) from row `i0` to a strip, `height` floats per k; the last row fills it.

    Whole vectors reach into the place of the next k, or the next strip, which is written later.
    """
    whole = i0 + LANES <= p.rows
    if p.op_a == Op.T:
        done = depth if whole else 0
        for k in range(done):
            copy_vector(p.a.address + (k0 + k) * p.a.stride + 4 * i0, strip + 4 * k * height)
    else:
        done = depth - depth % LANES if whole else 0
        for k in range(0, done, LANES):
            source = p.a.address + i0 * p.a.stride + 4 * (k0 + k)
            transpose_uint32(source, p.a.stride, strip + 4 * k * height, 4 * height)
    row_stride, k_stride = (4, p.a.stride) if p.op_a == Op.T else (p.a.stride, 4)
    for k in range(done, depth):
        for i in range(height):
            row = min(i0 + i, p.rows - 1)
            source = p.a.address + row * row_stride + (k0 + k) * k_stride
            store_float32(strip, k * height + i, load_float32(source, 0))


@jit_kernel
def _fetch_result(target: MatrixRef, height: int) -> None:
    """Prefetch the lines of a tile of the result: its rows are far apart."""
    for i in range(height):
        for line in range(_LINES):
            _fetch_to_write(target.address + i * target.stride + _LINE * line)


@jit_kernel
def _fetch_panel(p: GemmArgs, step: _Step, i0: int) -> None:
    """Prefetch the share of the tile at row `i0` in the next panel of B."""
    if step.j0 + 2 * WIDTH > step.columns1:
        return
    tiles = -(-(step.rows1 - step.rows0) // step.height)
    per_row = -(-4 * step.depth // _LINE) if p.op_b == Op.T else _LINES
    rows = WIDTH if p.op_b == Op.T else step.depth
    share = -(-rows // tiles)
    first = (i0 - step.rows0) // step.height * share
    j = step.j0 + WIDTH
    base = p.b.address + (j * p.b.stride + 4 * step.k0 if p.op_b == Op.T else step.k0 * p.b.stride + 4 * j)
    for row in range(first, min(first + share, rows)):
        for line in range(per_row):
            _fetch_to_read(base + row * p.b.stride + _LINE * line)


@jit_kernel
def _multiply_panel(p: GemmArgs, step: _Step, panel: int, tile: int, block: int, width: int, beta: np.float32) -> None:
    """Multiply the strips of a block by one panel."""
    i0 = step.rows0
    while i0 < step.rows1:
        height = _height(step, i0)
        source = RowsOfA(block + 4 * (i0 - step.rows0) * step.depth, 1, height)
        target = shifted(p.out, i0, 4 * step.j0)
        inside = min(height, step.rows1 - i0)
        whole = inside == height and width == WIDTH
        if step.fetches:
            _fetch_result(target, inside)
            _fetch_panel(p, step, i0)
        out, keeps = (target, beta) if whole else (MatrixRef(tile, 4 * WIDTH), np.float32(0.0))
        if height == LOW:
            _low_tile(source, panel, step.depth, out, p.alpha, keeps)
        else:
            _high_tile(source, panel, step.depth, out, p.alpha, keeps)
        if not whole:
            merge_tile(tile, target, inside, width, beta)
        i0 += height


@jit_kernel
def run_packed(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out`` in the variant of the product's kind."""
    variant = variant_of(p)
    height = HIGH if variant in (TALL, TALL_PREFETCH) else LOW
    fetches = variant in (PACKED_PREFETCH, TALL_PREFETCH)
    panel, tile, block = _panel_buffer(), _tile_buffer(), _block_buffer()
    blocks = max(1, -(-p.rows // ROWS))
    rows_step = max(1, -(-p.rows // (blocks * height))) * height  # blocks of nearly the same height
    columns_step = max(1, p.columns) if p.inner <= DEPTH else COLUMNS
    for rows0 in range(0, p.rows, rows_step):
        rows1 = min(rows0 + rows_step, p.rows)
        for columns0 in range(0, p.columns, columns_step):
            columns1 = min(columns0 + columns_step, p.columns)
            for k0 in range(0, p.inner, DEPTH):
                depth = min(DEPTH, p.inner - k0)
                beta = p.beta if k0 == 0 else np.float32(1.0)
                step = _Step(rows0, rows1, k0, depth, columns0, columns1, height, fetches)
                i0 = rows0
                while i0 < rows1:
                    strip = block + 4 * (i0 - rows0) * depth
                    _pack_strip(strip, p, i0, _height(step, i0), k0, depth)
                    i0 += _height(step, i0)
                for j0 in range(columns0, columns1, WIDTH):
                    width = min(WIDTH, columns1 - j0)
                    pack_panel(panel, p, k0, depth, j0, width)
                    here = _Step(rows0, rows1, k0, depth, j0, columns1, height, fetches)
                    _multiply_panel(p, here, panel, tile, block, width, beta)


_ENTRY = Entry("threadloom_gemm_packed", run_packed, GemmArgs)
call_packed = _ENTRY.call
"""Run `run_packed` through its entry, in compiled code only; `prepare_packed` must have been called in this process."""


def prepare_packed() -> None:
    """Compile the product, or load it from the cache: must be called before a variant of it is selected."""
    _ENTRY.prepare()
