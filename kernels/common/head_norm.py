"""RMS normalisation of the queries and keys of each head, in place and in every number format (as in Qwen3).

All heads of queries share one weight, all heads of keys another.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.common.rmsnorm import reciprocal_rms
from threadloom.kernels.common.tensors import HeadCounts
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel
from threadloom.kernels.simd import FloatRow, load_element, store_element

_ZERO = np.float32(0.0)


class HeadNormWeights(NamedTuple):
    """Weights of the norms of queries and keys, or their gradients."""

    query: Floats  # (D,)
    key: Floats  # (D,)


@jit_inline_body  # a call per head would cost as much as its loops
def _normalise(x: FloatRow, weight: Floats, epsilon: np.float32, out: FloatRow) -> None:
    rstd = reciprocal_rms(x, epsilon)
    for j in range(x.shape[0]):
        store_element(out, j, load_element(x, j) * rstd * weight[j])


@jit_kernel
def head_norm_forward(
    qkv: FloatRow, raw: FloatRow, weights: HeadNormWeights, epsilon: float, heads: HeadCounts, size: int
) -> None:
    """Copy the queries and keys in `qkv` (R, (H + 2K) D) to `raw` (R, (H + K) D), and normalise them in place.

    Each head x, `size` = D numbers, becomes ``x * rstd * weight`` with ``rstd = 1 / sqrt(mean(x**2) + epsilon)``. In 16
    bits every result is rounded once.
    """
    for r in range(qkv.shape[0]):
        row, before = qkv[r], raw[r]
        for j in range(before.shape[0]):
            before[j] = row[j]
        for head in range(heads.query + heads.key_value):
            begin, end = head * size, (head + 1) * size
            weight = weights.query if head < heads.query else weights.key
            _normalise(before[begin:end], weight, np.float32(epsilon), row[begin:end])


@jit_inline_body
def _normalise_backward(d: FloatRow, x: FloatRow, weight: Floats, epsilon: np.float32, d_weight: Floats) -> None:
    """Replace `d` (D,) by the gradient of `x`; add that of the weight to `d_weight`, (D,) or (0,)."""
    rstd = reciprocal_rms(x, epsilon)
    total = _ZERO
    for j in range(x.shape[0]):
        total += load_element(d, j) * weight[j] * (load_element(x, j) * rstd)
    for j in range(d_weight.shape[0]):
        d_weight[j] += load_element(d, j) * (load_element(x, j) * rstd)
    mean = total / np.float32(x.shape[0])
    for j in range(x.shape[0]):
        n = load_element(x, j) * rstd
        store_element(d, j, rstd * (load_element(d, j) * weight[j] - n * mean))


@jit_kernel
def head_norm_backward(
    d_qkv: FloatRow,
    raw: FloatRow,
    weights: HeadNormWeights,
    epsilon: float,
    heads: HeadCounts,
    size: int,
    grads: HeadNormWeights,
    accumulate: bool,
) -> None:
    """Replace the gradient of the normalised queries and keys in `d_qkv` by that of `raw`, in place.

    For each head, with n = x * rstd and g = d * weight: ``dx = rstd * (g - n * mean(g * n))``. The gradients of the
    weights, sums of ``d * n`` over rows and heads, are written to `grads`, or added when `accumulate`; one of length 0
    is not computed.
    """
    if not accumulate:
        grads.query.fill(0.0)
        grads.key.fill(0.0)
    for r in range(d_qkv.shape[0]):
        row, before = d_qkv[r], raw[r]
        for head in range(heads.query + heads.key_value):
            begin, end = head * size, (head + 1) * size
            of_query = head < heads.query
            weight, d_weight = weights.query if of_query else weights.key, grads.query if of_query else grads.key
            _normalise_backward(row[begin:end], before[begin:end], weight, np.float32(epsilon), d_weight)
