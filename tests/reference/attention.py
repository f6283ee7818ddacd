"""Causal self-attention in float64, forward and backward (Vaswani et al., 2017, equation 1), and its softmax."""

import math

import numpy as np

from tests.reference.tensors import Array
from tests.rounding_marks import computed, product, stored, summed


def attention_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """One causal head on (T, D): its output, its probabilities (T, T), its log-sum-exp of scaled scores (T,)."""
    tokens, size = q.shape
    scores = product(q, k.T) / math.sqrt(size)
    scores[np.triu_indices(tokens, 1)] = -np.inf  # a token sees itself and those before it
    probabilities, lse = softmax(scores)
    probabilities = stored(probabilities)
    return product(probabilities, v), probabilities, lse


def softmax(x: Array) -> tuple[Array, Array]:
    """Return the softmax of each row, and the log-sum-exp."""
    highest = x.max(axis=-1)
    depth = np.maximum(x - highest[..., None], -1e4)  # e**-1e4 is 0, and not infinitely far from anything
    depth = computed(depth, lambda: np.abs(depth))
    exponentials = np.exp(depth)
    exponentials = computed(exponentials, lambda: 3.0 * exponentials)
    sums = exponentials.sum(axis=-1)
    sums = summed(sums, x.shape[-1], lambda: (exponentials**2).sum(axis=-1))
    probabilities, lse = exponentials / sums[..., None], highest + np.log(sums)
    return (
        computed(probabilities, lambda: probabilities),
        computed(lse, lambda: np.abs(lse) + 3.0 * np.abs(np.log(sums)) + 1.0),
    )


def attention_forward(qkv: Array, heads: int) -> tuple[Array, Array]:
    """Turn queries, keys and values (B, T, 3C) into the heads' outputs (B, T, C) and log-sum-exp (B, H, T)."""
    sequences, tokens, width = qkv.shape
    out, lse = np.empty((sequences, tokens, width // 3)), np.empty((sequences, heads, tokens))
    for b in range(sequences):
        for h in range(heads):
            q, k, v = head_columns(width, heads, h)
            out[b, :, q], _, lse[b, h] = attention_head(qkv[b, :, q], qkv[b, :, k], qkv[b, :, v])
    return out, lse


def attention_backward(d_out: Array, qkv: Array, heads: int) -> Array:
    """Return the gradient of qkv."""
    d_qkv = np.empty_like(qkv)
    for b in range(qkv.shape[0]):
        for h in range(heads):
            columns_q, columns_k, columns_v = head_columns(qkv.shape[2], heads, h)
            q, k, v = qkv[b, :, columns_q], qkv[b, :, columns_k], qkv[b, :, columns_v]
            d = d_out[b, :, columns_q]
            out, probabilities, _ = attention_head(q, k, v)
            d_scores = softmax_backward(product(d, v.T), probabilities, d, stored(out)) / math.sqrt(q.shape[1])
            d_scores = stored(d_scores)
            d_qkv[b, :, columns_q] = product(d_scores, k)
            d_qkv[b, :, columns_k] = product(d_scores.T, q)
            d_qkv[b, :, columns_v] = product(probabilities.T, d)
    return d_qkv


def softmax_backward(d_probabilities: Array, probabilities: Array, d_out: Array, out: Array) -> Array:
    """Return the gradient of the scores of one head: P (dP - D), D = sum(dP P) = sum(d_out out) of each row."""
    inner = (d_out * out).sum(axis=1)
    inner = summed(inner, out.shape[1], lambda: ((d_out * out) ** 2).sum(axis=1))[:, None]
    d_scores = probabilities * (d_probabilities - inner)
    return computed(d_scores, lambda: 2.0 * probabilities * (np.abs(d_probabilities) + np.abs(inner)))


def head_columns(width: int, heads: int, head: int) -> tuple[slice, slice, slice]:
    """Return where one head's query, key and value stand in a row of 3C numbers; the first also for its output."""
    channels = width // 3
    size = channels // heads
    q, k, v = (slice(part * channels + head * size, part * channels + (head + 1) * size) for part in range(3))
    return q, k, v
