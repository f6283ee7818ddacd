"""Causal self-attention in float32, one tile of `ATTENTION_TILE` queries of one head at a time.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2): only one tile of scores exists at a time, the forward
pass keeps the log-sum-exp of each row, and the backward pass recomputes the probabilities from it. Keys past the tile's
last query are never read. The heads are column slices of `qkv`, which the GEMM reads in place with their stride.

In grouped-query attention (Ainslie et al., 2023) the H / K successive query heads of a group have the same keys and
values, whose gradients are sums over the group in ascending order of heads.

Documents with borders between them are computed one after another, each as a sequence of its own: no scores of other
documents' keys are computed.

Both passes are behind addresses, so that the kernels of all architectures call one compiled copy.
"""

import math
from typing import NamedTuple

import numpy as np

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
from threadloom.kernels.compiling import Entry, Floats, jit_inline_body, jit_kernel, type_of
from threadloom.kernels.matmul import Op, gemm

_ZERO = np.float32(0.0)


class _ForwardArgs(NamedTuple):
    """Arguments of `attention_heads_forward`."""

    acts: AttentionActivations
    sequences: int
    heads: HeadCounts
    part: Part
    scores: Floats


class _BackwardArgs(NamedTuple):
    """Arguments of `attention_heads_backward`."""

    d_out: Floats
    acts: AttentionActivations
    sequences: int
    heads: HeadCounts
    part: Part
    d_qkv: Floats
    scores: Floats


