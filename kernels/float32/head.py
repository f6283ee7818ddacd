"""Output projection and softmax cross-entropy of every architecture in float32.

The logits ``h @ weight.T`` exist for the rows of one chunk at a time, and are overwritten by their gradient.
"""

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
from threadloom.kernels.float32.cross_entropy import loss_backward
from threadloom.kernels.float32.linear import linear_backward_weight, logits_backward_input, logits_forward


@jit_inline_body
def projection_loss(h: Floats, weight: Floats, targets: TokenIds, logits: Floats) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C), weight (V, C).

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`; `logits` (rows of a chunk, V) is scratch.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = logits[: last - first]
        logits_forward(h[first:last], weight, part)
        total += cross_entropy_forward(part, targets[first:last])
    return total


@jit_inline_body
def chunk_gradients(
    d_logits: Floats,
    h: Floats,
    weight: Floats,
    d_weight: Floats,
    dh: Floats,
    adds: bool,
    is_last: bool,
    ticket: AccumulationTicket,
) -> None:
    """Write the gradient of `h` to `dh`, both (rows, C), given that of the logits of a chunk of rows, (rows, V).

    That of `weight` is written to `d_weight`, or added if `adds`, part by part; those of the last chunk are done then,
    but for the last of the parts.
    """
    vocabulary = weight.shape[0]
    logits_backward_input(d_logits, weight, dh)
    for part in range(last_head_part(vocabulary) + 1 if d_weight.size else 0):
        v0, v1 = part * HEAD_SLICE, min((part + 1) * HEAD_SLICE, vocabulary)
        wait_for_predecessor(ticket, part)
        linear_backward_weight(d_logits[:, v0:v1], h, d_weight[v0:v1], adds)
        if is_last and v1 < vocabulary:
            mark_part_done(ticket, part)


@jit_inline_body
def projection_backward(
    h: Floats,
    weight: Floats,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    d_weight: Floats,
    dh: Floats,
    logits: Floats,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to `dh`, both (R, C).

    Every gradient is that of the loss with its `terms`, multiplied by `scale`. That of `weight` is written to
    `d_weight` (V, C), or added if ``ticket.accumulate``; a `d_weight` without elements is not computed. Its rows are
    the first parts of the `ticket`. The caller marks the last one as done, after it has written the gradients of the
    last norm: on return the predecessor has finished that part.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part_logits, part_h = logits[: last - first], h[first:last]
        logits_forward(part_h, weight, part_logits)
        total += loss_backward(part_logits, targets[first:last], scale, terms)
        chunk_gradients(part_logits, part_h, weight, d_weight, dh[first:last], adds, last == rows, ticket)
        adds = True
    wait_for_predecessor(ticket, last_head_part(weight.shape[0]))
    return total
