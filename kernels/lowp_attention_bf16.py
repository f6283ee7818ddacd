"""Causal self-attention in bfloat16, with products and passes made for the small matrices of one head.

Forward takes a tile of queries at a time and keeps exponentials unnormalised: the sums divide the output's rows.

Backward takes a tile of keys at a time and makes the transposed scores, a row a key. So the probabilities and the
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

from kernels.jit import exact, exact_inlined
from kernels.lowp_amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from kernels.lowp_attention_scratch import ATTENTION_BLOCK, AttentionScratch
from kernels.lowp_attention_tile import (
    NARROW_COLUMNS,
    NARROW_ROWS,
    ROW_GROUP,
    TILE_COLUMNS,
    TILE_ROWS,
    d_score_rows,
    dot_columns,
    fetch_row,
    join_short_rows,
    narrow_float32,
    narrow_native,
    round_row,
    softmax_rows,
    tile_float32,
    tile_native,
)
from kernels.lowp_convert import Bits, to_bf16
from kernels.lowp_features import DotPath, chosen_path
from kernels.lowp_pack import PANEL, pack_bf16, transpose_bf16
from kernels.lowp_vector import (
    LANES,
    join_rows,
    read_float,
    read_short,
    transpose_words,
    write_short,
    write_word,
)
from kernels.tensors import Floats

_AMX, _AVX512 = DotPath.AMX.value, DotPath.AVX512.value
_QUERIES = 32  # of a tile in forward
_KEYS = ATTENTION_BLOCK  # of a tile in backward
_LOG2_E = 1.4426950408889634
_LINE = 4 * PANEL  # bytes of a pair in a panel
_HALF_PANEL = PANEL // 2  # squares on the diagonal are cut in quarters, one of which is never needed

_SHIFT = np.uint32(16)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_ONE, _HALF, _ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)
_SQRT_HALF = np.float32(0.70710678118654752440)
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip


@exact_inlined
def _log32(x: np.float32) -> np.float32:
    """Return ln(x) of a positive normal number as Cephes' ``logf`` does; infinity and NaN give themselves."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32(np.int32(bits >> np.int32(23)) - np.int32(126))
    m = np.int32(np.int32(bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    low = m < _SQRT_HALF
    exponent = exponent - _ONE if low else exponent
    r = (m + m if low else m) - _ONE
    z = r * r
    p = _LOG[0]
    p = p * r + _LOG[1]
    p = p * r + _LOG[2]
    p = p * r + _LOG[3]
    p = p * r + _LOG[4]
    p = p * r + _LOG[5]
    p = p * r + _LOG[6]
    p = p * r + _LOG[7]
    p = p * r + _LOG[8]
    y = p * r * z + exponent * _LN2_LOW - _HALF * z
    y = r + y + exponent * _LN2_HIGH
    return y if x < np.float32(np.inf) else x


@exact
def _strips(
    path: int, a: int, a_bytes: int, rows: int, panel: int, inner: int, width: int, out: int, out_bytes: int, add: int
) -> None:
    """Multiply rows with `width` columns of a panel by AVX-512, or in float32."""
    for column in range(0, width, TILE_COLUMNS):
        part, target = panel + 4 * column, out + 4 * column
        if width - column <= NARROW_COLUMNS:
            for i in range(0, rows, NARROW_ROWS):
                line, place = a + i * a_bytes, target + i * out_bytes
                if path >= _AVX512:
                    narrow_native(line, a_bytes, rows - i - 1, part, inner, place, out_bytes, add)
                else:
                    narrow_float32(line, a_bytes, rows - i - 1, part, inner, place, out_bytes, add)
        else:
            for i in range(0, rows, TILE_ROWS):
                line, place = a + i * a_bytes, target + i * out_bytes
                if path >= _AVX512:
                    tile_native(line, a_bytes, rows - i - 1, part, inner, place, out_bytes, add)
                else:
                    tile_float32(line, a_bytes, rows - i - 1, part, inner, place, out_bytes, add)


@exact
def _multiply(
    path: int, a: int, a_bytes: int, rows: int, panel: int, inner: int, width: int, out: int, out_bytes: int, add: int
) -> None:
    """Write, or add, the product of rows of A with `width` columns of a panel; `out` is padded to whole tiles."""
    done = 0
    if path == _AMX and inner >= K_STEP:
        steps = inner // K_STEP
        depth = steps * K_STEP
        while done + TILE_SIZE <= rows:
            line, place = a + done * a_bytes, out + done * out_bytes
            tile_amx(line, a_bytes, panel, steps, place, out_bytes, add)
            if depth < inner:
                rest = panel + depth // 2 * _LINE
                _strips(path, line + 2 * depth, a_bytes, TILE_SIZE, rest, inner - depth, width, place, out_bytes, 1)
            done += TILE_SIZE
    if done < rows:
        line, place = a + done * a_bytes, out + done * out_bytes
        _strips(path, line, a_bytes, rows - done, panel, inner, width, place, out_bytes, add)


@exact
def _pack_rows(source: int, row_bytes: int, inner: int, columns: int, target: int, panel_bytes: int) -> None:
    """Pack a matrix (inner, columns); what lies beyond the columns is left alone, the half of an odd pair is 0."""
    for p in range(inner // 2):
        even = source + 2 * p * row_bytes
        odd = even + row_bytes
        for first in range(0, columns, PANEL):
            place = target + first // PANEL * panel_bytes + p * _LINE
            if first + PANEL <= columns:
                join_rows(even + 2 * first, odd + 2 * first, place)
                continue
            whole = (columns - first) // LANES * LANES
            for c in range(0, whole, LANES):
                join_short_rows(even + 2 * (first + c), odd + 2 * (first + c), place + 4 * c)
            for c in range(whole, columns - first):
                low, high = read_short(even, first + c), read_short(odd, first + c)
                write_word(place, c, np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << _SHIFT)))
    if inner % 2:
        last, line = source + (inner - 1) * row_bytes, inner // 2 * _LINE
        for c in range(columns):
            write_word(target + c // PANEL * panel_bytes + line, c % PANEL, np.uint32(read_short(last, c)))


@exact
def _round_rows(source: int, source_bytes: int, factor: np.float32, rows: int, size: int, out: int, step: int) -> None:
    """Write ``factor * source`` (rows, size) as bfloat16."""
    whole = size // LANES
    for i in range(rows):
        line, target = source + i * source_bytes, out + i * step
        round_row(line, factor, target, whole)
        for j in range(whole * LANES, size):
            write_short(target, j, to_bf16(np.float32(read_float(line, j) * factor)))


@exact
def forward_bf16(qkv: Bits, sequences: int, heads: int, out: Bits, lse: Floats, scratch: AttentionScratch) -> None:
    """See `kernels.lowp_attention.attention_forward_low`."""
    path = chosen_path()
    if path == _AMX:
        configure_tiles()
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    panels = (length + PANEL - 1) // PANEL
    scale = np.float32(1.0 / math.sqrt(size))
    factor = np.float32(_LOG2_E / math.sqrt(size))
    row_bytes, out_bytes = qkv.strides[0], out.strides[0]
    k_columns, v_rows = scratch.columns[0, :panels], scratch.rows[0]
    k_panel, v_panel = k_columns.strides[0], v_rows.strides[0]
    scores, score_bytes = scratch.scores.ctypes.data, scratch.scores.strides[0]
    bits, bit_bytes = scratch.p_bits.ctypes.data, scratch.p_bits.strides[0]
    result, result_bytes = scratch.result.ctypes.data, scratch.result.strides[0]
    largest, totals = scratch.statistics[0], scratch.statistics[1]
    for b in range(sequences):
        begin, end = b * length, (b + 1) * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            pack_bf16(qkv[begin:end, k0 : k0 + size], True, k_columns)
            start = qkv.ctypes.data + begin * row_bytes
            ahead = start + 2 * (q0 + size) if head + 1 < heads else start + length * row_bytes
            out_start = out.ctypes.data + begin * out_bytes + 2 * q0
            _pack_rows(start + 2 * v0, row_bytes, length, size, v_rows.ctypes.data, v_panel)
            for first in range(0, length, _QUERIES):
                keys = min(first + _QUERIES, length)
                queries = keys - first
                q = start + first * row_bytes + 2 * q0
                for j in range(0, keys, PANEL):
                    panel, target = k_columns.ctypes.data + j // PANEL * k_panel, scores + 4 * j
                    step = queries if j < first or path == _AMX else _HALF_PANEL
                    for i in range(0, queries, step):
                        height = min(step, queries - i)
                        _multiply(
                            path, q + i * row_bytes, row_bytes, height, panel, size, min(PANEL, first + i + height - j),
                            target + i * score_bytes, score_bytes, 0,
                        )  # fmt: skip
                for i in range(0, queries, ROW_GROUP):
                    for t in range(first + i, min(first + i + ROW_GROUP, length)):
                        line = ahead + t * row_bytes
                        fetch_row(line, 2 * size, False)
                        fetch_row(line + 2 * channels, 2 * size, False)
                        fetch_row(line + 4 * channels, 2 * size, False)
                        fetch_row(out_start + t * out_bytes, 2 * size, True)
                    softmax_rows(
                        scores + i * score_bytes, score_bytes, bits + i * bit_bytes, bit_bytes, first + i + 1, keys,
                        factor, largest.ctypes.data + 4 * i, totals.ctypes.data + 4 * i,
                    )  # fmt: skip
                step = queries if path == _AMX else _HALF_PANEL
                for i in range(0, queries, step):
                    height = min(step, queries - i)
                    inner = first + i + height
                    for j in range(0, size, PANEL):
                        panel, target = v_rows.ctypes.data + j // PANEL * v_panel, result + i * result_bytes + 4 * j
                        line = bits + i * bit_bytes
                        _multiply(
                            path, line, bit_bytes, height, panel, inner, min(PANEL, size - j), target, result_bytes, 0
                        )
                kept = lse[b, head, first:keys]
                for i in range(queries):
                    kept[i] = np.float32(largest[i] * scale) + _log32(totals[i])
                target = out_start + first * out_bytes
                for i in range(queries):
                    share = _ONE / totals[i]
                    _round_rows(result + i * result_bytes, result_bytes, share, 1, size, target + i * out_bytes, 0)
    if path == _AMX:
        release_tiles()


@exact
def _statistics(path: int, lse: Floats, length: int, pairs: int, scratch: AttentionScratch) -> None:
    """Write each query's shift, in powers of two, and its delta, from the packed transposes of d_out and out."""
    shifts, deltas = scratch.statistics[0], scratch.statistics[1]
    for t in range(length):
        shifts[t] = lse[t] * np.float32(_LOG2_E)
    padded = (length + PANEL - 1) // PANEL * PANEL
    for t in range(length, padded):
        shifts[t] = _ZERO
    d_o, o = scratch.columns[1], scratch.columns[2]
    for j in range(padded // PANEL):
        dot_columns(d_o[j].ctypes.data, o[j].ctypes.data, pairs, deltas.ctypes.data + j * _LINE)


@exact
def _transpose_out(
    source: int, source_bytes: int, square: int, square_bytes: int, factor: np.float32, length: int, size: int,
    out: int, out_bytes: int,
) -> None:  # fmt: skip
    """Write ``factor`` times the transpose of `source` (size, length) to `out` as bfloat16, by strips of `LANES`."""
    for t in range(0, length, LANES):
        for d in range(0, size, LANES):
            transpose_words(source + d * source_bytes + 4 * t, source_bytes, square + 4 * d, square_bytes)
        _round_rows(square, square_bytes, factor, min(LANES, length - t), size, out + t * out_bytes, out_bytes)


@exact
def _key_scores(
    path: int, a: int, a_bytes: int, rows: int, t: int, panel: int, inner: int, width: int, out: int, out_bytes: int
) -> None:
    """Multiply keys (or values) with a panel of queries (or d_out), that begins at the tile's key `t`.

    The panel's first half does not see the second half of the keys beside it.
    """
    late = t + _HALF_PANEL
    if path == _AMX or rows <= late:
        _multiply(path, a, a_bytes, rows, panel, inner, width, out, out_bytes, 0)
        return
    _strips(path, a, a_bytes, late, panel, inner, width, out, out_bytes, 0)
    if width > _HALF_PANEL:
        _strips(
            path, a + late * a_bytes, a_bytes, rows - late, panel + 4 * _HALF_PANEL, inner, width - _HALF_PANEL,
            out + late * out_bytes + 4 * _HALF_PANEL, out_bytes, 0,
        )  # fmt: skip


@exact
def _query_gradient(
    path: int, k: int, k_bytes: int, size: int, t: int, keys: int, panel: int, width: int, out: int, out_bytes: int,
    add: int,
) -> None:  # fmt: skip
    """Write, or add, the product of transposed keys with gradients of scores of the queries from the key `t` on."""
    late = t + _HALF_PANEL
    if path == _AMX or keys <= late:
        _multiply(path, k, k_bytes, size, panel, min(keys, t + PANEL), width, out, out_bytes, add)
        return
    _strips(path, k, k_bytes, size, panel, late, min(width, _HALF_PANEL), out, out_bytes, add)
    if width > _HALF_PANEL:
        _strips(
            path, k, k_bytes, size, panel + 4 * _HALF_PANEL, min(keys, t + PANEL), width - _HALF_PANEL,
            out + 4 * _HALF_PANEL, out_bytes, add,
        )  # fmt: skip


@exact
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
            panel, target = rows + j // PANEL * panel_bytes + i // 2 * _LINE, result + i * result_bytes + 4 * j
            width = min(PANEL, size - j)
            _multiply(path, line, bit_bytes, height, panel, count - i, width, target, result_bytes, 0)
    _round_rows(result, result_bytes, factor, keys, size, out, out_bytes)


@exact
def backward_bf16(
    d_out: Bits,
    out: Bits,
    qkv: Bits,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Bits,
    scratch: AttentionScratch,
) -> None:
    """See `kernels.lowp_attention.attention_backward_low`."""
    path = chosen_path()
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
            pack_bf16(qkv[begin:end, q0 : q0 + size], True, q_columns)
            pack_bf16(d_out[begin:end, q0 : q0 + size], True, d_o_columns)
            pack_bf16(out[begin:end, q0 : q0 + size], True, o_columns)
            transpose_bf16(qkv[begin:end, k0 : k0 + size], scratch.k_transposed[:, :length])
            start, d_start = qkv.ctypes.data + begin * row_bytes, d_qkv.ctypes.data + begin * d_bytes
            _pack_rows(start + 2 * q0, row_bytes, length, size, q_rows.ctypes.data, row_panel)
            d_o = d_out.ctypes.data + begin * out_bytes + 2 * q0
            last = head + 1 == heads
            ahead = start + length * row_bytes if last else start + 2 * (q0 + size)
            o_ahead = (begin + length) * out_bytes if last else begin * out_bytes + 2 * (q0 + size)
            d_o_ahead, o_ahead = d_out.ctypes.data + o_ahead, out.ctypes.data + o_ahead
            _pack_rows(d_o, out_bytes, length, size, d_o_rows.ctypes.data, row_panel)
            _statistics(path, lse[b, head], length, (size + 1) // 2, scratch)
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
                        p_bits + j * bit_bytes, ds_bits + j * bit_bytes, bit_bytes, words + j // 2 * _LINE, word_panel,
                        shifts + 4 * first, deltas + 4 * first, factor, j, count,
                    )  # fmt: skip
                offset = first // 2 * _LINE
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
