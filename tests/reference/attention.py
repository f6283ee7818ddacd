"""Causal self-attention in float64, forward and backward (Vaswani et al., 2017, equation 1), and its softmax."""

import math

import numpy as np

from tests.reference.tensors import Array
from tests.rounding_marks import computed, constant, product, stored, summed


def attention_heads(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return outputs (..., T, D), probabilities (..., T, T) and log-sum-exp (..., T) of causal heads (..., T, D)."""
    tokens, size = q.shape[-2:]
    scores = product(q, k.swapaxes(-1, -2)) * constant(1.0 / math.sqrt(size))
    scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf  # a token sees itself and those before it
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
    out, _, lse = attention_heads(*np.split(split_heads(qkv, 3 * heads), 3, axis=1))
    return join_heads(out), lse


def attention_backward(d_out: Array, qkv: Array, heads: int) -> Array:
    """Return the gradient of qkv."""
    q, k, v = np.split(split_heads(qkv, 3 * heads), 3, axis=1)
    d = split_heads(d_out, heads)
    out, probabilities, _ = attention_heads(q, k, v)
    d_scores = softmax_backward(product(d, v.swapaxes(-1, -2)), probabilities, d, stored(out))
    d_scores = stored(d_scores * constant(1.0 / math.sqrt(q.shape[-1])))
    d_q, d_k = product(d_scores, k), product(d_scores.swapaxes(-1, -2), q)
    d_v = product(probabilities.swapaxes(-1, -2), d)
    return join_heads(np.concatenate([d_q, d_k, d_v], axis=1))


def softmax_backward(d_probabilities: Array, probabilities: Array, d_out: Array, out: Array) -> Array:
    """Return the gradient of the scores of heads: P (dP - D), D = sum(dP P) = sum(d_out out) of each row."""
    terms = d_out * out
    inner = summed(terms.sum(axis=-1), out.shape[-1], lambda: (terms**2).sum(axis=-1))[..., None]
    d_scores = probabilities * (d_probabilities - inner)
    return computed(d_scores, lambda: 2.0 * probabilities * (np.abs(d_probabilities) + np.abs(inner)))


def split_heads(x: Array, heads: int) -> Array:
    """Turn rows in which the heads are next to each other, (B, T, H * D), into heads (B, H, T, D)."""
    sequences, tokens, width = x.shape
    return np.ascontiguousarray(x.reshape(sequences, tokens, heads, width // heads).swapaxes(1, 2))


def join_heads(x: Array) -> Array:
    """Turn heads (B, H, T, D) into rows (B, T, H * D)."""
    sequences, heads, tokens, size = x.shape
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(sequences, tokens, heads * size)
