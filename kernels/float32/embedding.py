"""Token and position embeddings in float32. Their gradient is `kernels.common.embedding_backward`."""

from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def embedding_forward(wte: Floats, wpe: Floats, ids: TokenIds, sequence_length: int, out: Floats) -> None:
    """Write ``wte[ids[r]] + wpe[r % T]`` to row r of `out` (R, C); `ids` (R,) must be in 0 .. V - 1."""
    for r in range(ids.shape[0]):
        token, position, row = wte[ids[r]], wpe[r % sequence_length], out[r]
        for j in range(row.shape[0]):
            row[j] = token[j] + position[j]
