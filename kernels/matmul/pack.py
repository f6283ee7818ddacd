"""Layouts of the operands of bfloat16 products: the packed second operand and the transposed first one.

A product A @ B takes A (M, K) row-major and B (K, N) packed: pairs along k in one uint32 (see `kernels.simd.vector`),
32 columns per panel, panel after panel, padded with zeros::

    B (K, N)                    packed (panels, pairs, 32) of uint32

              n ->                        column 0        column 1          column 31
         +-------+-------+-     pair 0  | B[1,0] B[0,0] | B[1,1] B[0,1] | ... B[1,31] B[0,31] |  panel 0:
      k  | panel | panel |      pair 1  | B[3,0] B[2,0] | B[3,1] B[2,1] | ... B[3,31] B[2,31] |  columns
      |  |   0   |   1   |        ...                                                            0 to 31
      v  |       |       |      zeros up to a multiple of 16 pairs
         +-------+-------+-     pair 0  | B[1,32] B[0,32] | ...                                  panel 1

A row of a panel is 128 bytes: two vectors of AVX-512, or one row of each of two AMX tiles, whose 16 rows are 16
successive pairs. The padding lets a tile be loaded past the last k; the memory is that of bfloat16 plus the padding. A
weight bank holds a weight (I, O) packed with `Op.N` for the forward product, and with `Op.T`, as the packed transpose,
for the gradient of the input.

For the gradient of a weight, x.T @ dy, `transpose_bf16` computes the first operand and `pack_bf16` packs the second.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul.operands import MatrixRef, Op, address_of, matrix_ref, shifted
from threadloom.kernels.simd import (
    LANES,
    BF16Bits,
    Bits16,
    interleave_rows,
    load_float32,
    load_uint16,
    round_to_bf16,
    stack_buffer,
    store_uint32,
    to_bf16,
    transpose_uint16,
    transpose_uint32,
)

PackedBits = NDArray[np.uint32]
"""Packed operand: each element holds a pair of bfloat16 numbers."""

PANEL = 32
"""Columns of a panel."""
DEPTH_STEP = 32
"""Packed operands are padded to a multiple of this along k: the depth of one AMX tile."""

_SHIFT = np.uint32(16)
_square_space = stack_buffer(LANES * LANES * 4)


def packed_shape(inner: int, columns: int) -> tuple[int, int, int]:
    """Return the shape (panels, pairs, 32) of a packed matrix of (inner, columns); its elements are uint32."""
    return -(-columns // PANEL), -(-inner // DEPTH_STEP) * DEPTH_STEP // 2, PANEL


@jit_strict_inline
def pack_pair(low: np.uint16, high: np.uint16) -> np.uint32:
    """Return the uint32 of two numbers that are adjacent along k."""
    return np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << _SHIFT))


@jit_strict_fp
def _clear_edges(out: PackedBits, inner: int, columns: int) -> None:
    """Write zeros to the padding of a packed matrix of (inner, columns)."""
    panels, pairs, _ = out.shape
    for j in range(panels):
        width = min(PANEL, columns - j * PANEL)
        for p in range((inner + 1) // 2, pairs):
            for c in range(PANEL):
                out[j, p, c] = 0
        if width < PANEL:
            for p in range(pairs):
                for c in range(width, PANEL):
                    out[j, p, c] = 0


@jit_strict_fp
def pack_panel(source: MatrixRef, inner: int, width: int, panel: int) -> None:
    """Pack `width` columns of a row-major matrix at the address `panel`; the padding along k is not written."""
    for p in range((inner + 1) // 2):
        even, target = source.address + 2 * p * source.stride, panel + 4 * PANEL * p
        if width == PANEL and 2 * p + 1 < inner:
            interleave_rows(even, even + source.stride, target)
            continue
        for c in range(PANEL):
            low, high = np.uint16(0), np.uint16(0)
            if c < width:
                low = load_uint16(even, c)
                if 2 * p + 1 < inner:
                    high = load_uint16(even + source.stride, c)
            store_uint32(target, c, pack_pair(low, high))


@jit_strict_fp
def _pack_bf16_rows(source: BF16Bits, out: PackedBits) -> None:
    """Pack `source` (K, N)."""
    inner, columns = source.shape
    panels, pairs, _ = out.shape
    for j in range(panels):
        width = min(PANEL, columns - j * PANEL)
        panel = address_of(out) + j * pairs * 4 * PANEL
        pack_panel(shifted(matrix_ref(source), 0, 2 * PANEL * j), inner, width, panel)
        for p in range((inner + 1) // 2, pairs):
            for c in range(PANEL):
                out[j, p, c] = 0


@jit_strict_fp
def _pack_bf16_columns(source: BF16Bits, out: PackedBits) -> None:
    """Pack the transpose of `source` (N, K): a pair is one uint32 of the source, so that these are transposed."""
    columns, inner = source.shape
    _clear_edges(out, inner, columns)
    step, target = source.strides[0], out.ctypes.data
    whole_n, whole_p = columns // LANES * LANES, inner // 2 // LANES * LANES
    pairs = out.shape[1]
    for n in range(0, whole_n, LANES):
        for p in range(0, whole_p, LANES):
            place = target + 4 * ((n // PANEL * pairs + p) * PANEL + n % PANEL)
            transpose_uint32(source.ctypes.data + n * step + 4 * p, step, place, 4 * PANEL)
    for n in range(columns):
        row, panel = source[n], out[n // PANEL]
        for p in range(whole_p if n < whole_n else 0, inner // 2):
            panel[p, n % PANEL] = pack_pair(row[2 * p], row[2 * p + 1])
        if inner % 2:
            panel[inner // 2, n % PANEL] = np.uint32(row[inner - 1])


@jit_strict_fp
def _pack_float_rows(source: Floats, out: PackedBits) -> None:
    """Round `source` (K, N) and pack it."""
    inner, columns = source.shape
    _clear_edges(out, inner, columns)
    for p in range(inner // 2):
        even, odd = source[2 * p], source[2 * p + 1]
        whole = columns // PANEL
        for j in range(whole):
            row, first = out[j, p], j * PANEL
            for c in range(PANEL):
                row[c] = pack_pair(to_bf16(even[first + c]), to_bf16(odd[first + c]))
        for n in range(whole * PANEL, columns):
            out[whole, p, n - whole * PANEL] = pack_pair(to_bf16(even[n]), to_bf16(odd[n]))
    if inner % 2:
        last = source[inner - 1]
        for n in range(columns):
            out[n // PANEL, inner // 2, n % PANEL] = np.uint32(to_bf16(last[n]))


@jit_strict_fp
def _pack_float_columns(source: Floats, out: PackedBits) -> None:
    """Round the transpose of `source` (N, K), by squares of pairs on the stack, and pack it."""
    columns, inner = source.shape
    _clear_edges(out, inner, columns)
    square = _square_space()
    step, target = source.strides[0], out.ctypes.data
    whole_n, whole_p = columns // LANES * LANES, inner // 2 // LANES * LANES
    pairs = out.shape[1]
    for n in range(0, whole_n, LANES):
        for p in range(0, whole_p, LANES):
            for i in range(LANES):
                line, pairs_row = source.ctypes.data + (n + i) * step + 8 * p, square + 4 * LANES * i
                for q in range(LANES):
                    even, odd = load_float32(line, 2 * q), load_float32(line, 2 * q + 1)
                    store_uint32(pairs_row, q, pack_pair(to_bf16(even), to_bf16(odd)))
            place = target + 4 * ((n // PANEL * pairs + p) * PANEL + n % PANEL)
            transpose_uint32(square, 4 * LANES, place, 4 * PANEL)
    for n in range(columns):
        row, panel = source[n], out[n // PANEL]
        for p in range(whole_p if n < whole_n else 0, inner // 2):
            panel[p, n % PANEL] = pack_pair(to_bf16(row[2 * p]), to_bf16(row[2 * p + 1]))
        if inner % 2:
            panel[inner // 2, n % PANEL] = np.uint32(to_bf16(row[inner - 1]))


@jit_strict_fp
def _transpose_compiled(source: Bits16, out: Bits16) -> None:
    rows, columns = source.shape
    step, target_step = source.strides[0], out.strides[0]
    whole_r, whole_c = rows // (2 * LANES) * 2 * LANES, columns // LANES * LANES
    for r in range(0, whole_r, 2 * LANES):
        for c in range(0, whole_c, LANES):
            place = source.ctypes.data + r * step + 2 * c
            transpose_uint16(place, step, out.ctypes.data + c * target_step + 2 * r, target_step)
    for r in range(rows):
        for c in range(whole_c if r < whole_r else 0, columns):
            out[c, r] = source[r, c]


def unpack_bf16(packed: PackedBits, inner: int, columns: int) -> BF16Bits:
    """Return the matrix (inner, columns) that was packed, in new memory: for tests and inspection."""
    panels, pairs, _ = packed.shape
    halves = packed.reshape(-1).view(np.uint16).reshape(panels, pairs, PANEL, 2)
    whole = halves.transpose(1, 3, 0, 2).reshape(2 * pairs, panels * PANEL)
    return np.ascontiguousarray(whole[:inner, :columns])


def _pack_numpy(source: BF16Bits, out: PackedBits) -> None:
    inner, columns = source.shape
    panels, pairs, _ = out.shape
    whole = np.zeros((2 * pairs, panels * PANEL), np.uint32)
    whole[:inner, :columns] = source
    joined = whole[0::2] | (whole[1::2] << _SHIFT)
    out[...] = joined.reshape(pairs, panels, PANEL).transpose(1, 0, 2)


def _pack_bf16_numpy(source: BF16Bits, op: Op, out: PackedBits) -> None:
    _pack_numpy(source.T if op == Op.T else source, out)


def _pack_float_numpy(source: Floats, op: Op, out: PackedBits) -> None:
    _pack_numpy(round_to_bf16(source.T if op == Op.T else source), out)


def _transpose_numpy(source: Bits16, out: Bits16) -> None:
    out[...] = source.T


@jit_strict_fp
def _pack_bf16_compiled(source: BF16Bits, op: Op, out: PackedBits) -> None:
    if op == Op.T:
        _pack_bf16_columns(source, out)
    else:
        _pack_bf16_rows(source, out)


@jit_strict_fp
def _pack_float_compiled(source: Floats, op: Op, out: PackedBits) -> None:
    if op == Op.T:
        _pack_float_columns(source, out)
    else:
        _pack_float_rows(source, out)


if JIT_ENABLED:
    _pack_bits, _pack_floats, _transpose = _pack_bf16_compiled, _pack_float_compiled, _transpose_compiled
else:
    _pack_bits, _pack_floats, _transpose = _pack_bf16_numpy, _pack_float_numpy, _transpose_numpy


@jit_strict_fp
def pack_bf16(source: BF16Bits, op: Op, out: PackedBits) -> None:
    """Pack ``op(source)`` (K, N) into `out` of ``packed_shape(K, N)``.

    Elements of `source` are contiguous within a row; the rows need not be.
    """
    _pack_bits(source, op, out)


@jit_strict_fp
def pack_float32(source: Floats, op: Op, out: PackedBits) -> None:
    """Round ``op(source)`` to bfloat16 and pack it as `pack_bf16` does."""
    _pack_floats(source, op, out)


@jit_strict_fp
def transpose_bf16(source: Bits16, out: Bits16) -> None:
    """Write the transpose of `source` (R, C) to `out` (C, R); rows of either may be strided. Accepts float16 too."""
    _transpose(source, out)
