"""The tokens of texts that are evaluated, and the sizes of the texts, which losses of tokenizers are compared by.

Conversations, and prompts with completions, have the tokens that a training reads: those of the chat template, with the
token that ends a text after each, and marks of those that count in the loss.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from threadloom.stages.config import ConfigError, InputError
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data import (
    STANDARD_INPUT,
    DataError,
    Document,
    IntegerAppender,
    Reading,
    Text,
    TokenFile,
    Tokenizer,
    prepared_order,
    read_text,
    standard_input,
    token_type,
)
from threadloom.stages.inference.model import Model

_DECODED = 1 << 16
"""Ids that are decoded at a time."""
_REPLACEMENT = "\ufffd"
"""Decoded in place of bytes that are no character."""
_LONGEST = 4
"""Bytes, and thus tokens, of the longest character."""


class TextSize(NamedTuple):
    """Size of a text."""

    characters: int
    bytes: int
    """In UTF-8."""


@dataclass(frozen=True)
class EvaluatedDocument:
    """A text that is scored by itself: its first token follows no other one."""

    name: str
    """Path of its file, with the line of a record; of several files that are one text, those of all."""
    start: int
    """Position of its first token in the token file."""
    tokens: int
    given: int
    """Number of its first tokens that are not scored: those with which the tokenizer begins a text, otherwise one."""
    size: TextSize
    """Size of the text of the tokens that are scored."""


@dataclass(frozen=True)
class EvaluatedTokens:
    """Documents one after another in a token file."""

    file: TokenFile
    documents: tuple[EvaluatedDocument, ...]


@contextmanager
def text_tokens(model: Model, texts: tuple[str, ...], reading: Reading) -> Iterator[EvaluatedTokens]:
    """Yield the tokens of texts, in temporary files that have no name. Files of plain text are one document or several.

    A dash is standard input. Raises `DataError` if no document has a token to score, and the errors of `read_text`.
    """
    kind = token_type(max(model.geometry.vocabulary, model.tokenizer.vocab_size))
    """Wide enough for an id that the model has no row for, which `TokenFile` refuses."""
    try:
        with (
            standard_input(texts, Path(tempfile.gettempdir()) / "text", None) as spooled,
            tempfile.TemporaryFile(prefix="threadloom-") as ids,
            tempfile.TemporaryFile(prefix="threadloom-") as marks,
        ):
            paths = [str(spooled) if text == STANDARD_INPUT else text for text in texts]
            text = read_text(paths, reading=reading)
            writer = _Writer(model.tokenizer, IntegerAppender(ids, kind), IntegerAppender(marks, np.dtype(np.uint8)))
            for name, content in _named(text, texts):
                writer.add(name if spooled is None else name.replace(str(spooled), "standard input"), content)
            if not writer.documents:
                expected = "a text of at least two tokens, one to predict from the other"
                raise DataError(texts[0], expected=expected, got=f"{writer.count}")
            yield writer.tokens(model.geometry.vocabulary, Path(texts[0]))
    except OSError as error:
        raise DataError(
            ", ".join(texts),
            expected="a temporary file for the tokens of the text",
            got=error.strerror or str(error),
            hint="set TMPDIR to a writable folder on a disk with more space",
        ) from error


def _named(text: Text, texts: tuple[str, ...]) -> Iterator[tuple[str, Document | Iterable[str]]]:
    """Yield the name of each document with the document, if it has marks, or with chunks of it.

    Chunks are to be read before the next document.
    """
    progress = PeriodicLog()
    done = 0

    def reported(chunks: Iterable[str]) -> Iterator[str]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            progress("tokenising the text: {:.0%}", done / text.characters)

    if text.documents is None:
        yield ", ".join(texts), reported(text.chunks())
        return
    for part in text.parts():
        if not isinstance(part, Document):
            yield str(part.origin), reported(part.chunks)
        elif part.is_marked:
            yield str(part.origin), part
            done += len(part.text)
        else:
            yield str(part.origin), reported([part.text])


def validation_tokens(model: Model, run: Path, *, by_document: bool) -> EvaluatedTokens:
    """Return the tokens of the validation split of a run, as one text, or `by_document` if it has documents.

    Raises `ConfigError` if they are missing.
    """
    path = run / "data" / "validation.npy"
    if not path.exists():
        raise ConfigError(
            str(path),
            expected="the validation tokens of a run",
            got="no such file",
            cause="the path is not a run directory, or its data were removed",
            hint="pass a text with --text FILE_OR_DIR",
        )
    tokens = TokenFile.open(path, model.geometry.vocabulary, 1, prepared_order(path.parent))
    if not by_document or tokens.documents is None:
        size = _scored_size(model.tokenizer, tokens, 0, len(tokens))
        return EvaluatedTokens(tokens, (EvaluatedDocument(str(path), 0, len(tokens), 1, size),))
    spans = enumerate(pairwise([*tokens.documents.tolist(), len(tokens)]), start=1)
    found = tuple(
        EvaluatedDocument(
            f"{path}, document {number:,}", start, end - start, 1, _scored_size(model.tokenizer, tokens, start, end)
        )
        for number, (start, end) in spans
        if end - start > 1
    )
    return EvaluatedTokens(tokens, found)


def _scored_size(tokenizer: Tokenizer, tokens: TokenFile, start: int, end: int) -> TextSize:
    """Return the size of the text of the tokens from `start` to `end` that count, without the first and without ends.

    The token that ends a document of a file with documents has no text.
    """
    with _of_the_file(tokens):
        return _size_that_counts(tokenizer, tokens, start, end)


def _size_that_counts(tokenizer: Tokenizer, tokens: TokenFile, start: int, end: int) -> TextSize:
    size = TextSize(0, 0)
    for first, last in _counted_runs(tokens, start + 1, end):
        if first == start + 1:  # the first token may have a part of a character
            beginning = tokenizer.decode(tokens.tokenizer_ids(start, min(end, start + 64)))
            ids = tokens.tokenizer_ids(start, min(end, start + 1 + _LONGEST))
            found = decoded_size(tokenizer, tokens, start, last)
            found = _difference(found, size_of_first_token(tokenizer, ids, beginning))
        else:
            found = decoded_size(tokenizer, tokens, first, last)
        size = TextSize(size.characters + found.characters, size.bytes + found.bytes)
    if tokens.documents is None or tokenizer.end_of_text is None:
        return size
    ends = tokens.tokenizer_ids(start + 1, end) == tokenizer.end_of_text.id
    if tokens.counted is not None:
        ends &= tokens.counted[start + 1 : end] != 0
    text, count = tokenizer.decode_following([tokenizer.end_of_text.id]), int(np.count_nonzero(ends))
    return _difference(size, TextSize(count * len(text), count * len(text.encode())))


def _counted_runs(tokens: TokenFile, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges, from `start` to `end`, of neighbouring tokens that count."""
    if tokens.counted is None:
        yield start, end
        return
    steps = np.diff(tokens.counted[start:end].astype(np.int8), prepend=0, append=0)
    for first, last in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
        yield start + int(first), start + int(last)


