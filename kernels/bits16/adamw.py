"""AdamW on the rows of one matrix that also packs the new weights as bfloat16 while they are in the cache.

Each kernel has the bits of the one of the same name without `_packed`, with weight decay.

A block of 32 rows is updated and rounded, then packed twice (`kernels.bits16.row_packing`): as pairs of rows for GEMMs
with W, and as one panel for GEMMs with its transpose (`kernels.matmul.pack`). So packing costs a write of four bytes
per weight, and no read.
"""

import numpy as np

from threadloom.kernels.bits16.row_packing import CHUNK, finish_stores, keep_rounded, pack_block, rounded_buffer
from threadloom.kernels.bits16.tensors import PackedPair
from threadloom.kernels.common import (
    AdamWFactors,
    AdamWStep,
    DelayedAdamWFactors,
    DelayedAdamWStep,
    adamw_element,
    adamw_factors,
    adamw_forecast_element,
    adamw_lead_element,
    delayed_adamw_factors,
)
from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp
from threadloom.kernels.matmul import PANEL, Op, PackedBits, pack_float32, pack_pair
from threadloom.kernels.simd import store_uint32, to_bf16

BLOCK = PANEL
"""Rows of a block; a range of rows begins at a multiple of it."""


@jit_strict_fp
def _pack_pairs_compiled(source: Floats, first_row: int, out: PackedBits) -> None:
    """Pack the rows `first_row` and following of a matrix, `source` (rows, N), as pairs of rows into `out`."""
    rows, columns = source.shape
    pairs = out.shape[1]
    for p in range((rows + 1) // 2):
        even, odd = source[2 * p], source[min(2 * p + 1, rows - 1)]
        place = out.ctypes.data + 4 * PANEL * (first_row // 2 + p)
        if 2 * p + 1 == rows:  # an odd number of rows: the last one is paired with zeros
            for n in range(columns):
                store_uint32(place + 4 * PANEL * pairs * (n // PANEL), n % PANEL, np.uint32(to_bf16(even[n])))
            continue
        for j in range(columns // PANEL):
            line, first = place + 4 * PANEL * pairs * j, j * PANEL
            for c in range(PANEL):
                store_uint32(line, c, pack_pair(to_bf16(even[first + c]), to_bf16(odd[first + c])))
        for n in range(columns // PANEL * PANEL, columns):
            line = place + 4 * PANEL * pairs * (n // PANEL)
            store_uint32(line, n % PANEL, pack_pair(to_bf16(even[n]), to_bf16(odd[n])))


def _pack_pairs_numpy(source: Floats, first_row: int, out: PackedBits) -> None:
    rows = source.shape[0]
    part = np.zeros((out.shape[0], -(-rows // BLOCK) * BLOCK // 2, PANEL), np.uint32)
    pack_float32(source, Op.N, part)
    out[:, first_row // 2 : first_row // 2 + part.shape[1]] = part


_pack_pairs = _pack_pairs_compiled if JIT_ENABLED else _pack_pairs_numpy


@jit_strict_fp
def pack_rows(weights: Floats, first_row: int, pair: PackedPair) -> None:
    """Pack the rows `first_row` and following of a matrix (I, O), `weights` (rows, O), into its compute copies.

    `first_row` is a multiple of `BLOCK`, and the last row is the matrix's last or precedes a multiple of `BLOCK`;
    otherwise words of neighbouring rows would be cleared. Padding beyond the matrix is not written: it is zero because
    the memory was zeroed when it was allocated.
    """
    for begin in range(0, weights.shape[0], BLOCK):
        part = weights[begin : begin + BLOCK]
        panel = (first_row + begin) // PANEL
        _pack_pairs(part, first_row + begin, pair.packed)
        if pair.packed_t.shape[0] > 0:  # a matrix whose rows are only looked up has no packed transpose
            pack_float32(part, Op.T, pair.packed_t[panel : panel + 1])


@jit_strict_fp
def _update_row(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, f: AdamWFactors, buffer: int, row: int
) -> None:
    if weights.ctypes.data == new_weights.ctypes.data:  # two names of one array would not vectorise
        for i in range(weights.shape[0]):
            new, m[i], v[i] = adamw_element(weights[i], gradient[i], m[i], v[i], f)
            weights[i] = new
            keep_rounded(buffer, row, i, new)
    else:
        for i in range(weights.shape[0]):
            new, m[i], v[i] = adamw_element(weights[i], gradient[i], m[i], v[i], f)
            new_weights[i] = new
            keep_rounded(buffer, row, i, new)


@jit_strict_fp
def adamw_update_packed(
    weights: Floats,
    new_weights: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    first_row: int,
    pair: PackedPair,
    step: AdamWStep,
) -> None:
    """Apply `adamw_update` with weight decay to rows of one matrix, all (rows, O), and `pack_rows` to the new weights.

    New weights and moments are the same bits as those of `adamw_update`.
    """
    f = adamw_factors(step, step.weight_decay)
    buffer, (rows, columns) = rounded_buffer(), new_weights.shape
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        for a in range(0, columns, CHUNK):
            b = min(a + CHUNK, columns)
            for r in range(begin, end):
                _update_row(
                    weights[r][a:b], new_weights[r][a:b], gradient[r][a:b], m[r][a:b], v[r][a:b], f, buffer, r - begin
                )
            pack_block(new_weights[begin:end, a:b], buffer, a, first_row + begin, pair)
    finish_stores()


@jit_strict_fp
def _lead_row(
    weights: Floats,
    new_weights: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    f: DelayedAdamWFactors,
    buffer: int,
    row: int,
) -> None:
    if weights.ctypes.data == new_weights.ctypes.data:
        for i in range(weights.shape[0]):
            new, m[i], v[i] = adamw_lead_element(weights[i], gradient[i], m[i], v[i], f)
            weights[i] = new
            keep_rounded(buffer, row, i, new)
    else:
        for i in range(weights.shape[0]):
            new, m[i], v[i] = adamw_lead_element(weights[i], gradient[i], m[i], v[i], f)
            new_weights[i] = new
            keep_rounded(buffer, row, i, new)


@jit_strict_fp
def adamw_lead_update_packed(
    weights: Floats,
    new_weights: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    first_row: int,
    pair: PackedPair,
    step: DelayedAdamWStep,
) -> None:
    """Apply `adamw_lead_update` to rows of one matrix, all (rows, O), and `pack_rows` to the new weights."""
    f = delayed_adamw_factors(step, step.weight_decay)
    buffer, (rows, columns) = rounded_buffer(), new_weights.shape
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        for a in range(0, columns, CHUNK):
            b = min(a + CHUNK, columns)
            for r in range(begin, end):
                _lead_row(
                    weights[r][a:b], new_weights[r][a:b], gradient[r][a:b], m[r][a:b], v[r][a:b], f, buffer, r - begin
                )
            pack_block(new_weights[begin:end, a:b], buffer, a, first_row + begin, pair)
    finish_stores()


@jit_strict_fp
def _forecast_row(
    forecast: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    weights: Floats,
    f: DelayedAdamWFactors,
    buffer: int,
    row: int,
) -> None:
    for i in range(weights.shape[0]):
        weights[i], ahead, m[i], v[i] = adamw_forecast_element(weights[i], gradient[i], m[i], v[i], f)
        forecast[i] = ahead
        keep_rounded(buffer, row, i, ahead)


@jit_strict_fp
def adamw_forecast_update_packed(
    old: Floats,
    forecast: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    weights: Floats,
    first_row: int,
    pair: PackedPair,
    step: DelayedAdamWStep,
) -> None:
    """Apply `adamw_forecast_update` to rows of one matrix, all (rows, O), and `pack_rows` to the forecast.

    As there, `old` is not read.
    """
    f = delayed_adamw_factors(step, step.weight_decay)
    buffer, (rows, columns) = rounded_buffer(), forecast.shape
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        for a in range(0, columns, CHUNK):
            b = min(a + CHUNK, columns)
            for r in range(begin, end):
                _forecast_row(
                    forecast[r][a:b], gradient[r][a:b], m[r][a:b], v[r][a:b], weights[r][a:b], f, buffer, r - begin
                )
            pack_block(forecast[begin:end, a:b], buffer, a, first_row + begin, pair)
    finish_stores()
