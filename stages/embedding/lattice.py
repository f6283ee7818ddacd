"""Token embeddings on the points of a lattice, trained straight through the rounding.

The factors F are real numbers, and every block of a row of W is the nearest point of a scaled lattice to that of F (or
of M F, with a layout too). Rounding has no gradient, so that of W is used for F as it is (the straight-through
estimator; Bengio et al., 2013, arXiv 1308.3432): W stands still until F has come nearer to another point. The scale is
a power of two and the points have whole or half coordinates, so W is exact in float32, and in bfloat16 too as long as
its elements have 8 bits.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.lattice import BLOCK, Lattice, round_rows
from threadloom.stages.embedding.derived import DerivedEmbedding


class LatticeEmbedding:
    """An embedding whose rows are rounded to a lattice. Implements `DerivedEmbedding`."""

    def __init__(self, exact: DerivedEmbedding, lattice: Lattice, scale: float) -> None:
        """`exact` is the embedding before it is rounded; `scale`, a power of two, multiplies the points."""
        self._exact, self._lattice, self._scale = exact, lattice, scale

    @property
    def digest(self) -> str:
        """SHA-256 of the exact embedding's digest, the lattice and the scale."""
        return hashlib.sha256(f"{self._exact.digest} {self._lattice.name} {self._scale.hex()}".encode()).hexdigest()

    def start(self, embedding: Floats, factors: Mapping[str, Floats], seed: int) -> None:
        """Write the initial factors, those of the exact embedding."""
        self._exact.start(embedding, factors, seed)

    def derive(self, factors: Mapping[str, Floats], embedding: Floats) -> None:
        """Compute W: the lattice points next to the exact embedding."""
        self._exact.derive(factors, embedding)
        scratch = np.empty(max(BLOCK.values()), np.float32)
        round_rows(embedding, int(self._lattice), self._scale, scratch, embedding)

    def fold(self, d_embedding: Floats, factors: Mapping[str, Floats], gradients: Mapping[str, Floats]) -> None:
        """Compute the gradients of the factors as if nothing were rounded."""
        self._exact.fold(d_embedding, factors, gradients)
