"""The facts of a vocabulary that layouts use: the texts of its tokens, and their pairs in the training split."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data import Dataset, TokenFile

BLOCK = 1 << 20
"""Tokens of the training split that are read at a time."""


@dataclass(frozen=True)
class VocabularyFacts:
    """A vocabulary in the order of the rows of the embedding; without a text, nothing but its size is known."""

    size: int
    """Number of rows, which may be more than there are tokens."""
    texts: tuple[str, ...] = ()
    """Text of each row; empty for one without a token."""
    tokens: TokenFile | None = None
    """The training split, as rows."""

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (row, next row, number) of each pair of neighbours in the training split, in ascending order.

        Ids outside the vocabulary, of a damaged file, are left out; the training refuses them.
        """
        total = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for block in self._blocks():
            first, second = block[:-1], block[1:]
            known = (first >= 0) & (first < self.size) & (second >= 0) & (second < self.size)
            codes, counts = np.unique((first * self.size + second)[known], return_counts=True)
            merged, where = np.unique(np.concatenate([total[0], codes]), return_inverse=True)
            weights = np.concatenate([total[1], counts])
            total = merged, np.bincount(where, weights=weights, minlength=len(merged)).astype(np.int64)
        return total[0] // self.size, total[0] % self.size, total[1]

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield the training split in blocks that overlap by one token."""
        if self.tokens is None:
            return
        for first in range(0, len(self.tokens) - 1, BLOCK):
            yield self.tokens.ids[first : first + BLOCK + 1].astype(np.int64)


def vocabulary_facts(data: Dataset, size: int) -> VocabularyFacts:
    """Return the facts of a prepared text for an embedding with `size` rows."""
    texts = [""] * size
    rows = data.order.extended(size).rows if data.order else np.arange(size)
    for token in data.tokenizer.ids_with_text():
        texts[int(rows[token])] = data.tokenizer.decode_following([token])
    return VocabularyFacts(size, tuple(texts), data.train)
