"""Splitting a text into chunks for byte-pair encoding, where the pre-tokenizer always splits it into words.

Words, and therefore counts and ids, are those of the whole text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    from tokenizers.pre_tokenizers import PreTokenizer

CHUNK = 1 << 14
"""Characters, at least, of a chunk, except the last."""
LONGEST = 1 << 16
"""Characters in which a chunk ends at the end of a line or a word, if there is one."""

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_WORD_END = re.compile(r"(?<=\S)(?= \S)")


class Splitter:
    """Splits texts where one pre-tokenizer always does.

    That is after a line end between two visible characters, otherwise before a space between two, and otherwise at the
    last word of a part that is as long as necessary.
    """

    def __init__(self, pre_tokenizer: "PreTokenizer | None", special: Sequence[str] = ()) -> None:
        """`special` tokens are recognised before the pre-tokenizer splits a text."""
        self._pre_tokenizer, self._special = pre_tokenizer, tuple(special)
        self._longest = max(map(len, self._special), default=0)

    def chunks(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the chunks of a text that arrives in pieces of any length."""
        window = _Window(pieces)
        while window.fill(LONGEST) > CHUNK and (end := self._end(window)):
            yield window.take(end)
        if rest := window.rest():
            yield rest

    def _end(self, window: "_Window") -> int | None:
        """Return the position in `window.text` at which its first chunk ends; None if that is the end of the text."""
        for pattern in (_LINE_END, _WORD_END):
            if match := pattern.search(window.text, window.start + CHUNK - 1, window.start + LONGEST):
                return match.end()
        size = CHUNK
        while window.fill(size + self._longest) > size:
            if place := self._last_word(window.text, window.start, window.start + size):
                return place
            size *= 2
        return None

    def _last_word(self, text: str, start: int, end: int) -> int | None:
        """Return a place after `start` at which the library always splits a text; None if it finds none before `end`.

        That is where a special token begins or ends, otherwise where the last word begins.
        """
        found = [
            (place, token)
            for token in self._special
            if (place := text.find(token, start, end + self._longest)) >= 0
        ]  # fmt: skip
        if found:
            place, token = min(found)
            return place if place > start else place + len(token)
        words = self._pre_tokenizer.pre_tokenize_str(text[start:end]) if self._pre_tokenizer is not None else []
        for _, (offset, _) in reversed(words[1:]):
            place = start + int(offset)
            if text[place].isspace() or not text[place - 1].isspace():  # words of white space depend on the next one
                return place
        return None


class _Window:
    """The part of a text that has been read and not been taken: `text[start:]`."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self.text, self.start = "", 0

    def fill(self, characters: int) -> int:
        """Read until the part has `characters` characters, or to the end of the text; return its length."""
        left = len(self.text) - self.start
        parts: list[str] = []
        while left < characters and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            left += len(piece)
        if parts:
            self.text, self.start = "".join([self.text[self.start :], *parts]), 0
        return left

    def take(self, end: int) -> str:
        """Remove and return the part up to the position `end` of `text`."""
        start, self.start = self.start, end
        return self.text[start:end]

    def rest(self) -> str:
        """Remove and return the rest of the text, however long it is."""
        rest = "".join([self.text[self.start :], *self._pieces])
        self.text, self.start = "", 0
        return rest
