"""AdamW on the rows of one matrix that also packs the new weights as bfloat16 while they are in the cache.

Each kernel has the bits of the one of the same name without `_packed`, with weight decay.

A block of 32 rows is updated, then packed twice: as pairs of rows for GEMMs with W, and as one panel for GEMMs with its
transpose (`kernels.matmul.pack`). So packing costs a write of four bytes per weight, and no read.
"""

import numpy as np

from threadloom.kernels.bits16.tensors import PackedPair
from threadloom.kernels.common import (
    AdamWStep,
    DelayedAdamWStep,
    adamw_forecast_update,
    adamw_lead_update,
    adamw_update,
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
    for begin in range(0, weights.shape[0], BLOCK):
        rows = slice(begin, min(begin + BLOCK, weights.shape[0]))
        new, count = new_weights[rows], new_weights[rows].size
        adamw_update(
            weights[rows].reshape(count), new.reshape(count), gradient[rows].reshape(count),
            m[rows].reshape(count), v[rows].reshape(count), count, step,
        )  # fmt: skip
        pack_rows(new, first_row + begin, pair)


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
    for begin in range(0, weights.shape[0], BLOCK):
        rows = slice(begin, min(begin + BLOCK, weights.shape[0]))
        new, count = new_weights[rows], new_weights[rows].size
        adamw_lead_update(
            weights[rows].reshape(count), new.reshape(count), gradient[rows].reshape(count),
            m[rows].reshape(count), v[rows].reshape(count), count, step,
        )  # fmt: skip
        pack_rows(new, first_row + begin, pair)


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
    """Apply `adamw_forecast_update` to rows of one matrix, all (rows, O), and `pack_rows` to the forecast."""
    for begin in range(0, weights.shape[0], BLOCK):
        rows = slice(begin, min(begin + BLOCK, weights.shape[0]))
        new, count = forecast[rows], forecast[rows].size
        adamw_forecast_update(
            old[rows].reshape(count), new.reshape(count), gradient[rows].reshape(count), m[rows].reshape(count),
            v[rows].reshape(count), weights[rows].reshape(count), count, step,
        )  # fmt: skip
        pack_rows(new, first_row + begin, pair)
