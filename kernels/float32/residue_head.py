"""Output projection of tokens that are sums of residues, and softmax cross-entropy, in float32.

The projection is that of `kernels.float32.head` with ``weight = M F`` (`kernels.common.residues`), which is never
formed: ``h @ F.T`` has P columns instead of V, and the softmax over the V tokens is computed from them.
"""

from threadloom.kernels.common import (
    AccumulationTicket,
    LossTerms,
    Residues,
    last_head_part,
    residue_cross_entropy,
    residue_losses,
    softmax_space,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body
from threadloom.kernels.float32.head import chunk_gradients
from threadloom.kernels.float32.linear import logits_forward


@jit_inline_body
def residue_loss(h: Floats, factors: Floats, residues: Residues, targets: TokenIds, logits: Floats) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C), factors F (P, C).

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`. Scratch: `logits` (rows of a chunk, then those of
    `softmax_space`, P).
    """
    sums, space = softmax_space(residues, logits)
    rows, chunk = h.shape[0], sums.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = sums[: last - first]
        logits_forward(h[first:last], factors, part)
        total += residue_losses(part, targets[first:last], residues, space)
    return total


@jit_inline_body
def residue_backward(
    h: Floats,
    factors: Floats,
    residues: Residues,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    d_factors: Floats,
    dh: Floats,
    logits: Floats,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to `dh`, both (R, C).

    As `projection_backward`, with F in the place of the weight, and scratch as `residue_loss`.
    """
    sums, space = softmax_space(residues, logits)
    rows, chunk = h.shape[0], sums.shape[0]
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part, part_h = sums[: last - first], h[first:last]
        logits_forward(part_h, factors, part)
        total += residue_cross_entropy(part, targets[first:last], scale, terms, residues, space)
        chunk_gradients(part, part_h, factors, d_factors, dh[first:last], adds, last == rows, ticket)
        adds = True
    wait_for_predecessor(ticket, last_head_part(factors.shape[0]))
    return total
