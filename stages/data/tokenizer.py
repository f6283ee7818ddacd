"""The protocol of tokenizers, and the parts that their implementations share."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import DataConfig, InputError, SpecialTokens, TokenizerKind
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.documents import Document, EncodedDocument
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.models import EndOfText

FORMAT = "threadloom-tokenizer"
"""Value of the key `format` in the JSON files of tokenizers, except those in Hugging Face's format."""


class TokenizerError(InputError):
    """A text or token ids that a tokenizer cannot process, or a file without a valid tokenizer."""


class Tokenizer(Protocol):
    """A mapping from text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""

    @property
    def end_of_text(self) -> EndOfText | None:
        """The token that begins and ends a text, if there is one."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens, text → id."""

    @property
    def beginning(self) -> NDArray[np.int32]:
        """The ids (N,) with which a model's input begins, such as that of <s>; usually none."""

    def with_special_tokens(self, special: SpecialTokens) -> "Tokenizer":
        """Return this tokenizer with a treatment of special tokens in a text; at first they are text."""

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return the ids (N,) that `decode` returns a text for, in ascending order."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids (N,) of a text, all in [0, vocab_size); raises TokenizerError for a text without ids."""

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of a text in chunks: those that `encode` returns for the whole text; raises TokenizerError."""

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the parts of a text in chunks, whose ids make up those of the text; raises TokenizerError."""

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part, in any thread; raises TokenizerError."""

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the ids of a document, and which of them count; raises TokenizerError.

        The ids are those that `encode` returns for its text, except that special tokens are recognised in its markup
        only, if that is known. A token that overlaps a part that counts does count.
        """

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids; raises TokenizerError for an id outside [0, vocab_size)."""

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the text of ids that follow others; raises as `decode`.

        Some tokenizers leave out the space with which the first token of a text begins; here it is part of the text.
        """

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON, which `load_tokenizer` reads; raises OSError."""


class TokenizerSource(Protocol):
    """The creation of the tokenizers of a kind; `TOKENIZERS` lists one for each kind."""

    kind: ClassVar[TokenizerKind]
    min_vocabulary: ClassVar[int]
    """Smallest `model.vocab_size` that a tokenizer can be created for."""
    needs_vocabulary: ClassVar[bool]
    """True if `model.vocab_size` must be set before."""
    learns_validation: ClassVar[bool]
    """True if it is created from the whole text, False if from the training split alone."""
    compresses: ClassVar[bool]
    """True if a token may have several characters, so that a text may have fewer tokens than characters."""

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return the largest vocabulary for a text, with `model.vocab_size` and `data.alphabet`."""

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return the memory that creation and encoding take for a text, in bytes, those of processes included."""

    @classmethod
    def create(cls, data: DataConfig, text: ChunkedText, limit: int) -> Tokenizer:
        """Return the tokenizer of a non-empty text with at most `limit` tokens."""


def parts_of(chunks: Iterable[str]) -> Iterator[TextPart]:
    """Yield the chunks of a text as its parts, for a tokenizer whose tokens are at most one character."""
    position = 0
    for chunk in chunks:
        yield TextPart(chunk, position=position)
        position += len(chunk)


def write_content(path: Path, kind: TokenizerKind, **content: object) -> None:
    """Write the JSON file of a tokenizer."""
    path.write_text(json.dumps({"format": FORMAT, "kind": kind.value, **content}, indent=1) + "\n", encoding="utf-8")


def utf8_bytes(text: str, position: int = 0) -> bytes:
    """Return the UTF-8 encoding of the part of a text from a position; raises TokenizerError for a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {position + error.start:,} of the text",
            expected="a character that UTF-8 can encode",
            got=f"the lone surrogate U+{ord(text[error.start]):04X}",
            hint="pass the text in UTF-8",
        ) from error


def validated_ids(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Return ids as a one-dimensional array; raises TokenizerError for an id outside [0, vocab_size)."""
    array = np.asarray(ids, dtype=np.int64).ravel()
    wrong = (array < 0) | (array >= vocab_size)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise TokenizerError(
            f"token {at:,}",
            expected=f"an id from 0 to {vocab_size - 1}",
            got=f"{array[at]}",
            cause="the ids are from another tokenizer, or the model's vocabulary is larger than the tokenizer's",
            hint="use the tokenizer next to the model",
        )
    return array
