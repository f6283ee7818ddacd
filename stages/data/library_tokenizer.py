"""Tokenizers in Hugging Face's format: a tokenizer.json of any kind that the `tokenizers` library reads.

Examples are the byte-level tokenizers of GPT-2, Llama 3, Qwen and SmolLM, and those of Llama 2 and Mistral, which were
converted from SentencePiece. A text is encoded in chunks on all cores; `stages.data.text_boundaries` finds where it can
be cut.
"""

import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.pipeline import available_cores
from threadloom.stages.config import SpecialTokens
from threadloom.stages.data.bpe_training import END_OF_TEXT, limit_library_threads
from threadloom.stages.data.text_boundaries import find_boundaries
from threadloom.stages.data.text_splitting import CHUNK, Splitter
from threadloom.stages.data.tokenizer import TokenizerError, utf8_bytes, validated_ids
from threadloom.stages.models import EndOfText

if TYPE_CHECKING:  # 3 MB that only such tokenizers need
    import tokenizers

CHUNKS_PER_CORE = 2
"""Chunks that are encoded at a time, per core."""


class LibraryTokenizer:
    """A tokenizer that the `tokenizers` library implements.

    Truncation and padding in the file are not applied, and neither is dropout of merges.
    """

    def __init__(self, content: str, end_of_text: str | None = None) -> None:
        """Raise ValueError unless `content` is that of a tokenizer.json.

        `end_of_text` is the text of the token that ends a text; None: that of GPT-2, if the vocabulary contains it.
        """
        self._content = content
        self._tokenizer = _library_tokenizer(content)
        self._lock = threading.Lock()  # from setting `encode_special_tokens` to the end of the encoding
        self._special = SpecialTokens.TOKENS
        self._end_of_text = END_OF_TEXT if end_of_text is None else end_of_text
        self._vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included."""
        return self._vocab_size

    @property
    def end_of_text(self) -> EndOfText | None:
        """The token that ends a text, if the vocabulary contains it."""
        found = self._tokenizer.token_to_id(self._end_of_text)
        return None if found is None else EndOfText(found, self._end_of_text)

    @cached_property
    def beginning(self) -> NDArray[np.int32]:
        """The ids (N,) that the tokenizer's post-processor puts before a text, such as that of <s>."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        return np.array(encoding.ids[: mask.index(0) if 0 in mask else 0], np.int32)

    def with_special_tokens(self, special: SpecialTokens) -> Self:
        """Return the tokenizer with another treatment of special tokens in a text; it shares the vocabulary."""
        other = copy.copy(self)
        other._special = special
        return other

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return the ids of all tokens: there may be gaps between them."""
        return np.unique(np.array(list(self._tokenizer.get_vocab(with_added_tokens=True).values()), np.int64))

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text; raises TokenizerError for a lone surrogate."""
        if len(text) <= CHUNK:
            utf8_bytes(text)
            return np.array(self._encoded([text])[0], np.int32)
        return np.concatenate([np.zeros(0, np.int32), *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of a text in chunks, which are encoded on all cores.

        Python handles signals between batches of chunks, each of which takes a fraction of a second.
        """
        parts, previous, overlap = self._splitter.chunks(_valid(chunks)), "", self._splitter.overlap
        while batch := list(islice(parts, CHUNKS_PER_CORE * available_cores())):
            shared = [part[-overlap:] if overlap else "" for part in [previous, *batch[:-1]]]
            found = self._encoded([before + part for before, part in zip(shared, batch, strict=True)])
            removed = self._encoded(shared) if overlap else [[] for _ in batch]
            for ids, before in zip(found, removed, strict=True):
                yield np.array(ids[len(before) :], np.int32)
            previous = batch[-1]

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids, with U+FFFD for an incomplete character at the end."""
        return self._tokenizer.decode(validated_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the text of ids that follow a visible character, with U+FFFD for an incomplete one at the end."""
        first, before = self._visible
        text = self._tokenizer.decode(
            [*first, *validated_ids(ids, self.vocab_size).tolist()], skip_special_tokens=False
        )
        return text[len(before) :] if text.startswith(before) else self.decode(ids)

    def save(self, path: Path) -> None:
        """Write the tokenizer.json as it was read."""
        path.write_text(self._content, encoding="utf-8")

    @cached_property
    def _visible(self) -> tuple[list[int], str]:
        """The ids of a visible character, and their text."""
        ids = self._encoded(["a"])[0]
        return ids, self._tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def _splitter(self) -> Splitter:
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        boundaries = find_boundaries(self._tokenizer)
        plain = self._tokenizer.normalizer is None and boundaries.exact and not boundaries.overlap
        return Splitter(self._tokenizer.pre_tokenizer if plain else None, added, boundaries)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        with self._lock:
            self._tokenizer.encode_special_tokens = self._special is SpecialTokens.TEXT
            try:
                return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            except Exception as error:  # the library raises nothing more specific
                raise TokenizerError(
                    "the text",
                    expected="a text that the tokenizer can encode",
                    got=str(error),
                    cause="its vocabulary lacks a token for unknown characters",
                    hint="use a tokenizer with an unknown token, or remove those characters",
                ) from error


def _library_tokenizer(content: str) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer without what makes encodings shorter, padded or random; raises ValueError."""
    limit_library_threads()
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"not a tokenizer.json of Hugging Face ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, tokenizers.models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def _valid(chunks: Iterable[str]) -> Iterator[str]:
    """Yield chunks; raises TokenizerError for a lone surrogate, which the library cannot encode."""
    position = 0
    for chunk in chunks:
        utf8_bytes(chunk, position)
        yield chunk
        position += len(chunk)
