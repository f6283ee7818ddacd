"""Softmax cross-entropy over the rows of one chunk of logits, and its gradient in their place."""

import math

import numpy as np

from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.simd import exp32, row_max

_ZERO = np.float32(0.0)


@jit_kernel
def cross_entropy_forward(logits: Floats, targets: TokenIds) -> float:
    """Return the sum over the rows of ``log(sum(exp(logits))) - logits[target]``: logits (n, V), targets (n,)."""
    total = 0.0
    for r in range(targets.shape[0]):
        row = logits[r]
        largest = row_max(row, row.shape[0])
        exponentials = _ZERO
        for j in range(row.shape[0]):
            exponentials += exp32(row[j] - largest)
        total += math.log(exponentials) + np.float64(largest) - np.float64(row[targets[r]])
    return total


@jit_kernel
def cross_entropy_backward(logits: Floats, targets: TokenIds, scale: float) -> float:
    """Return what `cross_entropy_forward` does and overwrite `logits` with ``(softmax - one-hot) * scale``."""
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        row = logits[r]
        target = targets[r]
        largest = row_max(row, row.shape[0])
        total += np.float64(largest) - np.float64(row[target])
        exponentials = _ZERO
        for j in range(row.shape[0]):
            e = exp32(row[j] - largest)
            row[j] = e
            exponentials += e
        total += math.log(exponentials)
        share = factor / exponentials
        for j in range(row.shape[0]):
            row[j] *= share
        row[target] -= factor
    return total
