"""Causal self-attention in bfloat16, forward: a tile of queries at a time, exponentials unnormalised.

The sums divide the output's rows. Products and passes are made for the small matrices of one head
(`kernels.bits16.attention.products`, `kernels.bits16.attention.rows`); the bits follow from the shapes alone.
"""

import math

import numpy as np

from threadloom.kernels.bits16.attention.products import multiply, pack_pairs, round_rows
from threadloom.kernels.bits16.attention.rows import ROW_GROUP, fetch_row, softmax_rows
from threadloom.kernels.bits16.attention.scratch import ATTENTION_BLOCK, AttentionScratch
from threadloom.kernels.compiling import Floats, jit_strict_fp
from threadloom.kernels.matmul import PANEL, Op, configure_tiles, pack_bf16, release_tiles
from threadloom.kernels.simd import BF16Bits, DotPath, log32, read_dot_path

_AMX = DotPath.AMX.value
_QUERIES = 32  # of a tile in forward
_KEYS = ATTENTION_BLOCK  # of a tile in backward
_LOG2_E = 1.4426950408889634
_HALF_PANEL = PANEL // 2  # squares on the diagonal are cut in quarters, one of which is never needed
_LN2_HIGH = np.float32(0.693359375)
_ONE, _HALF, _ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)


@jit_strict_fp
def forward_bf16(
    qkv: BF16Bits, sequences: int, heads: int, out: BF16Bits, lse: Floats, scratch: AttentionScratch
) -> None:
    """See `kernels.bits16.attention.layer.attention_forward`."""
    path = read_dot_path()
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
            pack_bf16(qkv[begin:end, k0 : k0 + size], Op.T, k_columns)
            start = qkv.ctypes.data + begin * row_bytes
            ahead = start + 2 * (q0 + size) if head + 1 < heads else start + length * row_bytes
            out_start = out.ctypes.data + begin * out_bytes + 2 * q0
            pack_pairs(start + 2 * v0, row_bytes, length, size, v_rows.ctypes.data, v_panel)
            for first in range(0, length, _QUERIES):
                keys = min(first + _QUERIES, length)
                queries = keys - first
                q = start + first * row_bytes + 2 * q0
                for j in range(0, keys, PANEL):
                    panel, target = k_columns.ctypes.data + j // PANEL * k_panel, scores + 4 * j
                    step = queries if j < first or path == _AMX else _HALF_PANEL
                    for i in range(0, queries, step):
                        height = min(step, queries - i)
                        multiply(
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
                        multiply(
                            path, line, bit_bytes, height, panel, inner, min(PANEL, size - j), target, result_bytes, 0
                        )
                kept = lse[b, head, first:keys]
                for i in range(queries):
                    kept[i] = np.float32(largest[i] * scale) + log32(totals[i])
                target = out_start + first * out_bytes
                for i in range(queries):
                    share = _ONE / totals[i]
                    round_rows(result + i * result_bytes, result_bytes, share, 1, size, target + i * out_bytes, 0)
    if path == _AMX:
        release_tiles()
