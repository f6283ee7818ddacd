"""Token and position embeddings: gather in forward, scatter in backward."""

from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def embedding_forward(wte: Floats, wpe: Floats, ids: TokenIds, sequence_length: int, out: Floats) -> None:
    """Write ``wte[ids[r]] + wpe[r % T]`` to row r of `out` (R, C); `ids` (R,) must lie in 0 .. V - 1."""
    for r in range(ids.shape[0]):
        token, position, row = wte[ids[r]], wpe[r % sequence_length], out[r]
        for j in range(row.shape[0]):
            row[j] = token[j] + position[j]


@jit_kernel
def embedding_backward(
    ids: TokenIds, dx: Floats, sequence_length: int, d_wte: Floats, d_wpe: Floats, accumulate: bool
) -> None:
    """Scatter `dx` (R, C) to the gradients of the embeddings, in the order of the rows.

    It always adds to `d_wte` (V, C), which the tied output head has written before. `d_wpe` (context, C) is overwritten
    (rows past the sequence length with zeros) unless `accumulate`.
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
