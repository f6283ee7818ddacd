"""The scratch of attention on 16-bit numbers: what its kernels write on the way, and how large it is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from threadloom.kernels.compiling import Floats
from threadloom.kernels.matmul import PANEL, PackedBits, packed_shape
from threadloom.kernels.simd import BF16Bits

ATTENTION_BLOCK = 64
"""Rows of a tile of scores: as many queries in forward, keys in backward."""

_SPARE_ROWS = 16  # products write whole tiles of rows
_SPARE_COLUMNS = 32  # vectors may reach past a row's end; and rows a power of two apart would meet in the cache's sets


class AttentionScratch(NamedTuple):
    """What forward and backward write on the way, for one thread: sizes from `attention_scratch_shapes`.

    The content does not matter before a call, and tells nothing after it. "Padded" is to whole panels and tiles. What
    only one of the formats writes may be empty for the other.
    """

    scores: Floats  # (BLOCK, context) padded
    d_scores: Floats  # the same
    p_bits: BF16Bits  # (BLOCK, context) padded: probabilities, rounded
    ds_bits: BF16Bits  # the same, bfloat16 only: gradients of scores
    ds_words: PackedBits  # (context / 32, BLOCK / 2, 32) the same, packed
    columns: PackedBits  # (3, ...) packed transposes of the head's queries (forward: keys), d_out and out
    rows: PackedBits  # (2, ...) packed rows of the head's queries (forward: values) and of d_out
    k_transposed: BF16Bits  # (D, context) padded
    dq_transposed: Floats  # (D, context) padded
    result: Floats  # (BLOCK, D) padded
    statistics: Floats  # (2, context) padded: of each query
    upcast: Floats  # (6, context, D) float16 only: q, k, v, d_out, and the gradients of k and v


_BFLOAT16_ONLY = ("ds_bits", "ds_words", "columns", "rows", "k_transposed", "dq_transposed", "statistics")
_FLOAT16_ONLY = ("upcast",)


def attention_scratch_shapes(
    context: int, head_size: int, short: DTypeLike | None = None
) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Return the shape and the type of each array of `AttentionScratch`, for up to `context` tokens a sequence.

    `short` says for which format, uint16 (bfloat16) or int16 (float16): what the other alone writes has no elements
    then. None: all of both.
    """
    panels = -(-context // PANEL)
    rows, columns = ATTENTION_BLOCK + _SPARE_ROWS, panels * PANEL + _SPARE_COLUMNS
    padded_size = -(-head_size // PANEL) * PANEL
    shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
        "scores": ((rows, columns), np.float32),
        "d_scores": ((rows, columns), np.float32),
        "p_bits": ((rows, columns), np.uint16),
        "ds_bits": ((rows, columns), np.uint16),
        "ds_words": ((panels, ATTENTION_BLOCK // 2, PANEL), np.uint32),
        "columns": ((3, *packed_shape(head_size, context)), np.uint32),
        "rows": ((2, *packed_shape(context, head_size)), np.uint32),
        "k_transposed": ((head_size, columns), np.uint16),
        "dq_transposed": ((padded_size + _SPARE_ROWS, columns), np.float32),
        "result": ((rows, padded_size), np.float32),
        "statistics": ((2, columns), np.float32),
        "upcast": ((6, context, head_size), np.float32),
    }
    if short is not None:
        for name in _BFLOAT16_ONLY if np.dtype(short) == np.int16 else _FLOAT16_ONLY:
            shape, kind = shapes[name]
            shapes[name] = (0,) * len(shape), kind
    return shapes
