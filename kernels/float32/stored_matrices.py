"""Matrices of generation turned into operands of the kernels of training, with which a prompt is processed.

A matrix (I, O) is stored as packed bfloat16 (`kernels.matmul.pack`), or in blocks of 8 bits
(`kernels.float32.blocks8`). The result is float32, or packed bfloat16. Panels and blocks of both have 32 columns and 32
rows.
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp
from threadloom.kernels.float32.blocks8 import BLOCK, Blocks8, scale_of
from threadloom.kernels.matmul import PANEL, PackedBits, pack_pair
from threadloom.kernels.simd import from_bf16, to_bf16

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
def float32_from_blocks8(blocks: Blocks8, scales: Floats, out: Floats) -> None:
    """Write the matrix in 8 bits to `out` (I, O); `scales` (32,) is scratch."""
    inner, columns = out.shape
    for panel in range(blocks.shape[0]):
        first = panel * PANEL
        width = min(PANEL, columns - first)
        for b in range(blocks.shape[1]):
            block = blocks[panel, b]
            for c in range(width):
                scales[c] = scale_of(block, c)
            for k in range(min(BLOCK, inner - b * BLOCK)):
                row, numbers = out[b * BLOCK + k], block[k * PANEL :]
                for c in range(width):
                    row[first + c] = scales[c] * np.float32(numbers[c])


@jit_strict_fp
def packed_from_blocks8(blocks: Blocks8, scales: Floats, out: PackedBits) -> None:
    """Round the matrix in 8 bits to bfloat16 and pack it; the padding of both is zero. `scales` (32,) is scratch."""
    for panel in range(blocks.shape[0]):
        for b in range(blocks.shape[1]):
            block = blocks[panel, b]
            for c in range(PANEL):
                scales[c] = scale_of(block, c)
            for p in range(BLOCK // 2):
                words, even = out[panel, b * (BLOCK // 2) + p], block[2 * p * PANEL :]
                odd = even[PANEL:]
                for c in range(PANEL):
                    scale, low, high = scales[c], np.float32(even[c]), np.float32(odd[c])
                    words[c] = pack_pair(to_bf16(scale * low), to_bf16(scale * high))
