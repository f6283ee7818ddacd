"""Causal self-attention in bfloat16, forward: a tile of queries at a time, with unnormalised exponentials.

The rows of the output are divided by the sums of the exponentials. GEMMs and passes are made for the small matrices of
one head (`kernels.bits16.attention.products`, `kernels.bits16.attention.softmax`). Results depend on the shapes and the
inputs alone, bit for bit.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.bits16.attention.head import (
    ELEMENT,
    HeadIndex,
    QkvRef,
    begins_group,
    head_of,
    head_shape,
    key_column,
    next_head,
    prefetch_qkv_row,
    qkv_of,
)
from threadloom.kernels.bits16.attention.products import multiply, pack_pairs, round_rows
from threadloom.kernels.bits16.attention.rows import prefetch_row
from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.bits16.attention.softmax import ROW_GROUP, ExpRows, exp_rows
from threadloom.kernels.common import (
    AttentionActivations,
    ElementNumbers,
    HeadCounts,
    Part,
    document_end,
    dropout_tile,
    head_dropout,
    kept_factor,
)
from threadloom.kernels.compiling import jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul import (
    PANEL,
    MatrixRef,
    Op,
    address_of,
    configure_tiles,
    matrix_ref,
    pack_bf16,
    release_tiles,
    shifted,
)
from threadloom.kernels.simd import DotPath, load_float32, log32, read_dot_path, store_float32

_QUERIES = 32  # per tile
_HALF_PANEL = PANEL // 2  # squares on the diagonal are divided into quarters, one of which is masked as a whole
_LOG2_E = 1.4426950408889634
_ONE = np.float32(1.0)


class _ForwardBuffers(NamedTuple):
    """Scratch of one group of heads and one tile of the queries of one of them."""

    k_columns: MatrixRef  # packed transpose of the keys; stride: from panel to panel
    v_rows: MatrixRef  # packed values; stride: from panel to panel
    rows: ExpRows  # scores, probabilities, and their statistics
    result: MatrixRef  # float32, output before normalisation


class _QueryTile(NamedTuple):
    """A tile of queries, which sees the keys 0 … `first` + `queries` - 1."""

    path: int
    first: int
    queries: int
    size: int  # columns of a head


@jit_strict_inline
def _scores(tile: _QueryTile, q: MatrixRef, b: _ForwardBuffers) -> None:
    """Write the products of the tile's queries and the keys that they see to the buffer of scores."""
    for j in range(0, tile.first + tile.queries, PANEL):
        panel = b.k_columns.address + j // PANEL * b.k_columns.stride
        step = tile.queries if j < tile.first or tile.path == DotPath.AMX else _HALF_PANEL
        for i in range(0, tile.queries, step):
            height = min(step, tile.queries - i)
            width = min(PANEL, tile.first + i + height - j)
            target = shifted(b.rows.scores, i, 4 * j)
            multiply(tile.path, shifted(q, tile.first + i, 0), height, panel, tile.size, width, target, 0)


@jit_strict_inline
def _probabilities(
    tile: _QueryTile, ahead: QkvRef, out: MatrixRef, length: int, b: _ForwardBuffers, factor: np.float32
) -> None:
    """Replace the scores by exponentials; prefetch as many rows of the next head, `ahead`, and of the output."""
    r = b.rows
    for i in range(0, tile.queries, ROW_GROUP):
        for t in range(tile.first + i, min(tile.first + i + ROW_GROUP, length)):
            prefetch_qkv_row(ahead, t, tile.size, False)
            prefetch_row(out.address + t * out.stride, ELEMENT * tile.size, True)
        scores, probabilities = shifted(r.scores, i, 0), shifted(r.probabilities, i, 0)
        group = ExpRows(scores, probabilities, r.largest + 4 * i, r.totals + 4 * i)
        exp_rows(group, tile.first + i + 1, tile.first + tile.queries, factor)


