"""The order in which the rows of a vocabulary lie in memory, and its translation to that of the tokenizer.

A run may keep the rows of the token embedding, and of an output projection of its own, in another order than that of
the tokenizer's ids (`data.token_order`). Its token files hold rows. Models, checkpoints and initial weights are always
in the order of the tokenizer: rows are permuted when they are read, and permuted back as they are written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models.architecture import Floats
from threadloom.stages.models.geometry import Geometry
from threadloom.stages.models.initial_weights import InitialWeights
from threadloom.stages.models.registry import architecture_of


@dataclass(frozen=True, eq=False)
class VocabularyOrder:
    """A permutation of a vocabulary: row r of the tensors is the token `ids[r]` of the tokenizer."""

    ids: NDArray[np.int32]
    """Id of the token of each row (V,)."""

    def __post_init__(self) -> None:
        """Raise ValueError unless each id occurs once."""
        if not np.array_equal(np.sort(self.ids), np.arange(len(self.ids))):
            raise ValueError(f"an order needs each id from 0 to {len(self.ids) - 1} once")

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """Row of each id (V,): the inverse of `ids`."""
        rows = np.empty_like(self.ids)
        rows[self.ids] = np.arange(len(self.ids), dtype=self.ids.dtype)
        return rows

    def extended(self, vocabulary: int) -> "VocabularyOrder":
        """Return the order of a larger vocabulary, whose additional ids have no token and stay where they are."""
        return VocabularyOrder(np.append(self.ids, np.arange(len(self.ids), vocabulary, dtype=self.ids.dtype)))

    def arrange(self, tensors: Mapping[str, NDArray[Any]], geometry: Geometry) -> None:
        """Move the rows of the vocabulary from the tokenizer's order to this one, in place.

        Takes the memory of one tensor.
        """
        ids = self.extended(geometry.vocabulary).ids
        for name in vocabulary_tensors(geometry) & tensors.keys():
            tensors[name][...] = tensors[name][ids]

    def stored_rows(self, geometry: Geometry) -> dict[str, NDArray[np.int32]]:
        """Return name of each tensor of the vocabulary → its rows in the order of the tokenizer."""
        return dict.fromkeys(vocabulary_tensors(geometry), self.extended(geometry.vocabulary).rows)


class OrderedWeights:
    """Initial weights with the rows of the vocabulary in another order. Implements `InitialWeights`."""

    def __init__(self, source: InitialWeights, order: VocabularyOrder, geometry: Geometry) -> None:
        """`source` has them in the order of the tokenizer."""
        self._source, self._order, self._geometry = source, order, geometry

    def write(self, weights: Mapping[str, Floats]) -> None:
        """Write the given tensors."""
        self._source.write(weights)
        self._order.arrange(weights, self._geometry)

    def matrices(self, name: str) -> Iterator[Floats]:
        """Yield the matrices of a tensor."""
        if name not in vocabulary_tensors(self._geometry):
            yield from self._source.matrices(name)
            return
        for matrix in self._source.matrices(name):
            self._order.arrange({name: matrix}, self._geometry)
            yield matrix


def vocabulary_tensors(geometry: Geometry) -> frozenset[str]:
    """Return the names of the tensors with a row for each token: the embedding, and an output projection of its own."""
    layout = architecture_of(geometry).huggingface
    parts = layout.parts(geometry)
    return frozenset(parts[name].tensor for name in (layout.token_embedding, layout.output_projection) if name in parts)
