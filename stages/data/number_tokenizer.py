"""The tokenizer of token files of which nothing but the ids is known: its text are the numbers."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.data.counted_tokens import of_characters
from threadloom.stages.data.documents import Document, EncodedDocument
from threadloom.stages.data.plain_tokenizer import PlainTokenizer
from threadloom.stages.data.sources.token_files import FIRST, ids_of_text
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.tokenizer import FORMAT, TokenizerError, validated_ids

_NUMBER = re.compile(r"\S+")


class NumberTokenizer(PlainTokenizer):
    """Ids as decimal numbers with spaces between them; it also encodes the text of a token file (`token_files`)."""

    kind: ClassVar[str] = "numbers"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Return the tokenizer with the saved size."""
        size = content.get("size")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"a vocabulary of size {size!r}")
        return cls(size)

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return all ids."""
        return np.arange(self.vocab_size)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text; raises TokenizerError for one that is not made of numbers of the vocabulary."""
        return self._encoded(text)[0]

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the parts of a text, which end with white space if it is made of numbers."""
        pending, position = "", 0
        for chunk in chunks:
            text = pending + chunk
            ends = 0 if _is_of_file(text) else max(map(text.rfind, " \n\t\r")) + 1
            end = len(text) if _is_of_file(text) else ends
            if end:
                yield TextPart(text[:end], position=position)
            pending, position = text[end:], position + end
        if pending:
            yield TextPart(pending, position=position)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part; raises as `encode`."""
        return [self.encode(part.text) for part in parts]

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the ids of a document; raises as `encode`."""
        return of_characters(document, *self._encoded(document.text))

    def decode(self, ids: ArrayLike) -> str:
        """Return the numbers of ids; raises TokenizerError for one outside the vocabulary."""
        return " ".join(map(str, validated_ids(ids, self.vocab_size).tolist()))

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the numbers of ids that follow others, with a space before each."""
        return "".join(f" {token}" for token in validated_ids(ids, self.vocab_size).tolist())

    def save(self, path: Path) -> None:
        """Write the size of the vocabulary as JSON."""
        content = {"format": FORMAT, "kind": self.kind, "size": self.vocab_size}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _encoded(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of a text, and the first character of each."""
        if _is_of_file(text):
            ids = validated_ids(ids_of_text(text), self.vocab_size)
            return ids.astype(np.int32), np.arange(len(ids))
        numbers = list(_NUMBER.finditer(text))
        for found in numbers:
            if not (found[0].isascii() and found[0].isdigit() and len(found[0]) <= 9):
                raise TokenizerError(
                    f"character {found.start():,} of the text",
                    expected=f"numbers from 0 to {self.vocab_size - 1}, with spaces between them",
                    got=repr(found[0][:20]),
                    cause="the model was trained on token files, without a tokenizer",
                    hint="pass the ids of the tokens, as in --prompt '15496 995'",
                )
        ids = validated_ids([int(found[0]) for found in numbers], self.vocab_size)
        return ids.astype(np.int32), np.array([found.start() for found in numbers], np.int64)


def _is_of_file(text: str) -> bool:
    return bool(text) and ord(text[0]) >= FIRST
