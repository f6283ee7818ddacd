"""Softmax cross-entropy over rows of float32 logits: the loss, and the pass that the gradient of every format needs.

A row whose target is `IGNORED_TARGET` has loss 0 and gradient 0, whatever its logits are.

A training loss may have two terms beside it (`LossTerms`). Label smoothing (Szegedy et al., 2016), as PyTorch's
`CrossEntropyLoss` defines it, makes a share e of the target's probability uniform over all V tokens: it adds
``e (logits[target] - mean(logits))``. The z-loss of Mesh TensorFlow, T5X and PaLM (Chowdhery et al., 2022, section 5)
adds ``z log(Z)**2`` with the softmax's denominator Z, so that logits do not drift from 0.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.common.tensors import LossTerms
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


@jit_inline_body
def has_terms(terms: LossTerms) -> bool:
    """Return True if the loss is not the cross-entropy alone."""
    return terms.label_smoothing > 0.0 or terms.z_loss > 0.0


class ObjectiveRow(NamedTuple):
    """The gradient of a row is ``exponentials * share - uniform``, less `target` at its target."""

    loss: float  # the cross-entropy alone
    share: np.float32
    uniform: np.float32
    target: np.float32


@jit_kernel
def objective_row(row: Floats, target: np.int32, scale: float, terms: LossTerms) -> ObjectiveRow:
    """Replace `row`, logits (V,), by ``exp(row - max(row))``; add the terms of its loss to ``terms.sums``."""
    smoothing, width = terms.label_smoothing, row.shape[0]
    logit, total = np.float64(row[target]), _ZERO
    if smoothing > 0.0:
        for j in range(width):
            total += row[j]
        terms.sums[0] += smoothing * (logit - np.float64(total) / width)
    loss, exponentials = exponentiate_row(row, target, 0.0)
    log_z = loss + logit
    terms.sums[1] += terms.z_loss * log_z * log_z
    share = np.float32(scale * (1.0 + 2.0 * terms.z_loss * log_z)) / exponentials
    return ObjectiveRow(loss, share, np.float32(scale * smoothing / width), np.float32(scale * (1.0 - smoothing)))
