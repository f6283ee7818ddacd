"""Token embeddings in 16 bits, with position embeddings or without.

Tokens are gathered from the packed weights, 2 bytes per element. The gradients are in `kernels.common.embedding`.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from threadloom.kernels.bits16.tensors import PackedWeight
from threadloom.kernels.common import DocumentStarts, position_of
from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, TokenIds, jit_kernel
from threadloom.kernels.matmul import PANEL, PackedBits
from threadloom.kernels.simd import Bits16, from_bf16, load16


@jit_kernel
def _gather_packed(wte: PackedBits, token: int, out: Floats) -> None:
    """Write row `token` of the packed matrix to `out` (C,): each element is the high or the low half of a word."""
    shift = np.uint32(16 * (token & 1))
    for panel in range(wte.shape[0]):
        words, first = wte[panel, token >> 1], panel * PANEL
        for j in range(min(PANEL, out.shape[0] - first)):
            out[first + j] = from_bf16(np.uint16(np.uint32(words[j] >> shift) & np.uint32(0xFFFF)))


@jit_kernel
def _gather_rows(wte: Bits16, token: int, out: Floats) -> None:
    row = wte[token]
    for j in range(out.shape[0]):
        out[j] = load16(row, j)


def gather(wte: PackedWeight, token: int, out: Floats) -> None:
    """Write row `token` of the token embedding to `out` (C,) as float32."""
    (_gather_packed if wte.dtype == np.uint32 else _gather_rows)(wte, token, out)


@overload(gather, jit_options=OVERLOAD_OPTIONS)
def _gather(wte: Any, token: Any, out: Any) -> Any:
    chosen = _gather_packed if wte.dtype == types.uint32 else _gather_rows

    def run(wte: Any, token: Any, out: Any) -> None:
        chosen(wte, token, out)

    return run


@jit_kernel
def embedding_forward(
    wte: PackedWeight, wpe: Floats, ids: TokenIds, sequence_length: int, starts: DocumentStarts, out: Floats
) -> None:
    """Write ``wte[ids[r]] + wpe[t]`` to row r of `out` (R, C); `ids` (R,) must be in 0 .. V - 1.

    `wte` is ``PackedWeights.wte``. t is the position of the row in its document, ``r % T`` without borders:
    `kernels.common.documents`.
    """
    for r in range(ids.shape[0]):
        row, position = out[r], wpe[position_of(r, sequence_length, starts)]
        gather(wte, ids[r], row)
        for j in range(row.shape[0]):
            row[j] += position[j]


@jit_kernel
def token_embedding_forward(wte: PackedWeight, ids: TokenIds, out: Floats) -> None:
    """Write ``wte[ids[r]]`` to row r of `out` (R, C); `ids` (R,) must be in 0 .. V - 1.

    `wte` is ``LlamaPackedWeights.wte``.
    """
    for r in range(ids.shape[0]):
        gather(wte, ids[r], out[r])
