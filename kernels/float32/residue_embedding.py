"""Embeddings of tokens that are sums of residues, in float32; `kernels.common.residues` has their gradient."""

from threadloom.kernels.common import DocumentStarts, Residues, position_of
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


@jit_kernel
def residue_embedding_forward(
    factors: Floats,
    wpe: Floats,
    residues: Residues,
    ids: TokenIds,
    sequence_length: int,
    starts: DocumentStarts,
    out: Floats,
) -> None:
    """Write the embedding of token ``ids[r]`` plus that of its position to row r of `out` (R, C): factors F (P, C)."""
    for r in range(ids.shape[0]):
        token, position, row = ids[r], wpe[position_of(r, sequence_length, starts)], out[r]
        if token < residues.own:
            own = factors[token]
            for j in range(row.shape[0]):
                row[j] = own[j] + position[j]
            continue
        for j in range(row.shape[0]):
            row[j] = position[j]
        for k in range(residues.moduli.shape[0]):
            part = factors[residues.first[k] + (token - residues.own) % residues.moduli[k]]
            for j in range(row.shape[0]):
                row[j] += residues.scale * part[j]
