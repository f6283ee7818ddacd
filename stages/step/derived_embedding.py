"""The two points of an update at which the token embedding and its factors are connected."""

from collections.abc import Mapping

import numpy as np

from threadloom import kernels
from threadloom.kernels import Floats
from threadloom.stages.embedding import DerivedEmbedding
from threadloom.stages.memory import Bank
from threadloom.stages.models import Geometry, InitialWeights, derived_tensors, token_embedding
from threadloom.stages.step.compute import Compute
from threadloom.stages.step.optimizers import trained_elements
from threadloom.stages.step.reducer import Gradient


class EmbeddingFactors:
    """Computes the gradients of the factors before the norm is known, and the embedding before a version is published.

    Each is one call per batch, in the thread of `Clip` and `Publish`. An embedding that does not exist in memory, as
    the kernels read the factors and write their gradients, is computed for checkpoints alone.
    """

    def __init__(
        self, derived: DerivedEmbedding, compute: Compute, geometry: Geometry, clip_value: float = 0.0
    ) -> None:
        """`clip_value` limits each element of the unscaled gradient, once the factors have theirs; 0: no limit."""
        self._clip_value = clip_value
        self._name = token_embedding(geometry)
        self.in_memory = self._name in derived_tensors(geometry)
        """True if banks hold the embedding beside its factors."""
        self._factors = [name for name, _ in geometry.factors]
        self._derived, self._compute, self._geometry = derived, compute, geometry

    def start(self, bank: Bank, source: InitialWeights, seed: int) -> None:
        """Write the initial factors of a bank, in which `source` has written all it has.

        It has the random embedding that a plain run starts from.
        """
        if self.in_memory:
            embedding = bank.arena[self._name]
        else:
            embedding = self._new_embedding()
            source.write({self._name: embedding})
        self._derived.start(embedding, self._of(bank.arena), seed)

    def _new_embedding(self) -> Floats:
        return np.empty((self._geometry.vocabulary, self._geometry.channels), np.float32)

    def _of(self, tensors: Mapping[str, Floats]) -> dict[str, Floats]:
        return {name: tensors[name] for name in self._factors}

    def fold(self, gradient: Gradient, read: Bank, scale: float) -> None:
        """Compute the gradients of the factors, and the squares of the trained tensors alone.

        `read` holds the version that the gradient was computed with, times `scale`.
        """
        if not self.in_memory:
            return
        arena = gradient.arena
        self._derived.fold(arena[self._name], self._of(read.arena), self._of(arena))
        trained = trained_elements(self._geometry, arena)
        last = self._factors[-1]
        of_factors = -(-(arena.offset(last) + arena[last].size) // kernels.CHUNK)
        whole = -(-trained // kernels.CHUNK)
        gradient.recompute_squares(range(min(of_factors, whole)), trained)
        gradient.recompute_squares(range(max(whole - 1, 0), whole), trained)
        if self._clip_value:
            gradient.clip_values(self._clip_value * scale, range(whole), trained)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the embedding depends on besides its factors."""
        return self._derived.digest

    def embedding_of(self, factors: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return the name of the embedding and its values for some factors, in a new array."""
        embedding = self._new_embedding()
        self._derived.derive(self._of(factors), embedding)
        return {self._name: embedding}

    def compute(self, bank: Bank) -> None:
        """Compute the embedding of a bank from its factors; its packed weights are left as they are."""
        if self.in_memory:
            self._derived.derive(self._of(bank.arena), bank.arena[self._name])

    def derive(self, bank: Bank) -> None:
        """Compute the embedding of a bank from its factors, and the packed weights of both."""
        if not self.in_memory:
            return
        self.compute(bank)
        self._compute.pack_from_master(bank, {self._name, *self._factors})
