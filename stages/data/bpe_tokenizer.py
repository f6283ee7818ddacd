"""The byte-pair tokenizer of GPT-2, saved as Hugging Face's tokenizer.json."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.pipeline import available_cores
from threadloom.stages.config import TokenizerKind
from threadloom.stages.data.bpe_memory import bpe_bytes
from threadloom.stages.data.bpe_splitting import Splitter
from threadloom.stages.data.bpe_training import (
    END_OF_TEXT,
    IN_PROCESS_CHARACTERS,
    limit_library_threads,
    train_byte_pairs,
    train_in_process,
    word_splitter,
)
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.tokenizer import utf8_bytes, validated_ids
from threadloom.stages.models import EndOfText

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    import tokenizers


CHUNKS_PER_CORE = 2
"""Chunks that are encoded at a time, per core."""


class BpeTokenizer:
    """GPT-2's byte-level byte-pair encoding, implemented by the `tokenizers` library."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.BPE
    min_vocabulary: ClassVar[int] = 257  # the bytes and the end of text
    needs_vocabulary: ClassVar[bool] = True
    learns_validation: ClassVar[bool] = False
    compresses: ClassVar[bool] = True

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._splitter = Splitter(tokenizer.pre_tokenizer, special)
        self._vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def max_vocabulary(cls, text: ChunkedText, vocab_size: int | None, alphabet: int) -> int:
        """Return `vocab_size`."""
        return vocab_size or 0

    @classmethod
    def preparation_bytes(cls, text: ChunkedText) -> int:
        """Return an estimate: training counts each different word of the text."""
        return bpe_bytes(text)

    @classmethod
    def train(cls, text: ChunkedText, limit: int) -> Self:
        """Return a tokenizer trained on the text, with at most `limit` tokens and at least 257.

        Pairs that occur once are not merged, so a short text has fewer tokens.
        """
        train = train_byte_pairs if text.characters <= IN_PROCESS_CHARACTERS else train_in_process
        return cls.from_huggingface(train(Splitter(word_splitter()).chunks(text.chunks()), limit))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Raise ValueError: byte-pair tokenizers are saved in Hugging Face's format (`from_huggingface`)."""
        raise ValueError("a byte-pair tokenizer in the format of another kind")

    @classmethod
    def from_huggingface(cls, text: str) -> Self:
        """Return the tokenizer in the text of a tokenizer.json; raises ValueError."""
        limit_library_threads()
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"not a tokenizer.json of Hugging Face ({error})") from error

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, special tokens included."""
        return self._vocab_size

    @property
    def end_of_text(self) -> EndOfText | None:
        """GPT-2's special token, if the vocabulary contains it."""
        found = self._tokenizer.token_to_id(END_OF_TEXT)
        return None if found is None else EndOfText(found, END_OF_TEXT)

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return the ids of all tokens: there may be gaps between them."""
        return np.unique(np.array(list(self._tokenizer.get_vocab(with_added_tokens=True).values()), np.int64))

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of the text; raises TokenizerError for a lone surrogate."""
        return np.concatenate([np.zeros(0, np.int32), *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of a text in chunks, which are encoded on all cores.

        Python handles signals between batches of chunks, each of which takes a fraction of a second.
        """
        parts = self._splitter.chunks(_valid(chunks))
        while batch := list(islice(parts, CHUNKS_PER_CORE * available_cores())):
            for found in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(found.ids, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the ids, with U+FFFD for an incomplete character at the end."""
        return self._tokenizer.decode(validated_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write Hugging Face's tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")


def _valid(chunks: Iterable[str]) -> Iterator[str]:
    """Yield chunks; raises TokenizerError for a lone surrogate, which the library cannot encode."""
    position = 0
    for chunk in chunks:
        utf8_bytes(chunk, position)
        yield chunk
        position += len(chunk)
