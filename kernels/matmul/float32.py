"""Blocked float32 GEMM in Numba alone: independent of BLAS, and on AVX-512 the default.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008): a panel
of B, `DEPTH` rows deep and `WIDTH` columns wide, is packed contiguously on the stack, where it stays in the L1 cache
while every tile of A's rows is multiplied by it. The tile of the result is held in vector registers, with explicit LLVM
vectors. A is read in place or packed once a block, as the variant of the product says (`kernels.matmul.variants`); a
transposed A is always packed, unless few panels use it: its next k is a row, and mostly a page, further on.

At the edges tiles are smaller: the last rows are multiplied in a tile of their height, and a last panel of at most one
vector of columns in tiles of one vector, or of half of one. No row is computed that is not stored.

The product is compiled once and called by address, so that no kernel contains it. On an AMD Zen 5 it runs at the speed
of OpenBLAS's AVX-512 kernels, and at twice that of its AVX2 ones.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import Entry, jit_kernel
from threadloom.kernels.matmul.float32_pack import pack_panel, pack_strip
from threadloom.kernels.matmul.float32_prefetch import NextPanel, fetch_for_tile, next_panel
from threadloom.kernels.matmul.float32_tile import HALF, WIDTH, RowsOfA, make_float32_tile, make_float32_tiles
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op, shifted
from threadloom.kernels.matmul.variants import IN_PLACE, PACKED_PREFETCH, TALL, TALL_PREFETCH, variant_of
from threadloom.kernels.simd import LANES, load_float32, stack_buffer, store_float32

# AVX-512: 16 or 28 accumulators of 32 registers. AVX2: 12 of 16. NEON: 24 of 32, each vector being two registers.
LOW, HIGH = (8, 14) if LANES == 16 else (6, 6)
"""Rows of the tiles: 14 x 2 accumulators, 2 vectors of B and a broadcast element take 31 of AVX-512's 32 registers."""
DEPTH = 256  # rows of a packed panel: 32 KiB at most, on the stack
_ROWS = 512  # rows of A that are multiplied by all panels before the next ones: 512 KiB of A stay in the L2 cache
_PACKED_ROWS = 256  # the same if they are packed: 256 KiB and one tile more, on the stack
_COLUMNS = 512  # columns of the result that are finished before the next ones

_panel_buffer = stack_buffer(4 * DEPTH * WIDTH)
_tile_buffer = stack_buffer(4 * HIGH * WIDTH)
_block_buffer = stack_buffer(4 * ((_PACKED_ROWS + HIGH) * DEPTH + LANES))  # vectors are stored past the last strip

_high, _low = make_float32_tile(HIGH), make_float32_tile(LOW)
_short = make_float32_tiles(range(1, LOW), WIDTH)
_narrow = make_float32_tiles(sorted({HIGH, LOW, 4, 2, 1}), LANES)
_narrowest = make_float32_tiles(sorted({HIGH, LOW, 4, 2, 1}), HALF)


class _Buffers(NamedTuple):
    """Addresses on the stack."""

    panel: int
    tile: int  # a tile that is not stored whole
    block: int  # strips of A


class _Plan(NamedTuple):
    """How a product is cut, which its variant and shape decide."""

    packs: bool  # A, into strips of `height` rows
    height: int  # of the tiles
    fetches: bool
    rows: int  # of a block of A
    columns: int  # that are finished before the next ones


class _Block(NamedTuple):
    """Rows of A, along a part of k."""

    rows0: int
    rows1: int
    k0: int
    depth: int
    beta: np.float32


