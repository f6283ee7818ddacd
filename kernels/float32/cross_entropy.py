"""Gradient of softmax cross-entropy for the rows of one chunk of logits, in place."""

import numpy as np

from threadloom.kernels.common import exponentiate_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def cross_entropy_backward(logits: Floats, targets: TokenIds, scale: float) -> float:
    """Overwrite `logits` (n, V) with ``(softmax - one-hot) * scale``; return the unscaled sum of the losses."""
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        row = logits[r]
        target = targets[r]
        total, exponentials = exponentiate_row(row, target, total)
        share = factor / exponentials
        for j in range(row.shape[0]):
            row[j] *= share
        row[target] -= factor
    return total
