"""The byte-pair tokenizer of GPT-2, trained on a text and saved as Hugging Face's tokenizer.json."""

from typing import Any, ClassVar, Self

from threadloom.stages.config import TokenizerKind
from threadloom.stages.data.bpe_training import (
    IN_PROCESS_CHARACTERS,
    train_byte_pairs,
    train_in_process,
    word_splitter,
)
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.text_splitting import Splitter
from threadloom.stages.data.trained_tokenizer import TrainedTokenizer


class BpeTokenizer(TrainedTokenizer):
    """GPT-2's byte-level byte-pair encoding, trained on the text of a run."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.BPE
    min_vocabulary: ClassVar[int] = 257  # the bytes and the end of text

    @classmethod
    def train(cls, text: ChunkedText, limit: int) -> Self:
        """Return a tokenizer trained on the text, with at most `limit` tokens and at least 257.

        Pairs that occur once are not merged, so a short text has fewer tokens.
        """
        train = train_byte_pairs if text.characters <= IN_PROCESS_CHARACTERS else train_in_process
        return cls(train(Splitter(word_splitter()).chunks(text.chunks()), limit))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Raise ValueError: byte-pair tokenizers are saved in Hugging Face's format."""
        raise ValueError("a byte-pair tokenizer in the format of another kind")
