"""float32 GEMM by three bfloat16 products, "bf16x3", for processors on which bfloat16 is much faster.

Each operand is split into two bfloat16 terms, ``x = high + low + rest`` with a rest below 2**-17 |x|, and of the four
products of terms the smallest is omitted (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence
Datatype For Higher-Precision Computations", ARITH 2019)::

    a b  ~  a_low b_high + a_high b_low + a_high b_high        each summed in float32, the small ones first

Omitting a_low b_low is an error of up to 2**-16 |a b|, and each of the two rests of up to 2**-17: 3e-5 in the worst
case, 4.4e-6 of the norm of a result with random operands. It costs three times the arithmetic, at the rate of bfloat16:
a gain on AMX, where that is 3 to 8 times the rate of float32; on AVX-512, where it is twice, it reaches 0.6 of the
speed of `kernels.matmul.float32`.

The scheme is that of `kernels.matmul.float32`, with splitting in place of packing, on the stack: a block of rows of A,
row-major, in the L2 cache, and panel after panel of B, packed (`kernels.matmul.pack`), in the L1 cache. The tiles are
those of `kernels.matmul.bf16`. Operands are read in squares, which also handles transposes and edges; these are padded
with zeros. All blocks follow from the shapes: the bits are the same in any thread.

An infinity or NaN is its own low term, and its high term is the largest finite number, so that no infinity is
multiplied by the zero low term of a number like 1; a sum that overflows may be NaN where float32 has an infinity. Terms
below 1.2e-38 are treated as zero on AVX-512 and AMX, so numbers below about 1e-35 have fewer correct digits.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from threadloom.kernels.compiling import Entry, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul.amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op, gemm_args, shifted
from threadloom.kernels.matmul.pack import PANEL
from threadloom.kernels.matmul.tile import TILE_COLUMNS, TILE_ROWS, tile_avx512, tile_float32
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    LARGEST_BF16,
    DotPath,
    float32_vector,
    int32_vector,
    load_float32,
    pointer,
    read_dot_path,
    round_to_bf16,
    rounded_bits,
    stack_buffer,
    store_float32,
    transpose_uint32,
    upcast_bf16,
)

_DEPTH = 256  # rows of a panel: its two terms are 32 KiB
_ROWS = 256  # rows of A that are multiplied by all panels of that depth; both terms are 256 KiB
_ROW_BYTES = 4 * _DEPTH

_lines_buffer = stack_buffer(_ROWS * _ROW_BYTES)
_panel_buffer = stack_buffer(2 * _DEPTH * PANEL * 2)
_square_buffer = stack_buffer(LANES * LANES * 4)
_tile_buffer = stack_buffer(TILE_SIZE * PANEL * 4)


def _split(builder: Any, x: Any) -> tuple[Any, Any]:
    """Return two vectors with the high and the low term in their upper halves; the lower halves are undefined."""
    lowest, largest = float32_vector(-LARGEST_BF16), float32_vector(LARGEST_BF16)
    bounded = builder.select(builder.fcmp_ordered(">", x, lowest), x, lowest)
    bounded = builder.select(builder.fcmp_ordered("<", bounded, largest), bounded, largest)
    high = rounded_bits(builder, bounded)
    upper = builder.bitcast(builder.and_(high, int32_vector(0xFFFF0000)), FLOAT32_VECTOR)
    rest = builder.fsub(x, upper)  # exact if x is finite
    is_nan = builder.fcmp_unordered("uno", x, x)
    return high, builder.select(is_nan, int32_vector(0x7FC00000), rounded_bits(builder, rest))


@intrinsic
def _split_row(typing_context: Any, source: Any, high: Any, low: Any) -> Any:
    """Store the terms of the `LANES` floats at `source` as bfloat16 to `high` and `low`, all addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, *targets = arguments
        x = builder.load(pointer(builder, FLOAT32_VECTOR, source), align=4)
        for term, target in zip(_split(builder, x), targets, strict=True):
            bits = builder.trunc(builder.lshr(term, int32_vector(16)), INT16_VECTOR)
            builder.store(bits, pointer(builder, INT16_VECTOR, target), align=2)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def _split_pair(typing_context: Any, even: Any, odd: Any, high: Any, low: Any) -> Any:
    """Store the terms of `LANES` floats at `even` and at `odd` as pairs to `high` and `low`, all addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even, odd, *targets = arguments
        pair = [_split(builder, builder.load(pointer(builder, FLOAT32_VECTOR, row), align=4)) for row in (even, odd)]
        for first, second, target in zip(*pair, targets, strict=True):
            pairs = builder.or_(builder.lshr(first, int32_vector(16)), builder.and_(second, int32_vector(0xFFFF0000)))
            builder.store(pairs, pointer(builder, INT32_VECTOR, target), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), codegen


class _SplitBuffers(NamedTuple):
    """Addresses of the product's buffers on the buffers."""

    lines: int  # both terms of a block of op(A), row-major
    panel: int  # both terms of a panel of op(B), packed
    tile: int  # float32 sums that are not written straight into the result


