"""References to the matrices of one attention head in bfloat16. Addresses and strides count bytes."""

from typing import NamedTuple

from threadloom.kernels.bits16.attention.rows import prefetch_row
from threadloom.kernels.compiling import jit_inline_body, jit_strict_inline
from threadloom.kernels.matmul import MatrixRef, address_of
from threadloom.kernels.simd import BF16Bits

ELEMENT = 2
"""Bytes of a bfloat16."""


class HeadShape(NamedTuple):
    """Sizes that all heads of a layer share."""

    heads: int  # per sequence
    length: int  # T, tokens of a sequence
    size: int  # D, columns of a head


class HeadIndex(NamedTuple):
    """Which head of which sequence."""

    sequence: int
    head: int


class QkvRef(NamedTuple):
    """Queries, keys and values of one head, or their gradients: addresses of three matrices (length, size)."""

    q: int
    k: int
    v: int
    stride: int  # from row to row


@jit_strict_inline
def head_shape(out: BF16Bits, sequences: int, heads: int) -> HeadShape:
    """Return the sizes of the heads of a layer with the output `out` (R, C)."""
    return HeadShape(heads, out.shape[0] // sequences, out.shape[1] // heads)


@jit_strict_inline
def next_head(index: HeadIndex, shape: HeadShape) -> HeadIndex:
    """Return the head after `index`; after the last head of all, it is outside of the matrices."""
    if index.head + 1 < shape.heads:
        return HeadIndex(index.sequence, index.head + 1)
    return HeadIndex(index.sequence + 1, 0)


@jit_strict_inline
def head_of(matrix: BF16Bits, shape: HeadShape, index: HeadIndex) -> MatrixRef:
    """Return a head of `matrix` (R, C)."""
    row, column = index.sequence * shape.length, index.head * shape.size
    stride = matrix.strides[0]
    return MatrixRef(address_of(matrix) + row * stride + column * ELEMENT, stride)


@jit_strict_inline
def qkv_of(matrix: BF16Bits, shape: HeadShape, index: HeadIndex) -> QkvRef:
    """Return a head of `matrix` (R, 3C), which holds queries, keys and values side by side."""
    q, channels = head_of(matrix, shape, index), shape.heads * shape.size * ELEMENT
    return QkvRef(q.address, q.address + channels, q.address + 2 * channels, q.stride)


@jit_inline_body  # `write` must be a constant in the caller
def prefetch_qkv_row(qkv: QkvRef, row: int, size: int, write: bool) -> None:
    """Prefetch one row of a head's queries, keys and values, or of their gradients, to read or to write it."""
    offset = row * qkv.stride
    prefetch_row(qkv.q + offset, ELEMENT * size, write)
    prefetch_row(qkv.k + offset, ELEMENT * size, write)
    prefetch_row(qkv.v + offset, ELEMENT * size, write)
