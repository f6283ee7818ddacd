"""The facts of a vocabulary that layouts use: the texts of its tokens, and their pairs in the training split."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data import Dataset, DigitTable, TokenFile, digit_table

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

    table: DigitTable | None = None
    """Digit and place of each id of the tokenizer, if it has tokens for places."""
    ids: NDArray[np.int32] | None = None
    """Id of each row; None: the rows are in the order of the ids."""

    @property
    def digits(self) -> NDArray[np.int64]:
        """Digit of each row; -1 if it is none."""
        return self._by_row(None if self.table is None else self.table.digits, -1)

    @property
    def places(self) -> NDArray[np.int64]:
        """Place of the digit of each row, from 1 on; 0 if it has none."""
        return self._by_row(None if self.table is None else self.table.places, 0)

    def _by_row(self, by_id: NDArray[np.int32] | None, missing: int) -> NDArray[np.int64]:
        values = np.full(self.size, missing)
        if by_id is not None:
            values[: len(by_id)] = by_id
        return values if self.ids is None else values[self.ids]

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

    def frequencies(self) -> NDArray[np.float64]:
        """Return how often each row occurs in the training split before another token."""
        total = np.zeros(self.size)
        for block in self._blocks():
            known = block[:-1][(block[:-1] >= 0) & (block[:-1] < self.size)]
            total += np.bincount(known, minlength=self.size)
        return total

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield the training split in blocks that overlap by one token."""
        if self.tokens is None:
            return
        for first in range(0, len(self.tokens) - 1, BLOCK):
            yield self.tokens.ids[first : first + BLOCK + 1].astype(np.int64)


def vocabulary_facts(data: Dataset, size: int) -> VocabularyFacts:
    """Return the facts of a prepared text for an embedding with `size` rows."""
    texts = [""] * size
    order = data.order.extended(size) if data.order else None
    rows = order.rows if order else np.arange(size)
    for token in data.tokenizer.ids_with_text():
        texts[int(rows[token])] = data.tokenizer.decode_following([token])
    table = digit_table(data.tokenizer)
    return VocabularyFacts(size, tuple(texts), data.train, table, order.ids if order else None)
