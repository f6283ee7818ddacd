"""Causal self-attention in bfloat16, backward: a tile of keys at a time.

It makes the transposed scores, a row a key. So the probabilities and the
gradients of scores are, as they come, the left operands of the gradients of values and of keys, which are complete
after one product; packed by pairs of keys they are the right operand of the queries' gradient, transposed, to which
the tiles of keys add in turn::

    S.T = K Q.T     P.T = 2**(c S.T - L)     dV = P.T dO     dK = c' dS.T Q     dQ.T += K.T dS      c' = 1 / sqrt(D)
                    dS.T = P.T (V dO.T - delta)

with the row statistics L (log-sum-exp) and delta = sum(dO O) running along the vectors. The bits follow from the
shapes alone.
"""

import math

import numpy as np

from threadloom.kernels.bits16.attention.products import LINE, multiply, pack_pairs, round_rows, strips
from threadloom.kernels.bits16.attention.rows import d_score_rows, dot_columns, fetch_row
from threadloom.kernels.bits16.attention.scratch import ATTENTION_BLOCK, AttentionScratch
from threadloom.kernels.compiling import Floats, jit_strict_fp
from threadloom.kernels.matmul import PANEL, Op, configure_tiles, pack_bf16, release_tiles, transpose_bf16
from threadloom.kernels.simd import LANES, BF16Bits, DotPath, read_dot_path, transpose_uint32

_AMX = DotPath.AMX.value
_QUERIES = 32  # of a tile in forward
_KEYS = ATTENTION_BLOCK  # of a tile in backward
_LOG2_E = 1.4426950408889634
_HALF_PANEL = PANEL // 2  # squares on the diagonal are cut in quarters, one of which is never needed
_LN2_HIGH = np.float32(0.693359375)
_ONE, _HALF, _ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)