class _Block(NamedTuple):
    """Block of an operand, (height, depth) or (depth, width) float32 elements."""

    address: int
    row_stride: int  # bytes from row to row of op(A), or from k to k of op(B)
    column_stride: int  # bytes from element to element of such a row
    transposed: bool  # the stored matrix is transposed: row_stride is 4, or column_stride is not
    rows: int
    columns: int


@jit_strict_fp
def _gather(block: _Block, row: int, column: int, square: int) -> None:
    """Copy an incomplete square of a block, element by element, and pad it with zeros."""
    source = block.address + row * block.row_stride + column * block.column_stride
    for i in range(LANES):
        for j in range(LANES):
            inside = i < block.rows - row and j < block.columns - column
            place = source + i * block.row_stride + j * block.column_stride
            store_float32(square, i * LANES + j, load_float32(place, 0) if inside else 0.0)


@jit_strict_inline
def _square(block: _Block, row: int, column: int, square: int) -> MatrixRef:
    """Return the square of a block at (row, column), in place if possible, else copied to the address `square`."""
    if block.rows - row < LANES or block.columns - column < LANES:
        _gather(block, row, column, square)
        return MatrixRef(square, 4 * LANES)
    source = block.address + row * block.row_stride + column * block.column_stride
    if block.transposed:
        transpose_uint32(source, block.column_stride, square, 4 * LANES)
        return MatrixRef(square, 4 * LANES)
    return MatrixRef(source, block.row_stride)


@jit_strict_fp
def _split_rows(block: _Block, whole_rows: int, whole_depth: int, high: int, low: int) -> None:
    """Split a block of op(A), (height, depth), into two row-major ones of the whole sizes."""
    square = _square_buffer()
    for i in range(0, whole_rows, LANES):
        for k in range(0, whole_depth, LANES):
            source = _square(block, i, k, square)
            for r in range(LANES):
                target = (i + r) * _ROW_BYTES + 2 * k
                _split_row(source.address + r * source.stride, high + target, low + target)


@jit_strict_fp
def _split_panel(block: _Block, whole_depth: int, high: int, low: int) -> None:
    """Split and pack a panel of op(B), (depth, width), padded to `whole_depth` and 32 columns."""
    square = _square_buffer()
    for j in range(0, PANEL, LANES):
        for k in range(0, whole_depth, LANES):
            source = _square(block, k, j, square)
            for r in range(0, LANES, 2):
                target, even = 2 * PANEL * (k + r) + 4 * j, source.address + r * source.stride
                _split_pair(even, even + source.stride, high + target, low + target)


