"""Generation, one token at a time: the keys and values of the tokens before are kept, so a step is matrix times vector.

A step reads every weight once and is bound by memory; its products run along the rows of the weights as they lie.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.common import Affine, Weights
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32.gelu import gelu_forward
from threadloom.kernels.float32.layernorm import layernorm_row
from threadloom.kernels.simd import exp32, row_max

_ZERO = np.float32(0.0)


class KVCache(NamedTuple):
    """The keys and values of one sequence; position t is valid once token t went through `decode_token`."""

    keys: Floats  # (L, context, C) the heads side by side
    values: Floats  # (L, context, C)


class DecodeScratch(NamedTuple):
    """Arrays of one step of generation, in addition to the cache."""

    x: Floats  # (C,) residual stream
    h: Floats  # (C,) a LayerNorm's output
    qkv: Floats  # (3C,)
    attn: Floats  # (C,)
    fc: Floats  # (F,)
    gelu: Floats  # (F,)
    scores: Floats  # (context,) scores of one head


@jit_kernel
def _add_product(x: Floats, weight: Floats, out: Floats) -> None:
    """Add ``x @ weight`` to `out`: x (I,), weight (I, O), out (O,); eight rows of the weight a pass."""
    rows = weight.shape[0]
    eight = rows - rows % 8
    for i in range(0, eight, 8):
        w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
        w4, w5, w6, w7 = weight[i + 4], weight[i + 5], weight[i + 6], weight[i + 7]
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(out.shape[0]):
            low = x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
            high = x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
            out[j] += low + high
    for i in range(eight, rows):
        row, factor = weight[i], x[i]
        for j in range(out.shape[0]):
            out[j] += factor * row[j]


@jit_kernel
def _dot(a: Floats, b: Floats) -> np.float32:
    total = _ZERO
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@jit_kernel
def _copy(source: Floats, target: Floats) -> None:
    for j in range(target.shape[0]):
        target[j] = source[j]


@jit_kernel
def _attend(qkv: Floats, keys: Floats, values: Floats, count: int, heads: int, scores: Floats, out: Floats) -> None:
    """Write the attention of one query over the first `count` keys and values (context, C) to `out` (C,)."""
    channels = out.shape[0]
    size = channels // heads
    scale = np.float32(1.0 / math.sqrt(size))
    for head in range(heads):
        begin = head * size
        end = begin + size
        q = qkv[begin:end]
        for t in range(count):
            scores[t] = scale * _dot(q, keys[t, begin:end])
        largest = row_max(scores, count)
        total = _ZERO
        for t in range(count):
            e = exp32(scores[t] - largest)
            scores[t] = e
            total += e
        target = out[begin:end]
        for j in range(size):
            target[j] = _ZERO
        for t in range(count):
            share, row = scores[t] / total, values[t, begin:end]
            for j in range(size):
                target[j] += share * row[j]


@jit_kernel
def next_logits(weights: Weights, x: Floats, h: Floats, logits: Floats) -> None:
    """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is scratch."""
    layernorm_row(x, Affine(weights.lnf_weight, weights.lnf_bias), h)
    for v in range(logits.shape[0]):
        logits[v] = _dot(weights.wte[v], h)


@jit_kernel
def decode_token(
    weights: Weights, cache: KVCache, token: int, position: int, heads: int, scratch: DecodeScratch, logits: Floats
) -> None:
    """Take `token` in at `position`, add its keys and values to the cache, and write the next token's logits (V,).

    The positions before must be in the cache already; `position` must lie in 0 .. context - 1.
    """
    w, s = weights, scratch
    channels = s.x.shape[0]
    token_row, position_row = w.wte[token], w.wpe[position]
    for j in range(channels):
        s.x[j] = token_row[j] + position_row[j]
    for n in range(w.qkv_weight.shape[0]):
        layernorm_row(s.x, Affine(w.ln1_weight[n], w.ln1_bias[n]), s.h)
        _copy(w.qkv_bias[n], s.qkv)
        _add_product(s.h, w.qkv_weight[n], s.qkv)
        _copy(s.qkv[channels : 2 * channels], cache.keys[n, position])
        _copy(s.qkv[2 * channels :], cache.values[n, position])
        _attend(s.qkv, cache.keys[n], cache.values[n], position + 1, heads, s.scores, s.attn)
        _add_to(s.x, w.attn_proj_bias[n])
        _add_product(s.attn, w.attn_proj_weight[n], s.x)
        layernorm_row(s.x, Affine(w.ln2_weight[n], w.ln2_bias[n]), s.h)
        _copy(w.fc_bias[n], s.fc)
        _add_product(s.h, w.fc_weight[n], s.fc)
        gelu_forward(s.fc.reshape(1, -1), s.gelu.reshape(1, -1))
        _add_to(s.x, w.mlp_proj_bias[n])
        _add_product(s.gelu, w.mlp_proj_weight[n], s.x)
    next_logits(w, s.x, s.h, logits)


@jit_kernel
def _add_to(target: Floats, term: Floats) -> None:
    for j in range(target.shape[0]):
        target[j] += term[j]


@jit_kernel
def prefill_cache(qkv: Floats, first_row: int, length: int, cache: KVCache) -> None:
    """Fill positions 0 .. length - 1 of the cache from the rows ``first_row ...`` of forward's `qkv` (L, R, 3C)."""
    channels = cache.keys.shape[2]
    for n in range(qkv.shape[0]):
        for t in range(length):
            row = qkv[n, first_row + t]
            _copy(row[channels : 2 * channels], cache.keys[n, t])
            _copy(row[2 * channels :], cache.values[n, t])