@jit_kernel
def _forward(args: _ForwardArgs) -> None:
    acts, sequences, heads, part, scores = args
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    size = out.shape[1] // heads.query
    group = heads.query // heads.key_value
    whole = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    begin = 0
    while begin < out.shape[0]:
        length = document_end(begin, whole, acts.starts) - begin
        b, past = begin // whole, begin % whole
        for head in range(part.first, part.last):
            q0, k0 = head * size, (heads.query + head // group) * size
            v0 = k0 + heads.key_value * size
            dropout = head_dropout(acts.dropout, head)
            for first in range(0, length, ATTENTION_TILE):
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                tile = scores[:queries, :keys]
                q = qkv[begin + first : begin + keys, q0 : q0 + size]
                gemm(q, qkv[begin : begin + keys, k0 : k0 + size], tile, Op.N, Op.T, scale, 0.0)
                softmax_rows(scores, lse[b, head, past + first : past + keys], queries, keys)
                numbers = ElementNumbers((begin + first) * whole + past, whole, 1)
                dropout_tile(scores, dropout, numbers, queries, keys, kept_factor(dropout))
                target = out[begin + first : begin + keys, q0 : q0 + size]
                gemm(tile, qkv[begin : begin + keys, v0 : v0 + size], target, Op.N, Op.N, 1.0, 0.0)
        begin += length


@jit_kernel
def _softmax_backward(
    scores: Floats, out: Floats, d_out: Floats, lse: Floats, column: int, size: int, keys: int
) -> None:
    """Replace a tile's scores by probabilities, ``scores[0]``, and the gradient of these by that of the scores.

    `out` and `d_out` (queries, H D) are the rows of the tile; its head has `size` columns from `column` on.
    """
    queries = out.shape[0]
    for i in range(queries):
        # Sliced row by row: a row of a two-dimensional slice would have a stride that the compiler does not know.
        o, d_o = out[i, column : column + size], d_out[i, column : column + size]
        delta = _ZERO
        for j in range(size):
            delta += o[j] * d_o[j]
        softmax_backward_row(scores[0, i], scores[1, i], lse[i], delta, keys - queries + i + 1, keys)


@jit_kernel
def _backward(args: _BackwardArgs) -> None:
    """Compute tiles of a head from the last to the first.

    The last one sees every key, so that of a group's first head writes the gradients of keys and values, to which all
    others add.
    """
    d_out, acts, sequences, heads, part, d_qkv, scores = args
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    size = out.shape[1] // heads.query
    group = heads.query // heads.key_value
    whole = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    begin = 0
    while begin < out.shape[0]:
        length = document_end(begin, whole, acts.starts) - begin
        b, past = begin // whole, begin % whole
        tiles = (length + ATTENTION_TILE - 1) // ATTENTION_TILE
        for head in range(part.first, part.last):
            q0, k0 = head * size, (heads.query + head // group) * size
            v0 = k0 + heads.key_value * size
            beta = 0.0 if head % group == 0 else 1.0
            dropout = head_dropout(acts.dropout, head)
            for number in range(tiles):
                first = (tiles - 1 - number) * ATTENTION_TILE
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                top, bottom = begin + first, begin + keys
                p, ds = scores[0, :queries, :keys], scores[1, :queries, :keys]
                q, k = qkv[top:bottom, q0 : q0 + size], qkv[begin:bottom, k0 : k0 + size]
                d_o = d_out[top:bottom, q0 : q0 + size]
                rows = lse[b, head, past + first : past + keys]
                gemm(q, k, p, Op.N, Op.T, scale, 0.0)
                gemm(d_o, qkv[begin:bottom, v0 : v0 + size], ds, Op.N, Op.T, 1.0, 0.0)
                numbers = ElementNumbers(top * whole + past, whole, 1)
                dropout_tile(scores[1], dropout, numbers, queries, keys, kept_factor(dropout))
                _softmax_backward(scores, out[top:bottom], d_out[top:bottom], rows, q0, size, keys)
                dropout_tile(scores[0], dropout, numbers, queries, keys, kept_factor(dropout))
                gemm(p, d_o, d_qkv[begin:bottom, v0 : v0 + size], Op.T, Op.N, 1.0, beta)
                gemm(ds, k, d_qkv[top:bottom, q0 : q0 + size], Op.N, Op.N, scale, 0.0)
                gemm(ds, q, d_qkv[begin:bottom, k0 : k0 + size], Op.T, Op.N, scale, beta)
                beta = 1.0
        begin += length


_MATRIX, _HEADS, _PART = np.zeros((1, 1), np.float32), HeadCounts(1, 1), Part(0, 1)
_ACTS = AttentionActivations(_MATRIX, _MATRIX, np.zeros((1, 1, 1), np.float32))
_FORWARD = Entry(
    "threadloom_attention_forward",
    _forward,
    type_of(_ForwardArgs(_ACTS, 1, _HEADS, _PART, _MATRIX)),
    prepares_itself=True,
)
_BACKWARD = Entry(
    "threadloom_attention_backward",
    _backward,
    type_of(_BackwardArgs(_MATRIX, _ACTS, 1, _HEADS, _PART, _MATRIX, np.zeros((1, 1, 1), np.float32))),
    prepares_itself=True,
)
_call_forward, _call_backward = _FORWARD.call, _BACKWARD.call


@jit_inline_body
def attention_heads_forward(
    acts: AttentionActivations, sequences: int, heads: HeadCounts, part: Part, scores: Floats
) -> None:
    """Compute the columns of ``out`` and the rows of ``lse`` of the query heads in `part`, from ``qkv``.

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each query head (Vaswani et al., 2017, equation 1), with the keys
    and values of its group. ``heads.query`` is a multiple of ``heads.key_value``. `scores` (TILE, at least T) is
    scratch.
    """
    _call_forward(_ForwardArgs(acts, sequences, heads, part, scores))


@jit_inline_body
def attention_forward(acts: AttentionActivations, sequences: int, heads: HeadCounts, scores: Floats) -> None:
    """Compute ``out`` and ``lse`` of `acts` from its ``qkv``, for all heads: `attention_heads_forward`."""
    attention_heads_forward(acts, sequences, heads, Part(0, heads.query), scores)


@jit_inline_body
def attention_heads_backward(
    d_out: Floats,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    part: Part,
    d_qkv: Floats,
    scores: Floats,
) -> None:
    """Write the columns of the query heads in `part`, whole groups, of the gradient of ``qkv`` (R, (H + 2K) D).

    They are written to `d_qkv`, given `d_out` (R, H D), the gradient of the output, and so are those of the groups'
    keys and values. `acts` are those of the forward pass. `scores` (2, TILE, at least T) is scratch.
    """
    _call_backward(_BackwardArgs(d_out, acts, sequences, heads, part, d_qkv, scores))


@jit_inline_body
def attention_backward(
    d_out: Floats, acts: AttentionActivations, sequences: int, heads: HeadCounts, d_qkv: Floats, scores: Floats
) -> None:
    """Write the gradient of ``qkv`` to `d_qkv`, for all heads: `attention_heads_backward`."""
    attention_heads_backward(d_out, acts, sequences, heads, Part(0, heads.query), d_qkv, scores)
