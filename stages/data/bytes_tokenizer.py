"""The bytes tokenizer: one id per byte of UTF-8."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import DataConfig, TokenizerKind
from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS, ChunkedText, code_points
from threadloom.stages.data.counted_tokens import of_characters
from threadloom.stages.data.documents import Document, EncodedDocument
from threadloom.stages.data.plain_tokenizer import PlainTokenizer
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.tokenizer import parts_of, utf8_bytes, validated_ids, write_content

BYTES_PER_CHARACTER = 100
"""Bytes that the chunks of a text in flight take per character of one; measured."""


class BytesTokenizer(PlainTokenizer):
    """One id per byte of the UTF-8 encoding: it encodes any text, with a vocabulary of 256."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.BYTES
    min_vocabulary: ClassVar[int] = 256
    needs_vocabulary: ClassVar[bool] = False
    learns_validation: ClassVar[bool] = True
    compresses: ClassVar[bool] = False
    vocab_size = 256

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return 256."""
        return cls.vocab_size

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return the memory of a chunk."""
        return BYTES_PER_CHARACTER * min(text.characters, CHUNK_CHARACTERS)

    @classmethod
    def create(cls, data: DataConfig, text: ChunkedText, limit: int) -> Self:
        """Return the tokenizer of the text, as `train` does."""
        return cls.train(text, limit)

    @classmethod
    def train(cls, text: ChunkedText, limit: int) -> Self:
        """Return the tokenizer, which does not depend on the text."""
        return cls()

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Return the tokenizer."""
        return cls()

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return all ids."""
        return np.arange(self.vocab_size)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the bytes of the text."""
        return _ids(text, 0)

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the chunks of a text as its parts."""
        return parts_of(chunks)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the bytes of each part."""
        return [_ids(part.text, part.position) for part in parts]

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the bytes of a document; those of a character that counts do count."""
        return of_characters(document, self.encode(document.text), self.characters_of(document.text))

    def characters_of(self, text: str) -> NDArray[np.int64]:
        """Return the place in a text of the character of each token (N,)."""
        points = code_points(text)
        sizes = 1 + (points > 0x7F).astype(np.intp) + (points > 0x7FF) + (points > 0xFFFF)
        return np.repeat(np.arange(len(points)), sizes)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the bytes, with U+FFFD for invalid UTF-8."""
        return validated_ids(ids, self.vocab_size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the same text as `decode`."""
        return self.decode(ids)

    def save(self, path: Path) -> None:
        """Write a JSON file that names this tokenizer."""
        write_content(path, self.kind)


def _ids(text: str, position: int) -> NDArray[np.int32]:
    return np.frombuffer(utf8_bytes(text, position), np.uint8).astype(np.int32)
