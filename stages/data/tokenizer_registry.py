"""The registry of tokenizers, which are created as a configuration asks.

To add a tokenizer, write its class, list it here, and add its name to `TokenizerKind`; its file is read by
`stages.data.tokenizer_files`.
"""

from collections.abc import Mapping

from threadloom.stages.config import ConfigError, DataConfig, TokenizerKind
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.pretrained_tokenizer import PretrainedTokenizer
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerSource

_SOURCES: tuple[type[TokenizerSource], ...] = (CharacterTokenizer, BytesTokenizer, BpeTokenizer, PretrainedTokenizer)
TOKENIZERS: Mapping[TokenizerKind, type[TokenizerSource]] = {found.kind: found for found in _SOURCES}
"""Kind → source of its tokenizers."""


def create_tokenizer(data: DataConfig, vocab_size: int | None, text: ChunkedText) -> Tokenizer:
    """Return a tokenizer of the kind `data.tokenizer` for a non-empty text.

    `vocab_size` is the largest vocabulary; None: as many tokens as the tokenizer needs. Raises ConfigError if it is too
    small for the kind of tokenizer, or None for a kind that needs it; TokenizerError for a file without a tokenizer.
    """
    source = TOKENIZERS[data.tokenizer]
    if (vocab_size is None and source.needs_vocabulary) or (
        vocab_size is not None and vocab_size < source.min_vocabulary
    ):
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least {source.min_vocabulary} for data.tokenizer={data.tokenizer.value}",
            got="null" if vocab_size is None else f"{vocab_size}",
        )
    return source.create(data, text, source.max_vocabulary(text, vocab_size, data.alphabet))
