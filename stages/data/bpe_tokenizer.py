"""The byte-pair tokenizer of GPT-2, saved as Hugging Face's tokenizer.json."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import TokenizerKind
from threadloom.stages.data.tokenizer import utf8_bytes, validated_ids
from threadloom.stages.models import EndOfText

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""Special token of GPT-2, which is encoded as one token."""

_CHUNK = 1 << 16


class BpeTokenizer:
    """GPT-2's byte-level byte-pair encoding, implemented by the `tokenizers` library."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.BPE
    min_vocabulary: ClassVar[int] = 257  # the bytes and the end of text
    needs_vocabulary: ClassVar[bool] = True
    learns_validation: ClassVar[bool] = False

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
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
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, processors, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=limit,
            min_frequency=2,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_chunks(text), trainer)
        return cls(tokenizer)

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
        """Return the ids of the text, which is encoded in chunks on all cores with the same result."""
        utf8_bytes(text)  # raises for lone surrogates
        parts = self._tokenizer.encode_batch_fast(list(_chunks(text)), add_special_tokens=False)
        ids = [np.array(part.ids, np.int32) for part in parts]
        return np.concatenate(ids) if ids else np.zeros(0, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the ids, with U+FFFD for an incomplete character at the end."""
        return self._tokenizer.decode(validated_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write Hugging Face's tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")


def _chunks(text: str) -> Iterator[str]:
    """Split a text where GPT-2's pre-tokenizer always splits it: after a line end between two visible characters."""
    start = 0
    for match in re.finditer(r"(?<=\S)\n(?=\S)", text):
        if match.end() - start >= _CHUNK:
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]
