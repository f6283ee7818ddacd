"""Causal self-attention in bfloat16, backward: a tile of keys at a time.

The transposed scores are computed, one row per key. So the probabilities and the gradients of the scores are already
the left operands of the gradients of values and of keys, which are complete after one GEMM; packed by pairs of keys the
gradients of the scores are the right operand of the transposed gradient of the queries, to which the tiles of keys add
one after another::

    S.T = K Q.T     P.T = 2**(c S.T - L)     dV = P.T dO     dK = c' dS.T Q     dQ.T += K.T dS      c' = 1 / sqrt(D)
                    dS.T = P.T (V dO.T - delta)

with the row statistics L (log-sum-exp) and delta = sum(dO O) along the vectors. The query heads of a group add to the
gradients of their keys and values in ascending order, in float32; the sums are rounded after the last head. Results
depend on the shapes and the inputs alone, bit for bit.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.bits16.attention.head import (
    ELEMENT,
    HeadIndex,
    HeadShape,
    QkvRef,
    begins_group,
    ends_group,
    head_of,
    head_shape,
    key_column,
    next_head,
    prefetch_qkv_row,
    qkv_of,
)
from threadloom.kernels.bits16.attention.products import LINE, multiply, multiply_vectors, pack_pairs, round_rows
from threadloom.kernels.bits16.attention.rows import dot_columns, prefetch_row
from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.bits16.attention.softmax import SoftmaxBackwardRows, softmax_backward_rows
from threadloom.kernels.bits16.attention.tile import TILE_ROWS
from threadloom.kernels.common import (
    ATTENTION_TILE,
    AttentionActivations,
    Dropout,
    ElementNumbers,
    HeadCounts,
    Part,
    document_end,
    dropout_tile,
    head_dropout,
    kept_factor,
)
from threadloom.kernels.compiling import Floats, jit_strict_fp, jit_strict_inline
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
    transpose_bf16,
)
from threadloom.kernels.simd import LANES, BF16Bits, DotPath, read_dot_path, transpose_uint32

_HALF_PANEL = PANEL // 2  # squares on the diagonal are divided into quarters, one of which is masked as a whole
_HALF_LINE = 4 * _HALF_PANEL
_KEY_STEP = _HALF_PANEL // TILE_ROWS * TILE_ROWS
"""Keys whose gradients are multiplied at a time: whole tiles, since a part of one would add to the next keys, too."""
_LOG2_E = 1.4426950408889634
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


class _HeadRefs(NamedTuple):
    """Matrices (length, D) of one query head that are read (`qkv`, `out`, `d_out`) or written (`d_qkv`)."""

    qkv: QkvRef
    out: MatrixRef
    d_out: MatrixRef
    d_qkv: QkvRef


class _KeySums(NamedTuple):
    """Sums of the gradients of a tile of keys and values over the query heads of their group, float32.

    A group of one head needs those of one tile at a time, and of either keys or values: all are the same memory.
    """

    k: MatrixRef  # of the first tile
    v: MatrixRef
    step: int  # from tile to tile


class _BackwardBuffers(NamedTuple):
    """Scratch of one head and one tile of its keys."""

    q_columns: MatrixRef  # packed transpose of the queries; stride: from panel to panel
    d_out_columns: MatrixRef  # the same of `d_out`
    q_rows: MatrixRef  # packed queries; stride: from panel to panel
    d_out_rows: MatrixRef  # the same of `d_out`
    rows: SoftmaxBackwardRows  # scores, probabilities and their gradients
    k_transposed: MatrixRef  # (D, length)
    dq_transposed: MatrixRef  # (D, length) float32
    result: MatrixRef  # float32
    key_sums: _KeySums


class _KeyTile(NamedTuple):
    """A tile of keys, which the queries `first` … `first` + `queries` - 1, the last of the sequence, see."""

    path: int
    first: int
    keys: int
    queries: int
    size: int  # columns of a head
    adds: int  # 1 if earlier query heads of the group have gradients of these keys, to which this head adds; else 0
    completes: bool  # no query head of the group follows


class _TileDropout(NamedTuple):
    """Dropout of the probabilities of a tile of keys; a row is a key, a column a query."""

    dropout: Dropout
    numbers: ElementNumbers
    probabilities: BF16Bits
    d_probabilities: Floats


@jit_strict_fp
def _statistics(lse: Floats, pairs: int, scratch: AttentionScratch) -> None:
    """Write each query's shift, in powers of two, and its delta, from the packed transposes of d_out and out."""
    shifts, deltas = scratch.statistics[0], scratch.statistics[1]
    length = lse.shape[0]
    for t in range(length):
        shifts[t] = lse[t] * np.float32(_LOG2_E)
    padded = (length + PANEL - 1) // PANEL * PANEL
    for t in range(length, padded):
        shifts[t] = _ZERO
    d_o, o = scratch.columns[1], scratch.columns[2]
    for j in range(padded // PANEL):
        dot_columns(d_o[j].ctypes.data, o[j].ctypes.data, pairs, deltas.ctypes.data + j * LINE)


@jit_strict_fp
def _key_scores(tile: _KeyTile, a: MatrixRef, t: int, columns: MatrixRef, out: MatrixRef) -> None:
    """Multiply the tile's keys, or values, `a` with a panel of queries, or of d_out, from the tile's query `t` on.

    The panel's first half does not see the second half of the keys of the same number.
    """
    rows, width = min(tile.keys, t + PANEL), min(PANEL, tile.queries - t)
    panel = columns.address + (tile.first + t) // PANEL * columns.stride
    target, late = shifted(out, 0, 4 * t), t + _HALF_PANEL
    if tile.path == DotPath.AMX or rows <= late:
        multiply(tile.path, a, rows, panel, tile.size, width, target, 0)
        return
    multiply_vectors(tile.path, a, late, panel, tile.size, width, target, 0)
    if width > _HALF_PANEL:
        corner = shifted(target, late, _HALF_LINE)
        multiply_vectors(
            tile.path, shifted(a, late, 0), rows - late, panel + _HALF_LINE, tile.size, width - _HALF_PANEL, corner, 0
        )  # fmt: skip


@jit_strict_inline
def _d_scores(tile: _KeyTile, head: _HeadRefs, ahead: _HeadRefs, b: _BackwardBuffers, factor: np.float32) -> None:
    """Compute probabilities and gradients of scores; prefetch as many rows of the next head and of the gradients."""
    r, length = b.rows, tile.first + tile.queries
    for j in range(0, tile.keys, 2):
        for t in range(tile.first + j, min(tile.first + j + 2, length)):
            prefetch_qkv_row(ahead.qkv, t, tile.size, False)
            prefetch_qkv_row(head.d_qkv, t, tile.size, True)
            prefetch_row(ahead.out.address + t * ahead.out.stride, ELEMENT * tile.size, False)
            prefetch_row(ahead.d_out.address + t * ahead.d_out.stride, ELEMENT * tile.size, False)
        pair = SoftmaxBackwardRows(
            shifted(r.scores, j, 0),
            r.d_probabilities + j * r.scores.stride,
            shifted(r.probabilities, j, 0),
            r.d_scores + j * r.probabilities.stride,
            shifted(r.d_score_pairs, 0, j // 2 * LINE),
            r.shifts + 4 * tile.first,
            r.deltas + 4 * tile.first,
        )
        softmax_backward_rows(pair, factor, j, tile.queries)


@jit_strict_fp
def _key_gradient(
    tile: _KeyTile, a: MatrixRef, packed: MatrixRef, factor: np.float32, sums: MatrixRef, out: MatrixRef
) -> None:
    """Write ``a @ b`` to `sums`, or add it; the group's last head also writes ``factor * sums`` to `out`.

    `out` is the gradient of keys or of values, `a` (keys, queries) are probabilities or gradients of scores, b the
    `packed` rows of queries or of `d_out`.
    """
    step = PANEL if tile.path == DotPath.AMX else _KEY_STEP
    for i in range(0, tile.keys, step):
        height = min(step, tile.keys - i)
        line = shifted(a, i, 2 * i)  # queries before key i do not see it
        for j in range(0, tile.size, PANEL):
            panel = packed.address + j // PANEL * packed.stride + (tile.first // 2 + i // 2) * LINE
            width, target = min(PANEL, tile.size - j), shifted(sums, i, 4 * j)
            multiply(tile.path, line, height, panel, tile.queries - i, width, target, tile.adds)
    if tile.completes:
        round_rows(sums, factor, tile.keys, tile.size, shifted(out, tile.first, 0))


@jit_strict_inline
def _query_gradient(tile: _KeyTile, t: int, b: _BackwardBuffers) -> None:
    """Write, or add if the tile is not the first, the product of transposed keys and gradients of scores to dQ.T.

    The queries are those of one panel, from the tile's query `t` on.
    """
    k, out = shifted(b.k_transposed, 0, 2 * tile.first), shifted(b.dq_transposed, 0, 4 * (tile.first + t))
    panel, width = b.rows.d_score_pairs.address + t // PANEL * b.rows.d_score_pairs.stride, min(PANEL, tile.queries - t)
    late, seen, add = t + _HALF_PANEL, min(tile.keys, t + PANEL), 1 if tile.first > 0 else 0
    if tile.path == DotPath.AMX or tile.keys <= late:
        multiply(tile.path, k, tile.size, panel, seen, width, out, add)
        return
    multiply_vectors(tile.path, k, tile.size, panel, late, min(width, _HALF_PANEL), out, add)
    if width > _HALF_PANEL:
        right = shifted(out, 0, _HALF_LINE)
        multiply_vectors(tile.path, k, tile.size, panel + _HALF_LINE, seen, width - _HALF_PANEL, right, add)


@jit_strict_fp
def _transpose_out(b: _BackwardBuffers, factor: np.float32, shape: HeadShape, out: MatrixRef) -> None:
    """Write ``factor`` times the transpose of ``b.dq_transposed`` to `out` as bfloat16, `LANES` rows at a time."""
    source, square = b.dq_transposed, b.result
    for t in range(0, shape.length, LANES):
        for d in range(0, shape.size, LANES):
            place = shifted(source, d, 4 * t)
            transpose_uint32(place.address, place.stride, square.address + 4 * d, square.stride)
        round_rows(square, factor, min(LANES, shape.length - t), shape.size, shifted(out, t, 0))


@jit_strict_fp
def _key_tile(
    tile: _KeyTile, head: _HeadRefs, ahead: _HeadRefs, b: _BackwardBuffers, scale: np.float32, drop: _TileDropout
) -> None:
    """Compute the gradients of a tile of keys and values, and the tile's part of the gradient of the queries."""
    kept = kept_factor(drop.dropout)
    offset, stride, d_stride = tile.first * head.qkv.stride, head.qkv.stride, head.d_qkv.stride
    k, v = MatrixRef(head.qkv.k + offset, stride), MatrixRef(head.qkv.v + offset, stride)
    d_scores = MatrixRef(b.rows.d_scores, b.rows.probabilities.stride)
    past = tile.first // ATTENTION_TILE * b.key_sums.step
    k_sums, v_sums = shifted(b.key_sums.k, 0, past), shifted(b.key_sums.v, 0, past)
    for t in range(0, tile.queries, PANEL):
        _key_scores(tile, k, t, b.q_columns, b.rows.scores)
        _key_scores(tile, v, t, b.d_out_columns, MatrixRef(b.rows.d_probabilities, b.rows.scores.stride))
    dropout_tile(drop.d_probabilities, drop.dropout, drop.numbers, tile.keys, tile.queries, kept)
    _d_scores(tile, head, ahead, b, np.float32(_LOG2_E / math.sqrt(tile.size)))
    dropout_tile(drop.probabilities, drop.dropout, drop.numbers, tile.keys, tile.queries, _ONE)
    _key_gradient(tile, b.rows.probabilities, b.d_out_rows, kept, v_sums, MatrixRef(head.d_qkv.v, d_stride))
    _key_gradient(tile, d_scores, b.q_rows, scale, k_sums, MatrixRef(head.d_qkv.k, d_stride))
    for t in range(0, tile.queries, PANEL):
        _query_gradient(tile, t, b)


@jit_strict_fp
def _head_refs(
    qkv: BF16Bits, out: BF16Bits, d_out: BF16Bits, d_qkv: BF16Bits, shape: HeadShape, index: HeadIndex
) -> _HeadRefs:
    return _HeadRefs(
        qkv_of(qkv, shape, index),
        head_of(out, shape, index),
        head_of(d_out, shape, index),
        qkv_of(d_qkv, shape, index),
    )


@jit_strict_fp
def _key_sums(s: AttentionScratch, group: int) -> _KeySums:
    k, v, stride, step = address_of(s.result), address_of(s.result), s.result.strides[0], 0
    if group > 1:
        k, v = address_of(s.group_sums[0]), address_of(s.group_sums[1])
        stride, step = s.group_sums.strides[2], s.group_sums.strides[1]
    return _KeySums(MatrixRef(k, stride), MatrixRef(v, stride), step)


@jit_strict_fp
def _buffers(s: AttentionScratch, group: int) -> _BackwardBuffers:
    column_panel, row_panel = s.columns.strides[1], s.rows.strides[1]
    shifts, deltas = address_of(s.statistics[0]), address_of(s.statistics[1])
    pairs = MatrixRef(address_of(s.ds_pairs), s.ds_pairs.strides[0])
    scores, d_scores = matrix_ref(s.scores), address_of(s.d_scores)
    return _BackwardBuffers(
        MatrixRef(address_of(s.columns[0]), column_panel),
        MatrixRef(address_of(s.columns[1]), column_panel),
        MatrixRef(address_of(s.rows[0]), row_panel),
        MatrixRef(address_of(s.rows[1]), row_panel),
        SoftmaxBackwardRows(scores, d_scores, matrix_ref(s.p_bits), address_of(s.ds_bits), pairs, shifts, deltas),
        matrix_ref(s.k_transposed),
        matrix_ref(s.dq_transposed),
        matrix_ref(s.result),
        _key_sums(s, group),
    )


@jit_strict_fp
def backward_bf16(
    d_out: BF16Bits,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    part: Part,
    d_qkv: BF16Bits,
    scratch: AttentionScratch,
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_backward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    path = read_dot_path()
    if path == DotPath.AMX:
        configure_tiles()
    whole, size = out.shape[0] // sequences, out.shape[1] // heads.query
    scale = np.float32(1.0 / math.sqrt(size))
    buffers = _buffers(scratch, heads.query // heads.key_value)
    begin = 0
    while begin < out.shape[0]:
        shape = head_shape(out, document_end(begin, whole, acts.starts) - begin, heads, part)
        end, panels = begin + shape.length, (shape.length + PANEL - 1) // PANEL
        q_columns, d_o_columns = scratch.columns[0, :panels], scratch.columns[1, :panels]
        o_columns, k_transposed = scratch.columns[2, :panels], scratch.k_transposed[:, : shape.length]
        for h in range(part.first, part.last):
            index = HeadIndex(begin, h)
            head = _head_refs(qkv, out, d_out, d_qkv, shape, index)
            ahead = _head_refs(qkv, out, d_out, d_qkv, shape, next_head(index, shape))
            adds, completes = 0 if begins_group(index, shape) else 1, ends_group(index, shape)
            q0 = h * size
            pack_bf16(qkv[begin:end, q0 : q0 + size], Op.T, q_columns)
            pack_bf16(d_out[begin:end, q0 : q0 + size], Op.T, d_o_columns)
            pack_bf16(out[begin:end, q0 : q0 + size], Op.T, o_columns)
            if not adds:
                k0 = key_column(index, shape)
                transpose_bf16(qkv[begin:end, k0 : k0 + size], k_transposed)
            pack_pairs(MatrixRef(head.qkv.q, head.qkv.stride), shape.length, size, buffers.q_rows)
            pack_pairs(head.d_out, shape.length, size, buffers.d_out_rows)
            past = begin % whole
            _statistics(lse[begin // whole, h, past : past + shape.length], (size + 1) // 2, scratch)
            for first in range(0, shape.length, ATTENTION_TILE):
                queries = shape.length - first
                tile = _KeyTile(path, first, min(ATTENTION_TILE, queries), queries, size, adds, completes)
                numbers = ElementNumbers((begin + first) * whole + past + first, 1, whole)
                drop = _TileDropout(head_dropout(acts.dropout, h), numbers, scratch.p_bits, scratch.d_scores)
                _key_tile(tile, head, ahead, buffers, scale, drop)
            _transpose_out(buffers, scale, shape, MatrixRef(head.d_qkv.q, head.d_qkv.stride))
        begin = end
    if path == DotPath.AMX:
        release_tiles()
