"""AdamW on the rows of one matrix, with the packed bfloat16 forms of the new weights made while they are in the cache.

A block of 32 rows is updated, then packed twice: as pairs of rows for products with W, and as one panel for products
with its transpose (`kernels.matmul.pack`). So the forms cost a write of four bytes a weight, and no read.
"""

import numpy as np

from threadloom.kernels.common import AdamWStep, adamw_update
from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp
from threadloom.kernels.matmul import PANEL, Op, PackedBits, pack_float32, pack_pair
from threadloom.kernels.simd import store_uint32, to_bf16

BLOCK = PANEL
"""Rows of a block: a range of rows begins at a multiple of it."""


@jit_strict_fp
def _pack_pairs_compiled(source: Floats, first_row: int, out: PackedBits) -> None:
    """Pack the rows `first_row` and following of a matrix, `source` (rows, N), as pairs of rows into `out`."""
    rows, columns = source.shape
    pairs = out.shape[1]
    for p in range((rows + 1) // 2):
        even, odd = source[2 * p], source[min(2 * p + 1, rows - 1)]
        place = out.ctypes.data + 4 * PANEL * (first_row // 2 + p)
        if 2 * p + 1 == rows:  # the last row of an odd number: zeros beside it
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
def pack_rows(weights: Floats, first_row: int, form: PackedBits, form_t: PackedBits) -> None:
    """Write what the rows `first_row` and following, `weights` (rows, O), are in both packed forms of their matrix.

    `first_row` is a multiple of `BLOCK`, and the rows end at one or at the matrix's last, or their neighbours' words
    would be cleared. `form` is that of the matrix (I, O), `form_t` that of its transpose. What the forms have beyond
    the matrix is left as it is: zeros, since their memory was cleared.
    """
    for begin in range(0, weights.shape[0], BLOCK):
        part = weights[begin : begin + BLOCK]
        panel = (first_row + begin) // PANEL
        _pack_pairs(part, first_row + begin, form)
        pack_float32(part, Op.T, form_t[panel : panel + 1])


@jit_strict_fp
def adamw_update_packed(
    weights: Floats,
    new_weights: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    first_row: int,
    form: PackedBits,
    form_t: PackedBits,
    step: AdamWStep,
) -> None:
    """Do `adamw_update` on rows of one decayed matrix, all (rows, O), and `pack_rows` of the new weights.

    The new weights and moments have the bits that `adamw_update` gives.
    """
    for begin in range(0, weights.shape[0], BLOCK):
        rows = slice(begin, min(begin + BLOCK, weights.shape[0]))
        new, count = new_weights[rows], new_weights[rows].size
        adamw_update(
            weights[rows].reshape(count), new.reshape(count), gradient[rows].reshape(count),
            m[rows].reshape(count), v[rows].reshape(count), count, step,
        )  # fmt: skip
        pack_rows(new, first_row + begin, form, form_t)
