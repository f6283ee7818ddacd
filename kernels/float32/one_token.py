"""Layers for one token during generation, shared by all architectures: matrix times vector, and cached attention.

A step of generation reads every weight once and is bound by memory; its products run along the rows of the weights as
they are stored.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.common import HeadCounts
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.simd import exp32, row_max

_ZERO = np.float32(0.0)


class KVCache(NamedTuple):
    """Keys and values of one sequence; position t is valid once token t has been processed."""

    keys: Floats  # (L, context, K D) the heads side by side
    values: Floats  # (L, context, K D)


@jit_kernel
def add_product(x: Floats, weight: Floats, out: Floats) -> None:
    """Add ``x @ weight`` to `out`: x (I,), weight (I, O), out (O,); eight rows of the weight per pass."""
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
def dot(a: Floats, b: Floats) -> np.float32:
    """Return the dot product of two vectors (I,)."""
    total = _ZERO
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@jit_kernel
def copy(source: Floats, target: Floats) -> None:
    """Copy `source` to `target`, both (I,)."""
    for j in range(target.shape[0]):
        target[j] = source[j]


@jit_kernel
def start_product(bias: Floats, out: Floats) -> None:
    """Write `bias` to `out` (O,), to which `add_product` then adds; zeros if the bias has length 0."""
    for j in range(out.shape[0]):
        out[j] = _ZERO
    add_to(out, bias)


@jit_kernel
def add_to(target: Floats, term: Floats) -> None:
    """Add `term` to `target`, both (I,); a term of length 0 adds nothing."""
    for j in range(term.shape[0]):
        target[j] += term[j]


@jit_kernel
def attend(
    qkv: Floats, keys: Floats, values: Floats, count: int, heads: HeadCounts, scores: Floats, out: Floats
) -> None:
    """Write the attention of one query over the first `count` keys and values to `out` (H D,).

    `keys` and `values` are (context, K D); the query is the first H D elements of `qkv`.
    `scores` (context,) is scratch.
    """
    size = out.shape[0] // heads.query
    group = heads.query // heads.key_value
    scale = np.float32(1.0 / math.sqrt(size))
    for head in range(heads.query):
        q0, k0 = head * size, head // group * size
        q, target = qkv[q0 : q0 + size], out[q0 : q0 + size]
        for t in range(count):
            scores[t] = scale * dot(q, keys[t, k0 : k0 + size])
        largest = row_max(scores, count)
        total = _ZERO
        for t in range(count):
            e = exp32(scores[t] - largest)
            scores[t] = e
            total += e
        for j in range(size):
            target[j] = _ZERO
        for t in range(count):
            share, row = scores[t] / total, values[t, k0 : k0 + size]
            for j in range(size):
                target[j] += share * row[j]


@jit_kernel
def append_to_cache(qkv: Floats, cache: KVCache, layer: int, position: int) -> None:
    """Copy the keys and values of one row of `qkv` ((H + 2K) D,) to a position of the cache."""
    width = cache.keys.shape[2]
    first = qkv.shape[0] - 2 * width
    copy(qkv[first : first + width], cache.keys[layer, position])
    copy(qkv[first + width :], cache.values[layer, position])


@jit_kernel
def prefill_cache(qkv: Floats, first_row: int, length: int, cache: KVCache) -> None:
    """Fill positions 0 .. length - 1 of the cache from rows ``first_row ...`` of forward's `qkv` (L, R, (H + 2K) D)."""
    for n in range(qkv.shape[0]):
        for t in range(length):
            append_to_cache(qkv[n, first_row + t], cache, n, t)
