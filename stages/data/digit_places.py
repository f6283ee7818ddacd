"""Digits at places of numbers: the table of their tokens, and the random offset of the places of a training sequence.

Without an offset, places beyond the longest number of a text are never trained. A training sequence therefore gets a
random k ≥ 0, which is added to the places of all its digits (McLeish et al., 2024, section 3). A digit whose place
becomes larger than the last one is plain, as in a longer number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import DIGITS
from threadloom.stages.data.token_file import IGNORED_TARGET
from threadloom.stages.models import VocabularyOrder


@dataclass(frozen=True, eq=False)
class DigitTable:
    """Digit and place of each token of a vocabulary."""

    digits: NDArray[np.int32]
    """The digit that a token is (V,), plain or at a place; -1 if it is none."""
    places: NDArray[np.int32]
    """The place of a digit, from 1 on (V,); 0 if a token has none."""
    plain_ids: NDArray[np.int32]
    """The token without a place of each digit (10,); -1 if there is none."""
    first: int
    """Id of digit 0 at place 1; the others follow, place after place."""

    @classmethod
    def of(cls, plain_ids: Sequence[int], vocabulary: int, places: int) -> "DigitTable":
        """Return the table of `places` places after a vocabulary in which the digits have the ids `plain_ids`."""
        plain = np.full(vocabulary, -1, np.int32)
        for digit, token in enumerate(plain_ids):
            if token >= 0:
                plain[token] = digit
        digits = np.tile(np.arange(DIGITS, dtype=np.int32), places)
        numbers = np.repeat(np.arange(1, places + 1, dtype=np.int32), DIGITS)
        return cls(
            np.append(plain, digits),
            np.append(np.zeros_like(plain), numbers),
            np.array(plain_ids, np.int32),
            vocabulary,
        )

    @property
    def last(self) -> int:
        """The last place."""
        return int(self.places[-1])

    def moved(self, ids: NDArray[Any], offset: int) -> NDArray[np.int32]:
        """Return ids with `offset` added to the places of all digits that have one."""
        digits, places = self.digits[ids], self.places[ids] + offset
        there = self.first + DIGITS * (places - 1) + digits
        moved = np.where(places <= self.last, there, self.plain_ids[digits])
        return np.where((places > offset) & (moved >= 0), moved, ids).astype(np.int32)


class PlaceOffsets:
    """Adds an offset to the places in token ids, or in rows of an order."""

    def __init__(self, table: DigitTable, largest: int, order: VocabularyOrder | None) -> None:
        """Offsets are 0 to `largest`."""
        self.largest = largest
        self._table, self._order = table, order

    def add(self, offset: int, ids: NDArray[np.int32]) -> None:
        """Add an offset to all places of a sequence, in place."""
        if offset:
            order = self._order
            moved = self._table.moved(ids if order is None else order.ids[ids], offset)
            there = moved if order is None else order.rows[moved]
            ids[:] = np.where(ids == IGNORED_TARGET, IGNORED_TARGET, there)
