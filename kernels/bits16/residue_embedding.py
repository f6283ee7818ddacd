"""Embeddings of tokens that are sums of residues, in 16 bits, as `kernels.float32.residue_embedding`.

The rows are gathered from the packed weights.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from threadloom.kernels.bits16.tensors import PackedWeight
from threadloom.kernels.common import DocumentStarts, Residues, position_of
from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, TokenIds, jit_kernel
from threadloom.kernels.matmul import PANEL, PackedBits
from threadloom.kernels.simd import Bits16, from_bf16, load16


@jit_kernel
def _add_packed(factors: PackedBits, row: int, scale: np.float32, out: Floats) -> None:
    shift = np.uint32(16 * (row & 1))
    for panel in range(factors.shape[0]):
        words, first = factors[panel, row >> 1], panel * PANEL
        for j in range(min(PANEL, out.shape[0] - first)):
            out[first + j] += scale * from_bf16(np.uint16(np.uint32(words[j] >> shift) & np.uint32(0xFFFF)))


@jit_kernel
def _add_row(factors: Bits16, row: int, scale: np.float32, out: Floats) -> None:
    numbers = factors[row]
    for j in range(out.shape[0]):
        out[j] += scale * load16(numbers, j)


def add(factors: PackedWeight, row: int, scale: np.float32, out: Floats) -> None:
    """Add `scale` times a row of F to `out` (C,)."""
    (_add_packed if factors.dtype == np.uint32 else _add_row)(factors, row, scale, out)


@overload(add, jit_options=OVERLOAD_OPTIONS)
def _add(factors: Any, row: Any, scale: Any, out: Any) -> Any:
    chosen = _add_packed if factors.dtype == types.uint32 else _add_row

    def run(factors: Any, row: Any, scale: Any, out: Any) -> None:
        chosen(factors, row, scale, out)

    return run


@jit_kernel
def residue_embedding_forward(
    factors: PackedWeight,
    wpe: Floats,
    residues: Residues,
    ids: TokenIds,
    sequence_length: int,
    starts: DocumentStarts,
    out: Floats,
) -> None:
    """Write the embedding of token ``ids[r]`` plus that of its position to row r of `out` (R, C).

    `factors` is the packed F (P, C).
    """
    for r in range(ids.shape[0]):
        token, position, row = ids[r], wpe[position_of(r, sequence_length, starts)], out[r]
        for j in range(row.shape[0]):
            row[j] = position[j]
        if token < residues.own:
            add(factors, token, np.float32(1.0), row)
            continue
        for k in range(residues.moduli.shape[0]):
            add(factors, residues.first[k] + (token - residues.own) % residues.moduli[k], residues.scale, row)
