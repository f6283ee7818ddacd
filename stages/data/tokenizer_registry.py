"""The registry of tokenizers: trained as a configuration asks, loaded from the file that one was saved to.

To add a tokenizer, write its class, list it here, and add its name to `TokenizerKind`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from threadloom.stages.config import ConfigError, DataConfig, TokenizerKind
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.tokenizer import FORMAT, Tokenizer, TokenizerClass, TokenizerError
from threadloom.stages.storage import plain_json

_CLASSES: tuple[type[TokenizerClass], ...] = (CharacterTokenizer, BytesTokenizer, BpeTokenizer)
TOKENIZERS: Mapping[TokenizerKind, type[TokenizerClass]] = {found.kind: found for found in _CLASSES}
"""Kind → class."""


def train_tokenizer(data: DataConfig, vocab_size: int | None, text: ChunkedText) -> Tokenizer:
    """Return a tokenizer of the kind `data.tokenizer` for a non-empty text.

    `vocab_size` is the largest vocabulary; None: as many tokens as the tokenizer needs. Raises ConfigError if it is too
    small for the kind of tokenizer, or None for a kind that needs it.
    """
    chosen = TOKENIZERS[data.tokenizer]
    if (vocab_size is None and chosen.needs_vocabulary) or (
        vocab_size is not None and vocab_size < chosen.min_vocabulary
    ):
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least {chosen.min_vocabulary} for data.tokenizer={data.tokenizer.value}",
            got="null" if vocab_size is None else f"{vocab_size}",
        )
    return chosen.train(text, chosen.max_vocabulary(text, vocab_size, data.alphabet))


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a file; raises TokenizerError if the file has none."""
    try:
        text = plain_json(path.read_bytes()).decode()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}")
        if content.get("format") != FORMAT:
            return BpeTokenizer.from_huggingface(text)
        return TOKENIZERS[TokenizerKind(content.get("kind"))].from_content(content)
    except (OSError, ValueError) as error:
        unreadable = isinstance(error, OSError)
        raise TokenizerError(
            str(path),
            expected="a tokenizer saved by threadloom, or a tokenizer.json of Hugging Face",
            got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
            hint=None if unreadable else "take it from another checkpoint, or prepare the text again",
        ) from error
