"""Gradients of the token and position embeddings, which are float32 in every number format.

The gradient of an embedding that is not trained has no elements, and is not computed.
"""

from threadloom.kernels.common.documents import DocumentStarts, position_of
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def _add_row(row: Floats, target: Floats) -> None:
    for j in range(row.shape[0]):
        target[j] += row[j]


@jit_kernel
def embedding_backward(
    ids: TokenIds,
    dx: Floats,
    sequence_length: int,
    starts: DocumentStarts,
    d_wte: Floats,
    d_wpe: Floats,
    accumulate: bool,
) -> None:
    """Scatter `dx` (R, C) to the gradients of the embeddings, in the order of the rows.

    The rows are always added to `d_wte` (V, C), which the tied output projection has written before. `d_wpe` (context,
    C) is overwritten (rows past the sequence length with zeros) unless `accumulate`. `starts` is as in
    `kernels.common.documents`.
    """
    if not accumulate:
        for t in range(d_wpe.shape[0]):
            position = d_wpe[t]
            for j in range(position.shape[0]):
                position[j] = 0.0
    for r in range(ids.shape[0]):
        row = dx[r]
        if d_wte.size:
            _add_row(row, d_wte[ids[r]])
        if d_wpe.size:
            _add_row(row, d_wpe[position_of(r, sequence_length, starts)])


@jit_kernel
def token_embedding_backward(ids: TokenIds, dx: Floats, d_wte: Floats, accumulate: bool) -> None:
    """Scatter `dx` (R, C) to the gradient of the token embedding, `d_wte` (V, C), in the order of the rows.

    `d_wte` is cleared first unless `accumulate`. The caller passes True for a tied embedding, whose gradient the output
    projection has written before.
    """
    if not d_wte.size:
        return
    if not accumulate:
        d_wte.fill(0.0)
    for r in range(ids.shape[0]):
        _add_row(dx[r], d_wte[ids[r]])
