"""Output projection and softmax cross-entropy of every architecture in float32.

The logits ``h @ weight.T`` exist for the rows of one chunk at a time, and are overwritten by their gradient.
"""

from threadloom.kernels.common import (
    HEAD_SLICE,
    AccumulationTicket,
    cross_entropy_forward,
    last_head_part,
    mark_part_done,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body
from threadloom.kernels.float32.cross_entropy import cross_entropy_backward
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
def projection_backward(
    h: Floats,
    weight: Floats,
    targets: TokenIds,
    scale: float,
    d_weight: Floats,
    dh: Floats,
    logits: Floats,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to `dh`, both (R, C).

    Every gradient is multiplied by `scale`. That of `weight` is written to `d_weight` (V, C), or added if
    ``ticket.accumulate``; a `d_weight` without elements is not computed. Its rows are the first parts of the `ticket`.
    The caller marks the last one as done, after it has written the gradients of the last norm: on return the
    predecessor has finished that part.
    """
    rows, chunk, vocabulary = h.shape[0], logits.shape[0], weight.shape[0]
    parts = last_head_part(vocabulary) + 1
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part_logits, part_h = logits[: last - first], h[first:last]
        logits_forward(part_h, weight, part_logits)
        total += cross_entropy_backward(part_logits, targets[first:last], scale)
        logits_backward_input(part_logits, weight, dh[first:last])
        for part in range(parts if d_weight.size else 0):
            v0, v1 = part * HEAD_SLICE, min((part + 1) * HEAD_SLICE, vocabulary)
            wait_for_predecessor(ticket, part)
            linear_backward_weight(part_logits[:, v0:v1], part_h, d_weight[v0:v1], adds)
            if last == rows and v1 < vocabulary:
                mark_part_done(ticket, part)
        adds = True
    wait_for_predecessor(ticket, last_head_part(vocabulary))
    return total
