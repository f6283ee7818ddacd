"""Softmax cross-entropy over rows of float32 logits: the loss, and the pass that the gradient of every format needs.

A row whose target is `IGNORED_TARGET` has loss 0 and gradient 0, whatever its logits are.
"""

import math

import numpy as np

from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.simd import exp32, row_max

IGNORED_TARGET = -1
"""The target of a row that does not count: the next token is not to be learned there, or there is none."""

_ZERO = np.float32(0.0)


@jit_kernel
def cross_entropy_forward(logits: Floats, targets: TokenIds) -> float:
    """Return the sum of ``log(sum(exp(logits))) - logits[target]`` over the rows that count.

    `logits` (n, V); `targets` (n,) are from 0 to V - 1, or `IGNORED_TARGET`.
    """
    total = 0.0
    for r in range(targets.shape[0]):
        if targets[r] == IGNORED_TARGET:
            continue
        row = logits[r]
        largest = row_max(row, row.shape[0])
        exponentials = _ZERO
        for j in range(row.shape[0]):
            exponentials += exp32(row[j] - largest)
        total += math.log(exponentials) + np.float64(largest) - np.float64(row[targets[r]])
    return total


@jit_inline_body  # into the loop over rows: the order of the sum depends on the loop nest that LLVM vectorises
def exponentiate_row(row: Floats, target: np.int32, losses: float) -> tuple[float, np.float32]:
    """Replace `row`, logits (V,), by ``exp(row - max(row))``.

    Returns `losses` plus the row's loss, and the sum of the exponentials.
    """
    logit = row[target]
    largest = row_max(row, row.shape[0])
    total = _ZERO
    for j in range(row.shape[0]):
        e = exp32(row[j] - largest)
        row[j] = e
        total += e
    losses += np.float64(largest) - np.float64(logit)
    losses += math.log(total)
    return losses, total
