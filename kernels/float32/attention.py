"""Causal self-attention, one tile of `ATTENTION_TILE` queries of one head at a time.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2): only one tile of scores exists at a time, forward
keeps the logarithm of each row's sum of exponentials, and backward makes the probabilities again from it. Keys past the
tile's last query are never touched. The heads are column slices of `qkv`, read in place by the strided product.
"""

import math

import numpy as np

from threadloom.kernels.common import ATTENTION_TILE
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.matmul import Op, gemm
from threadloom.kernels.simd import exp32, row_max

_ZERO = np.float32(0.0)
_BLOCK = 16  # a row's exponentials are made in whole blocks of so many, to stay in vector code


@jit_kernel
def _softmax_rows(scores: Floats, lse: Floats, queries: int, keys: int) -> None:
    """Turn the tile's scores into probabilities; query i sees the keys up to ``keys - queries + i``, others get 0."""
    for i in range(queries):
        row = scores[i]
        seen = keys - queries + i + 1
        end = min(keys, seen + -seen % _BLOCK)
        largest = row_max(row, seen)
        for j in range(seen, end):
            row[j] = -np.inf
        total = _ZERO
        for j in range(end):
            e = exp32(row[j] - largest)
            row[j] = e
            total += e
        share = np.float32(1.0) / total
        for j in range(end):
            row[j] *= share
        for j in range(end, keys):
            row[j] = _ZERO
        lse[i] = largest + np.float32(math.log(total))


@jit_kernel
def attention_forward(qkv: Floats, sequences: int, heads: int, out: Floats, lse: Floats, scores: Floats) -> None:
    """Write the heads' outputs to `out` (R, C), and to `lse` (B, H, T) the log of each row's sum of exponentials.

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each head: qkv (R, 3C) holds q, k and v side by side, each of them
    the heads side by side (Vaswani et al., 2017, equation 1). `scores` (TILE, at least T) is scratch.
    """
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    for b in range(sequences):
        begin = b * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            for first in range(0, length, ATTENTION_TILE):
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                tile = scores[:queries, :keys]
                q = qkv[begin + first : begin + keys, q0 : q0 + size]
                gemm(q, qkv[begin : begin + keys, k0 : k0 + size], tile, Op.N, Op.T, scale, 0.0)
                _softmax_rows(scores, lse[b, head, first:keys], queries, keys)
                target = out[begin + first : begin + keys, q0 : q0 + size]
                gemm(tile, qkv[begin : begin + keys, v0 : v0 + size], target, Op.N, Op.N, 1.0, 0.0)


@jit_kernel
def _probability_rows(scores: Floats, lse: Floats, queries: int, keys: int) -> None:
    """Turn the tile's scores into the probabilities that forward had."""
    for i in range(queries):
        row = scores[i]
        seen = keys - queries + i + 1
        end = min(keys, seen + -seen % _BLOCK)
        for j in range(seen, end):
            row[j] = -np.inf
        shift = lse[i]
        for j in range(end):
            row[j] = exp32(row[j] - shift)
        for j in range(end, keys):
            row[j] = _ZERO


@jit_kernel
def _d_score_rows(
    scores: Floats, d_scores: Floats, out: Floats, d_out: Floats, column: int, size: int, queries: int, keys: int
) -> None:
    """Turn `d_scores`, the gradient of the probabilities, into that of the scores: ``p * (dp - sum(d_out * out))``."""
    for i in range(queries):
        p, dp = scores[i], d_scores[i]
        o, d_o = out[i, column : column + size], d_out[i, column : column + size]
        delta = _ZERO
        for j in range(size):
            delta += o[j] * d_o[j]
        for j in range(keys):
            dp[j] = p[j] * (dp[j] - delta)


@jit_kernel
def attention_backward(
    d_out: Floats,
    out: Floats,
    qkv: Floats,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Floats,
    scores: Floats,
    d_scores: Floats,
) -> None:
    """Write the gradient of `qkv` (R, 3C) to `d_qkv`, from that of the output, `d_out` (R, C), and what forward kept.

    The tiles run from the last to the first: the last one sees every key, so it writes the gradients of keys and values
    that the others add to. `scores` and `d_scores` (TILE, at least T) are scratch.
    """
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    tiles = (length + ATTENTION_TILE - 1) // ATTENTION_TILE
    for b in range(sequences):
        begin = b * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            beta = 0.0
            for backwards in range(tiles):
                first = (tiles - 1 - backwards) * ATTENTION_TILE
                keys = min(first + ATTENTION_TILE, length)
                queries = keys - first
                top, bottom = begin + first, begin + keys
                p, ds = scores[:queries, :keys], d_scores[:queries, :keys]
                q, k = qkv[top:bottom, q0 : q0 + size], qkv[begin:bottom, k0 : k0 + size]
                d_o = d_out[top:bottom, q0 : q0 + size]
                gemm(q, k, p, Op.N, Op.T, scale, 0.0)
                _probability_rows(scores, lse[b, head, first:keys], queries, keys)
                gemm(p, d_o, d_qkv[begin:bottom, v0 : v0 + size], Op.T, Op.N, 1.0, beta)
                gemm(d_o, qkv[begin:bottom, v0 : v0 + size], ds, Op.N, Op.T, 1.0, 0.0)
                _d_score_rows(scores, d_scores, out[top:bottom], d_out[top:bottom], q0, size, queries, keys)
                gemm(ds, k, d_qkv[top:bottom, q0 : q0 + size], Op.N, Op.N, scale, 0.0)
                gemm(ds, q, d_qkv[begin:bottom, k0 : k0 + size], Op.T, Op.N, scale, beta)
                beta = 1.0
