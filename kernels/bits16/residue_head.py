"""Output projection of tokens that are sums of residues, and softmax cross-entropy, in 16 bits.

As `kernels.float32.residue_head`. The gradient of the P columns is computed in float32 and rounded once.
"""

from threadloom.kernels.bits16.head import ProjectionScratch, chunk_gradients
from threadloom.kernels.bits16.linear import logits_forward
from threadloom.kernels.bits16.tensors import Fp16UpcastScratch, PackedPair, PackedWeight
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
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.simd import Bits16, store16


@jit_kernel
def _round(numbers: Floats, rounded: Bits16) -> None:
    for r in range(rounded.shape[0]):
        source, target = numbers[r], rounded[r]
        for j in range(target.shape[0]):
            store16(target, j, source[j])


@jit_inline_body
def residue_loss(
    h: Bits16,
    factors_t: PackedWeight,
    residues: Residues,
    targets: TokenIds,
    logits: Floats,
    upcast: Fp16UpcastScratch,
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C).

    `factors_t` is the packed transpose of F (P, C). As `kernels.float32.residue_head.residue_loss`.
    """
    sums, space = softmax_space(residues, logits)
    rows, chunk = h.shape[0], sums.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = sums[: last - first]
        logits_forward(h[first:last], factors_t, part, upcast)
        total += residue_losses(part, targets[first:last], residues, space)
    return total


@jit_inline_body
def residue_backward(
    h: Bits16,
    factors: PackedPair,
    residues: Residues,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    d_factors: Floats,
    dh: Floats,
    scratch: ProjectionScratch,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to the float32 `dh`, both (R, C).

    As `kernels.float32.residue_head.residue_backward`.
    """
    s = scratch
    sums, space = softmax_space(residues, s.logits)
    rows, chunk, columns = h.shape[0], sums.shape[0], sums.shape[1]
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part, d_logits, part_h = sums[: last - first], s.d_logits[: last - first], h[first:last]
        logits_forward(part_h, factors.packed_t, part, s.upcast)
        total += residue_cross_entropy(part, targets[first:last], scale, terms, residues, space)
        _round(part, d_logits)
        chunk_gradients(d_logits, part_h, factors, d_factors, dh[first:last], s, adds, last == rows, ticket)
        adds = True
    wait_for_predecessor(ticket, last_head_part(columns))
    return total