def decoded_size(tokenizer: Tokenizer, tokens: TokenFile, start: int = 0, end: int | None = None) -> TextSize:
    """Return the size of the text of tokens from `start` to `end`, which is decoded in parts of whole characters."""
    characters = bytes_ = 0
    last = len(tokens) if end is None else end
    with _of_the_file(tokens):
        while start < last:
            decode = tokenizer.decode_following if start else tokenizer.decode
            for stop in range(start + _DECODED, start + _DECODED + _LONGEST):
                text = decode(tokens.tokenizer_ids(start, min(stop, last)))
                if not text.endswith(_REPLACEMENT):
                    break
            characters, bytes_, start = characters + len(text), bytes_ + len(text.encode()), stop
    return TextSize(characters, bytes_)


@contextmanager
def _of_the_file(tokens: TokenFile) -> Iterator[None]:
    """Raise DataError with the path of a token file for ids that have no text."""
    try:
        yield
    except DataError:
        raise
    except InputError as error:
        raise DataError(
            str(tokens.path),
            expected=error.expected,
            got=f"{error.got} as {error.subject}",
            cause="the file is damaged, or belongs to another tokenizer",
            hint="pass a text with --text FILE_OR_DIR, or resume the run, which rebuilds the file from its text",
        ) from error


def size_of_first_token(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> TextSize:
    """Return the size of the part of a text that its first token has: `ids` are the first ones, `text` its beginning.

    A character that it has some bytes of belongs to the token that completes it.
    """
    own, rest = tokenizer.decode(ids[:1]), tokenizer.decode_following(ids[1 : 1 + _LONGEST])
    whole = own.rstrip(_REPLACEMENT)
    if text.startswith(own) and (own == whole or text.startswith(rest.rstrip(_REPLACEMENT), len(own))):
        return TextSize(len(own), len(own.encode()))
    if not text.startswith(whole) or len(text) == len(whole):  # the tokenizer changes the text
        return TextSize(min(len(own), len(text)), min(len(own.encode()), len(text.encode())))
    length = len(text[len(whole)].encode())
    missing = len(rest) - len(rest.lstrip(_REPLACEMENT))  # one for each byte that continues a character
    return TextSize(len(whole), len(whole.encode()) + length - min(max(missing, 1), length - 1))


class _Writer:
    """Writes the tokens of documents to a file, and which of them count in the loss to another one."""

    def __init__(self, tokenizer: Tokenizer, ids: IntegerAppender, marks: IntegerAppender) -> None:
        self._tokenizer, self._ids, self._marks = tokenizer, ids, marks
        self._starts, self._marked = list[int](), set[int]()
        self.documents: list[EvaluatedDocument] = []
        """Those of which a token can be scored."""

    @property
    def count(self) -> int:
        """Number of tokens in the file."""
        return self._ids.count

    def add(self, name: str, content: Document | Iterable[str]) -> None:
        """Append a document."""
        self._starts.append(self.count)
        found = self._add_marked(name, content) if isinstance(content, Document) else self._add_text(name, content)
        if found.tokens > found.given:
            self.documents.append(found)

    def tokens(self, vocabulary: int, path: Path) -> EvaluatedTokens:
        """Return all tokens; the files stay open while they are used."""
        ids, marks = self._ids.mapped(), self._marks.mapped() if self._marked else None
        starts = np.array(self._starts, np.int64) if self._marked else None
        file = TokenFile(ids, vocabulary, 1, path, documents=starts, counted=marks)
        return EvaluatedTokens(file, tuple(self._measured(file, document) for document in self.documents))

    def _measured(self, file: TokenFile, document: EvaluatedDocument) -> EvaluatedDocument:
        """Return a document with the size of its tokens that count, if only some do."""
        if document.start not in self._marked:
            return document
        end = document.start + document.tokens
        return replace(document, size=_scored_size(self._tokenizer, file, document.start, end))

    def _add_marked(self, name: str, document: Document) -> EvaluatedDocument:
        """Append a document as a training reads it; its size is measured later."""
        start, found, end = self.count, self._tokenizer.encode_document(document), self._tokenizer.end_of_text
        self._marked.add(start)
        self._ids.add(found.ids)
        self._marks.add(np.ones(len(found.ids), np.uint8) if found.counted is None else found.counted)
        if end is not None:
            self._ids.add(np.array([end.id]))
            self._marks.add(np.ones(1, np.uint8))
        return EvaluatedDocument(name, start, self.count - start, 1, TextSize(0, 0))

    def _add_text(self, name: str, text: Iterable[str]) -> EvaluatedDocument:
        beginning, start = self._tokenizer.beginning, self.count
        chunks = _Measured(text)
        head = np.zeros(0, np.int32)
        self._ids.add(beginning)
        self._marks.add(np.ones(len(beginning), np.uint8))
        for ids in self._tokenizer.encode_chunks(chunks):
            if len(head) <= _LONGEST:
                head = np.concatenate([head, ids[: 1 + _LONGEST]])
            self._ids.add(ids)
            self._marks.add(np.ones(len(ids), np.uint8))
        size = chunks.size
        if len(head) and not len(beginning):
            size = _difference(size, size_of_first_token(self._tokenizer, head, chunks.beginning))
        return EvaluatedDocument(name, start, self.count - start, len(beginning) or 1, size)


class _Measured:
    """Chunks of a text, whose size is known once they have been taken."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = chunks
        self.size = TextSize(0, 0)
        self.beginning = ""

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks:
            self.beginning = self.beginning or chunk
            self.size = TextSize(self.size.characters + len(chunk), self.size.bytes + len(chunk.encode()))
            yield chunk


def _difference(size: TextSize, other: TextSize) -> TextSize:
    return TextSize(size.characters - other.characters, size.bytes - other.bytes)
