"""Token embeddings in float32, with position embeddings or without; `kernels.common.embedding` has their gradients."""

from threadloom.kernels.common import DocumentStarts, position_of
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def embedding_forward(
    wte: Floats, wpe: Floats, ids: TokenIds, sequence_length: int, starts: DocumentStarts, out: Floats
) -> None:
    """Write ``wte[ids[r]] + wpe[t]`` to row r of `out` (R, C); `ids` (R,) must be in 0 .. V - 1.

    t is the position of the row in its document, ``r % T`` without borders: `kernels.common.documents`.
    """
    for r in range(ids.shape[0]):
        token, position, row = wte[ids[r]], wpe[position_of(r, sequence_length, starts)], out[r]
        for j in range(row.shape[0]):
            row[j] = token[j] + position[j]


@jit_kernel
def token_embedding_forward(wte: Floats, ids: TokenIds, out: Floats) -> None:
    """Write ``wte[ids[r]]`` to row r of `out` (R, C); `ids` (R,) must be in 0 .. V - 1."""
    for r in range(ids.shape[0]):
        token, row = wte[ids[r]], out[r]
        for j in range(row.shape[0]):
            row[j] = token[j]
