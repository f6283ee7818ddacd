"""Scratch of attention on 16-bit arrays, and its shapes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from threadloom.kernels.common import ATTENTION_TILE, HeadCounts
from threadloom.kernels.compiling import Floats
from threadloom.kernels.matmul import PANEL, PackedBits, packed_shape
from threadloom.kernels.simd import BF16Bits

_SPARE_ROWS = 16  # GEMMs write whole tiles of rows
_SPARE_COLUMNS = 32  # vectors may reach past a row's end; and rows a power of two apart would share the cache's sets


class AttentionScratch(NamedTuple):
    """Scratch of the forward and the backward pass, for one thread at a time; shapes by `attention_scratch_shapes`.

    Contents are undefined before and after a call. "Padded" means to whole panels and tiles. TILE is `ATTENTION_TILE`.
    Arrays that one of the formats does not use may be empty.
    """

    scores: Floats  # (TILE, context) padded
    d_scores: Floats  # the same
    p_bits: BF16Bits  # (TILE, context) padded: probabilities, rounded
    ds_bits: BF16Bits  # the same, bfloat16 only: gradients of scores
    ds_pairs: PackedBits  # (context / 32, TILE / 2, 32) the same, packed
    columns: PackedBits  # (3, ...) packed transposes of the head's queries (forward: keys), d_out and out
    rows: PackedBits  # (2, ...) packed rows of the head's queries (forward: values) and of d_out
    k_transposed: BF16Bits  # (D, context) padded
    dq_transposed: Floats  # (D, context) padded
    result: Floats  # (BLOCK, D) padded
    group_sums: Floats  # (2, context / TILE, TILE, D) padded, if K < H: gradients of a group's keys and values
    statistics: Floats  # (2, context) padded: of each query
    upcast: Floats  # (6, context, D) float16 only: q, k, v, d_out, and the gradients of k and v


_BFLOAT16_ONLY = frozenset(
    {"ds_bits", "ds_pairs", "columns", "rows", "k_transposed", "dq_transposed", "group_sums", "statistics"}
)
_FLOAT16_ONLY = frozenset({"upcast"})


def attention_scratch_shapes(
    context: int, head_size: int, heads: HeadCounts, dtype: DTypeLike | None = None
) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Return shape and dtype of each array of `AttentionScratch`, for sequences of up to `context` tokens.

    `dtype` is that of the format, uint16 (bfloat16) or int16 (float16): arrays that only the other format uses have no
    elements. None: the arrays of both formats. `group_sums` has elements only if query heads share keys and values.
    """
    panels = -(-context // PANEL)
    rows, columns = ATTENTION_TILE + _SPARE_ROWS, panels * PANEL + _SPARE_COLUMNS
    padded_size = -(-head_size // PANEL) * PANEL
    shapes: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
        "scores": ((rows, columns), np.float32),
        "d_scores": ((rows, columns), np.float32),
        "p_bits": ((rows, columns), np.uint16),
        "ds_bits": ((rows, columns), np.uint16),
        "ds_pairs": ((panels, ATTENTION_TILE // 2, PANEL), np.uint32),
        "columns": ((3, *packed_shape(head_size, context)), np.uint32),
        "rows": ((2, *packed_shape(context, head_size)), np.uint32),
        "k_transposed": ((head_size, columns), np.uint16),
        "dq_transposed": ((padded_size + _SPARE_ROWS, columns), np.float32),
        "result": ((rows, padded_size), np.float32),
        "group_sums": ((2, -(-context // ATTENTION_TILE), rows, padded_size), np.float32),
        "statistics": ((2, columns), np.float32),
        "upcast": ((6, context, head_size), np.float32),
    }
    absent = frozenset[str]()
    if dtype is not None:
        absent |= _BFLOAT16_ONLY if np.dtype(dtype) == np.int16 else _FLOAT16_ONLY
    if heads.query == heads.key_value:
        absent |= {"group_sums"}
    return {name: ((0,) * len(shape) if name in absent else shape, kind) for name, (shape, kind) in shapes.items()}


def attention_example() -> AttentionScratch:
    """Return scratch without elements, of the types that it has."""
    shapes = attention_scratch_shapes(1, 1, HeadCounts(1, 1))
    return AttentionScratch(**{name: np.zeros((0,) * len(shape), kind) for name, (shape, kind) in shapes.items()})
