"""Gradient of softmax cross-entropy for the rows of one chunk of logits, in place."""

import numpy as np

from threadloom.kernels.common import IGNORED_TARGET, exponentiate_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel

_ZERO = np.float32(0.0)


@jit_kernel
def cross_entropy_backward(logits: Floats, targets: TokenIds, scale: float) -> float:
    """Overwrite `logits` (n, V) with ``(softmax - one-hot) * scale``; return the unscaled sum of the losses.

    Rows whose target is `IGNORED_TARGET` are overwritten with 0, and have no loss.
    """
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        row = logits[r]
        target = targets[r]
        if target == IGNORED_TARGET:
            row[:] = _ZERO
            continue
        total, exponentials = exponentiate_row(row, target, total)
        share = factor / exponentials
        for j in range(row.shape[0]):
            row[j] *= share
        row[target] -= factor
    return total
