"""Bands of the vocabulary, each with an embedding of low rank: ``W_b = A_b @ P_b``.

Token by token the vocabulary is cut into bands; band b has V_b tokens and rank E_b. A_b (V_b, E_b) has a row per token,
and P_b (E_b, C), the basis, takes it to all channels. A band of rank C has no basis: A_b is its embedding. The factors
of all bands lie one after another in two arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.tensors import (
    NO_RATES,
    NO_TERMS,
    DropoutRates,
    Gpt2Constants,
    LoraConstants,
    LossTerms,
    Weights,
)
from threadloom.kernels.compiling import Floats, jit_strict_inline

Offsets = NDArray[np.int64]
_SQUARE = 32  # rows and columns of packed matrices are filled up to multiples of it


class Bands(NamedTuple):
    """Places of the bands; all arrays have an element per band."""

    first: Offsets  # first token
    last: Offsets  # token after the last one
    rank: Offsets  # E_b
    row: Offsets  # element of `BandFactors.rows` at which A_b begins
    basis: Offsets  # element of `BandFactors.bases` at which P_b begins
    column: Offsets  # sum of the ranks of the bands before
    row_word: Offsets  # word of the packed rows, and of their packed transposes, at which those of the band begin
    basis_word: Offsets  # the same of the packed bases


class BandFactors(NamedTuple):
    """The factors of all bands, or their gradients."""

    rows: Floats  # (sum of V_b E_b,) A_b one after another
    bases: Floats  # (sum of E_b C,) P_b one after another, of the bands with E_b < C


class BandedWeights(NamedTuple):
    """`Weights` of a model whose token embedding is of low rank by bands, or arrays of the same shapes."""

    wte: Floats  # (V, C) computed from the factors, or the gradient of the embedding's input side alone
    wpe: Floats
    qkv_weight: Floats
    attn_proj_weight: Floats
    fc_weight: Floats
    mlp_proj_weight: Floats
    qkv_a: Floats
    qkv_b: Floats
    attn_proj_a: Floats
    attn_proj_b: Floats
    fc_a: Floats
    fc_b: Floats
    mlp_proj_a: Floats
    mlp_proj_b: Floats
    ln1_weight: Floats
    ln1_bias: Floats
    qkv_bias: Floats
    attn_proj_bias: Floats
    ln2_weight: Floats
    ln2_bias: Floats
    fc_bias: Floats
    mlp_proj_bias: Floats
    lnf_weight: Floats
    lnf_bias: Floats
    wte_rows: Floats  # `BandFactors.rows`
    wte_bases: Floats  # `BandFactors.bases`


class BandedConstants(NamedTuple):
    """`Gpt2Constants` of such a model."""

    heads: int
    lora: LoraConstants
    bands: Bands
    loss: LossTerms = NO_TERMS
    dropout: DropoutRates = NO_RATES


def plain_weights(weights: BandedWeights) -> Weights:
    """Return the tensors that every model has, for the kernels of the blocks: they are not compiled once more."""
    return Weights(*weights[: len(Weights._fields)])


def plain_constants(constants: BandedConstants) -> Gpt2Constants:
    """Return the constants that the kernels of the blocks take."""
    return Gpt2Constants(constants.heads, constants.lora, constants.loss, constants.dropout)


def bands_of(sizes: Sequence[tuple[int, int]], channels: int) -> Bands:
    """Return the places of bands of these (tokens, rank)."""
    tokens, ranks = np.array(sizes, np.int64).reshape(-1, 2).T
    low = ranks < channels
    last = np.cumsum(tokens)
    return Bands(
        first=last - tokens,
        last=last,
        rank=ranks.copy(),
        row=_before(tokens * ranks),
        basis=_before(ranks * channels * low),
        column=_before(ranks),
        row_word=_before(packed_words(tokens, ranks)),
        basis_word=_before(packed_words(ranks, channels) * low),
    )


def packed_words(rows: Any, columns: Any) -> Any:
    """Return the words of a matrix, or of its transpose, packed in bfloat16 (`kernels.matmul.pack`): whole squares."""
    return -(-rows // _SQUARE) * -(-columns // _SQUARE) * (_SQUARE * _SQUARE // 2)


def _before(sizes: Offsets) -> Offsets:
    return np.cumsum(sizes) - sizes


def factor_sizes(sizes: Sequence[tuple[int, int]], channels: int) -> tuple[int, int]:
    """Return the elements of both arrays of `BandFactors`."""
    return sum(v * e for v, e in sizes), sum(e * channels for _, e in sizes if e < channels)


@jit_strict_inline
def band_rows(factors: BandFactors, bands: Bands, b: int) -> Floats:
    """Return A_b (V_b, E_b)."""
    tokens, rank, start = bands.last[b] - bands.first[b], bands.rank[b], bands.row[b]
    return factors.rows[start : start + tokens * rank].reshape((tokens, rank))


@jit_strict_inline
def band_basis(factors: BandFactors, bands: Bands, b: int, channels: int) -> Floats:
    """Return P_b (E_b, C) of a band that has one."""
    rank, start = bands.rank[b], bands.basis[b]
    return factors.bases[start : start + rank * channels].reshape((rank, channels))
