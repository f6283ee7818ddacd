"""A member's part of layers that the architectures share, in bfloat16: gradients of matrices, the projection.

Rows of tiles: AMX multiplies whole tiles of rows, and AVX-512 the rest, in sums of another order. So an axis that is
the rows of a product is divided between tiles, and the rest stays where it is in one thread.
"""

from typing import NamedTuple

from threadloom.kernels.bits16.cross_entropy import add_losses, cross_entropy_backward_rows
from threadloom.kernels.bits16.head import ProjectionScratch
from threadloom.kernels.bits16.linear import linear_backward_weight, logits_backward_input, logits_forward
from threadloom.kernels.bits16.tensors import Fp16UpcastScratch, PackedPair
from threadloom.kernels.common import Part, Team, meet, part_of, part_of_units
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel, jit_strict_inline
from threadloom.kernels.matmul import PANEL, TILE_SIZE, transpose_bf16
from threadloom.kernels.simd import Bits16


@jit_strict_inline
def tiles_of(length: int, team: Team) -> Part:
    """Return the member's part of an axis, as `part_of`, cut at multiples of the rows of a tile of AMX."""
    return part_of_units(length, TILE_SIZE, team)


@jit_strict_inline
def _panels_of(columns: int, team: Team) -> Part:
    """Return the member's panels of a packed matrix."""
    return part_of((columns + PANEL - 1) // PANEL, team)


@jit_kernel
def column_sums(source: Floats, columns: Part, out: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the sums over the rows of some columns of `source` (R, C) to `out` (C,) or (0,).

    Of the gradient of the residual stream they are the gradient of the bias that was added to it just before.
    """
    target = out[columns.first : columns.last]
    if not accumulate:
        target.fill(0.0)
    for r in range(source.shape[0]):
        row = source[r][columns.first : columns.last]
        for j in range(target.shape[0]):
            target[j] += row[j]


@jit_inline_body
def transposed_part(x: Bits16, columns: Part, transposed: Bits16) -> Bits16:
    """Return some columns of `x` (R, I) transposed, those rows of `transposed` (>= I, R), which it writes.

    The rows belong to the member until the next meeting.
    """
    x_t = transposed[columns.first : columns.last]
    transpose_bf16(x[:, columns.first : columns.last], x_t)
    return x_t


@jit_kernel
def weight_gradient(
    x: Bits16, d_out: Bits16, d_weight: Floats, accumulate: bool, transposed: Bits16, upcast: Fp16UpcastScratch,
    team: Team,
) -> None:  # fmt: skip
    """Write or add the member's rows of the gradient of a weight: `kernels.bits16.linear.transpose_backward_weight`."""
    if d_weight.size:
        inputs = tiles_of(d_weight.shape[0], team)
        part = d_weight[inputs.first : inputs.last]
        linear_backward_weight(transposed_part(x, inputs, transposed), d_out, part, accumulate, upcast)


class _Chunk(NamedTuple):
    """Arrays of a chunk of rows of the head."""

    h: Bits16  # (rows, C)
    logits: Floats  # (rows, V)
    d_logits: Bits16  # (rows, V)
    targets: TokenIds  # (rows,)
    dh: Floats  # (rows, C)


@jit_kernel
def _chunk_backward(
    chunk: _Chunk, weight: PackedPair, scale: float, scratch: ProjectionScratch, first: int, team: Team
) -> float:
    """Write the member's part of the gradients of a chunk's logits and of `h`; return the sum of the losses.

    `first` is the chunk's first row. Products are divided over columns: there may be few rows. The members have met
    when `d_logits` was complete.
    """
    c, rows, vocabulary, channels = chunk, chunk.h.shape[0], chunk.logits.shape[1], chunk.h.shape[1]
    p, q = _panels_of(vocabulary, team)
    if p < q:
        part = c.logits[:, p * PANEL : min(q * PANEL, vocabulary)]
        logits_forward(c.h, weight.packed_t[p:q], part, scratch.upcast)
    meet(team)  # logits of all tokens
    i, j = part_of(rows, team)
    losses = team.losses[first : first + rows]
    cross_entropy_backward_rows(c.logits[i:j], c.targets[i:j], scale, c.d_logits[i:j], losses[i:j])
    meet(team)  # gradients of the logits of all rows; nobody reads the logits any more
    p, q = _panels_of(channels, team)
    if p < q:
        part = c.dh[:, p * PANEL : min(q * PANEL, channels)]
        logits_backward_input(c.d_logits, weight.packed[p:q], part, scratch.upcast)
    return add_losses(0.0, losses)


@jit_kernel
def _projection_gradient(
    d_logits: Bits16, h: Bits16, d_weight: Floats, scratch: ProjectionScratch, accumulate: bool, team: Team
) -> None:
    """Write or add the member's rows of the gradient of the projection (V, C)."""
    tokens, width = tiles_of(d_weight.shape[0], team), scratch.d_logits_t.shape[0]
    for v0 in range(tokens.first, tokens.last, width):
        v1 = min(v0 + width, tokens.last)
        d_logits_t = scratch.d_logits_t[: v1 - v0, : d_logits.shape[0]]
        transpose_bf16(d_logits[:, v0:v1], d_logits_t)
        linear_backward_weight(d_logits_t, h, d_weight[v0:v1], accumulate, scratch.upcast)


@jit_kernel
def projection_part_backward(
    h: Bits16,
    weight: PackedPair,
    targets: TokenIds,
    scale: float,
    d_weight: Floats,
    dh: Floats,
    scratch: ProjectionScratch,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.bits16.head.projection_backward`, without further terms of the loss.

    ``scratch.d_logits_t`` is the member's own. The members have met when `h` was complete; on return `dh` is not
    complete yet.
    """
    s, rows, chunk = scratch, h.shape[0], scratch.logits.shape[0]
    adds, loss = accumulate, 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        count = last - first
        arrays = _Chunk(h[first:last], s.logits[:count], s.d_logits[:count], targets[first:last], dh[first:last])
        loss += _chunk_backward(arrays, weight, scale, s, first, team)
        _projection_gradient(arrays.d_logits, arrays.h, d_weight, s, adds, team)
        adds = True
    return loss
