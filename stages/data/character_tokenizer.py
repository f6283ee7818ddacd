"""The character tokenizer: one id per character."""

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
from threadloom.stages.data.tokenizer import TokenizerError, parts_of, validated_ids, write_content

REPLACEMENT = "\ufffd"
"""Character that replaces those that a limited alphabet leaves out."""

BYTES_PER_CHARACTER, BYTES_PER_CODE_POINT = 125, 24
"""Bytes that the chunks in flight take per character of one, and the counts up to the largest code point; measured."""

_CODE_POINTS = 0x110000


class CharacterTokenizer(PlainTokenizer):
    """One id per character, in the order of the code points, as nanoGPT's character-level tokenizer.

    Characters outside the alphabet become U+FFFD if the alphabet contains it (a limited alphabet), and raise otherwise.
    """

    kind: ClassVar[TokenizerKind] = TokenizerKind.CHARACTERS
    min_vocabulary: ClassVar[int] = 2
    needs_vocabulary: ClassVar[bool] = False
    learns_validation: ClassVar[bool] = True  # as nanoGPT: the alphabet is that of the whole text
    compresses: ClassVar[bool] = False

    def __init__(self, alphabet: str) -> None:
        """`alphabet`: at least one character, each once, sorted by code point; raises ValueError."""
        points = code_points(alphabet)
        if not len(points) or np.any(points[1:] <= points[:-1]):
            raise ValueError("an alphabet needs at least one character, each once, in the order of the code points")
        self.alphabet = alphabet
        self._points = points
        self._ids = np.full(_CODE_POINTS, -1, np.int32)
        if REPLACEMENT in alphabet:
            self._ids[:] = alphabet.index(REPLACEMENT)
        self._ids[points] = np.arange(len(points), dtype=np.int32)

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return the number of different characters of the text, at most `alphabet` and `vocab_size`."""
        return min(alphabet, vocab_size or alphabet, int(np.count_nonzero(text.character_counts)))

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return the memory of a chunk, the counts and the table of ids."""
        table, counts = np.dtype(np.int32).itemsize * _CODE_POINTS, BYTES_PER_CODE_POINT * len(text.character_counts)
        return BYTES_PER_CHARACTER * min(text.characters, CHUNK_CHARACTERS) + counts + table

    @classmethod
    def create(cls, data: DataConfig, text: ChunkedText, limit: int) -> Self:
        """Return the tokenizer of the text, as `train` does."""
        return cls.train(text, limit)

    @classmethod
    def train(cls, text: ChunkedText, limit: int = 256) -> Self:
        """Return the tokenizer of the characters in `text`, which must not be empty (ValueError).

        If there are more than `limit`, the alphabet consists of the limit − 1 most frequent ones (of equally frequent
        ones, those with the lower code point) and U+FFFD for the others.
        """
        counts = text.character_counts
        present = np.flatnonzero(counts)
        if len(present) > limit:
            ranked = present[np.argsort(-counts[present], kind="stable")]
            ranked = ranked[ranked != ord(REPLACEMENT)][: limit - 1]
            present = np.sort(np.append(ranked, ord(REPLACEMENT)))
        return cls(_text(present.astype(np.uint32)))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Return the tokenizer with the saved alphabet."""
        alphabet = content.get("alphabet")
        if not isinstance(alphabet, str) or len(alphabet) != content.get("size"):
            raise ValueError("an incomplete alphabet")
        return cls(alphabet)

    @property
    def vocab_size(self) -> int:
        """Number of characters in the alphabet."""
        return len(self._points)

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return all ids."""
        return np.arange(self.vocab_size)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return one id per character; raises TokenizerError for one outside an alphabet without U+FFFD."""
        return self._encoded(text, 0)

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the chunks of a text as its parts."""
        return parts_of(chunks)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return one id per character of each part; raises as `encode` does."""
        return [self._encoded(part.text, part.position) for part in parts]

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return one id per character of a document; raises as `encode` does."""
        return of_characters(document, self.encode(document.text), self.characters_of(document.text))

    def characters_of(self, text: str) -> NDArray[np.int64]:
        """Return the place in a text of the character of each token (N,)."""
        return np.arange(len(text))

    def _encoded(self, text: str, position: int) -> NDArray[np.int32]:
        ids = self._ids[code_points(text)]
        if len(ids) and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise TokenizerError(
                f"character {position + at:,} of the text",
                expected=f"one of the {self.vocab_size} characters of the tokenizer",
                got=f"{text[at]!r} (U+{ord(text[at]):04X})",
                cause="the training text does not contain it",
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """Return the characters of the ids."""
        return _text(self._points[validated_ids(ids, self.vocab_size)])

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the same text as `decode`."""
        return self.decode(ids)

    def save(self, path: Path) -> None:
        """Write the alphabet as JSON."""
        write_content(path, self.kind, size=len(self.alphabet), alphabet=self.alphabet)


def _text(points: NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
