"""Tokenizers of texts that are token files: an existing one, of which they have the ids, or that of numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import ConfigError, DataConfig, SpecialTokens, TokenizerKind
from threadloom.stages.data.documents import Document, EncodedDocument
from threadloom.stages.data.number_tokenizer import NumberTokenizer
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.text_paths import text_path
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_files import load_tokenizer
from threadloom.stages.models import EndOfText

BYTES_PER_TOKEN = 60
"""Bytes that a chunk of a token file takes per token: that of a character of plain text, which does more with it."""


def token_file_tokenizer(data: DataConfig, vocab_size: int | None, largest: int) -> Tokenizer:
    """Return the tokenizer of token files whose largest id is `largest`: that of `data.tokenizer_path`, or of numbers.

    Raises ConfigError if the tokenizer, or `model.vocab_size`, has fewer ids, TokenizerError for a file without a
    tokenizer.
    """
    if vocab_size is not None and largest >= vocab_size:
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least {largest + 1}: the largest id of the token files is {largest}",
            got=f"{vocab_size}",
            cause="the files are of a tokenizer with more tokens, or in another layout",
            hint=f"set model.vocab_size={largest + 1}, or null to take it from the files",
        )
    if data.tokenizer is not TokenizerKind.PRETRAINED:
        return NumberTokenizer(largest + 1)
    tokenizer = load_tokenizer(text_path(data.tokenizer_path))
    if largest >= tokenizer.vocab_size:
        raise ConfigError(
            "data.tokenizer_path",
            expected=f"a tokenizer with the ids of the token files, up to {largest}",
            got=f"one of {tokenizer.vocab_size} tokens",
            cause="the files are of another tokenizer, or in another layout",
            hint="pass the tokenizer that the files were written with, or leave it out",
        )
    return TokenFileTokenizer(tokenizer)


class TokenFileTokenizer:
    """An existing tokenizer, with whose ids token files are read; it decodes, and encodes other texts, as that one."""

    def __init__(self, base: Tokenizer) -> None:
        self._base, self._ids = base, NumberTokenizer(base.vocab_size)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._base.vocab_size

    @property
    def end_of_text(self) -> EndOfText | None:
        """The token that begins and ends a text, if there is one."""
        return self._base.end_of_text

    @property
    def beginning(self) -> NDArray[np.int32]:
        """The ids (N,) with which a model's input begins."""
        return self._base.beginning

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens, by their text."""
        return self._base.special_tokens

    def with_special_tokens(self, special: SpecialTokens) -> Self:
        """Return this tokenizer: the files have the ids of special tokens."""
        return self

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return the ids (N,) that `decode` returns a text for."""
        return self._base.ids_with_text()

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids (N,) of a text; raises TokenizerError."""
        return self._base.encode(text)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of the text of a token file in chunks."""
        return self._ids.encode_chunks(chunks)

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the parts of the text of a token file."""
        return self._ids.parts(chunks)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part of the text of a token file."""
        return self._ids.encode_parts(parts)

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the ids of the text of a token file."""
        return self._ids.encode_document(document)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids; raises TokenizerError."""
        return self._base.decode(ids)

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the text of ids that follow others; raises TokenizerError."""
        return self._base.decode_following(ids)

    def save(self, path: Path) -> None:
        """Write the existing tokenizer; raises OSError."""
        self._base.save(path)
