"""References to the matrices of one attention head in bfloat16. Addresses and strides count bytes."""

from typing import NamedTuple

from threadloom.kernels.bits16.attention.rows import prefetch_row
from threadloom.kernels.common import HeadCounts, Part
from threadloom.kernels.compiling import jit_inline_body, jit_strict_inline
from threadloom.kernels.matmul import MatrixRef, address_of
from threadloom.kernels.simd import BF16Bits

ELEMENT = 2
"""Bytes of a bfloat16."""


class HeadShape(NamedTuple):
    """Sizes that all heads of a sequence share, or of a document within borders."""

    heads: HeadCounts  # per sequence
    part: Part  # query heads that this thread computes, whole groups
    group: int  # H / K, successive query heads with the same keys and values
    length: int  # rows of a sequence, or of a document
    size: int  # D, columns of a head


class HeadIndex(NamedTuple):
    """Which query head of which sequence or document."""

    begin: int  # its first row
    head: int


class QkvRef(NamedTuple):
    """Queries, keys and values of one query head, or their gradients: addresses of three matrices (length, size)."""

    q: int
    k: int
    v: int
    stride: int  # from row to row


@jit_strict_inline
def head_shape(out: BF16Bits, length: int, heads: HeadCounts, part: Part) -> HeadShape:
    """Return the sizes of the heads of `length` rows of a layer with the output `out` (R, H D)."""
    group = heads.query // heads.key_value
    return HeadShape(heads, part, group, length, out.shape[1] // heads.query)


@jit_strict_inline
def next_head(index: HeadIndex, shape: HeadShape) -> HeadIndex:
    """Return the thread's query head after `index`; after the last of all, it is outside of the matrices."""
    if index.head + 1 < shape.part.last:
        return HeadIndex(index.begin, index.head + 1)
    return HeadIndex(index.begin + shape.length, shape.part.first)


@jit_strict_inline
def begins_group(index: HeadIndex, shape: HeadShape) -> bool:
    """Return True if the query head is the first with its keys and values."""
    return index.head % shape.group == 0


@jit_strict_inline
def ends_group(index: HeadIndex, shape: HeadShape) -> bool:
    """Return True if the query head is the last with its keys and values."""
    return (index.head + 1) % shape.group == 0


@jit_strict_inline
def head_of(matrix: BF16Bits, shape: HeadShape, index: HeadIndex) -> MatrixRef:
    """Return a head of `matrix` (R, H D)."""
    stride, column = matrix.strides[0], index.head * shape.size
    return MatrixRef(address_of(matrix) + index.begin * stride + column * ELEMENT, stride)


@jit_strict_inline
def key_column(index: HeadIndex, shape: HeadShape) -> int:
    """Return the first column of the query head's keys in a matrix (R, (H + 2K) D)."""
    return (shape.heads.query + index.head // shape.group) * shape.size


@jit_strict_inline
def qkv_of(matrix: BF16Bits, shape: HeadShape, index: HeadIndex) -> QkvRef:
    """Return a query head of `matrix` (R, (H + 2K) D), which has all queries, all keys and all values side by side."""
    stride = matrix.strides[0]
    row = address_of(matrix) + index.begin * stride
    k = row + key_column(index, shape) * ELEMENT
    return QkvRef(row + index.head * shape.size * ELEMENT, k, k + shape.heads.key_value * shape.size * ELEMENT, stride)


@jit_inline_body  # `write` must be a constant in the caller
def prefetch_qkv_row(qkv: QkvRef, row: int, size: int, write: bool) -> None:
    """Prefetch one row of a head's queries, keys and values, or of their gradients, to read or to write it."""
    offset = row * qkv.stride
    prefetch_row(qkv.q + offset, ELEMENT * size, write)
    prefetch_row(qkv.k + offset, ELEMENT * size, write)
    prefetch_row(qkv.v + offset, ELEMENT * size, write)
