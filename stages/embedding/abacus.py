"""Rows of digits at places as sums of a row of the digit and one of the place (as McLeish et al., 2024: 2405.17399).

The tokens of `data.digits=abacus` are pairs of a digit and a place. The digit learns at every place, and the place from
every digit; other tokens have rows of their own.
"""

import numpy as np

from threadloom.kernels import Floats
from threadloom.stages.config import DIGITS, INITIAL_DEVIATION, most_places
from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix
from threadloom.stages.embedding.vocabulary import VocabularyFacts
from threadloom.stages.models import keyed_generator

_KEY = 1001
"""Second half of the key of the initial rows' random generator, which no other tensor has."""


def abacus_embedding(facts: VocabularyFacts) -> SparseEmbedding:
    """Return W with ``(D_d + P_p) / √2`` for digit d at place p; without digits at places, one that changes nothing."""
    rows = np.arange(facts.size)
    digits, places = facts.digits, facts.places
    placed = places > 0
    own, pairs = rows[~placed], rows[placed]
    half = np.full(len(pairs), np.sqrt(0.5))
    matrix = SparseMatrix.of(
        (facts.size, facts.size + DIGITS + most_places(facts.size)),
        np.concatenate([own, pairs, pairs]),
        np.concatenate([own, facts.size + digits[pairs], facts.size + DIGITS + places[pairs] - 1]),
        np.concatenate([np.ones(len(own)), half, half]),
    )
    return SparseEmbedding(matrix, _start)


def _start(embedding: Floats, factors: Floats, seed: int) -> None:
    keyed_generator(seed, _KEY).standard_normal(dtype=np.float32, out=factors)
    factors *= np.float32(INITIAL_DEVIATION)
    factors[: len(embedding)] = embedding
