"""The parts that tokenizers share whose vocabulary is counted in the text of a run."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from threadloom.stages.config import DataConfig
from threadloom.stages.data.bpe_memory import bpe_bytes
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.library_tokenizer import LibraryTokenizer


class TrainedTokenizer(LibraryTokenizer, ABC):
    """A tokenizer of the library with a vocabulary of `model.vocab_size`, learned from the training split."""

    needs_vocabulary: ClassVar[bool] = True
    learns_validation: ClassVar[bool] = False
    compresses: ClassVar[bool] = True

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return `vocab_size`."""
        return vocab_size or 0

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return an estimate: training counts each different word of the text."""
        return bpe_bytes(text)

    @classmethod
    def create(cls, data: DataConfig, text: ChunkedText, limit: int) -> Self:
        """Return a tokenizer trained on the text, as `train` does."""
        return cls.train(text, limit)

    @classmethod
    @abstractmethod
    def train(cls, text: ChunkedText, limit: int) -> Self:
        """Return a tokenizer trained on the text, with at most `limit` tokens."""
