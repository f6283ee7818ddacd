"""Rotary positions of queries and keys, in place (Su et al., 2021, equation 34).

The first M dimensions of a head are rotated in pairs by halves, as in GPT-NeoX and the Llama family: dimension i with
i + M / 2, by the angle ``position * frequency[i]``. The others, and the values, are left as they are.
"""

import numpy as np

from threadloom.kernels.common.documents import DocumentStarts, position_of
from threadloom.kernels.common.team import Part
from threadloom.kernels.common.tensors import HeadCounts
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel
from threadloom.kernels.simd import FloatRow, load_element, store_element

_FORWARDS = np.float32(1.0)
_BACKWARDS = np.float32(-1.0)


@jit_inline_body  # a call per head would cost as much as its loop
def _rotate(low: FloatRow, high: FloatRow, cos: Floats, sin: Floats, direction: np.float32) -> None:
    """Rotate the halves of one head's first M dimensions; all (M / 2,)."""
    for i in range(cos.shape[0]):
        x, y, c, s = load_element(low, i), load_element(high, i), cos[i], direction * sin[i]
        store_element(low, i, x * c - y * s)
        store_element(high, i, y * c + x * s)


@jit_kernel
def _rotate_rows(
    qkv: FloatRow,
    rows: Part,
    heads: HeadCounts,
    size: int,
    table: tuple[Floats, Floats],
    sequences: int,
    starts: DocumentStarts,
    direction: np.float32,
) -> None:
    cos, sin = table
    length, half = qkv.shape[0] // sequences, cos.shape[1]
    for r in range(rows.first, rows.last):
        position = position_of(r, length, starts)
        row, c, s = qkv[r], cos[position], sin[position]
        for head in range(heads.query + heads.key_value):
            low = head * size
            high = low + half
            _rotate(row[low:high], row[high : high + half], c, s, direction)


@jit_inline_body
def rotary_forward(
    qkv: FloatRow, heads: HeadCounts, size: int, cos: Floats, sin: Floats, sequences: int, starts: DocumentStarts
) -> None:
    """Rotate the queries and keys in `qkv` (R, (H + 2K) D) by the angles of their positions, in place.

    `size` is D. `cos` and `sin` (at least T, M / 2) are those of the angles of each position; row r of `qkv` has the
    position ``r % T``, T = R / `sequences`, less ``starts[r]`` with borders (`kernels.common.documents`). In 16 bits
    every result is rounded once.
    """
    rotary_rows_forward(qkv, Part(0, qkv.shape[0]), heads, size, cos, sin, sequences, starts)


@jit_kernel
def rotary_rows_forward(
    qkv: FloatRow,
    rows: Part,
    heads: HeadCounts,
    size: int,
    cos: Floats,
    sin: Floats,
    sequences: int,
    starts: DocumentStarts,
) -> None:
    """Rotate some rows of `qkv`, as `rotary_forward` rotates all."""
    _rotate_rows(qkv, rows, heads, size, (cos, sin), sequences, starts, _FORWARDS)


@jit_inline_body
def rotary_backward(
    d_qkv: FloatRow, heads: HeadCounts, size: int, cos: Floats, sin: Floats, sequences: int, starts: DocumentStarts
) -> None:
    """Replace the gradient of `rotary_forward`'s result by that of its input: the inverse rotation, in place."""
    rotary_rows_backward(d_qkv, Part(0, d_qkv.shape[0]), heads, size, cos, sin, sequences, starts)


@jit_kernel
def rotary_rows_backward(
    d_qkv: FloatRow,
    rows: Part,
    heads: HeadCounts,
    size: int,
    cos: Floats,
    sin: Floats,
    sequences: int,
    starts: DocumentStarts,
) -> None:
    """Rotate some rows of `d_qkv`, as `rotary_backward` rotates all."""
    _rotate_rows(d_qkv, rows, heads, size, (cos, sin), sequences, starts, _BACKWARDS)