@jit_strict_fp
def _statistics(lse: Floats, length: int, pairs: int, scratch: AttentionScratch) -> None:
    """Write each query's shift, in powers of two, and its delta, from the packed transposes of d_out and out."""
    shifts, deltas = scratch.statistics[0], scratch.statistics[1]
    for t in range(length):
        shifts[t] = lse[t] * np.float32(_LOG2_E)
    padded = (length + PANEL - 1) // PANEL * PANEL
    for t in range(length, padded):
        shifts[t] = _ZERO
    d_o, o = scratch.columns[1], scratch.columns[2]
    for j in range(padded // PANEL):
        dot_columns(d_o[j].ctypes.data, o[j].ctypes.data, pairs, deltas.ctypes.data + j * LINE)


@jit_strict_fp
def _transpose_out(
    source: int, source_bytes: int, square: int, square_bytes: int, factor: np.float32, length: int, size: int,
    out: int, out_bytes: int,
) -> None:  # fmt: skip
    """Write ``factor`` times the transpose of `source` (size, length) to `out` as bfloat16, by strips of `LANES`."""
    for t in range(0, length, LANES):
        for d in range(0, size, LANES):
            transpose_uint32(source + d * source_bytes + 4 * t, source_bytes, square + 4 * d, square_bytes)
        round_rows(square, square_bytes, factor, min(LANES, length - t), size, out + t * out_bytes, out_bytes)


@jit_strict_fp
def _key_scores(
    path: int, a: int, a_bytes: int, rows: int, t: int, panel: int, inner: int, width: int, out: int, out_bytes: int
) -> None:
    """Multiply keys (or values) with a panel of queries (or d_out), that begins at the tile's key `t`.

    The panel's first half does not see the second half of the keys beside it.
    """
    late = t + _HALF_PANEL
    if path == _AMX or rows <= late:
        multiply(path, a, a_bytes, rows, panel, inner, width, out, out_bytes, 0)
        return
    strips(path, a, a_bytes, late, panel, inner, width, out, out_bytes, 0)
    if width > _HALF_PANEL:
        strips(
            path, a + late * a_bytes, a_bytes, rows - late, panel + 4 * _HALF_PANEL, inner, width - _HALF_PANEL,
            out + late * out_bytes + 4 * _HALF_PANEL, out_bytes, 0,
        )  # fmt: skip


@jit_strict_fp
def _query_gradient(
    path: int, k: int, k_bytes: int, size: int, t: int, keys: int, panel: int, width: int, out: int, out_bytes: int,
    add: int,
) -> None:  # fmt: skip
    """Write, or add, the product of transposed keys with gradients of scores of the queries from the key `t` on."""
    late = t + _HALF_PANEL
    if path == _AMX or keys <= late:
        multiply(path, k, k_bytes, size, panel, min(keys, t + PANEL), width, out, out_bytes, add)
        return
    strips(path, k, k_bytes, size, panel, late, min(width, _HALF_PANEL), out, out_bytes, add)
    if width > _HALF_PANEL:
        strips(
            path, k, k_bytes, size, panel + 4 * _HALF_PANEL, min(keys, t + PANEL), width - _HALF_PANEL,
            out + 4 * _HALF_PANEL, out_bytes, add,
        )  # fmt: skip


@jit_strict_fp
def _key_gradient(
    path: int, bits: int, bit_bytes: int, keys: int, count: int, rows: int, panel_bytes: int, size: int,
    factor: np.float32, result: int, result_bytes: int, out: int, out_bytes: int,
) -> None:  # fmt: skip
    """Write ``factor * bits @ rows`` to the gradients of a tile of keys; `count` queries, from its first key's on."""
    step = PANEL if path == _AMX else _HALF_PANEL
    for i in range(0, keys, step):
        height = min(step, keys - i)
        line = bits + i * bit_bytes + 2 * i
        for j in range(0, size, PANEL):
            panel, target = rows + j // PANEL * panel_bytes + i // 2 * LINE, result + i * result_bytes + 4 * j
            width = min(PANEL, size - j)
            multiply(path, line, bit_bytes, height, panel, count - i, width, target, result_bytes, 0)
    round_rows(result, result_bytes, factor, keys, size, out, out_bytes)


@jit_strict_fp
def backward_bf16(
    d_out: BF16Bits,
    out: BF16Bits,
    qkv: BF16Bits,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: BF16Bits,
    scratch: AttentionScratch,
) -> None:
    """See `kernels.bits16.attention.layer.attention_backward`."""
    path = read_dot_path()
    if path == _AMX:
        configure_tiles()
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    panels = (length + PANEL - 1) // PANEL
    scale = np.float32(1.0 / math.sqrt(size))
    factor = np.float32(_LOG2_E / math.sqrt(size))
    row_bytes, out_bytes, d_bytes = qkv.strides[0], d_out.strides[0], d_qkv.strides[0]
    q_columns, d_o_columns, o_columns = (
        scratch.columns[0, :panels],
        scratch.columns[1, :panels],
        scratch.columns[2, :panels],
    )
    q_rows, d_o_rows = scratch.rows[0], scratch.rows[1]
    column_panel, row_panel = q_columns.strides[0], q_rows.strides[0]
    scores, d_scores, score_bytes = (
        scratch.scores.ctypes.data,
        scratch.d_scores.ctypes.data,
        scratch.scores.strides[0],
    )
    p_bits, ds_bits, bit_bytes = scratch.p_bits.ctypes.data, scratch.ds_bits.ctypes.data, scratch.p_bits.strides[0]
    words, word_panel = scratch.ds_words.ctypes.data, scratch.ds_words.strides[0]
    kt, kt_bytes = scratch.k_transposed.ctypes.data, scratch.k_transposed.strides[0]
    dqt, dqt_bytes = scratch.dq_transposed.ctypes.data, scratch.dq_transposed.strides[0]
    result, result_bytes = scratch.result.ctypes.data, scratch.result.strides[0]
    shifts, deltas = scratch.statistics[0].ctypes.data, scratch.statistics[1].ctypes.data
    for b in range(sequences):
        begin, end = b * length, (b + 1) * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            pack_bf16(qkv[begin:end, q0 : q0 + size], Op.T, q_columns)
            pack_bf16(d_out[begin:end, q0 : q0 + size], Op.T, d_o_columns)
            pack_bf16(out[begin:end, q0 : q0 + size], Op.T, o_columns)
            transpose_bf16(qkv[begin:end, k0 : k0 + size], scratch.k_transposed[:, :length])
            start, d_start = qkv.ctypes.data + begin * row_bytes, d_qkv.ctypes.data + begin * d_bytes
            pack_pairs(start + 2 * q0, row_bytes, length, size, q_rows.ctypes.data, row_panel)
            d_o = d_out.ctypes.data + begin * out_bytes + 2 * q0
            last = head + 1 == heads
            ahead = start + length * row_bytes if last else start + 2 * (q0 + size)
            o_ahead = (begin + length) * out_bytes if last else begin * out_bytes + 2 * (q0 + size)
            d_o_ahead, o_ahead = d_out.ctypes.data + o_ahead, out.ctypes.data + o_ahead
            pack_pairs(d_o, out_bytes, length, size, d_o_rows.ctypes.data, row_panel)
            _statistics(lse[b, head], length, (size + 1) // 2, scratch)
            for first in range(0, length, _KEYS):
                keys, count = min(_KEYS, length - first), length - first
                line = start + first * row_bytes
                for t in range(0, count, PANEL):
                    rows, width, panel = min(keys, t + PANEL), min(PANEL, count - t), (first + t) // PANEL
                    at = panel * column_panel
                    _key_scores(
                        path, line + 2 * k0, row_bytes, rows, t, q_columns.ctypes.data + at, size, width,
                        scores + 4 * t, score_bytes,
                    )  # fmt: skip
                    _key_scores(
                        path, line + 2 * v0, row_bytes, rows, t, d_o_columns.ctypes.data + at, size, width,
                        d_scores + 4 * t, score_bytes,
                    )  # fmt: skip
                for j in range(0, keys, 2):
                    for t in range(first + j, min(first + j + 2, length)):
                        line, place = ahead + t * row_bytes, d_start + t * d_bytes + 2 * q0
                        for part in range(3):
                            fetch_row(line + 2 * part * channels, 2 * size, False)
                            fetch_row(place + 2 * part * channels, 2 * size, True)
                        fetch_row(o_ahead + t * out_bytes, 2 * size, False)
                        fetch_row(d_o_ahead + t * out_bytes, 2 * size, False)
                    d_score_rows(
                        scores + j * score_bytes, d_scores + j * score_bytes, score_bytes,
                        p_bits + j * bit_bytes, ds_bits + j * bit_bytes, bit_bytes, words + j // 2 * LINE, word_panel,
                        shifts + 4 * first, deltas + 4 * first, factor, j, count,
                    )  # fmt: skip
                offset = first // 2 * LINE
                target = d_start + first * d_bytes
                _key_gradient(
                    path, p_bits, bit_bytes, keys, count, d_o_rows.ctypes.data + offset, row_panel, size,
                    _ONE, result, result_bytes, target + 2 * v0, d_bytes,
                )  # fmt: skip
                _key_gradient(
                    path, ds_bits, bit_bytes, keys, count, q_rows.ctypes.data + offset, row_panel, size,
                    scale, result, result_bytes, target + 2 * k0, d_bytes,
                )  # fmt: skip
                for t in range(0, count, PANEL):
                    panel, place = words + t // PANEL * word_panel, dqt + 4 * (first + t)
                    _query_gradient(
                        path, kt + 2 * first, kt_bytes, size, t, keys, panel, min(PANEL, count - t), place, dqt_bytes,
                        1 if first > 0 else 0,
                    )  # fmt: skip
            _transpose_out(
                dqt, dqt_bytes, result, result_bytes, scale, length, size, d_start + 2 * q0, d_bytes
            )  # fmt: skip
    if path == _AMX:
        release_tiles()
