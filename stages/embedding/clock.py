"""Clock features: numbers as the hands of several clocks (as FoNE, 2025: arXiv 2502.09741).

A token that is a number n has, besides its own row, ``cos 2πn/τ`` and ``sin 2πn/τ`` of trained directions, for periods
τ such as 10, 100 and 1000, which show the digits, or 12, 60 and 3600. Other tokens are as in a plain embedding.
"""

from collections.abc import Sequence

import numpy as np

from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix, start_with_embedding
from threadloom.stages.embedding.vocabulary import VocabularyFacts

LONGEST = 15
"""Largest number of digits of a number: all of them are exact in float64."""


def clock_embedding(facts: VocabularyFacts, periods: Sequence[int]) -> SparseEmbedding:
    """Return W = U + M' F' with two rows of F' for each period."""
    numbers = {row: int(text) for row, text in enumerate(map(str.strip, facts.texts)) if is_number(text)}
    own = np.arange(facts.size)
    rows, columns, values = [own], [own], [np.ones(facts.size)]
    scale = 1 / (np.sqrt(2) * len(periods))  # the absolute values of a row of M' sum to at most 1
    where, which = np.array(list(numbers), np.int64), np.array(list(numbers.values()), np.float64)
    for index, period in enumerate(periods):
        angle = 2 * np.pi * (which % period) / period
        for hand, value in enumerate((np.cos(angle), np.sin(angle))):
            rows.append(where)
            columns.append(np.full(len(where), facts.size + 2 * index + hand))
            values.append(value * scale)
    shape = facts.size, facts.size + 2 * len(periods)
    matrix = SparseMatrix.of(shape, np.concatenate(rows), np.concatenate(columns), np.concatenate(values))
    return SparseEmbedding(matrix, start_with_embedding)


def is_number(text: str) -> bool:
    """Return True for one to `LONGEST` decimal digits."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST
