"""Documents: the pieces of a corpus that are encoded one by one, with the parts whose loss counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Span(NamedTuple):
    """A range of characters of a document, the end not included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that a document was read from, for messages."""

    path: Path
    record: int | None = None
    """Number of the line or the row of the document in its file, from 1; None if the file is the document."""
    unit: str = "line"
    """Name of a record of the file: a line or a row."""

    def __str__(self) -> str:
        return str(self.path) if self.record is None else f"{self.path}, {self.unit} {self.record:,}"


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is encoded as a whole, such as a file, a record or a conversation."""

    text: str
    origin: Origin
    counted: tuple[Span, ...] | None = None
    """Parts whose tokens count in the loss, in ascending order; None: all of it."""
    markup: tuple[Span, ...] | None = None
    """Parts in which special tokens of the vocabulary are recognised, in ascending order, such as those that a chat
    template writes. Elsewhere they are plain text. None: as `data.special_tokens` says."""

    @property
    def is_marked(self) -> bool:
        """True if special tokens, or tokens that do not count, make it one that is encoded as a whole."""
        return self.counted is not None or self.markup is not None


class LongDocument(NamedTuple):
    """A text that is encoded as a whole, but read in chunks, such as a file of plain text; all of it counts."""

    origin: Origin
    characters: int
    """Characters of its part of the running text, with the line end that follows it there."""
    chunks: Iterator[str]
    """Its text, without that line end."""


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """The token ids of a document."""

    ids: NDArray[np.int32]
    """(N,)"""
    counted: NDArray[np.bool_] | None = None
    """(N,): the tokens whose loss counts, each as a target; None: all."""
