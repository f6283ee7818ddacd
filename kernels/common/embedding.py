"""Gradient of the token and position embeddings, which is float32 in every number format."""

from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def embedding_backward(
    ids: TokenIds, dx: Floats, sequence_length: int, d_wte: Floats, d_wpe: Floats, accumulate: bool
) -> None:
    """Scatter `dx` (R, C) to the gradients of the embeddings, in the order of the rows.

    The rows are always added to `d_wte` (V, C), which the tied output projection has written before. `d_wpe` (context,
    C) is overwritten (rows past the sequence length with zeros) unless `accumulate`.
    """
    if not accumulate:
        for t in range(d_wpe.shape[0]):
            position = d_wpe[t]
            for j in range(position.shape[0]):
                position[j] = 0.0
    for r in range(ids.shape[0]):
        token, position, row = d_wte[ids[r]], d_wpe[r % sequence_length], dx[r]
        for j in range(row.shape[0]):
            token[j] += row[j]
        for j in range(row.shape[0]):
            position[j] += row[j]
