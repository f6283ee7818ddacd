"""Gradient of softmax cross-entropy, and of the terms beside it, for a chunk of float32 logits, rounded to 16 bits."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.logit_rows import exponentials, scale_and_round
from threadloom.kernels.common import IGNORED_TARGET, LossTerms, has_terms, objective_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel, jit_strict_fp, jit_strict_inline
from threadloom.kernels.simd import Bits16, store16


@jit_strict_inline  # not reassociated: the bits of a loss do not depend on how it is added to others
def _row_loss(largest: np.float32, logit: np.float32, denominator: np.float32) -> float:
    return np.float64(largest) - np.float64(logit) + math.log(denominator)


@jit_kernel
def _row_backward(row: Floats, target: int, factor: np.float32, rounded: Bits16) -> float:
    """Write the gradient of a row of logits, times `factor`, to `rounded`, both (V,); return the loss of the row."""
    if target == IGNORED_TARGET:
        rounded[:] = 0  # the bits of 0.0 in both formats
        return 0.0
    logit = row[target]
    largest, denominator = exponentials(row)
    share = factor / denominator
    at_target = row[target] * share - factor
    scale_and_round(row, share, rounded)
    store16(rounded, target, at_target)
    return _row_loss(largest, logit, denominator)


@jit_kernel
def cross_entropy_backward(logits: Floats, targets: TokenIds, scale: float, d_logits: Bits16) -> float:
    """Write ``(softmax - one-hot) * scale``, rounded once, to `d_logits` (n, V); return the unscaled sum of the losses.

    `logits` (n, V) are overwritten. Rows of `d_logits` whose target is `IGNORED_TARGET` are 0, and have no loss.
    """
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        total += _row_backward(logits[r], targets[r], factor, d_logits[r])
    return total


@jit_kernel
def cross_entropy_backward_rows(
    logits: Floats, targets: TokenIds, scale: float, d_logits: Bits16, losses: NDArray[Any]
) -> None:
    """Write `d_logits` as `cross_entropy_backward` does, and the loss of each row to `losses` (n,), float64."""
    factor = np.float32(scale)
    for r in range(targets.shape[0]):
        losses[r] = _row_backward(logits[r], targets[r], factor, d_logits[r])


@jit_strict_fp
def add_losses(total: float, losses: NDArray[Any]) -> float:
    """Return `total` with the losses of rows added in their order, as `cross_entropy_backward` adds them."""
    for r in range(losses.shape[0]):
        total += losses[r]
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
