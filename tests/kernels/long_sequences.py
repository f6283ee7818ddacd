"""Attention of one head on thousands of tokens, in float64, for the last queries of the sequence.

The reference of whole sequences has matrices (T, T). Here only the last queries have a gradient, and the reference
computes these alone: they see every key, so all tiles of keys and every part of the scratch are used.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.comparison import assert_close
from tests.kernels.support import float32_numbers
from tests.reference import Array, Tensors
from tests.reference.attention import softmax, softmax_backward
from tests.rounding_marks import constant, product, stored
from threadloom.kernels.common.tensors import ATTENTION_TILE, HeadCounts

SIZE = 16
ONE_HEAD = HeadCounts(1, 1)
LENGTHS = (8191, 8192)
QUERIES = ATTENTION_TILE + 7
"""Queries with a gradient, in two tiles or more."""


def last_queries(d_out: Array, qkv: Array) -> Tensors:
    """Return the results of the last queries of one head, and the gradients that come from them."""
    q, k, v = np.split(qkv, 3, axis=1)
    q, d = q[-QUERIES:], d_out[-QUERIES:]
    scale = constant(1.0 / math.sqrt(SIZE))
    scores = product(q, k.T) * scale
    scores[np.triu(np.ones(scores.shape, bool), 1 + len(k) - QUERIES)] = -np.inf
    probabilities, lse = softmax(scores)
    probabilities = stored(probabilities)
    out = stored(product(probabilities, v))
    d_scores = stored(softmax_backward(product(d, v.T), probabilities, d, out) * scale)
    gradients = {"d_q": product(d_scores, k), "d_k": product(d_scores.T, q), "d_v": product(probabilities.T, d)}
    return {"out": out, "lse": lse, **{name: stored(gradient) for name, gradient in gradients.items()}}


def check_last_queries(
    out: NDArray[Any], lse: NDArray[Any], d_qkv: NDArray[Any], expected: Tensors, bounds: dict[str, float]
) -> None:
    """Hold the results of a sequence against those of its last queries."""
    d_q, d_k, d_v = np.split(d_qkv, 3, axis=1)
    assert not d_q[:-QUERIES].any(), "queries without a gradient"
    found = {"out": out[-QUERIES:], "lse": lse[-QUERIES:], "d_q": d_q[-QUERIES:], "d_k": d_k, "d_v": d_v}
    for name, tensor in found.items():
        assert_close(tensor, expected[name], bounds[name], name)


def long_inputs(tokens: int) -> tuple[Array, Array]:
    """Return random queries, keys and values, and a gradient of the output that is zero but for the last queries."""
    rng = np.random.default_rng(tokens)
    qkv, d_out = float32_numbers(rng, tokens, 3 * SIZE), float32_numbers(rng, tokens, SIZE)
    d_out[:-QUERIES] = 0.0
    return qkv, d_out
