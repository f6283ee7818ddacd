"""Queries and keys of a Llama between their projection and attention, in every number format: norm, then positions."""

from threadloom.kernels.common.documents import DocumentStarts
from threadloom.kernels.common.head_norm import HeadNormWeights, head_norm_backward, head_norm_forward
from threadloom.kernels.common.rotary import rotary_rows_backward, rotary_rows_forward
from threadloom.kernels.common.team import Part, Team, part_of
from threadloom.kernels.common.tensors import LlamaConstants, LlamaWeights
from threadloom.kernels.compiling import jit_inline_body, jit_kernel
from threadloom.kernels.simd import FloatRow


@jit_inline_body
def _head_size(constants: LlamaConstants, columns: int) -> int:
    """Return D from the `columns` of queries, keys and values, (H + 2K) D."""
    return columns // (constants.heads.query + 2 * constants.heads.key_value)


@jit_inline_body
def _norms(w: LlamaWeights, n: int) -> HeadNormWeights:
    """Return the weights, or their gradients, of the norms of queries and keys of block `n`."""
    return HeadNormWeights(w.q_norm_weight[n], w.k_norm_weight[n])


@jit_kernel
def heads_of_member(constants: LlamaConstants, team: Team) -> Part:
    """Return a member's query heads, those of whole groups."""
    groups, heads = part_of(constants.heads.key_value, team), constants.heads
    size = heads.query // heads.key_value
    return Part(groups.first * size, groups.last * size)


@jit_inline_body
def rotate_heads_forward(
    qkv: FloatRow, rows: Part, constants: LlamaConstants, n: int, sequences: int, starts: DocumentStarts
) -> None:
    """Rotate some rows of the queries and keys of block `n` by their positions, if it has positions."""
    c = constants
    if c.rotary[n]:
        size = _head_size(c, qkv.shape[1])
        rotary_rows_forward(qkv, rows, c.heads, size, c.cos, c.sin, sequences, starts)


@jit_inline_body
def rotate_heads_backward(
    d_qkv: FloatRow, rows: Part, constants: LlamaConstants, n: int, sequences: int, starts: DocumentStarts
) -> None:
    """Rotate some rows of the gradients of the queries and keys of block `n` back."""
    c = constants
    if c.rotary[n]:
        size = _head_size(c, d_qkv.shape[1])
        rotary_rows_backward(d_qkv, rows, c.heads, size, c.cos, c.sin, sequences, starts)


@jit_inline_body
def prepare_heads_forward(
    qkv: FloatRow,
    raw: FloatRow,
    weights: LlamaWeights,
    constants: LlamaConstants,
    n: int,
    sequences: int,
    starts: DocumentStarts,
) -> None:
    """Normalise the queries and keys of block `n` in `qkv` (R, (H + 2K) D) and rotate them, in place.

    The queries and keys before their norm are copied to `raw` (R, (H + K) D). Either step is omitted if the model, or
    the block, is without it.
    """
    c, size = constants, _head_size(constants, qkv.shape[1])
    if weights.q_norm_weight.size:
        head_norm_forward(qkv, raw, _norms(weights, n), c.epsilon, c.heads, size)
    rotate_heads_forward(qkv, Part(0, qkv.shape[0]), c, n, sequences, starts)


@jit_inline_body
def prepare_heads_backward(
    d_qkv: FloatRow,
    raw: FloatRow,
    weights: LlamaWeights,
    grads: LlamaWeights,
    constants: LlamaConstants,
    n: int,
    sequences: int,
    starts: DocumentStarts,
    accumulate: bool,
) -> None:
    """Replace the gradient of `prepare_heads_forward`'s result by that of its input, in place.

    The gradients of the norms' weights are written, or added when `accumulate`.
    """
    c, size = constants, _head_size(constants, d_qkv.shape[1])
    rotate_heads_backward(d_qkv, Part(0, d_qkv.shape[0]), c, n, sequences, starts)
    if weights.q_norm_weight.size:
        head_norm_backward(d_qkv, raw, _norms(weights, n), c.epsilon, c.heads, size, _norms(grads, n), accumulate)
