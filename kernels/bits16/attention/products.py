"""GEMMs and copies of the small matrices of one attention head in bfloat16, between addresses.

A head's matrices are columns of wide arrays, or scratch padded to whole tiles. `kernels.matmul.bf16`, which must not
write beyond an array, would be slower here. Strides count bytes.
"""

import numpy as np

from threadloom.kernels.bits16.attention.rows import pack_rows_vector
from threadloom.kernels.bits16.attention.tile import (
    NARROW_COLUMNS,
    NARROW_ROWS,
    TILE_COLUMNS,
    TILE_ROWS,
    narrow_float32,
    narrow_native,
    tile_float32,
    tile_native,
)
from threadloom.kernels.compiling import jit_strict_fp
from threadloom.kernels.matmul import K_STEP, PANEL, TILE_SIZE, MatrixRef, shifted, tile_amx
from threadloom.kernels.simd import (
    LANES,
    DotPath,
    interleave_rows,
    load_float32,
    load_uint16,
    round_row,
    store_uint16,
    store_uint32,
    to_bf16,
)

LINE = 4 * PANEL
"""Bytes of a packed row, which has one pair for each column of a panel."""
_SHIFT = np.uint32(16)


@jit_strict_fp
def multiply_vectors(
    path: int, a: MatrixRef, rows: int, panel: int, inner: int, width: int, out: MatrixRef, add: int
) -> None:
    """Do the same as `multiply` with AVX-512 or in float32, without AMX."""
    # Two loops with constant steps: one with a variable step would divide by it in every call.
    for column in range(0, width, TILE_COLUMNS):
        part = panel + 4 * column
        if width - column <= NARROW_COLUMNS:
            for i in range(0, rows, NARROW_ROWS):
                line, place = shifted(a, i, 0), shifted(out, i, 4 * column)
                if path >= DotPath.AVX512:
                    narrow_native(line, rows - i - 1, part, inner, place, add)
                else:
                    narrow_float32(line, rows - i - 1, part, inner, place, add)
        else:
            for i in range(0, rows, TILE_ROWS):
                line, place = shifted(a, i, 0), shifted(out, i, 4 * column)
                if path >= DotPath.AVX512:
                    tile_native(line, rows - i - 1, part, inner, place, add)
                else:
                    tile_float32(line, rows - i - 1, part, inner, place, add)


@jit_strict_fp
def multiply(path: int, a: MatrixRef, rows: int, panel: int, inner: int, width: int, out: MatrixRef, add: int) -> None:
    """Write the product of `a` (rows, inner) and `width` columns of a packed panel to `out`, or add it if `add` is 1.

    `panel` is the address of the panel's first row; `out` is float32 and padded to whole tiles.
    """
    done = 0
    if path == DotPath.AMX and inner >= K_STEP:
        steps = inner // K_STEP
        depth = steps * K_STEP
        while done + TILE_SIZE <= rows:
            line, place = shifted(a, done, 0), shifted(out, done, 0)
            tile_amx(line, panel, steps, place, add)
            if depth < inner:
                rest = panel + depth // 2 * LINE
                multiply_vectors(path, shifted(line, 0, 2 * depth), TILE_SIZE, rest, inner - depth, width, place, 1)
            done += TILE_SIZE
    if done < rows:
        multiply_vectors(path, shifted(a, done, 0), rows - done, panel, inner, width, shifted(out, done, 0), add)


@jit_strict_fp
def pack_pairs(source: MatrixRef, inner: int, columns: int, target: MatrixRef) -> None:
    """Pack a matrix (inner, columns) as pairs of rows; the stride of `target` is from panel to panel.

    Padding beyond the columns is not written; the second half of an incomplete pair is 0.
    """
    for p in range(inner // 2):
        even = source.address + 2 * p * source.stride
        odd = even + source.stride
        for first in range(0, columns, PANEL):
            place = target.address + first // PANEL * target.stride + p * LINE
            if first + PANEL <= columns:
                interleave_rows(even + 2 * first, odd + 2 * first, place)
                continue
            whole = (columns - first) // LANES * LANES
            for c in range(0, whole, LANES):
                pack_rows_vector(even + 2 * (first + c), odd + 2 * (first + c), place + 4 * c)
            for c in range(whole, columns - first):
                low, high = load_uint16(even, first + c), load_uint16(odd, first + c)
                store_uint32(place, c, np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << _SHIFT)))
    if inner % 2:
        last, line = source.address + (inner - 1) * source.stride, inner // 2 * LINE
        for c in range(columns):
            place = target.address + c // PANEL * target.stride + line
            store_uint32(place, c % PANEL, np.uint32(load_uint16(last, c)))


@jit_strict_fp
def round_rows(source: MatrixRef, factor: np.float32, rows: int, size: int, out: MatrixRef) -> None:
    """Write ``factor * source``, float32 (rows, size), to `out` as bfloat16."""
    whole = size // LANES
    for i in range(rows):
        line, target = source.address + i * source.stride, out.address + i * out.stride
        round_row(line, factor, target, whole)
        for j in range(whole * LANES, size):
            store_uint16(target, j, to_bf16(np.float32(load_float32(line, j) * factor)))
