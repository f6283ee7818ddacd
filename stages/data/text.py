"""The text of files: one running text, or documents.

The text depends only on the names and contents of the files (`text_files`). Plain text is UTF-8 (`text_decoding`). A
byte order mark at the start of a file is dropped, line ends are kept, and a line end is added between files if the
first of them has none. A text with a file of records (`sources`) consists of documents: each record is one, and so is
each file of plain text. Read as a running text, a document that does not end with a line end is followed by one.
Files are read in chunks, and again for each use of the text, which is never in memory as a whole.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS, ChunkedText
from threadloom.stages.data.documents import Document, LongDocument, Origin, Span
from threadloom.stages.data.sources.registry import DEFAULT_READING, Reading, documents, format_of
from threadloom.stages.data.sources.token_files import token_chunks
from threadloom.stages.data.text_decoding import text_chunks
from threadloom.stages.data.text_files import LeftOut
from threadloom.stages.data.text_format import TextError


class TextFile(NamedTuple):
    """One file of a text."""

    path: Path
    characters: int
    """Characters of its part of the running text, without the separator."""
    sha256: str
    """Checksum of its text in UTF-8, or of its documents."""
    separator: str = ""
    """The line end that follows it in the text, if it has none and is not the last."""
    records: int | None = None
    """Number of its documents; None for plain text and for token ids."""
    largest_id: int | None = None
    """The largest id of a token file; None for text."""


class SkippedRecords(NamedTuple):
    """The records of a file that are not part of the text."""

    path: Path
    invalid: int
    empty: int
    """Records with an empty text."""
    reasons: tuple[str, ...]
    """Places and reasons of the first invalid ones."""


@dataclass(frozen=True)
class Text(ChunkedText):
    """The text of files, as they were when they were first read."""

    characters: int
    sha256: str
    """Checksum of the text in UTF-8, or of its documents."""
    files: tuple[TextFile, ...]
    """Its files, in order."""
    left_out: tuple[LeftOut, ...]
    """Files and whole directories that were found in directories and are not part of the text."""
    skipped: tuple[SkippedRecords, ...] = ()
    """Records that are not part of the text, by file."""
    documents: int | None = None
    """Number of documents; None for one running text."""
    largest_id: int | None = None
    """The largest id of the token files that the text consists of; None for text."""
    reading: Reading = DEFAULT_READING
    documents_sha256: str = field(default="", repr=False)
    """Checksum of the documents, of which each file of plain text is one."""

    def checksum(self) -> str:
        """Return the SHA-256 of the text in UTF-8, or of its documents."""
        return self.sha256

    def chunks(self) -> Iterator[str]:
        """Yield the running text in chunks.

        Raises TextError for a file that has changed, except one that has only grown.
        """
        for file in self.files:
            if file.records is None:
                yield from _unchanged_chunks(file)
            else:
                yield from _running(_unchanged_documents(file, self.reading))
            if file.separator:
                yield file.separator

    def parts(self) -> Iterator[Document | LongDocument]:
        """Yield the documents; the chunks of one are to be read before the next. Raises TextError as `chunks`."""
        for file in self.files:
            if file.records is None:
                characters = file.characters + len(file.separator)
                if characters:
                    yield LongDocument(Origin(file.path), characters, _unchanged_chunks(file))
            else:
                yield from _unchanged_documents(file, self.reading)

    def as_documents(self) -> "Text":
        """Return the text as documents, even if it has no file of records."""
        count = sum(file.characters > 0 if file.records is None else file.records for file in self.files)
        return replace(self, sha256=self.documents_sha256, documents=count)


def ended(text: str) -> str:
    """Return the text of a document as a part of a running text."""
    return text if text.endswith(("\n", "\r")) else text + "\n"


def add_document(digest: "hashlib._Hash", document: Document) -> None:
    """Add to a checksum all that decides the ids of a document."""
    content = document.text.encode()
    digest.update(b"D" + struct.pack("<Q", len(content)))
    digest.update(content)
    for spans in (document.counted, document.markup):
        digest.update(_spans(spans))


def _spans(spans: Iterable[Span] | None) -> bytes:
    if spans is None:
        return b"-"
    numbers = [number for span in spans for number in span]
    return b"S" + struct.pack(f"<Q{len(numbers)}Q", len(numbers), *numbers)


def _running(found: Iterable[Document]) -> Iterator[str]:
    """Yield the running text of documents, in chunks."""
    texts: list[str] = []
    length = 0
    for document in found:
        texts.append(ended(document.text))
        length += len(texts[-1])
        if length >= CHUNK_CHARACTERS:
            yield from _cut("".join(texts))
            texts, length = [], 0
    yield from _cut("".join(texts))


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK_CHARACTERS):
        yield text[start : start + CHUNK_CHARACTERS]


def _unchanged_documents(file: TextFile, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a file as it was before; raises TextError if it has changed."""
    digest, left = hashlib.sha256(), file.records or 0
    found = format_of(file.path)
    for document in documents(file.path, found, reading.maker) if left and found else ():
        if not isinstance(document, Document) or not document.text:  # left out, as at the first time
            continue
        add_document(digest, document)
        left -= 1
        yield document
        if not left:
            break
    if left or digest.hexdigest() != file.sha256:
        raise _changed(file)


def _unchanged_chunks(file: TextFile) -> Iterator[str]:
    """Yield the text of a file as it was before; raises TextError if it has changed."""
    digest, left = hashlib.sha256(), file.characters
    read = text_chunks if file.largest_id is None else token_chunks
    for chunk in read(file.path) if left else ():
        kept = chunk[:left]
        digest.update(kept.encode())
        left -= len(kept)
        yield kept
        if not left:
            break
    if left or digest.hexdigest() != file.sha256:
        raise _changed(file)


def _changed(file: TextFile) -> TextError:
    return TextError(
        str(file.path),
        expected="the text that it had when it was read first",
        got="another one",
        cause="another program writes to the file",
        hint="start again when it has finished, or pass a copy of the file",
    )
