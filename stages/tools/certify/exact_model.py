"""GPT-2 in ball arithmetic: the function that the float32 weights define, over the real numbers.

The constants are those of the formulas: 1e-5 within LayerNorm's square root, sqrt(2 / pi) and 0.044715 in GELU. The
exponentials of a softmax need no shift by the largest score: the exponent of a ball has no limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models import Geometry
from threadloom.stages.tools.certify.balls import Ball, BallMatrix, flint, from_rows, matrix, rows_of, vector

VOCABULARY_ROWS = 2048
"""Rows of the output projection that are balls at a time."""


@dataclass(frozen=True)
class ExactAttention:
    """Attention of one head: scores and probabilities (T, T), masked ones 0; and output (T, D)."""

    scores: BallMatrix
    probabilities: BallMatrix
    out: BallMatrix


@dataclass(frozen=True)
class ExactLayer:
    """Results of one block."""

    heads: tuple[ExactAttention, ...]
    x: BallMatrix
    """The residual stream after the block, (T, C)."""


def attention(q: BallMatrix, k: BallMatrix, v: BallMatrix) -> ExactAttention:
    """Return ``softmax(q k.T / sqrt(D) + mask) v`` of one head, whose queries, keys and values are (T, D)."""
    zero, scale = flint().arb(0), flint().arb(q.ncols()).rsqrt()
    scores, probabilities = [], []
    for i, row in enumerate(rows_of(q * k.transpose())):
        seen = [number * scale for number in row[: i + 1]]
        exponentials = [number.exp() for number in seen]
        share = 1 / sum(exponentials, zero)
        masked = [zero] * (len(row) - i - 1)
        scores.append(seen + masked)
        probabilities.append([number * share for number in exponentials] + masked)
    weights = from_rows(probabilities)
    return ExactAttention(from_rows(scores), weights, weights * v)


def split_heads(qkv: Any, heads: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yield queries, keys and values (T, D) of each head of an array (T, 3C)."""
    q, k, v = np.split(qkv, 3, axis=1)
    yield from zip(*(np.split(part, heads, axis=1) for part in (q, k, v)), strict=True)


class ExactGpt2:
    """The forward pass of one sequence; `layer` is called for each block in turn, then `logits`."""

    def __init__(self, geometry: Geometry, weights: Any, ids: NDArray[np.int32]) -> None:
        self._heads, self._weights = geometry.heads, weights
        self._x = matrix(weights.wte[ids]) + matrix(weights.wpe[: len(ids)])

    def layer(self, n: int) -> ExactLayer:
        """Compute block `n`."""
        w = self._weights
        normed = _layernorm(self._x, w.ln1_weight[n], w.ln1_bias[n])
        qkv = np.array(rows_of(_linear(normed, w.qkv_weight[n], w.qkv_bias[n])), object)
        heads = tuple(attention(*map(_as_balls, parts)) for parts in split_heads(qkv, self._heads))
        out = from_rows([[*chain(*parts)] for parts in zip(*(rows_of(head.out) for head in heads), strict=True)])
        x = self._x + _linear(out, w.attn_proj_weight[n], w.attn_proj_bias[n])
        hidden = _linear(_layernorm(x, w.ln2_weight[n], w.ln2_bias[n]), w.fc_weight[n], w.fc_bias[n])
        self._x = x + _linear(_gelu(hidden), w.mlp_proj_weight[n], w.mlp_proj_bias[n])
        return ExactLayer(heads, self._x)

    def logits(self) -> Iterator[tuple[int, BallMatrix]]:
        """Yield the logits of some tokens of the vocabulary, (T, tokens), each with the id of the first of them."""
        w = self._weights
        normed = _layernorm(self._x, w.lnf_weight, w.lnf_bias)
        for first in range(0, w.wte.shape[0], VOCABULARY_ROWS):
            yield first, normed * matrix(w.wte[first : first + VOCABULARY_ROWS]).transpose()


def _as_balls(array: NDArray[Any]) -> BallMatrix:
    return from_rows(array.tolist())


def _linear(x: BallMatrix, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> BallMatrix:
    """Return ``x @ weight + bias``."""
    return _plus_row(x * matrix(weight), vector(bias))


def _plus_row(balls: BallMatrix, added: Sequence[Ball]) -> BallMatrix:
    return from_rows([[a + b for a, b in zip(row, added, strict=True)] for row in rows_of(balls)])


def _layernorm(x: BallMatrix, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> BallMatrix:
    """Return the normalised rows (Ba, Kiros and Hinton, 2016, equation 4)."""
    scale, shift, zero = vector(weight), vector(bias), flint().arb(0)
    epsilon = flint().arb(1) / 100_000
    rows = []
    for row in rows_of(x):
        mean = sum(row, zero) / len(row)
        centred = [number - mean for number in row]
        rstd = (sum((number * number for number in centred), zero) / len(row) + epsilon).rsqrt()
        rows.append([c * rstd * w + b for c, w, b in zip(centred, scale, shift, strict=True)])
    return from_rows(rows)


def _gelu(x: BallMatrix) -> BallMatrix:
    """Return GELU in the tanh form (Hendrycks and Gimpel, 2016, section 2)."""
    arb = flint().arb
    linear, cubic, half = (2 / arb.pi()).sqrt(), arb(44715) / 1_000_000, arb(0.5)

    def value(number: Ball) -> Ball:
        return half * number * (1 + (linear * (number + cubic * number * number * number)).tanh())

    return from_rows([[value(number) for number in row] for row in rows_of(x)])
