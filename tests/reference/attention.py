"""Causal self-attention in float64, forward and backward (Vaswani et al., 2017, equation 1), and its softmax.

Query head h uses head h // (H / K) of the K heads of keys and values (Ainslie et al., GQA, 2023); without `kv_heads` K
is H.
"""

import math

import numpy as np

from tests.reference.tensors import Array
from tests.rounding_marks import computed, constant, multiple, product, stored, summed


def attention_heads(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, Array, Array]:
    """Return outputs (..., T, D), probabilities (..., T, T) and log-sum-exp (..., T) of causal heads (..., T, D).

    The values are weighted with the probabilities times the `mask` of dropout (..., T, T).
    """
    tokens, size = q.shape[-2:]
    scores = product(q, k.swapaxes(-1, -2)) * constant(1.0 / math.sqrt(size))
    scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf  # a token sees itself and those before it
    probabilities, lse = softmax(scores)
    probabilities = stored(probabilities)
    return product(_dropped(probabilities, mask), v), probabilities, lse


def _dropped(x: Array, mask: Array | None) -> Array:
    return x if mask is None else multiple(mask, x)


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


def attention_forward(
    qkv: Array, heads: int, kv_heads: int | None = None, mask: Array | None = None
) -> tuple[Array, Array]:
    """Turn queries, keys and values (B, T, (H + 2K) D) into outputs (B, T, H D) and log-sum-exp (B, H, T)."""
    q, k, v = qkv_heads(qkv, heads, kv_heads or heads)
    out, _, lse = attention_heads(q, _for_queries(k, heads), _for_queries(v, heads), mask)
    return join_heads(out), lse


def attention_backward(
    d_out: Array, qkv: Array, heads: int, kv_heads: int | None = None, mask: Array | None = None
) -> Array:
    """Return the gradient of qkv."""
    kv_heads = kv_heads or heads
    q, k, v = qkv_heads(qkv, heads, kv_heads)
    k, v = _for_queries(k, heads), _for_queries(v, heads)
    d = split_heads(d_out, heads)
    out, probabilities, _ = attention_heads(q, k, v, mask)
    d_probabilities = _dropped(product(d, v.swapaxes(-1, -2)), mask)
    d_scores = softmax_backward(d_probabilities, probabilities, d, stored(out))
    d_scores = stored(d_scores * constant(1.0 / math.sqrt(q.shape[-1])))
    d_k, d_v = _over_queries(d_scores, q, kv_heads), _over_queries(_dropped(probabilities, mask), d, kv_heads)
    return join_heads(np.concatenate([product(d_scores, k), d_k, d_v], axis=1))


def _for_queries(x: Array, heads: int) -> Array:
    """Repeat heads of keys or values, (B, K, T, D), for the query heads that use them, (B, H, T, D)."""
    return x.repeat(heads // x.shape[1], axis=1)


def _over_queries(factors: Array, x: Array, kv_heads: int) -> Array:
    """Return the sum over all queries of a head of keys or values, from (B, H, T, T) and (B, H, T, D): (B, K, T, D)."""
    factors, x = (a.reshape(len(a), kv_heads, -1, a.shape[-1]) for a in (factors, x))
    return product(factors.swapaxes(-1, -2), x)


def softmax_backward(d_probabilities: Array, probabilities: Array, d_out: Array, out: Array) -> Array:
    """Return the gradient of the scores of heads: P (dP - D), D = sum(dP P) = sum(d_out out) of each row."""
    terms = d_out * out
    inner = summed(terms.sum(axis=-1), out.shape[-1], lambda: (terms**2).sum(axis=-1))[..., None]
    d_scores = probabilities * (d_probabilities - inner)
    return computed(d_scores, lambda: 2.0 * probabilities * (np.abs(d_probabilities) + np.abs(inner)))


def qkv_heads(qkv: Array, heads: int, kv_heads: int) -> tuple[Array, Array, Array]:
    """Return queries (B, H, T, D), keys and values (B, K, T, D) of rows of all of them."""
    q, k, v = np.split(split_heads(qkv, heads + 2 * kv_heads), [heads, heads + kv_heads], axis=1)
    return q, k, v


def split_heads(x: Array, heads: int) -> Array:
    """Turn rows in which the heads are next to each other, (B, T, H * D), into heads (B, H, T, D)."""
    sequences, tokens, width = x.shape
    return np.ascontiguousarray(x.reshape(sequences, tokens, heads, width // heads).swapaxes(1, 2))


def join_heads(x: Array) -> Array:
    """Turn heads (B, H, T, D) into rows (B, T, H * D)."""
    sequences, heads, tokens, size = x.shape
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(sequences, tokens, heads * size)
