"""Matrices of generation turned into operands of the kernels of training, with which a prompt is processed.

A matrix (I, O) is stored as packed bfloat16, or as rows of blocks of 8 bits, one for each output
(`kernels.float32.blocks8`). The result is float32, or packed bfloat16 (`kernels.matmul.pack`).
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp
from threadloom.kernels.float32.blocks8 import Blocks8, float32_from_blocks8
from threadloom.kernels.matmul import PANEL, Op, PackedBits, pack_float32
from threadloom.kernels.simd import from_bf16

_LOW, _SHIFT = np.uint32(0xFFFF), np.uint32(16)


@jit_strict_fp
def float32_from_packed(packed: PackedBits, out: Floats) -> None:
    """Write the packed matrix to `out` (I, O)."""
    inner, columns = out.shape
    for p in range((inner + 1) // 2):
        for panel in range(packed.shape[0]):
            words, first = packed[panel, p], panel * PANEL
            width = min(PANEL, columns - first)
            for c in range(width):
                out[2 * p, first + c] = from_bf16(np.uint16(words[c] & _LOW))
            if 2 * p + 1 < inner:
                for c in range(width):
                    out[2 * p + 1, first + c] = from_bf16(np.uint16(words[c] >> _SHIFT))


@jit_strict_fp
def float32_from_rows8(rows: Blocks8, scratch: Floats, out: Floats) -> None:
    """Write the matrix whose columns are `rows` to `out` (I, O); `scratch` (32, I)."""
    inner, columns = out.shape
    for first in range(0, columns, PANEL):
        width = min(PANEL, columns - first)
        for c in range(width):
            float32_from_blocks8(rows[first + c], scratch[c])
        for i in range(inner):
            for c in range(width):
                out[i, first + c] = scratch[c, i]


@jit_strict_fp
def packed_from_rows8(rows: Blocks8, scratch: Floats, out: PackedBits) -> None:
    """Pack the matrix (I, O) whose columns are `rows`, rounded to bfloat16; `scratch` (32, I)."""
    columns = rows.shape[0]
    for panel in range(out.shape[0]):
        width = min(PANEL, columns - panel * PANEL)
        for c in range(width):
            float32_from_blocks8(rows[panel * PANEL + c], scratch[c])
        pack_float32(scratch[:width], Op.T, out[panel : panel + 1])
