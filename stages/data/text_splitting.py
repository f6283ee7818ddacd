"""Splitting a text into chunks for a tokenizer, at places where the tokens are those of the whole text.

Words, and therefore counts and ids, are those of the whole text.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from threadloom.stages.data.text_boundaries import WORDS, Boundaries

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    from tokenizers.pre_tokenizers import PreTokenizer

CHUNK = 1 << 14
"""Characters, at least, of a chunk, except the last."""
LONGEST = 1 << 16
"""Characters in which a chunk ends at the end of a line or a word, if there is one."""


class Splitter:
    """Splits texts at `Boundaries`, and never next to an added token, which may take white space around it.

    That is after a line end between two visible characters, otherwise before a space between two, and otherwise at the
    last word of a part that is as long as necessary, if there is a pre-tokenizer to tell.
    """

    def __init__(
        self, pre_tokenizer: "PreTokenizer | None", added: Sequence[str] = (), boundaries: Boundaries = WORDS
    ) -> None:
        """`added` tokens are recognised before the pre-tokenizer splits a text.

        `pre_tokenizer` finds words in the text as it is: None if a normalizer changes the text first.
        """
        self._pre_tokenizer, self._added, self._boundaries = pre_tokenizer, tuple(added), boundaries
        self._longest = max(map(len, self._added), default=0)

    @property
    def overlap(self) -> int:
        """Characters of the previous chunk with which each chunk but the first is to be encoded."""
        return self._boundaries.overlap

    def chunks(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the chunks of a text that arrives in pieces of any length."""
        window = _Window(pieces)
        while window.fill(LONGEST) > CHUNK and (end := self._end(window)):
            yield window.take(end)
        if rest := window.rest():
            yield rest

    def _end(self, window: "_Window") -> int | None:
        """Return the position in `window.text` at which its first chunk ends; None if that is the end of the text."""
        if place := self._cut(window, LONGEST):
            return place
        size = CHUNK if self._pre_tokenizer is not None else 2 * LONGEST
        while window.fill(size + self._longest) > size:
            find = self._last_word if self._pre_tokenizer is not None else self._cut
            if place := find(window, size):
                return place
            size *= 2
        return None

    def _cut(self, window: "_Window", size: int) -> int | None:
        """Return the first boundary in a part of `size` characters, after `CHUNK` characters; None if there is none."""
        for cut in self._boundaries.cuts:
            for match in cut.pattern.finditer(window.text, window.start + CHUNK - 1, window.start + size):
                if not self._touches_added(window.text, match.end()):
                    return match.end()
        return None

    def _touches_added(self, text: str, place: int) -> bool:
        """Return True if an added token begins, ends or continues at a place, or next to the white space around it."""
        if not self._added:
            return False
        first, last = place, place
        while first and text[first - 1].isspace():
            first -= 1
        while last < len(text) and text[last].isspace():
            last += 1
        return any(text.find(token, max(0, first - len(token)), last + len(token)) >= 0 for token in self._added)

    def _last_word(self, window: "_Window", size: int) -> int | None:
        """Return the beginning of the last word of a part of `size` characters; None if none is found.

        The words are those after the last added token, each of which the library splits a text at.
        """
        assert self._pre_tokenizer is not None
        text, start, end = window.text, window.start, window.start + size
        ends = (text.rfind(token, start, end + self._longest) + len(token) for token in self._added if token in text)
        first = max((place for place in ends if place > start), default=start)
        for _, (offset, _) in reversed(self._pre_tokenizer.pre_tokenize_str(text[first:end])[1:]):
            place = first + int(offset)
            visible = (
                text[place].isspace() or not text[place - 1].isspace()
            )  # words of white space depend on the next one
            if visible and not self._touches_added(text, place):
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