@jit_strict_fp
def _three_products(path: int, a: int, last_row: int, b: int, depth: int, out: MatrixRef, adds: bool) -> None:
    """Write, or add, a tile to `out`: `TILE_SIZE` rows on AMX, `TILE_ROWS` elsewhere, and 32 columns.

    In memory a row of A is its low terms followed by its high ones, a panel of B its high terms followed by its low
    ones: the two mixed products are one of twice the depth.
    """
    for product in range(2):
        if product == 0:
            left, inner, accumulate = MatrixRef(a, _ROW_BYTES), 2 * depth, 1 if adds else 0
        else:
            left, inner, accumulate = MatrixRef(a + 2 * depth, _ROW_BYTES), depth, 1
        if path == DotPath.AMX:
            tile_amx(left, b, inner // K_STEP, out, accumulate)
            continue
        for column in range(0, PANEL, TILE_COLUMNS):
            part, target = b + 4 * column, MatrixRef(out.address + 4 * column, out.stride)
            if path == DotPath.AVX512:
                tile_avx512(left, last_row, part, inner, target, accumulate)
            else:
                tile_float32(left, last_row, part, inner, target, accumulate)


@jit_strict_fp
def _merge(tile: int, out: MatrixRef, height: int, width: int, alpha: np.float32, beta: np.float32) -> None:
    """Store ``alpha * tile + beta * out`` for the part of the tile that is inside `out`."""
    for i in range(height):
        source, target = tile + 4 * PANEL * i, out.address + i * out.stride
        if beta == 0.0:
            for j in range(width):
                store_float32(target, j, alpha * load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, alpha * load_float32(source, j) + beta * load_float32(target, j))


@jit_strict_inline
def _block_of_a(p: GemmArgs, i0: int, k0: int, height: int, depth: int) -> _Block:
    """Return op(a)[i0 : i0 + height, k0 : k0 + depth]."""
    if p.op_a == Op.T:
        return _Block(p.a.address + k0 * p.a.stride + 4 * i0, 4, p.a.stride, True, height, depth)
    return _Block(p.a.address + i0 * p.a.stride + 4 * k0, p.a.stride, 4, False, height, depth)


@jit_strict_inline
def _block_of_b(p: GemmArgs, k0: int, j0: int, depth: int, width: int) -> _Block:
    """Return op(b)[k0 : k0 + depth, j0 : j0 + width]."""
    if p.op_b == Op.T:
        return _Block(p.b.address + j0 * p.b.stride + 4 * k0, 4, p.b.stride, True, depth, width)
    return _Block(p.b.address + k0 * p.b.stride + 4 * j0, p.b.stride, 4, False, depth, width)


@jit_strict_fp
def _multiply_block(p: GemmArgs, path: int, buffers: _SplitBuffers, i0: int, height: int, k0: int) -> None:
    """Add the products along one depth from `k0` to a block of the result."""
    depth = min(_DEPTH, p.inner - k0)
    whole = -(-depth // K_STEP) * K_STEP
    whole_height = -(-height // TILE_SIZE) * TILE_SIZE
    step = TILE_SIZE if path == DotPath.AMX else TILE_ROWS
    beta = p.beta if k0 == 0 else np.float32(1.0)
    plain = p.alpha == 1.0 and (beta == 0.0 or beta == 1.0)
    high, low = buffers.lines + 2 * whole, buffers.lines
    _split_rows(_block_of_a(p, i0, k0, height, depth), whole_height, whole, high, low)
    for j in range(0, p.columns, PANEL):
        width = min(PANEL, p.columns - j)
        _split_panel(_block_of_b(p, k0, j, depth, width), whole, buffers.panel, buffers.panel + 2 * PANEL * whole)
        for i in range(0, height, step):
            rows = min(step, height - i)
            target = shifted(p.out, i0 + i, 4 * j)
            direct = plain and rows == step and width == PANEL
            place = target if direct else MatrixRef(buffers.tile, 4 * PANEL)
            adds = direct and beta == 1.0
            _three_products(path, buffers.lines + i * _ROW_BYTES, rows - 1, buffers.panel, whole, place, adds)
            if not direct:
                _merge(buffers.tile, target, rows, width, p.alpha, beta)


@jit_strict_fp
def run_split(p: GemmArgs) -> None:
    """Compute ``p.out = alpha * op(a) @ op(b) + beta * out``. Reached through `kernels.matmul.blas.gemm`."""
    path = read_dot_path()
    buffers = _SplitBuffers(_lines_buffer(), _panel_buffer(), _tile_buffer())
    if path == DotPath.AMX:
        configure_tiles()
    for i0 in range(0, p.rows, _ROWS):
        height = min(_ROWS, p.rows - i0)
        for k0 in range(0, p.inner, _DEPTH):
            _multiply_block(p, path, buffers, i0, height, k0)
    if path == DotPath.AMX:
        release_tiles()


_ENTRY = Entry("threadloom_gemm_split", run_split, GemmArgs)
call_split = _ENTRY.call
"""Run `run_split` through its entry, in compiled code only; `prepare_split` must have been called in this process."""


@jit_strict_fp
def gemm_split(a: Floats, b: Floats, out: Floats, op_a: Op, op_b: Op, alpha: float, beta: float) -> None:
    """Compute ``out = alpha * op_a(a) @ op_b(b) + beta * out`` by this product, independent of the process's backend.

    In compiled code only; `prepare_split` must have been called in this process.
    """
    call_split(gemm_args(a, b, out, op_a, op_b, alpha, beta))


def prepare_split() -> None:
    """Compile the product, or load it from the cache: must be called before it is selected, as few processes do."""
    _ENTRY.prepare()


def multiply_split(a: Floats, b: Floats) -> Floats:
    """Return ``a @ b`` by three products of bfloat16 terms, in new memory and by NumPy: without the compiler."""
    terms = []
    with np.errstate(invalid="ignore", over="ignore"):
        for x in (a, b):
            high = upcast_bf16(round_to_bf16(np.clip(np.nan_to_num(x, nan=0.0), -LARGEST_BF16, LARGEST_BF16)))
            terms.append((high, upcast_bf16(round_to_bf16(x - high))))
        (a_high, a_low), (b_high, b_low) = terms
        return np.matmul(a_low, b_high) + np.matmul(a_high, b_low) + np.matmul(a_high, b_high)
