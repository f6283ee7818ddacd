"""Encoding of batches of units, in any thread."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.documents import Document
from threadloom.stages.data.encoding.units import Unit
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.tokenizer import Tokenizer


class EncodedUnits(NamedTuple):
    """The tokens of consecutive units of one split."""

    split: int
    ids: NDArray[Any]
    """(N,), of the type of the token file."""
    counted: NDArray[np.bool_] | None
    """(N,): the tokens that count in the loss; None: all."""
    documents: NDArray[np.int64] | None
    """Numbers of tokens before each document that begins here; None of a running text."""
    sources: tuple[int, ...]
    """Numbers of tokens before each source that begins here."""


class EncodedBatch(NamedTuple):
    """The tokens of a batch."""

    parts: tuple[EncodedUnits, ...]
    characters: int


@dataclass(frozen=True)
class BatchEncoder:
    """The function of the stage that encodes; any number of threads may call it."""

    tokenizer: Tokenizer
    kind: np.dtype[Any]
    """Type of the ids in the token files."""

    def __call__(self, batch: Sequence[Unit]) -> EncodedBatch:
        """Return the tokens of a batch; raises TokenizerError."""
        plain = iter(self._plain(batch))
        parts = tuple(self._encoded(split, list(units), plain) for split, units in groupby(batch, lambda u: u.split))
        return EncodedBatch(parts, sum(unit.characters for unit in batch))

    def _plain(self, batch: Sequence[Unit]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of each unit without marks of its characters, which are encoded together."""
        requests = list[TextPart]()
        counts = list[int]()
        for unit in batch:
            if isinstance(unit.content, TextPart):
                requests.append(unit.content)
                counts.append(1)
            elif unit.content is not None and not unit.content.is_marked:
                own = list(self.tokenizer.parts([unit.content.text])) if unit.content.text else []
                requests += own
                counts.append(len(own))
        found = iter(self.tokenizer.encode_parts(requests) if requests else [])
        for count in counts:
            own_ids = [next(found) for _ in range(count)]
            yield own_ids[0] if count == 1 else np.concatenate([np.zeros(0, np.int32), *own_ids])

    def _encoded(self, split: int, units: Sequence[Unit], plain: Iterator[NDArray[np.int32]]) -> EncodedUnits:
        end = self.tokenizer.end_of_text
        tokens = _Tokens()
        for unit in units:
            if unit.begins_source:
                tokens.sources.append(tokens.count)
            if unit.begins_document:
                tokens.documents.append(tokens.count)
            if isinstance(unit.content, Document) and unit.content.is_marked:
                tokens.add(*self._document(unit.content))
            elif unit.content is not None:
                tokens.add(next(plain), None)
            if unit.ends_document and end is not None:
                tokens.add(np.array([end.id], np.int32), None)
        with_documents = any(unit.begins_document or unit.ends_document for unit in units)
        return tokens.encoded(split, self.kind, with_documents=with_documents)

    def _document(self, document: Document) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
        found = self.tokenizer.encode_document(document)
        return found.ids, found.counted


@dataclass
class _Tokens:
    """Tokens that are collected."""

    count: int = 0
    parts: list[NDArray[np.int32]] = field(default_factory=list)
    counted: list[NDArray[np.bool_] | None] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def add(self, ids: NDArray[np.int32], counted: NDArray[np.bool_] | None) -> None:
        """Add tokens; `counted` is None if all count."""
        self.parts.append(ids)
        self.counted.append(None if counted is None or counted.all() else counted)
        self.count += len(ids)

    def encoded(self, split: int, kind: np.dtype[Any], *, with_documents: bool) -> EncodedUnits:
        """Return the tokens as arrays."""
        ids = np.concatenate([np.zeros(0, np.int32), *self.parts]).astype(kind)
        counted = None
        if any(marks is not None for marks in self.counted):
            marks = zip(self.parts, self.counted, strict=True)
            counted = np.concatenate([np.ones(len(part), np.bool_) if some is None else some for part, some in marks])
        documents = np.array(self.documents, np.int64) if with_documents else None
        return EncodedUnits(split, ids, counted, documents, tuple(self.sources))