@jit_strict_inline
def _weighted_values(tile: _QueryTile, b: _ForwardBuffers) -> None:
    """Write the products of the exponentials and the values to ``b.result``."""
    step = tile.queries if tile.path == DotPath.AMX else _HALF_PANEL
    for i in range(0, tile.queries, step):
        height = min(step, tile.queries - i)
        line, keys = shifted(b.rows.probabilities, i, 0), tile.first + i + height
        for j in range(0, tile.size, PANEL):
            panel = b.v_rows.address + j // PANEL * b.v_rows.stride
            target = shifted(b.result, i, 4 * j)
            multiply(tile.path, line, height, panel, keys, min(PANEL, tile.size - j), target, 0)


@jit_strict_inline
def _normalise(
    tile: _QueryTile, out: MatrixRef, lse: int, b: _ForwardBuffers, scale: np.float32, kept: np.float32
) -> None:
    """Write the tile's rows of the output, times `kept`, and, to the address `lse`, their log-sum-exp."""
    for i in range(tile.queries):
        largest, total = load_float32(b.rows.largest, i), load_float32(b.rows.totals, i)
        store_float32(lse, tile.first + i, np.float32(largest * scale) + log32(total))
    for i in range(tile.queries):
        share = kept / load_float32(b.rows.totals, i)
        round_rows(shifted(b.result, i, 0), share, 1, tile.size, shifted(out, tile.first + i, 0))


@jit_strict_fp
def forward_bf16(
    acts: AttentionActivations, sequences: int, heads: HeadCounts, part: Part, scratch: AttentionScratch
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_forward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    path = read_dot_path()
    if path == DotPath.AMX:
        configure_tiles()
    whole, size = out.shape[0] // sequences, out.shape[1] // heads.query
    scale = np.float32(1.0 / math.sqrt(size))
    factor = np.float32(_LOG2_E / math.sqrt(size))
    columns, v_rows = scratch.columns[0], scratch.rows[0]
    largest, totals = address_of(scratch.statistics[0]), address_of(scratch.statistics[1])
    buffers = _ForwardBuffers(
        MatrixRef(address_of(columns), columns.strides[0]),
        MatrixRef(address_of(v_rows), v_rows.strides[0]),
        ExpRows(matrix_ref(scratch.scores), matrix_ref(scratch.p_bits), largest, totals),
        matrix_ref(scratch.result),
    )
    begin = 0
    while begin < out.shape[0]:
        shape = head_shape(out, document_end(begin, whole, acts.starts) - begin, heads, part)
        k_columns = columns[: (shape.length + PANEL - 1) // PANEL]
        for h in range(part.first, part.last):
            index = HeadIndex(begin, h)
            source, ahead = qkv_of(qkv, shape, index), qkv_of(qkv, shape, next_head(index, shape))
            if begins_group(index, shape):
                column = key_column(index, shape)
                pack_bf16(qkv[begin : begin + shape.length, column : column + size], Op.T, k_columns)
                pack_pairs(MatrixRef(source.v, source.stride), shape.length, size, buffers.v_rows)
            target, target_lse = head_of(out, shape, index), address_of(lse[begin // whole, h]) + 4 * (begin % whole)
            dropout = head_dropout(acts.dropout, h)
            for first in range(0, shape.length, _QUERIES):
                tile = _QueryTile(path, first, min(_QUERIES, shape.length - first), size)
                _scores(tile, MatrixRef(source.q, source.stride), buffers)
                _probabilities(tile, ahead, target, shape.length, buffers, factor)
                numbers = ElementNumbers((begin + first) * whole + begin % whole, whole, 1)
                dropout_tile(scratch.p_bits, dropout, numbers, tile.queries, first + tile.queries, _ONE)
                _weighted_values(tile, buffers)
                _normalise(tile, target, target_lse, buffers, scale, kept_factor(dropout))
        begin += shape.length
    if path == DotPath.AMX:
        release_tiles()
