"""The registry of tokenizers, which are created as a configuration asks.

To add a tokenizer, write its class, list it here, and add its name to `TokenizerKind`; its file is read by
`stages.data.tokenizer_files`.
"""

from collections.abc import Mapping

from threadloom.stages.config import DIGITS, ConfigError, DataConfig, Digits, TokenizerKind
from threadloom.stages.data.abacus_tokenizer import AbacusTokenizer
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS, ChunkedText
from threadloom.stages.data.pretrained_tokenizer import PretrainedTokenizer
from threadloom.stages.data.token_file_tokenizer import BYTES_PER_TOKEN, token_file_tokenizer
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerSource
from threadloom.stages.data.word_tokenizer import WordTokenizer

_SOURCES: tuple[type[TokenizerSource], ...] = (
    CharacterTokenizer,
    BytesTokenizer,
    WordTokenizer,
    BpeTokenizer,
    PretrainedTokenizer,
)
TOKENIZERS: Mapping[TokenizerKind, type[TokenizerSource]] = {found.kind: found for found in _SOURCES}
"""Kind → source of its tokenizers."""

ABACUS_BYTES_PER_CHARACTER = 80
"""Bytes that the places of digits take per character of a chunk."""


def max_vocabulary(data: DataConfig, vocab_size: int | None, text: ChunkedText) -> int:
    """Return the largest vocabulary for a text, without the tokens of digits at places."""
    if text.largest_id is not None:
        return 0  # neither the text nor the settings limit it
    base = None if vocab_size is None else vocab_size - _placed_digits(data)
    return TOKENIZERS[data.tokenizer].max_vocabulary(text, base, data.alphabet)


def preparation_bytes(data: DataConfig, text: ChunkedText) -> int:
    """Return the bytes of memory that the preparation of a text takes; an estimate for BPE."""
    if text.largest_id is not None:
        return BYTES_PER_TOKEN * min(text.characters, CHUNK_CHARACTERS)
    places = ABACUS_BYTES_PER_CHARACTER * min(text.characters, CHUNK_CHARACTERS) if _placed_digits(data) else 0
    return TOKENIZERS[data.tokenizer].preparation_bytes(text) + places


def create_tokenizer(data: DataConfig, vocab_size: int | None, text: ChunkedText) -> Tokenizer:
    """Return a tokenizer of the kind `data.tokenizer` for a non-empty text, with the tokens of `data.digits`.

    `vocab_size` is the largest vocabulary; None: as many tokens as the tokenizer needs. Raises ConfigError if it is too
    small for the kind of tokenizer, or None for a kind that needs it; TokenizerError for a file without a tokenizer.
    """
    if text.largest_id is not None:
        return token_file_tokenizer(data, vocab_size, text.largest_id)
    source, placed = TOKENIZERS[data.tokenizer], _placed_digits(data)
    least = source.min_vocabulary + placed
    if (vocab_size is None and source.needs_vocabulary) or (vocab_size is not None and vocab_size < least):
        digits = f" and {data.digit_places} places of digits" if placed else ""
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least {least} for data.tokenizer={data.tokenizer.value}{digits}",
            got="null" if vocab_size is None else f"{vocab_size}",
        )
    tokenizer = source.create(data, text, max_vocabulary(data, vocab_size, text))
    if not placed:
        return tokenizer
    if not isinstance(tokenizer, CharacterTokenizer | BytesTokenizer):
        raise ValueError(f"{data.tokenizer} has no digits that are tokens by themselves")  # `validate` refuses it
    return AbacusTokenizer(tokenizer, data.digit_places)


def _placed_digits(data: DataConfig) -> int:
    return DIGITS * data.digit_places if data.digits is Digits.ABACUS else 0
