"""Residues: a token as the sum of one row for each of its remainders (Chinese remainder theorem).

Coprime moduli whose product is at least the number of tokens give each token another combination of rows
(Shi et al., 2019, arXiv 1909.02107: complementary partitions). The table is tiny, and tokens share their rows with
unrelated ones: this costs quality, which `own_rows` for the most frequent tokens buys back.
"""

from collections.abc import Sequence

import numpy as np

from threadloom.kernels import Floats
from threadloom.stages.config import INITIAL_DEVIATION
from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix
from threadloom.stages.embedding.vocabulary import VocabularyFacts
from threadloom.stages.models import keyed_generator

_KEY = 1000
"""Second half of the key of the initial rows' random generator, which no other tensor has."""


def residue_embedding(facts: VocabularyFacts, moduli: Sequence[int], own_rows: int) -> SparseEmbedding:
    """Return W whose first `own_rows` rows are those of F, and the others sums of rows of F, one for each modulus."""
    own = np.arange(min(own_rows, facts.size))
    others = np.arange(len(own), facts.size)
    rows, columns, values = [own], [own], [np.ones(len(own))]
    first = len(own)
    for modulus in moduli:
        rows.append(others)
        columns.append(first + (others - len(own)) % modulus)
        values.append(np.full(len(others), 1 / np.sqrt(len(moduli))))  # so that W has the deviation of a plain one
        first += modulus
    shape = facts.size, first
    matrix = SparseMatrix.of(shape, np.concatenate(rows), np.concatenate(columns), np.concatenate(values))

    def start(embedding: Floats, factors: Floats, seed: int) -> None:
        keyed_generator(seed, _KEY).standard_normal(dtype=np.float32, out=factors)
        factors *= np.float32(INITIAL_DEVIATION)
        factors[: len(own)] = embedding[: len(own)]

    return SparseEmbedding(matrix, start)
