"""Texts that are read in chunks, so that a text of any length takes the same memory."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.console import PeriodicLog
from threadloom.stages.data.documents import Document, LongDocument, Origin

CHUNK_CHARACTERS = 1 << 18
"""Maximum number of characters of a chunk."""


class ChunkedText(ABC):
    """A text that is read in chunks, as often as necessary, and never in memory as a whole."""

    characters: int
    documents: int | None = None
    """Number of documents; None for one running text."""
    largest_id: int | None = None
    """The largest id of token files, which are read as a text of one character per token; None for another text."""

    @abstractmethod
    def chunks(self) -> Iterator[str]:
        """Yield the text in chunks of 1 to `CHUNK_CHARACTERS` characters; raises TextError."""

    def parts(self) -> Iterator[Document | LongDocument]:
        """Yield the documents; the chunks of one are to be read before the next. Raises TextError."""
        yield LongDocument(Origin(Path("text")), self.characters, self.chunks())

    @cached_property
    def character_counts(self) -> NDArray[np.int64]:
        """Number of occurrences of each code point up to the largest one; counted at the first use."""
        counts = np.zeros(0, np.int64)
        for chunk in reported(self.chunks(), self.characters, "counting the characters of the text"):
            found = np.bincount(code_points(chunk))
            if len(found) > len(counts):
                found[: len(counts)] += counts
                counts = found
            else:
                counts[: len(found)] += found
        return counts

    def checksum(self) -> str:
        """Return the SHA-256 of the text in UTF-8, hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def first(self, characters: int) -> "ChunkedText":
        """Return the text of the first `characters` characters."""
        return _Beginning(self, characters)

    def read(self) -> str:
        """Return the whole text."""
        return "".join(self.chunks())


class StringText(ChunkedText):
    """A text in memory."""

    def __init__(self, text: str) -> None:
        self.characters = len(text)
        self._text = text

    def chunks(self) -> Iterator[str]:
        """Yield the text in chunks."""
        for start in range(0, self.characters, CHUNK_CHARACTERS):
            yield self._text[start : start + CHUNK_CHARACTERS]


class _Beginning(ChunkedText):
    """The first characters of another text."""

    def __init__(self, text: ChunkedText, characters: int) -> None:
        self.characters, self.largest_id = min(characters, text.characters), text.largest_id
        self._text = text

    def chunks(self) -> Iterator[str]:
        return split_at(self._text.chunks(), self.characters)[0]


def split_at(chunks: Iterable[str], characters: int) -> tuple[Iterator[str], Iterator[str]]:
    """Return the chunks of the first `characters` characters, and those of the rest, to be read in this order."""
    source = iter(chunks)
    rest: list[str] = []

    def first() -> Iterator[str]:
        left = characters
        while left and (chunk := next(source, None)) is not None:
            if len(chunk) > left:
                rest.append(chunk[left:])
                chunk = chunk[:left]
            left -= len(chunk)
            yield chunk

    def others() -> Iterator[str]:
        yield from rest
        yield from source

    return first(), others()


def reported(chunks: Iterable[str], characters: int, message: str) -> Iterator[str]:
    """Yield chunks, and log from time to time which part of the `characters` characters has been taken."""
    progress, done = PeriodicLog(), 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress("{}: {:.0%}", message, done / characters)


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code point of each character (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
