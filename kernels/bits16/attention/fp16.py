"""Causal self-attention in float16: a head is upcast to float32 and multiplied by the float32 GEMM.

float16 is for machines and models that need the format, not for speed. Probabilities and the gradients of scores are
rounded to float16 before they are multiplied, as in `kernels.bits16.attention.forward` for bfloat16.
"""

import math

import numpy as np

from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.common import (
    ATTENTION_TILE,
    AttentionActivations,
    ElementNumbers,
    HeadCounts,
    Part,
    document_end,
    dropout_tile,
    head_dropout,
    kept_factor,
    softmax_backward_row,
    softmax_rows,
)
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.matmul import Op, gemm
from threadloom.kernels.simd import Bits16, load16, store16

_ZERO = np.float32(0.0)


@jit_kernel
def _upcast_head(source: Bits16, first: int, column: int, rows: int, out: Floats) -> None:
    """Write `rows` rows from `first` on of the head whose columns begin at `column` to `out` (rows, D) as float32."""
    # The loops index whole rows: the stride of a slice of columns is not known to be 1 at compile time.
    for i in range(rows):
        line, target = source[first + i], out[i]
        for j in range(out.shape[1]):
            target[j] = load16(line, column + j)


@jit_kernel
def _round_head(source: Floats, rows: int, size: int, out: Bits16, first: int, column: int) -> None:
    """Round `source` (rows, size) into the columns of a head; the inverse of `_upcast_head`."""
    for i in range(rows):
        line, target = source[i], out[first + i]
        for j in range(size):
            store16(target, column + j, line[j])


@jit_kernel
def _round_tile(tile: Floats, buffer: Bits16, rows: int, columns: int) -> None:
    """Round the elements of a float32 tile to the 16-bit format of `buffer`, which is scratch for one row."""
    for i in range(rows):
        row = tile[i]
        for j in range(columns):
            store16(buffer, j, row[j])
        for j in range(columns):
            row[j] = load16(buffer, j)


@jit_kernel
def _softmax_backward(
    scratch: AttentionScratch, out: Bits16, d_out: Bits16, lse: Floats, column: int, size: int, keys: int
) -> None:
    """Replace the scores of a tile by probabilities, and the gradients of these by those of the scores.

    `out` and `d_out` (queries, H D) are the rows of the tile; its head has `size` columns from `column` on.
    """
    queries = out.shape[0]
    for i in range(queries):
        o, d_o = out[i], d_out[i]
        delta = _ZERO
        for j in range(size):
            delta += load16(o, column + j) * load16(d_o, column + j)
        seen = keys - queries + i + 1
        softmax_backward_row(scratch.scores[i], scratch.d_scores[i], lse[i], delta, seen, keys)


@jit_kernel
def forward_fp16(
    acts: AttentionActivations, sequences: int, heads: HeadCounts, part: Part, scratch: AttentionScratch
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_forward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    size = out.shape[1] // heads.query
    group = heads.query // heads.key_value
    whole = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    buffer = scratch.p_bits[0].view(qkv.dtype)
    q, k, v = scratch.upcast[0], scratch.upcast[1], scratch.upcast[2]
    begin = 0
    while begin < out.shape[0]:
        length = document_end(begin, whole, acts.starts) - begin
        b, past = begin // whole, begin % whole
        for head in range(part.first, part.last):
            q0, k0 = head * size, (heads.query + head // group) * size
            _upcast_head(qkv, begin, q0, length, q)
            if head % group == 0:
                _upcast_head(qkv, begin, k0, length, k)
                _upcast_head(qkv, begin, k0 + heads.key_value * size, length, v)
            dropout = head_dropout(acts.dropout, head)
            for first in range(0, length, ATTENTION_TILE):
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                tile, o = scratch.scores[:queries, :keys], scratch.result[:queries, :size]
                gemm(q[first:keys], k[:keys], tile, Op.N, Op.T, scale, 0.0)
                softmax_rows(scratch.scores, lse[b, head, past + first : past + keys], queries, keys)
                numbers = ElementNumbers((begin + first) * whole + past, whole, 1)
                dropout_tile(scratch.scores, dropout, numbers, queries, keys, kept_factor(dropout))
                _round_tile(scratch.scores, buffer, queries, keys)
                gemm(tile, v[:keys], o, Op.N, Op.N, 1.0, 0.0)
                _round_head(scratch.result, queries, size, out, begin + first, q0)
        begin += length


@jit_kernel
def backward_fp16(
    d_out: Bits16,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    part: Part,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_backward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    size = out.shape[1] // heads.query
    group = heads.query // heads.key_value
    whole = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    buffer = scratch.p_bits[0].view(qkv.dtype)
    q, k, v, d_o = scratch.upcast[0], scratch.upcast[1], scratch.upcast[2], scratch.upcast[3]
    d_k, d_v = scratch.upcast[4], scratch.upcast[5]
    begin = 0
    while begin < out.shape[0]:
        length = document_end(begin, whole, acts.starts) - begin
        b, past = begin // whole, begin % whole
        tiles = (length + ATTENTION_TILE - 1) // ATTENTION_TILE
        for head in range(part.first, part.last):
            q0, k0 = head * size, (heads.query + head // group) * size
            v0 = k0 + heads.key_value * size
            beta = 1.0
            if head % group == 0:  # the others add to the gradients of its keys and values
                beta = 0.0
                _upcast_head(qkv, begin, k0, length, k)
                _upcast_head(qkv, begin, v0, length, v)
            _upcast_head(qkv, begin, q0, length, q)
            _upcast_head(d_out, begin, q0, length, d_o)
            dropout = head_dropout(acts.dropout, head)
            for number in range(tiles):  # the last tile sees every key: it writes the sums that the others add to
                first = (tiles - 1 - number) * ATTENTION_TILE
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                top, bottom = begin + first, begin + keys
                p, ds = scratch.scores[:queries, :keys], scratch.d_scores[:queries, :keys]
                gemm(q[first:keys], k[:keys], p, Op.N, Op.T, scale, 0.0)
                gemm(d_o[first:keys], v[:keys], ds, Op.N, Op.T, 1.0, 0.0)
                rows = lse[b, head, past + first : past + keys]
                numbers = ElementNumbers(top * whole + past, whole, 1)
                dropout_tile(scratch.d_scores, dropout, numbers, queries, keys, kept_factor(dropout))
                _softmax_backward(scratch, out[top:bottom], d_out[top:bottom], rows, q0, size, keys)
                dropout_tile(scratch.scores, dropout, numbers, queries, keys, kept_factor(dropout))
                _round_tile(scratch.scores, buffer, queries, keys)
                _round_tile(scratch.d_scores, buffer, queries, keys)
                gemm(p, d_o[first:keys], d_v[:keys], Op.T, Op.N, 1.0, beta)
                gemm(ds, q[first:keys], d_k[:keys], Op.T, Op.N, scale, beta)
                gemm(ds, k[:keys], scratch.result[:queries, :size], Op.N, Op.N, scale, 0.0)
                _round_head(scratch.result, queries, size, d_qkv, top, q0)
                beta = 1.0
            if (head + 1) % group == 0:
                _round_head(d_k, length, size, d_qkv, begin, k0)
                _round_head(d_v, length, size, d_qkv, begin, v0)
        begin += length
