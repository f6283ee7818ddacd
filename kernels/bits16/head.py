"""Output projection and softmax cross-entropy of every architecture in 16 bits, as `kernels.float32.head`.

The gradient of the logits is rounded, and transposed for one slice of the vocabulary at a time.
"""

from typing import NamedTuple

from threadloom.kernels.bits16.cross_entropy import loss_backward
from threadloom.kernels.bits16.linear import linear_backward_weight, logits_backward_input, logits_forward
from threadloom.kernels.bits16.tensors import Fp16UpcastScratch, PackedPair, PackedWeight
from threadloom.kernels.common import (
    HEAD_SLICE,
    AccumulationTicket,
    LossTerms,
    cross_entropy_forward,
    last_head_part,
    mark_part_done,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body
from threadloom.kernels.matmul import transpose_bf16
from threadloom.kernels.simd import Bits16


class ProjectionScratch(NamedTuple):
    """Scratch of `projection_backward`."""

    logits: Floats  # (rows of one chunk, V)
    d_logits: Bits16  # (rows of one chunk, V)
    d_logits_t: Bits16  # (columns of one slice, rows of one chunk)
    upcast: Fp16UpcastScratch


@jit_inline_body
def projection_loss(
    h: Bits16, weight_t: PackedWeight, targets: TokenIds, logits: Floats, upcast: Fp16UpcastScratch
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C).

    `weight_t` is the packed transpose of the projection (V, C). `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`;
    `logits` (rows of a chunk, V) is scratch.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = logits[: last - first]
        logits_forward(h[first:last], weight_t, part, upcast)
        total += cross_entropy_forward(part, targets[first:last])
    return total


@jit_inline_body
def chunk_gradients(
    d_logits: Bits16,
    h: Bits16,
    weight: PackedPair,
    d_weight: Floats,
    dh: Floats,
    scratch: ProjectionScratch,
    adds: bool,
    is_last: bool,
    ticket: AccumulationTicket,
) -> None:
    """Write the gradient of `h` to `dh`, both (rows, C), given that of the logits of a chunk of rows, (rows, V).

    As `kernels.float32.head.chunk_gradients`.
    """
    s = scratch
    rows, vocabulary, slice_width = d_logits.shape[0], d_logits.shape[1], s.d_logits_t.shape[0]
    logits_backward_input(d_logits, weight.packed, dh, s.upcast)
    for v0 in range(0, vocabulary if d_weight.size else 0, slice_width):
        v1 = min(v0 + slice_width, vocabulary)
        wait_for_predecessor(ticket, (v1 - 1) // HEAD_SLICE)
        d_logits_t = s.d_logits_t[: v1 - v0, :rows]
        transpose_bf16(d_logits[:, v0:v1], d_logits_t)
        linear_backward_weight(d_logits_t, h, d_weight[v0:v1], adds, s.upcast)
        if is_last and v1 % HEAD_SLICE == 0 and v1 < vocabulary:
            mark_part_done(ticket, v0 // HEAD_SLICE)


@jit_inline_body
def projection_backward(
    h: Bits16,
    weight: PackedPair,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    d_weight: Floats,
    dh: Floats,
    scratch: ProjectionScratch,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to the float32 `dh`, both (R, C).

    As `kernels.float32.head.projection_backward`.
    """
    s = scratch
    rows, chunk = h.shape[0], s.logits.shape[0]
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        logits, d_logits, part_h = s.logits[: last - first], s.d_logits[: last - first], h[first:last]
        logits_forward(part_h, weight.packed_t, logits, s.upcast)
        total += loss_backward(logits, targets[first:last], scale, terms, d_logits)
        chunk_gradients(d_logits, part_h, weight, d_weight, dh[first:last], s, adds, last == rows, ticket)
        adds = True
    wait_for_predecessor(ticket, last_head_part(s.d_logits.shape[1]))
    return total
