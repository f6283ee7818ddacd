"""The token embedding gathered from its low-precision form: 2 bytes a number, as the output projection reads it."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from threadloom.kernels.bits16.tensors import Form
from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, TokenIds, jit_kernel
from threadloom.kernels.matmul import PANEL, PackedBits
from threadloom.kernels.simd import Bits16, from_bf16, load16


@jit_kernel
def _gather_packed(form: PackedBits, token: int, out: Floats) -> None:
    """Write row `token` of the packed matrix to `out` (C,): every number is the high, or the low, half of a word."""
    shift = np.uint32(16 * (token & 1))
    for panel in range(form.shape[0]):
        words, first = form[panel, token >> 1], panel * PANEL
        for j in range(min(PANEL, out.shape[0] - first)):
            out[first + j] = from_bf16(np.uint16(np.uint32(words[j] >> shift) & np.uint32(0xFFFF)))


@jit_kernel
def _gather_rows(form: Bits16, token: int, out: Floats) -> None:
    row = form[token]
    for j in range(out.shape[0]):
        out[j] = load16(row, j)


def gather(form: Form, token: int, out: Floats) -> None:
    """Write row `token` of the token embedding to `out` (C,) as float32."""
    (_gather_packed if form.dtype == np.uint32 else _gather_rows)(form, token, out)


@overload(gather, jit_options=OVERLOAD_OPTIONS)
def _gather(form: Any, token: Any, out: Any) -> Any:
    chosen = _gather_packed if form.dtype == types.uint32 else _gather_rows

    def run(form: Any, token: Any, out: Any) -> None:
        chosen(form, token, out)

    return run


@jit_kernel
def embedding_forward_low(form: Form, wpe: Floats, ids: TokenIds, sequence_length: int, out: Floats) -> None:
    """Write ``wte[ids[r]] + wpe[r % T]`` to row r of `out` (R, C); `form` is ``Forms.wte``, `ids` lie in 0 .. V - 1."""
    for r in range(ids.shape[0]):
        row, position = out[r], wpe[r % sequence_length]
        gather(form, ids[r], row)
        for j in range(row.shape[0]):
            row[j] += position[j]
