"""Low rank by bands: W_b = A_b P_b with trained factors, of all tokens or of bands of frequency.

The output projection multiplies by P_b and A_b in turn, ``(h P_bᵀ) A_bᵀ``, so a rank below the channels saves
arithmetic; `kernels.common.bands` has the layout of the factors. The head's kernels write the gradients of the factors
themselves. What is left to `fold` is the input side: the gradient dW of the rows that were looked up adds ``dW_b P_bᵀ``
to that of A_b, and ``A_bᵀ dW_b`` to that of P_b.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.common import BandFactors, Bands, bands_of
from threadloom.kernels.float32 import derive_bands, fold_bands

ROWS, BASES = "wte_rows", "wte_bases"
"""Names of all A_b, and of all P_b, among the trained tensors."""
_BLOCK = 256
"""Rows of dW that are multiplied at a time."""

BandStart = Callable[[Floats, BandFactors, Bands, int], None]
"""Function of (W of a plain run, factors, bands, seed) that writes the initial factors."""


class BandedEmbedding:
    """The embedding of bands of low rank. Implements `DerivedEmbedding`."""

    def __init__(self, sizes: tuple[tuple[int, int], ...], start: BandStart) -> None:
        """`sizes` are the (tokens, rank) of the bands; `start` writes the initial factors."""
        self._sizes = sizes
        self._start = start

    @property
    def digest(self) -> str:
        """SHA-256 of the sizes of the bands."""
        return hashlib.sha256(repr(self._sizes).encode()).hexdigest()

    def start(self, embedding: Floats, factors: Mapping[str, Floats], seed: int) -> None:
        """Write the initial factors."""
        self._start(embedding, _of(factors), bands_of(self._sizes, embedding.shape[1]), seed)

    def derive(self, factors: Mapping[str, Floats], embedding: Floats) -> None:
        """Compute W_b = A_b P_b."""
        derive_bands(_of(factors), bands_of(self._sizes, embedding.shape[1]), embedding)

    def fold(self, d_embedding: Floats, factors: Mapping[str, Floats], gradients: Mapping[str, Floats]) -> None:
        """Add the input side to the gradients of the factors."""
        channels = d_embedding.shape[1]
        space = np.empty((3, _BLOCK, channels), np.float32)
        fold_bands(d_embedding, _of(factors), bands_of(self._sizes, channels), _of(gradients), space)


def _of(tensors: Mapping[str, Floats]) -> BandFactors:
    return BandFactors(tensors[ROWS], tensors[BASES])
