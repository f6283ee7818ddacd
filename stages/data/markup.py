"""Special tokens inside the markup of a document, and nowhere else.

A chat template writes special tokens around texts that others wrote. A user's text with `<|im_end|>` in it must not end
the user's turn. The library knows one switch for a whole text, so each special token in the markup is replaced by a
marker: an added token that is not special, which the library recognises when special tokens are text. The library
splits a text at a marker exactly as at a special token, so the ids around it are those of a text with special tokens.
The name of the marker is drawn at random for each process: no text can contain it, and no id depends on it.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.documents import Span

if TYPE_CHECKING:  # 3 MB that only such tokenizers need
    import tokenizers


class Special(NamedTuple):
    """A special token in a text."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class Marked:
    """A text whose special tokens are markers."""

    text: str
    specials: tuple[Special, ...]
    """The token of each marker, with its place in the original text."""
    marker: int
    """Characters of a marker."""

    def original(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where positions outside of markers, or at their ends, are in the original text."""
        removed = np.array([special.end - special.start - self.marker for special in self.specials], np.int64)
        longer = np.cumsum(removed)  # of the text up to the end of each marker
        ends = np.array([special.end for special in self.specials], np.int64) - longer
        shifts = np.concatenate([[0], longer])
        moved: NDArray[np.int64] = positions + shifts[np.searchsorted(ends, positions, side="right")]
        return moved


class Marker:
    """The marker in one vocabulary."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        """Add the marker to a vocabulary, after its last id."""
        from tokenizers import AddedToken

        self.text = f"\ue000{secrets.token_hex(16)}\ue001"
        tokenizer.add_tokens([AddedToken(self.text, normalized=False, special=False)])
        self.id = tokenizer.token_to_id(self.text)

    def mark(self, text: str, specials: Sequence[Special]) -> Marked:
        """Return a text with markers in place of special tokens, which are in ascending order."""
        parts, position = list[str](), 0
        for special in specials:
            parts += [text[position : special.start], self.text]
            position = special.end
        return Marked("".join([*parts, text[position:]]), tuple(specials), len(self.text))

    def replace(self, ids: NDArray[np.int32], specials: Sequence[Special]) -> NDArray[np.int32]:
        """Return ids with those of the special tokens in place of the markers'."""
        replaced = ids.copy()
        replaced[ids == self.id] = [special.id for special in specials]
        return replaced


def in_spans(spans: Sequence[Span], found: Sequence[Sequence[Special]]) -> list[Special]:
    """Return the special tokens of spans, by their places in the document; `found` are those of the spans' texts."""
    return [
        Special(special.id, span.start + special.start, span.start + special.end)
        for span, specials in zip(spans, found, strict=True)
        for special in specials
    ]


def merged(spans: Sequence[Span]) -> list[Span]:
    """Return spans in ascending order, with those that touch each other as one: a token may reach across."""
    joined = list[Span]()
    for span in sorted(spans):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def pattern_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """Return an expression that finds any of some tokens; None if there are none."""
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None
