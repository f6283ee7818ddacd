"""A float32 product out of three bfloat16 products, "bf16x3": for processors on which bfloat16 is far faster.

Each operand is split into two bfloat16 terms, ``x = high + low + rest`` with a rest below 2**-17 |x|, and of the four
products the smallest is left out (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
Higher-Precision Computations", ARITH 2019)::

    a b  ~  a_low b_high + a_high b_low + a_high b_high        each summed in float32, the small ones first

Leaving out a_low b_low is an error of up to 2**-16 |a b|, and the two rests of up to 2**-17 each: 3e-5 in the worst
case, 4.4e-6 of the norm of a result with random operands. It costs three times the arithmetic at bfloat16's rate: a
gain on AMX, where that is about ten times float32's (by these rates: it has not run there); on AVX-512, where it is
twice, it has 0.6 of the speed of `kernels.matmul.float32`.

The scheme is that of `kernels.matmul.float32`, with the splitting done where that one packs, on the stack: a block of
rows of A, row-major, in the L2 cache, and panel after panel of B, packed (`kernels.matmul.pack`), in the L1 cache. The
tiles are those of `kernels.matmul.bf16`. Operands are read in squares, which also takes care of transposes and of
edges, where zeros fill up. Every cut follows from the shapes: the bits are the same in any thread.

An infinite or NaN number has itself as the low term and the largest finite number as the high one, so that no infinity
meets the zero low term of a number like 1; a sum that overflows may be NaN where float32 has an infinity. Terms below
1.2e-38 count as zero on AVX-512 and AMX, so numbers below 1e-35 or so have fewer correct digits.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from threadloom.kernels.compiling import Entry, Floats, jit_strict_fp
from threadloom.kernels.matmul.amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from threadloom.kernels.matmul.pack import PANEL
from threadloom.kernels.matmul.tile import TILE_COLUMNS, TILE_ROWS, tile_avx512, tile_float32
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    DotPath,
    chosen_path,
    load_float32,
    pointer,
    round_to_bf16,
    stack_buffer,
    store_float32,
    transpose_uint32,
    upcast_bf16,
)

_DEPTH = 256  # of a panel: its two parts are 32 KiB
_ROWS = 256  # of A that all panels of that depth meet; both parts are 256 KiB
_ROW_BYTES = 4 * _DEPTH
_LARGEST = 3.3895313892515355e38  # the largest finite bfloat16, 0x7F7F

_AMX, _AVX512 = DotPath.AMX.value, DotPath.AVX512.value
_rows_space = stack_buffer(_ROWS * _ROW_BYTES)
_panel_space = stack_buffer(2 * _DEPTH * PANEL * 2)
_square_space = stack_buffer(LANES * LANES * 4)
_tile_space = stack_buffer(TILE_SIZE * PANEL * 4)


def _ints(value: int) -> Any:
    return ir.Constant(INT32_VECTOR, [value] * LANES)


def _floats(value: float) -> Any:
    return ir.Constant(FLOAT32_VECTOR, [value] * LANES)


def _round(builder: Any, x: Any) -> Any:
    """Return the bits of float32 numbers, rounded such that the upper halves are the nearest bfloat16; not of a NaN."""
    bits = builder.bitcast(x, INT32_VECTOR)
    odd = builder.and_(builder.lshr(bits, _ints(16)), _ints(1))
    return builder.add(builder.add(bits, _ints(0x7FFF)), odd)


def _split(builder: Any, x: Any) -> tuple[Any, Any]:
    """Return two vectors of words with the high and the low term in their upper halves, and anything in the lower."""
    bounded = builder.select(builder.fcmp_ordered(">", x, _floats(-_LARGEST)), x, _floats(-_LARGEST))
    bounded = builder.select(builder.fcmp_ordered("<", bounded, _floats(_LARGEST)), bounded, _floats(_LARGEST))
    high = _round(builder, bounded)
    upper = builder.bitcast(builder.and_(high, _ints(0xFFFF0000)), FLOAT32_VECTOR)
    rest = builder.fsub(x, upper)  # exact of a finite number
    is_nan = builder.fcmp_unordered("uno", x, x)
    return high, builder.select(is_nan, _ints(0x7FC00000), _round(builder, rest))


@intrinsic
def _split_row(typing_context: Any, source: Any, high: Any, low: Any) -> Any:
    """Write the terms of the `LANES` floats at `source` as shorts to `high` and `low`, all addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, *targets = arguments
        x = builder.load(pointer(builder, FLOAT32_VECTOR, source), align=4)
        for term, target in zip(_split(builder, x), targets, strict=True):
            shorts = builder.trunc(builder.lshr(term, _ints(16)), INT16_VECTOR)
            builder.store(shorts, pointer(builder, INT16_VECTOR, target), align=2)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def _split_pair(typing_context: Any, even: Any, odd: Any, high: Any, low: Any) -> Any:
    """Write the terms of `LANES` floats at `even` and at `odd` as words, the even ones' in the low halves."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even, odd, *targets = arguments
        pair = [_split(builder, builder.load(pointer(builder, FLOAT32_VECTOR, row), align=4)) for row in (even, odd)]
        for first, second, target in zip(*pair, targets, strict=True):
            words = builder.or_(builder.lshr(first, _ints(16)), builder.and_(second, _ints(0xFFFF0000)))
            builder.store(words, pointer(builder, INT32_VECTOR, target), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), codegen


class _Product(NamedTuple):
    """One product, by addresses; the leading dimensions count floats."""

    a: int
    lda: int
    transpose_a: bool
    b: int
    ldb: int
    transpose_b: bool
    out: int
    ldc: int
    inner: int
    alpha: np.float32
    beta: np.float32


@jit_strict_fp
def _gather(source: int, row_bytes: int, column_bytes: int, rows: int, columns: int, square: int) -> None:
    """Copy an incomplete square, element by element, and fill it up with zeros."""
    for i in range(LANES):
        for j in range(LANES):
            inside = i < rows and j < columns
            store_float32(
                square, i * LANES + j, load_float32(source + i * row_bytes + j * column_bytes, 0) if inside else 0.0
            )


@jit_strict_fp
def _split_rows(
    a: int,
    lda: int,
    transposed: bool,
    height: int,
    depth: int,
    whole_height: int,
    whole_depth: int,
    high: int,
    low: int,
) -> None:
    """Split the block of op(A) at `a`, (height, depth), into two row-major ones of the whole sizes."""
    square = _square_space()
    row_bytes, k_bytes = (4, 4 * lda) if transposed else (4 * lda, 4)
    for i in range(0, whole_height, LANES):
        for k in range(0, whole_depth, LANES):
            source, stride = a + i * row_bytes + k * k_bytes, row_bytes
            if height - i < LANES or depth - k < LANES:
                _gather(source, row_bytes, k_bytes, height - i, depth - k, square)
                source, stride = square, 4 * LANES
            elif transposed:
                transpose_uint32(source, k_bytes, square, 4 * LANES)
                source, stride = square, 4 * LANES
            for r in range(LANES):
                target = (i + r) * _ROW_BYTES + 2 * k
                _split_row(source + r * stride, high + target, low + target)


@jit_strict_fp
def _split_panel(
    b: int, ldb: int, transposed: bool, depth: int, width: int, whole_depth: int, high: int, low: int
) -> None:
    """Split and pack the panel of op(B) at `b`, (depth, width), filled up to `whole_depth` and 32 columns."""
    square = _square_space()
    k_bytes, column_bytes = (4, 4 * ldb) if transposed else (4 * ldb, 4)
    for j in range(0, PANEL, LANES):
        for k in range(0, whole_depth, LANES):
            source, stride = b + k * k_bytes + j * column_bytes, k_bytes
            if depth - k < LANES or width - j < LANES:
                _gather(source, k_bytes, column_bytes, depth - k, width - j, square)
                source, stride = square, 4 * LANES
            elif transposed:
                transpose_uint32(source, column_bytes, square, 4 * LANES)
                source, stride = square, 4 * LANES
            for r in range(0, LANES, 2):
                target, even = 2 * PANEL * (k + r) + 4 * j, source + r * stride
                _split_pair(even, even + stride, high + target, low + target)


@jit_strict_fp
def _three_products(path: int, a: int, last_row: int, b: int, depth: int, out: int, out_bytes: int, adds: bool) -> None:
    """Write, or add, a tile to `out`: `TILE_SIZE` rows on AMX, `TILE_ROWS` elsewhere, and 32 columns.

    In memory a row of A is its low terms and then its high ones, a panel of B its high terms and then its low ones: the
    two mixed products are one of twice the depth.
    """
    for product in range(2):
        if product == 0:
            left, right, inner, add = a, b, 2 * depth, 1 if adds else 0
        else:
            left, right, inner, add = a + 2 * depth, b, depth, 1
        if path == _AMX:
            tile_amx(left, _ROW_BYTES, right, inner // K_STEP, out, out_bytes, add)
            continue
        for column in range(0, PANEL, TILE_COLUMNS):
            part, target = right + 4 * column, out + 4 * column
            if path == _AVX512:
                tile_avx512(left, _ROW_BYTES, last_row, part, inner, target, out_bytes, add)
            else:
                tile_float32(left, _ROW_BYTES, last_row, part, inner, target, out_bytes, add)


@jit_strict_fp
def _merge(tile: int, out: int, ldc: int, height: int, width: int, alpha: np.float32, beta: np.float32) -> None:
    """Store ``alpha * tile + beta * out`` for the part of the tile that lies inside of `out`."""
    for i in range(height):
        source, target = tile + 4 * PANEL * i, out + 4 * ldc * i
        if beta == 0.0:
            for j in range(width):
                store_float32(target, j, alpha * load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, alpha * load_float32(source, j) + beta * load_float32(target, j))


@jit_strict_fp
def _multiply_block(
    p: _Product, path: int, i0: int, height: int, columns: int, k0: int, lines: int, panel: int, tile: int
) -> None:
    """Add the products along one depth from `k0` to a block of the result; the last three are room on the stack."""
    depth = min(_DEPTH, p.inner - k0)
    whole = -(-depth // K_STEP) * K_STEP
    whole_height = -(-height // TILE_SIZE) * TILE_SIZE
    step = TILE_SIZE if path == _AMX else TILE_ROWS
    beta = p.beta if k0 == 0 else np.float32(1.0)
    plain = p.alpha == 1.0 and (beta == 0.0 or beta == 1.0)
    source = p.a + 4 * (k0 * p.lda + i0 if p.transpose_a else i0 * p.lda + k0)
    _split_rows(source, p.lda, p.transpose_a, height, depth, whole_height, whole, lines + 2 * whole, lines)
    for j in range(0, columns, PANEL):
        part = min(PANEL, columns - j)
        source = p.b + 4 * (j * p.ldb + k0 if p.transpose_b else k0 * p.ldb + j)
        _split_panel(source, p.ldb, p.transpose_b, depth, part, whole, panel, panel + 2 * PANEL * whole)
        for i in range(0, height, step):
            rows = min(step, height - i)
            target = p.out + 4 * ((i0 + i) * p.ldc + j)
            direct = plain and rows == step and part == PANEL
            place, place_bytes = (target, 4 * p.ldc) if direct else (tile, 4 * PANEL)
            adds = direct and beta == 1.0
            _three_products(path, lines + i * _ROW_BYTES, rows - 1, panel, whole, place, place_bytes, adds)
            if not direct:
                _merge(tile, target, p.ldc, rows, part, p.alpha, beta)


@jit_strict_fp
def gemm_split(
    a: int,
    lda: int,
    transpose_a: bool,
    b: int,
    ldb: int,
    transpose_b: bool,
    out: int,
    ldc: int,
    rows: int,
    columns: int,
    inner: int,
    alpha: float,
    beta: float,
) -> None:
    """Compute ``out = alpha * op(a) @ op(b) + beta * out`` on addresses; the leading dimensions count floats.

    `out` is (rows, columns) and `inner` the length of the sums. With ``beta == 0`` `out` is never read. Reached through
    `kernels.matmul.blas.gemm`, which takes arrays.
    """
    scales = np.float32(alpha), np.float32(beta)
    product = _Product(a, lda, transpose_a, b, ldb, transpose_b, out, ldc, inner, *scales)
    path = chosen_path()
    lines, panel, tile = _rows_space(), _panel_space(), _tile_space()
    if path == _AMX:
        configure_tiles()
    for i0 in range(0, rows, _ROWS):
        height = min(_ROWS, rows - i0)
        for k0 in range(0, inner, _DEPTH):
            _multiply_block(product, path, i0, height, columns, k0, lines, panel, tile)
    if path == _AMX:
        release_tiles()


@jit_strict_fp
def _entry(
    a: int,
    lda: int,
    transpose_a: int,
    b: int,
    ldb: int,
    transpose_b: int,
    out: int,
    ldc: int,
    rows: int,
    columns: int,
    inner: int,
    alpha: float,
    beta: float,
) -> None:
    """Call `gemm_split`, with arguments that have one form in C, too."""
    gemm_split(a, lda, transpose_a != 0, b, ldb, transpose_b != 0, out, ldc, rows, columns, inner, alpha, beta)


_ENTRY = Entry("threadloom_gemm_split", _entry, (types.intp,) * 11 + (types.float64,) * 2)
_call = _ENTRY.call


def prepare_split() -> None:
    """Compile this product, which `call_split` will run: to be called before it is chosen, as few processes do."""
    _ENTRY.prepare()


@jit_strict_fp
def call_split(
    a: int,
    lda: int,
    transpose_a: bool,
    b: int,
    ldb: int,
    transpose_b: bool,
    out: int,
    ldc: int,
    rows: int,
    columns: int,
    inner: int,
    alpha: float,
    beta: float,
) -> None:
    """Run `gemm_split`; `prepare_split` must have been called in this process."""
    _call((
        a, lda, int(transpose_a), b, ldb, int(transpose_b), out, ldc, rows, columns, inner, float(alpha), float(beta)
    ))  # fmt: skip


def multiply_split(a: Floats, b: Floats) -> Floats:
    """Return ``a @ b`` by three products of bfloat16 terms, in new memory and by NumPy: without the compiler."""
    terms = []
    with np.errstate(invalid="ignore", over="ignore"):
        for x in (a, b):
            high = upcast_bf16(round_to_bf16(np.clip(np.nan_to_num(x, nan=0.0), -_LARGEST, _LARGEST)))
            terms.append((high, upcast_bf16(round_to_bf16(x - high))))
        (a_high, a_low), (b_high, b_low) = terms
        return np.matmul(a_low, b_high) + np.matmul(a_high, b_low) + np.matmul(a_high, b_high)
