"""Text from token ids that arrive one at a time.

A token may end within a character, and its text may depend on its neighbours, so a window of the newest ids is decoded
at each token. The window has a bounded length: a text of n tokens takes time proportional to n.
"""

from collections.abc import Callable, Sequence

KEPT = 8
"""Ids that stay in the window when it is shortened: more than the 4 bytes, and thus tokens, of a character."""
REPLACEMENT = "\ufffd"
"""Decoded in place of bytes that are no character, or not yet one."""


class TextStream:
    """Decodes ids incrementally. The returned pieces join to the text of all ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """`decode` returns the text of ids, with U+FFFD for an incomplete character."""
        self._decode = decode
        self._ids: list[int] = []  # the window
        self._text = ""  # of the window
        self._returned = 0  # characters of it that have been returned

    def add(self, token: int) -> str:
        """Append an id, and return the text that it completes; it is empty within a character."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        piece = self._up_to(len(self._text.rstrip(REPLACEMENT)))
        # While a character is incomplete, so may be those before it: a tokenizer may decode a run of bytes as a whole.
        longest = 2 * KEPT + 4 * self._text.endswith(REPLACEMENT)
        return piece + self._shorten() if len(self._ids) >= longest else piece

    def finish(self) -> str:
        """Return the rest of the text: U+FFFD for an incomplete character."""
        return self._up_to(len(self._text))

    def _up_to(self, end: int) -> str:
        piece = self._text[self._returned : end]
        self._returned = max(self._returned, end)
        return piece

    def _shorten(self) -> str:
        """Drop the oldest ids, and return the part of their text that has not been returned.

        The window is cut between two characters, where the text of the rest is a suffix of the whole text.
        """
        for start in range(len(self._ids) - KEPT, 0, -1):
            rest = self._decode(self._ids[start:])
            if rest and self._text.endswith(rest):
                cut = len(self._text) - len(rest)
                piece = self._up_to(cut)
                self._ids, self._text = self._ids[start:], rest
                self._returned -= cut
                return piece
        return ""


class StopSearch:
    """Finds the first of several texts in a stream, and withholds it together with all that follows."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty."""
        self._stops = tuple(stops)
        self._withheld = ""  # the longest end of the stream that may be the beginning of a stop
        self.found = False

    def add(self, piece: str) -> str:
        """Return the text that precedes any stop, complete or possible."""
        text = self._withheld + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._withheld = True, ""
            return text[: min(places)]
        lengths = [length for stop in self._stops for length in range(1, len(stop)) if text.endswith(stop[:length])]
        end = len(text) - max(lengths, default=0)
        self._withheld = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return the withheld text at the end of the stream."""
        return self._withheld
