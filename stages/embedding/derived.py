"""The protocol of a token embedding that is computed from other tensors.

The kernels read a token embedding W (V, C) as in any model, and backward writes its gradient dW into the lanes. The
optimizer does not update W but its *factors*, the tensors `Geometry.factors`: they have its moments, its weight decay
and its place in the global norm. Two functions connect them in every update:

    reduce ─→ fold: gradients of the factors from dW ─→ clip ─→ AdamW of the factors ─→ derive: W ─→ publish

Both are pure, and called once per update, by one thread, so the bits do not depend on the number of threads. A
checkpoint holds W in `model.safetensors`, as if it had been trained itself, and the factors beside it.

To add one: its settings with the shapes of its factors in `stages.config.embedding`, a class with this protocol here,
and a line in `stages.embedding.registry`.
"""

from collections.abc import Mapping
from typing import Protocol

from threadloom.kernels import Floats


class DerivedEmbedding(Protocol):
    """A token embedding as a function of factors, and the gradient of that function; it has no state."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the functions depend on besides their arguments, such as a fixed matrix.

        A resumed run must have the same.
        """

    def start(self, embedding: Floats, factors: Mapping[str, Floats], seed: int) -> None:
        """Write the initial factors; `embedding` (V, C) holds the weights that a plain run starts from with `seed`."""

    def derive(self, factors: Mapping[str, Floats], embedding: Floats) -> None:
        """Compute `embedding` (V, C) from the factors."""

    def fold(self, d_embedding: Floats, factors: Mapping[str, Floats], gradients: Mapping[str, Floats]) -> None:
        """Compute the gradients of the factors from that of the embedding (V, C), which is not changed.

        `factors` are those of the version that forward and backward read. Where kernels have written a part of
        `gradients` themselves, the rest is added.
        """
