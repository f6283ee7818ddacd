"""The abacus tokenizer: a digit at each place of a number is a token of its own (after McLeish et al., 2024).

It stands on a tokenizer of characters or bytes. A number is a run of the digits 0 to 9; its first digit is at place 1.
The token of digit d at place p ≤ P has the id V + 10 (p − 1) + d, with V the vocabulary of the tokenizer below and P
the number of places. Digits further right keep their plain ids, and so does everything else. `decode` ignores places,
so it is the inverse of `encode`.

McLeish et al. add an embedding of the place to that of the digit, which is a function of the sequence. With a token for
each pair a plain model has the same function: the row of (d, p) is the sum of the two.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import DIGITS
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.counted_tokens import of_characters
from threadloom.stages.data.digit_places import DigitTable
from threadloom.stages.data.documents import Document, EncodedDocument
from threadloom.stages.data.plain_tokenizer import PlainTokenizer
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.tokenizer import FORMAT, Tokenizer, TokenizerError, validated_ids

_BASES: dict[str, type[CharacterTokenizer] | type[BytesTokenizer]] = {
    base.kind.value: base for base in (CharacterTokenizer, BytesTokenizer)
}
"""Kind of the tokenizer below → its class."""


class AbacusTokenizer(PlainTokenizer):
    """A tokenizer of characters or bytes with tokens for the digits of numbers. Implements `Tokenizer`."""

    kind: ClassVar[str] = "abacus"
    """The kind in the file of the tokenizer."""

    def __init__(self, base: CharacterTokenizer | BytesTokenizer, places: int) -> None:
        """`places` is P, at least 1 (ValueError)."""
        if places < 1:
            raise ValueError(f"an abacus has at least one place, not {places}")
        self.base, self.places = base, places
        self.digit_table = DigitTable.of(_ids_of_digits(base), base.vocab_size, places)
        """Digit and place of each id."""

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Self:
        """Return the saved tokenizer; raises ValueError."""
        places, base = content.get("places"), content.get("base")
        if not isinstance(places, int) or not isinstance(base, dict) or base.get("kind") not in _BASES:
            raise ValueError("an abacus without its places or the tokenizer below it")
        return cls(_BASES[base["kind"]].from_content(base), places)

    @property
    def vocab_size(self) -> int:
        """The tokens of the tokenizer below, and ten for each place."""
        return self.base.vocab_size + DIGITS * self.places

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return all ids but those of digits that the tokenizer below lacks, which no text has."""
        table = self.digit_table
        return np.flatnonzero((table.places == 0) | (table.plain_ids[table.digits] >= 0))

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text; raises TokenizerError as the tokenizer below."""
        return self._placed(self.base.encode(text), 0)

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the chunks of a text as its parts, each with as many of the digits before it as have places."""
        before = ""
        for part in self.base.parts(chunks):
            yield part._replace(before=before)
            before = _last_digits((before + part.text)[-self.places :])

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part; raises as `encode`."""
        found = self.base.encode_parts(parts)
        return [self._placed(ids, len(part.before)) for ids, part in zip(found, parts, strict=True)]

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the ids of a document; raises as `encode`."""
        return of_characters(document, self.encode(document.text), self.base.characters_of(document.text))

    def _placed(self, ids: NDArray[np.int32], before: int) -> NDArray[np.int32]:
        """Return ids with places for digits; `before` is the length of the number that they continue."""
        if not len(ids):
            return ids
        digits = self.digit_table.digits[ids]
        position = np.arange(1, len(ids) + 1, dtype=np.int32)
        last_other = np.maximum.accumulate(np.where(digits < 0, position, -before))
        place = position - last_other
        placed = np.where(
            (digits >= 0) & (place <= self.places), self.base.vocab_size + DIGITS * (place - 1) + digits, ids
        )
        return placed.astype(np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the ids; raises TokenizerError."""
        array, table = validated_ids(ids, self.vocab_size), self.digit_table
        plain = np.where(table.places[array] > 0, table.plain_ids[table.digits[array]], array)
        unknown = np.flatnonzero(plain < 0)
        if not len(unknown):
            return self.base.decode(plain)
        parts = [self.base.decode(part[part >= 0]) for part in np.split(plain, unknown)]
        return "".join(
            [parts[0], *(f"{table.digits[array[at]]}{text}" for at, text in zip(unknown, parts[1:], strict=True))]
        )

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the same text as `decode`."""
        return self.decode(ids)

    def save(self, path: Path) -> None:
        """Write the places and the tokenizer below as JSON."""
        self.base.save(path)
        base = json.loads(path.read_text(encoding="utf-8"))
        content = {"format": FORMAT, "kind": self.kind, "places": self.places, "base": base}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def digit_table(tokenizer: Tokenizer) -> DigitTable | None:
    """Return digit and place of each id of a tokenizer; None unless it has tokens for places."""
    return tokenizer.digit_table if isinstance(tokenizer, AbacusTokenizer) else None


def _last_digits(text: str) -> str:
    """Return the digits 0 to 9 at the end of a text."""
    return text[len(text.rstrip("0123456789")) :]


def _ids_of_digits(base: CharacterTokenizer | BytesTokenizer) -> list[int]:
    """Return the ids of the digits 0 to 9; -1 for one that the tokenizer lacks."""
    return [_id_of(base, str(digit)) for digit in range(DIGITS)]


def _id_of(base: CharacterTokenizer | BytesTokenizer, digit: str) -> int:
    try:
        found = int(base.encode(digit)[0])
    except TokenizerError:
        return -1
    return found if base.decode([found]) == digit else -1
