"""The tokenizer kind `pretrained`: a tokenizer that exists, such as that of a model to fine-tune."""

from pathlib import Path
from typing import ClassVar

from threadloom.pipeline import available_cores
from threadloom.stages.config import DataConfig, TokenizerKind
from threadloom.stages.data.bpe_memory import CORE_BYTES
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.text_paths import text_path
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_files import (
    MODEL_CONFIG_FILE,
    companion_files,
    configured_end_of_text,
    load_tokenizer,
)
from threadloom.stages.data.vocabulary_files import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    read_vocabulary,
    vocabulary_folder,
)
from threadloom.stages.storage import CONFIG_FILE

VOCABULARY_BYTES = 140_000_000
"""Bytes of a vocabulary of 150,000 tokens with its merges; measured."""


class PretrainedTokenizer:
    """The source of tokenizers from `data.tokenizer_path`."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.PRETRAINED
    min_vocabulary: ClassVar[int] = 1
    needs_vocabulary: ClassVar[bool] = False
    learns_validation: ClassVar[bool] = False
    compresses: ClassVar[bool] = True

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return 0: neither the text nor the settings limit it."""
        return 0

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return an estimate of the vocabulary and of the tokens of chunks."""
        return VOCABULARY_BYTES + CORE_BYTES * available_cores()

    @classmethod
    def create(cls, data: DataConfig, text: ChunkedText, limit: int) -> Tokenizer:
        """Return the tokenizer of `data.tokenizer_path`; raises TokenizerError."""
        return load_tokenizer(text_path(data.tokenizer_path))


def pretrained_companions(data: DataConfig) -> dict[str, Path]:
    """Return the files that accompany the tokenizer of `data` in its folder, and the configuration of its model.

    They are by their names in a prepared directory. There are none unless the tokenizer is pretrained.
    """
    if data.tokenizer is not TokenizerKind.PRETRAINED:
        return {}
    path = text_path(data.tokenizer_path)
    folder = path if path.is_dir() else path.parent
    config = {MODEL_CONFIG_FILE: folder / CONFIG_FILE} if (folder / CONFIG_FILE).is_file() else {}
    return companion_files(folder) | config


def is_prepared_from_another(data: DataConfig, prepared: Path) -> bool:
    """Return True if the tokenizer of `data` is pretrained and differs from its copy `prepared`.

    The token that ends a text is a part of it: it follows each document. A tokenizer that has been removed since does
    not differ: the copy continues the run.
    """
    if data.tokenizer is not TokenizerKind.PRETRAINED:
        return False
    path = text_path(data.tokenizer_path)
    config = (path if path.is_dir() else path.parent) / TOKENIZER_CONFIG_FILE
    copied = prepared.with_name(TOKENIZER_CONFIG_FILE)
    if config.exists() and configured_end_of_text(config) != configured_end_of_text(copied):
        return True
    if (folder := vocabulary_folder(path)) is not None and folder.exists():
        return read_vocabulary(folder).encode() != prepared.read_bytes()
    file = path / TOKENIZER_FILE if path.is_dir() else path
    return file.exists() and file.read_bytes() != prepared.read_bytes()
