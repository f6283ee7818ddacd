"""Gradient of softmax cross-entropy for the rows of one chunk of float32 logits, rounded to 16 bits."""

import numpy as np

from threadloom.kernels.common import IGNORED_TARGET, exponentiate_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.simd import Bits16, store16


@jit_kernel
def cross_entropy_backward(logits: Floats, targets: TokenIds, scale: float, d_logits: Bits16) -> float:
    """Write ``(softmax - one-hot) * scale``, rounded once, to `d_logits` (n, V); return the unscaled sum of the losses.

    `logits` (n, V) are overwritten. Rows of `d_logits` whose target is `IGNORED_TARGET` are 0, and have no loss.
    """
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        row, rounded = logits[r], d_logits[r]
        target = targets[r]
        if target == IGNORED_TARGET:
            rounded[:] = 0  # the bits of 0.0 in both formats
            continue
        total, exponentials = exponentiate_row(row, target, total)
        share = factor / exponentials
        at_target = row[target] * share - factor
        for j in range(row.shape[0]):
            store16(rounded, j, row[j] * share)
        store16(rounded, target, at_target)
    return total
