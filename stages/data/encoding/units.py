"""Units: the pieces of a corpus in the order of its token files, and the batches in which they are encoded.

The batches are a function of the corpus and the tokenizer alone. So the number of batches that have been written says
where a preparation that was killed goes on.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from threadloom.stages.data.documents import Document, LongDocument
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 17
"""Characters after which a batch ends. Only a document with marks, such as a conversation, may be longer."""
BATCH_UNITS = 1 << 12
"""Units after which a batch ends: each takes some memory, even if it is empty."""


class Unit(NamedTuple):
    """A part of a running text, a document or a part of one, or only a mark."""

    split: int
    """Number of the split that it belongs to."""
    content: TextPart | Document | None = None
    begins_source: bool = False
    begins_document: bool = False
    ends_document: bool = False

    @property
    def characters(self) -> int:
        """Number of characters."""
        return 0 if self.content is None else len(self.content.text)


def begin_source(split: int) -> Unit:
    """Return the mark of the first token of a source."""
    return Unit(split, begins_source=True)


def text_units(split: int, tokenizer: Tokenizer, chunks: Iterable[str]) -> Iterator[Unit]:
    """Yield the units of a running text; raises TokenizerError and the errors of its chunks."""
    return (Unit(split, part) for part in tokenizer.parts(chunks))


def document_units(split: int, tokenizer: Tokenizer, parts: Iterable[Document | LongDocument]) -> Iterator[Unit]:
    """Yield the units of documents; raises as `text_units`."""
    for found in parts:
        if isinstance(found, Document) and (found.is_marked or len(found.text) <= BATCH_CHARACTERS):
            yield Unit(split, found, begins_document=True, ends_document=True)
            continue
        yield Unit(split, begins_document=True)
        yield from text_units(split, tokenizer, [found.text] if isinstance(found, Document) else found.chunks)
        yield Unit(split, ends_document=True)


def batches(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Yield units in batches."""
    batch, characters = list[Unit](), 0
    for unit in units:
        batch.append(unit)
        characters += unit.characters
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_UNITS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
