"""Writing the token file of a split, with the positions of its documents and the tokens that count in the loss."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.documents import Document, LongDocument
from threadloom.stages.data.token_file import TokenWriter, counted_file, documents_file
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.storage import atomic_file

_BLOCK = 1 << 16
"""Positions, and marks, that are written at a time."""


class SplitWriter:
    """The files of a split, which replace others when `files` is left without an error.

    A document is followed by the token that ends a text, if the tokenizer has one; it belongs to the document and
    counts in the loss.
    """

    def __init__(self, files: ExitStack, path: Path, kind: np.dtype[Any], tokenizer: Tokenizer) -> None:
        self.path, self.sources = path, list[int]()
        self._files, self._tokenizer = files, tokenizer
        self._ids = TokenWriter(files.enter_context(atomic_file(path)), kind)
        self._documents: TokenWriter | None = None
        self._positions: list[int] = []
        self._counted: TokenWriter | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens that have been added."""
        return self._ids.count

    @property
    def documents(self) -> int | None:
        """Number of documents that have been added; None of a running text."""
        return None if self._documents is None else self._documents.count + len(self._positions)

    @property
    def file(self) -> BinaryIO:
        """The file of the ids."""
        return self._ids.file

    def begin_source(self) -> None:
        """Note that the following tokens are those of another source."""
        self.sources.append(self.tokens)

    def add_text(self, chunks: Iterable[str]) -> None:
        """Add a running text; raises TokenizerError and the errors of its chunks."""
        for ids in self._tokenizer.encode_chunks(chunks):
            self._add(ids, None)

    def add_documents(self, parts: Iterable[Document | LongDocument]) -> None:
        """Add documents; raises as `add_text`."""
        if self._documents is None:
            self._documents = self._beside(documents_file(self.path), np.dtype(np.int64))
        end = self._tokenizer.end_of_text
        for part in parts:
            start = self.tokens
            for ids, counted in self._encoded(part):
                self._add(ids, counted)
            if end is not None:
                self._add(np.array([end.id], np.int32), None)
            if self.tokens > start:
                self._positions.append(start)
            if len(self._positions) == _BLOCK:
                self._write_positions()

    def finish(self) -> None:
        """Complete the files; they replace others later."""
        self._write_positions()
        for writer in (self._ids, self._documents, self._counted):
            if writer is not None:
                writer.finish()

    def remove_others(self) -> None:
        """Remove the files of documents and of tokens that count of another preparation, if this one has none."""
        for path, writer in ((documents_file(self.path), self._documents), (counted_file(self.path), self._counted)):
            if writer is None:
                path.unlink(missing_ok=True)

    def _encoded(self, part: Document | LongDocument) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_] | None]]:
        if isinstance(part, Document):
            encoded = self._tokenizer.encode_document(part)
            yield encoded.ids, encoded.counted
        else:
            for ids in self._tokenizer.encode_chunks(part.chunks):
                yield ids, None

    def _add(self, ids: NDArray[np.int32], counted: NDArray[np.bool_] | None) -> None:
        """Add ids; the file of those that count begins with the first of them that does not."""
        if self._counted is None and counted is not None and not counted.all():
            self._counted = self._beside(counted_file(self.path), np.dtype(np.uint8))
            for start in range(0, self.tokens, _BLOCK):
                self._counted.add(np.ones(min(_BLOCK, self.tokens - start), np.uint8))
        self._ids.add(ids)
        if self._counted is not None:
            self._counted.add(np.ones(len(ids), np.uint8) if counted is None else counted)

    def _write_positions(self) -> None:
        if self._documents is not None:
            self._documents.add(np.array(self._positions, np.int64))
        self._positions = []

    def _beside(self, path: Path, kind: np.dtype[Any]) -> TokenWriter:
        return TokenWriter(self._files.enter_context(atomic_file(path)), kind)