@jit_kernel
def _plan(p: GemmArgs) -> _Plan:
    variant = variant_of(p)
    packs = variant != IN_PLACE or (p.op_a == Op.T and p.columns > 2 * WIDTH)  # for fewer it takes what it saves
    height = HIGH if variant in (TALL, TALL_PREFETCH) else LOW
    blocks = max(1, -(-p.rows // _PACKED_ROWS))
    rows = max(1, -(-p.rows // (blocks * height))) * height if packs else _ROWS  # blocks of nearly the same height
    columns = max(1, p.columns) if packs and p.inner <= DEPTH else _COLUMNS
    return _Plan(packs, height, variant in (PACKED_PREFETCH, TALL_PREFETCH), rows, columns)


@jit_kernel
def _merge_tile(tile: int, out: MatrixRef, height: int, width: int, beta: np.float32) -> None:
    """Store ``tile + beta * out`` for the columns of the tile that are inside `out`."""
    for i in range(height):
        source, target = tile + 4 * i * WIDTH, out.address + i * out.stride
        if beta == 0.0:
            for j in range(width):
                store_float32(target, j, load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, load_float32(source, j) + beta * load_float32(target, j))


@jit_kernel
def _height_of_tile(plan: _Plan, rows: int, narrow: bool) -> int:
    """Return the height of the next tile, of `rows` rows that are left."""
    if rows >= plan.height:
        return plan.height
    if rows >= LOW:
        return LOW
    if not narrow:
        return rows
    return 4 if rows >= 4 else 2 if rows >= 2 else 1


@jit_kernel
def _wide_tile(
    height: int, source: RowsOfA, panel: int, depth: int, out: MatrixRef, alpha: np.float32, beta: np.float32
) -> None:
    """Compute a tile of `WIDTH` columns; strides that are constants save the arithmetic of addresses."""
    packed = source.row_stride == 1
    if packed and height == HIGH and source.k_stride == HIGH:
        _high(RowsOfA(source.address, 1, HIGH), panel, depth, out, alpha, beta)
    elif packed and height == LOW and source.k_stride == LOW:
        _low(RowsOfA(source.address, 1, LOW), panel, depth, out, alpha, beta)
    elif height == LOW:
        _low(source, panel, depth, out, alpha, beta)
    else:
        _short(height, source, panel, depth, out, alpha, beta)


@jit_kernel
def _rows_of_a(p: GemmArgs, plan: _Plan, block: _Block, strips: int, i0: int) -> RowsOfA:
    """Return the rows of op(A) from row `i0`, in their strip or in place."""
    if plan.packs:
        inside = (i0 - block.rows0) % plan.height  # a short tile may begin within a strip
        strip = i0 - block.rows0 - inside
        return RowsOfA(strips + 4 * (strip * block.depth + inside), 1, plan.height)
    stride = p.a.stride // 4
    if p.op_a == Op.T:
        return RowsOfA(p.a.address + 4 * (block.k0 * stride + i0), 1, stride)
    return RowsOfA(p.a.address + 4 * (i0 * stride + block.k0), stride, 1)


@jit_kernel
def _multiply_panel(p: GemmArgs, plan: _Plan, block: _Block, buffers: _Buffers, j0: int, columns1: int) -> None:
    """Multiply a block of A by the panel at column `j0`, which is packed."""
    width = min(WIDTH, columns1 - j0)
    stored = width in (WIDTH, LANES, HALF)  # without a detour
    following = NextPanel(0, 0, 0, 0, 0)
    if plan.fetches:
        tiles = -(-(block.rows1 - block.rows0) // plan.height)
        following = next_panel(p, block.k0, block.depth, j0 + WIDTH, columns1, tiles)
    i0, index = block.rows0, 0
    while i0 < block.rows1:
        height = _height_of_tile(plan, block.rows1 - i0, width <= LANES)
        source = _rows_of_a(p, plan, block, buffers.block, i0)
        target = shifted(p.out, i0, 4 * j0)
        if plan.fetches:
            fetch_for_tile(target, height, following, index)
        out = target if stored else MatrixRef(buffers.tile, 4 * WIDTH)
        beta = block.beta if stored else np.float32(0.0)
        if width > LANES:
            _wide_tile(height, source, buffers.panel, block.depth, out, p.alpha, beta)
        elif width > HALF:
            _narrow(height, source, buffers.panel, block.depth, out, p.alpha, beta)
        else:
            _narrowest(height, source, buffers.panel, block.depth, out, p.alpha, beta)
        if not stored:
            _merge_tile(buffers.tile, target, height, width, block.beta)
        i0 += height
        index += 1


@jit_kernel
def run_blocked(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out`` in the variant of the product's kind."""
    buffers = _Buffers(_panel_buffer(), _tile_buffer(), _block_buffer())
    plan = _plan(p)
    for rows0 in range(0, p.rows, plan.rows):
        rows1 = min(rows0 + plan.rows, p.rows)
        for columns0 in range(0, p.columns, plan.columns):
            columns1 = min(columns0 + plan.columns, p.columns)
            for k0 in range(0, p.inner, DEPTH):
                depth = min(DEPTH, p.inner - k0)
                block = _Block(rows0, rows1, k0, depth, p.beta if k0 == 0 else np.float32(1.0))
                if plan.packs:
                    for i0 in range(rows0, rows1, plan.height):
                        pack_strip(buffers.block + 4 * (i0 - rows0) * depth, p, i0, plan.height, k0, depth)
                for j0 in range(columns0, columns1, WIDTH):
                    pack_panel(buffers.panel, p, k0, depth, j0, min(WIDTH, columns1 - j0))
                    _multiply_panel(p, plan, block, buffers, j0, columns1)


_ENTRY = Entry("threadloom_gemm_float32", run_blocked, GemmArgs, prepares_itself=True)
call_blocked = _ENTRY.call
"""Run `run_blocked` through its entry, in compiled code only; the first call in a process compiles or loads it."""
prepare_blocked = _ENTRY.prepare
"""Compile the product, or load it from the cache, before its first call does."""
