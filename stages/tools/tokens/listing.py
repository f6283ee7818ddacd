"""A vocabulary in its order, with what is known of each token, and the columns in which it is shown.

To add a column, add it to `columns_of`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data import (
    TOKENIZER_FILE,
    DigitTable,
    TokenFile,
    Tokenizer,
    digit_table,
    load_tokenizer,
    prepared_order,
)
from threadloom.stages.storage import RunDirectory

_TRAINING_SPLIT = "train.npy"


@dataclass(frozen=True)
class VocabularyListing:
    """A vocabulary; ranks are from 0 on."""

    tokenizer: Tokenizer
    ids: NDArray[np.int32]
    """Id of the token of each rank (V,)."""
    counts: NDArray[np.int64] | None
    """How often each is in the training split (V,); None without one."""
    places: DigitTable | None
    """Digits and their places by id, if the tokenizer has them."""

    @classmethod
    def of(cls, path: Path) -> "VocabularyListing":
        """Return the vocabulary of a run directory, of its prepared text, or of a tokenizer.

        Raises TokenizerError if there is no tokenizer, DataError for damaged files of a prepared text.
        """
        folder = next((place for place in (RunDirectory(path).data, path) if (place / _TRAINING_SPLIT).exists()), None)
        if folder is None:
            tokenizer = load_tokenizer(path)
            ids = np.arange(tokenizer.vocab_size, dtype=np.int32)
            return cls(tokenizer, ids, None, digit_table(tokenizer))
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
        order = prepared_order(folder)
        ids = np.arange(tokenizer.vocab_size, dtype=np.int32) if order is None else order.ids
        rows = TokenFile.open(folder / _TRAINING_SPLIT, tokenizer.vocab_size, 1)
        return cls(tokenizer, ids, rows.counts(), digit_table(tokenizer))

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, rank: int) -> str:
        """Return the text of a token; U+FFFD for a part of a character."""
        return self.tokenizer.decode_following([self.ids[rank]])


@dataclass(frozen=True)
class Column:
    """A column of the list."""

    name: str
    text: Callable[[VocabularyListing, int], str]
    """Vocabulary and rank → what is shown."""


def columns_of(listing: VocabularyListing) -> list[Column]:
    """Return the columns of a vocabulary: those for which something is known."""
    columns = [
        Column("rank", lambda _, rank: str(rank)),
        Column("id", lambda listing, rank: str(listing.ids[rank])),
        Column("text", lambda listing, rank: json.dumps(listing.text(rank), ensure_ascii=False)),
    ]
    if (table := listing.places) is not None:
        columns.append(Column("place", lambda listing, rank: str(table.places[listing.ids[rank]] or "")))
    if (counts := listing.counts) is not None:
        shares = np.cumsum(counts) / max(1, int(counts.sum()))
        columns.append(Column("count", lambda _, rank: str(counts[rank])))
        columns.append(Column("share", lambda _, rank: f"{shares[rank]:.6f}"))
    return columns
