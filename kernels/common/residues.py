"""Tokens as sums of residues: the rows of an embedding ``W = M F`` with a fixed M of few entries (Chinese remainders).

The first `own` tokens have rows of F to themselves. Token v after them is ``scale * sum_k F[first[k] + n % m_k]`` with
n = v - own: one row for each of its remainders modulo coprime numbers m_k. F (P, C) has a row per own token and per
residue, P = own + sum of the m_k, which is far below V. Kernels read F in the place of the token embedding, and write
its gradient: W is never formed.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.tensors import (
    NO_RATES,
    NO_TERMS,
    DropoutRates,
    Gpt2Constants,
    LoraConstants,
    LossTerms,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel, jit_strict_inline

Offsets = NDArray[np.int64]

_PERIOD = 128
"""Elements in which the sums over tokens proceed, at least: shorter loops would not be worth their start."""
_UNROLLED = 32
"""Elements that vector code takes at a time, or a divisor of them."""


class Residues(NamedTuple):
    """The residues of a vocabulary; the arrays have an element per modulus."""

    tokens: int  # with residues: V - own
    own: int  # tokens before them, which have rows of their own
    scale: np.float32  # of the sum of a token's rows
    moduli: Offsets
    first: Offsets  # row of F of the residue 0
    period: Offsets  # multiple of the modulus: elements per step of the sums over tokens
    reach: int  # the largest of the periods, rounded up to whole vectors: steps read and write so many elements
    space: int  # elements of scratch of the softmax of a row


class ResidueConstants(NamedTuple):
    """`Gpt2Constants` of a model whose tokens are sums of residues."""

    heads: int
    lora: LoraConstants
    residues: Residues
    loss: LossTerms = NO_TERMS
    dropout: DropoutRates = NO_RATES


def plain_residue_constants(constants: ResidueConstants) -> Gpt2Constants:
    """Return the constants that the kernels of the blocks take."""
    return Gpt2Constants(constants.heads, constants.lora, constants.loss, constants.dropout)


def residues_of(vocabulary: int, moduli: Sequence[int], own_rows: int) -> Residues:
    """Return the residues of a vocabulary whose first `own_rows` tokens have rows of their own."""
    own = min(own_rows, vocabulary)
    all_moduli = np.array(moduli, np.int64)
    period = np.maximum(_PERIOD // all_moduli, 1) * all_moduli
    reach = int(-(-period.max() // _UNROLLED) * _UNROLLED)
    return Residues(
        tokens=vocabulary - own,
        own=own,
        scale=np.float32(1 / sqrt(len(moduli))),  # so that W has the deviation of F
        moduli=all_moduli,
        first=own + np.cumsum(all_moduli) - all_moduli,
        period=period,
        reach=reach,
        space=int(all_moduli.sum()) + (len(moduli) + 2) * reach,
    )


@jit_strict_inline
def residue_softmax_rows(residues: Residues, columns: int) -> int:
    """Return how many rows of `columns` numbers have room for the scratch of the softmax."""
    return (residues.space + columns - 1) // columns


@jit_strict_inline
def softmax_space(residues: Residues, scratch: Floats) -> tuple[Floats, Floats]:
    """Divide `scratch` (rows, P) into rows for the projection's columns, and the scratch of the softmax, flat."""
    chunk = scratch.shape[0] - residue_softmax_rows(residues, scratch.shape[1])
    space = scratch[chunk:]
    return scratch[:chunk], space.reshape(space.size)


@jit_kernel
def residue_embedding_backward(ids: TokenIds, dx: Floats, residues: Residues, d_factors: Floats) -> None:
    """Add the gradients `dx` (R, C) of the tokens' input embeddings to that of F (P, C), in the order of the rows."""
    for r in range(ids.shape[0]):
        token, row = ids[r], dx[r]
        if token < residues.own:
            target = d_factors[token]
            for j in range(row.shape[0]):
                target[j] += row[j]
            continue
        for k in range(residues.moduli.shape[0]):
            target = d_factors[residues.first[k] + (token - residues.own) % residues.moduli[k]]
            for j in range(row.shape[0]):
                target[j] += residues.scale * row[j]
