"""Passes over rows of causal attention scores in float32, used by every number format that computes scores in float32.

A tile has `queries` rows and `keys` columns: the last `queries` of the first `keys` tokens attend to these tokens. Row
i sees the first ``keys - queries + i + 1`` columns. Exponentials are computed in whole blocks of `SOFTMAX_BLOCK`
columns, so that the loop has no scalar remainder; masked columns of a block are set to -inf first.
"""

import math

import numpy as np

from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.simd import exp32, row_max

SOFTMAX_BLOCK = 16
"""Columns per block of exponentials: one AVX-512 vector of float32."""
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


@jit_kernel
def softmax_rows(scores: Floats, lse: Floats, queries: int, keys: int) -> None:
    """Replace the scores of a tile by probabilities, masked columns by 0; write each row's log-sum-exp to `lse`."""
    for i in range(queries):
        row = scores[i]
        seen = keys - queries + i + 1
        end = min(keys, seen + -seen % SOFTMAX_BLOCK)
        largest = row_max(row, seen)
        for j in range(seen, end):
            row[j] = -np.inf
        total = _ZERO
        for j in range(end):
            e = exp32(row[j] - largest)
            row[j] = e
            total += e
        share = _ONE / total
        for j in range(end):
            row[j] *= share
        for j in range(end, keys):
            row[j] = _ZERO
        lse[i] = largest + np.float32(math.log(total))


@jit_kernel
def softmax_backward_row(p: Floats, d: Floats, lse: np.float32, delta: np.float32, seen: int, keys: int) -> None:
    """Replace one row of scores `p` by probabilities, and their gradient `d` by the gradient of the scores.

    ``p = exp(score - lse)`` and ``d = p * (d - delta)``, where delta is the dot product of the attention's output with
    its gradient. Columns from `seen` on are masked: both become 0.
    """
    end = min(keys, seen + -seen % SOFTMAX_BLOCK)
    for j in range(seen, end):
        p[j] = -np.inf
    for j in range(end):
        e = exp32(p[j] - lse)
        p[j] = e
        d[j] = e * (d[j] - delta)
    for j in range(end, keys):
        p[j] = _ZERO
        d[j] = _ZERO
