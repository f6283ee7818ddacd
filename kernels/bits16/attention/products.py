"""Products and copies of the small matrices of one attention head in bfloat16, between addresses.

A head's matrices are columns of wide arrays, or scratch padded to whole tiles, so that the products of
`kernels.matmul.bf16`, which must not write beyond an array, would be the slower ones here. Strides count bytes.
"""

import numpy as np

from threadloom.kernels.bits16.attention.rows import join_short_rows, round_row
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
from threadloom.kernels.matmul import K_STEP, PANEL, TILE_SIZE, MatrixRef, tile_amx
from threadloom.kernels.simd import (
    LANES,
    DotPath,
    interleave_rows,
    load_float32,
    load_uint16,
    store_uint16,
    store_uint32,
    to_bf16,
)

LINE = 4 * PANEL
"""Bytes of a pair in a panel."""
_SHIFT = np.uint32(16)


@jit_strict_fp
def strips(
    path: int, a: int, a_bytes: int, rows: int, panel: int, inner: int, width: int, out: int, out_bytes: int, add: int
) -> None:
    """Multiply rows with `width` columns of a panel by AVX-512, or in float32."""
    for column in range(0, width, TILE_COLUMNS):
        part, target = panel + 4 * column, out + 4 * column
        if width - column <= NARROW_COLUMNS:
            for i in range(0, rows, NARROW_ROWS):
                line, place = MatrixRef(a + i * a_bytes, a_bytes), MatrixRef(target + i * out_bytes, out_bytes)
                if path >= DotPath.AVX512:
                    narrow_native(line, rows - i - 1, part, inner, place, add)
                else:
                    narrow_float32(line, rows - i - 1, part, inner, place, add)
        else:
            for i in range(0, rows, TILE_ROWS):
                line, place = MatrixRef(a + i * a_bytes, a_bytes), MatrixRef(target + i * out_bytes, out_bytes)
                if path >= DotPath.AVX512:
                    tile_native(line, rows - i - 1, part, inner, place, add)
                else:
                    tile_float32(line, rows - i - 1, part, inner, place, add)


@jit_strict_fp
def multiply(
    path: int, a: int, a_bytes: int, rows: int, panel: int, inner: int, width: int, out: int, out_bytes: int, add: int
) -> None:
    """Write, or add, the product of rows of A with `width` columns of a panel; `out` is padded to whole tiles."""
    done = 0
    if path == DotPath.AMX and inner >= K_STEP:
        steps = inner // K_STEP
        depth = steps * K_STEP
        while done + TILE_SIZE <= rows:
            line, place = a + done * a_bytes, out + done * out_bytes
            tile_amx(MatrixRef(line, a_bytes), panel, steps, MatrixRef(place, out_bytes), add)
            if depth < inner:
                rest = panel + depth // 2 * LINE
                strips(path, line + 2 * depth, a_bytes, TILE_SIZE, rest, inner - depth, width, place, out_bytes, 1)
            done += TILE_SIZE
    if done < rows:
        line, place = a + done * a_bytes, out + done * out_bytes
        strips(path, line, a_bytes, rows - done, panel, inner, width, place, out_bytes, add)


@jit_strict_fp
def pack_pairs(source: int, row_bytes: int, inner: int, columns: int, target: int, panel_bytes: int) -> None:
    """Pack a matrix (inner, columns); what lies beyond the columns is left alone, the half of an odd pair is 0."""
    for p in range(inner // 2):
        even = source + 2 * p * row_bytes
        odd = even + row_bytes
        for first in range(0, columns, PANEL):
            place = target + first // PANEL * panel_bytes + p * LINE
            if first + PANEL <= columns:
                interleave_rows(even + 2 * first, odd + 2 * first, place)
                continue
            whole = (columns - first) // LANES * LANES
            for c in range(0, whole, LANES):
                join_short_rows(even + 2 * (first + c), odd + 2 * (first + c), place + 4 * c)
            for c in range(whole, columns - first):
                low, high = load_uint16(even, first + c), load_uint16(odd, first + c)
                store_uint32(place, c, np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << _SHIFT)))
    if inner % 2:
        last, line = source + (inner - 1) * row_bytes, inner // 2 * LINE
        for c in range(columns):
            store_uint32(target + c // PANEL * panel_bytes + line, c % PANEL, np.uint32(load_uint16(last, c)))


@jit_strict_fp
def round_rows(source: int, source_bytes: int, factor: np.float32, rows: int, size: int, out: int, step: int) -> None:
    """Write ``factor * source`` (rows, size) as bfloat16."""
    whole = size // LANES
    for i in range(rows):
        line, target = source + i * source_bytes, out + i * step
        round_row(line, factor, target, whole)
        for j in range(whole * LANES, size):
            store_uint16(target, j, to_bf16(np.float32(load_float32(line, j) * factor)))
