"""The byte-pair tokenizer of GPT-2, saved as Hugging Face's tokenizer.json."""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.pipeline import available_cores
from threadloom.stages.config import TokenizerKind
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data.bpe_training import END_OF_TEXT, IN_PROCESS_CHARACTERS, train_byte_pairs, train_in_process
from threadloom.stages.data.tokenizer import utf8_bytes, validated_ids
from threadloom.stages.models import EndOfText

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    import tokenizers

_CHUNK = 1 << 16
"""Characters, at least, that are encoded at a time by one thread."""
_LONGEST = 1 << 18
"""Characters in which a chunk ends at the end of a line or a word, if there is one."""
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_WORD_END = re.compile(r"(?<=\S)(?= \S)")
_EITHER_END = re.compile(f"{_LINE_END.pattern}|{_WORD_END.pattern}")


_LastWord = Callable[[str, int, int], int | None]


class BpeTokenizer:
    """GPT-2's byte-level byte-pair encoding, implemented by the `tokenizers` library."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.BPE
    min_vocabulary: ClassVar[int] = 257  # the bytes and the end of text
    needs_vocabulary: ClassVar[bool] = True
    learns_validation: ClassVar[bool] = False

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._special = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values())
        self._vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def max_vocabulary(cls, text: str, vocab_size: int | None, alphabet: int) -> int:
        """Return `vocab_size`."""
        return vocab_size or 0

    @classmethod
    def train(cls, text: str, limit: int) -> Self:
        """Return a tokenizer trained on the text, with at most `limit` tokens and at least 257.

        Pairs that occur once are not merged, so a short text has fewer tokens.
        """
        train = train_byte_pairs if len(text) <= IN_PROCESS_CHARACTERS else train_in_process
        return cls.from_huggingface(train(_chunks(text), limit))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Raise ValueError: byte-pair tokenizers are saved in Hugging Face's format (`from_huggingface`)."""
        raise ValueError("a byte-pair tokenizer in the format of another kind")

    @classmethod
    def from_huggingface(cls, text: str) -> Self:
        """Return the tokenizer in the text of a tokenizer.json; raises ValueError."""
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
        """Return the ids of the text, which is encoded in chunks on all cores with the same result.

        Python handles signals between batches of chunks, each of which takes a fraction of a second.
        """
        utf8_bytes(text)  # raises for lone surrogates
        chunks, progress, done = _chunks(text, self._last_word), PeriodicLog(), 0
        found = [np.zeros(0, np.int32)]
        while batch := list(islice(chunks, 4 * available_cores())):
            parts = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            found += [np.array(part.ids, np.int32) for part in parts]
            done += sum(map(len, batch))
            progress("tokenising the text: {:.0%}", done / len(text))
        return np.concatenate(found)

    def _last_word(self, text: str, start: int, end: int) -> int | None:
        """Return a place after `start` at which the library always splits a text; None if it finds none before `end`.

        That is where a special token begins or ends, otherwise where the last word begins.
        """
        longest = max(map(len, self._special), default=0)
        found = [(place, token) for token in self._special if (place := text.find(token, start, end + longest)) >= 0]
        if found:
            place, token = min(found)
            return place if place > start else place + len(token)
        splitter = self._tokenizer.pre_tokenizer
        words = splitter.pre_tokenize_str(text[start:end]) if splitter is not None else []
        for _, (offset, _) in reversed(words[1:]):
            place = start + int(offset)
            if text[place].isspace() or not text[place - 1].isspace():  # words of white space depend on the next one
                return place
        return None

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the ids, with U+FFFD for an incomplete character at the end."""
        return self._tokenizer.decode(validated_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write Hugging Face's tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")


def _chunks(text: str, last_word: _LastWord | None = None) -> Iterator[str]:
    """Split a text where the pre-tokenizer always splits it.

    That is after a line end between two visible characters, otherwise before a space between two, and otherwise at the
    last word, as `last_word` finds it, of a part that is as long as necessary; without `last_word` such a text is one
    chunk.
    """
    start = 0
    while len(text) - start > _CHUNK:
        end = _chunk_end(text, start, last_word)
        if end is None:
            break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _chunk_end(text: str, start: int, last_word: _LastWord | None) -> int | None:
    for pattern in (_LINE_END, _WORD_END):
        if match := pattern.search(text, start + _CHUNK - 1, start + _LONGEST):
            return match.end()
    if last_word is None:
        match = _EITHER_END.search(text, start + _CHUNK - 1)
        return match.end() if match else None
    size = _CHUNK
    while start + size < len(text):
        if place := last_word(text, start, start + size):
            return place
        size *= 2
    return None
