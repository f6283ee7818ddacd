"""Gradient of softmax cross-entropy, and of the terms beside it, for a chunk of float32 logits, rounded to 16 bits."""

import math

import numpy as np

from threadloom.kernels.bits16.logit_rows import exponentials, scale_and_round
from threadloom.kernels.common import IGNORED_TARGET, LossTerms, has_terms, objective_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
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
        logit = row[target]
        largest, denominator = exponentials(row)
        total += np.float64(largest) - np.float64(logit)
        total += math.log(denominator)
        share = factor / denominator
        at_target = row[target] * share - factor
        scale_and_round(row, share, rounded)
        store16(rounded, target, at_target)
    return total


@jit_kernel
def objective_backward(logits: Floats, targets: TokenIds, scale: float, terms: LossTerms, d_logits: Bits16) -> float:
    """Write the scaled gradient of the loss with its terms to `d_logits`; return the sum of the cross-entropies.

    As `cross_entropy_backward`. The sums of the terms are added to ``terms.sums``.
    """
    total = 0.0
    for r in range(targets.shape[0]):
        row, rounded = logits[r], d_logits[r]
        target = targets[r]
        if target == IGNORED_TARGET:
            rounded[:] = 0
            continue
        found = objective_row(row, target, scale, terms)
        total += found.loss
        at_target = row[target] * found.share - found.uniform - found.target
        for j in range(row.shape[0]):
            store16(rounded, j, row[j] * found.share - found.uniform)
        store16(rounded, target, at_target)
    return total


@jit_inline_body
def loss_backward(logits: Floats, targets: TokenIds, scale: float, terms: LossTerms, d_logits: Bits16) -> float:
    """Call `objective_backward` if the loss has terms, otherwise `cross_entropy_backward`."""
    if has_terms(terms):
        loss = objective_backward(logits, targets, scale, terms, d_logits)
    else:
        loss = cross_entropy_backward(logits, targets, scale, d_logits)
    return loss
