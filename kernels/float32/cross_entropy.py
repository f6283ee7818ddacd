"""Gradient of softmax cross-entropy, and of the terms beside it, for the rows of one chunk of logits, in place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common import IGNORED_TARGET, LossTerms, exponentiate_row, has_terms, objective_row
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel

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


@jit_kernel
def cross_entropy_backward_rows(logits: Floats, targets: TokenIds, scale: float, losses: NDArray[Any]) -> None:
    """Overwrite `logits` as `cross_entropy_backward` does; write the loss of each row to `losses` (n,), float64."""
    factor = np.float32(scale)
    for r in range(targets.shape[0]):
        row = logits[r]
        target = targets[r]
        losses[r] = 0.0
        if target == IGNORED_TARGET:
            row[:] = _ZERO
            continue
        losses[r], exponentials = exponentiate_row(row, target, 0.0)
        share = factor / exponentials
        for j in range(row.shape[0]):
            row[j] *= share
        row[target] -= factor


@jit_kernel
def objective_backward(logits: Floats, targets: TokenIds, scale: float, terms: LossTerms) -> float:
    """Overwrite `logits` with the scaled gradient of the loss with its terms; return the sum of the cross-entropies.

    As `cross_entropy_backward`. The sums of the terms are added to ``terms.sums``.
    """
    total = 0.0
    for r in range(targets.shape[0]):
        row = logits[r]
        if targets[r] == IGNORED_TARGET:
            row[:] = _ZERO
            continue
        found = objective_row(row, targets[r], scale, terms)
        total += found.loss
        for j in range(row.shape[0]):
            row[j] = row[j] * found.share - found.uniform
        row[targets[r]] -= found.target
    return total


@jit_inline_body
def loss_backward(logits: Floats, targets: TokenIds, scale: float, terms: LossTerms) -> float:
    """Call `objective_backward` if the loss has terms, otherwise `cross_entropy_backward`."""
    if has_terms(terms):
        loss = objective_backward(logits, targets, scale, terms)
    else:
        loss = cross_entropy_backward(logits, targets, scale)
    return loss
