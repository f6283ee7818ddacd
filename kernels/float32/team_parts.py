"""A member's part of layers that the architectures share, in float32: gradients of a linear layer, the projection."""

from threadloom.kernels.common import Team, meet, part_of
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.float32.cross_entropy import cross_entropy_backward_rows
from threadloom.kernels.float32.linear import (
    linear_backward_bias_columns,
    linear_backward_weight,
    logits_backward_input,
    logits_forward,
)


@jit_kernel
def linear_gradients(x: Floats, d_out: Floats, d_weight: Floats, d_bias: Floats, accumulate: bool, team: Team) -> None:
    """Write or add the member's rows of the gradient of a weight, and its columns of that of the bias."""
    inputs = part_of(d_weight.shape[0], team)
    part = d_weight[inputs.first : inputs.last]
    linear_backward_weight(x[:, inputs.first : inputs.last], d_out, part, accumulate)
    linear_backward_bias_columns(d_out, part_of(d_bias.shape[0], team), d_bias, accumulate)


@jit_kernel
def _chunk_backward(
    h: Floats, weight: Floats, targets: TokenIds, scale: float, logits: Floats, dh: Floats, team: Team, first: int
) -> None:
    """Write the member's rows of the gradients of a chunk's logits and of `h`; `first` is the chunk's first row."""
    i, j = part_of(h.shape[0], team)
    part = logits[i:j]
    logits_forward(h[i:j], weight, part)
    cross_entropy_backward_rows(part, targets[i:j], scale, team.losses[first + i : first + j])
    logits_backward_input(part, weight, dh[i:j])


@jit_kernel
def projection_part_backward(
    h: Floats,
    weight: Floats,
    targets: TokenIds,
    scale: float,
    d_weight: Floats,
    dh: Floats,
    logits: Floats,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.float32.head.projection_backward`, without further terms of the loss.

    The rows of a chunk are divided among the members, and so are those of `d_weight` (V, C). The members have met when
    `h` was complete, and on return they have met when `dh` was.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    tokens = part_of(d_weight.shape[0], team)
    adds, loss = accumulate, 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        of_chunk, part_h = logits[: last - first], h[first:last]
        _chunk_backward(part_h, weight, targets[first:last], scale, of_chunk, dh[first:last], team, first)
        meet(team)  # gradients of all rows of the chunk
        total = 0.0
        for r in range(first, last):
            total += team.losses[r]
        loss += total
        part_d = d_weight[tokens.first : tokens.last]
        linear_backward_weight(of_chunk[:, tokens.first : tokens.last], part_h, part_d, adds)
        adds = True
        if last < rows:
            meet(team)  # nobody reads these logits any more
    return loss
