"""Segments as lines of limited width, in which every character that a text contains is visible and harmless."""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from threadloom.stages.tools.show_data.segments import Kind, Segment

LINE_END, TAB, BORDER = "↵", "→", "─"


class Run(NamedTuple):
    """A part of a line with one look."""

    text: str
    kind: Kind
    counts: bool


Line = list[Run]


def lines_of(segments: Iterable[Segment], width: int, *, marks: bool) -> Iterator[Line]:
    """Yield the lines of segments, none wider than `width` cells, but at least one character each.

    Line ends of the text are shown by a sign, and followed. With `marks`, what counts is in ⟦ ⟧ and special tokens are
    in ‹ ›, for output without colours.
    """
    line, room = Line(), width
    for run in _runs(segments, marks=marks):
        if run.kind in (Kind.BORDER, Kind.PADDING):
            if line:
                yield line
            yield [Run(run.text.center(width, BORDER), run.kind, False)]
            line, room = Line(), width
            continue
        text = ""
        for character in run.text:
            size = cells(character)
            if size > room and (line or text):
                if text:
                    line.append(run._replace(text=text))
                yield line
                line, room, text = Line(), width, ""
            text, room = text + character, room - size
            if character == LINE_END:
                yield [*line, run._replace(text=text)]
                line, room, text = Line(), width, ""
        if text:
            line.append(run._replace(text=text))
    if line:
        yield line


def _runs(segments: Iterable[Segment], *, marks: bool) -> Iterator[Run]:
    open_ = False
    for segment in segments:
        if marks and segment.counts != open_:
            yield Run("⟦" if segment.counts else "⟧", Kind.TEXT, segment.counts)
            open_ = segment.counts
        if segment.kind is Kind.BORDER:
            yield Run(" another document ", Kind.BORDER, False)
        elif segment.kind is Kind.PADDING:
            yield Run(f" padding, {segment.tokens:,} tokens ", Kind.PADDING, False)
        else:
            text = visible(segment.text)
            special = marks and segment.kind is Kind.SPECIAL
            yield Run(f"‹{text}›" if special else text, segment.kind, segment.counts)
    if open_:
        yield Run("⟧", Kind.TEXT, True)


def visible(text: str) -> str:
    """Return a text with signs for line ends and tabs and escapes for other characters that cannot be seen."""
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    if character == "\n":
        return LINE_END
    if character == "\t":
        return TAB
    if character == " " or character.isprintable() or unicodedata.category(character) in ("Cf", "Zs"):
        return f"<U+{ord(character):04X}>" if _reorders(character) else character
    return f"<U+{ord(character):04X}>"


def _reorders(character: str) -> bool:
    """Return True for controls that change the direction of the text around them, which would mislead a reader."""
    return unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def cells(character: str) -> int:
    """Return the width of a character in a terminal: 0 for combining marks, 2 for wide ones."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
