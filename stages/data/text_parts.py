"""Parts of a text that are encoded independently of each other, in any order and by any number of workers."""

from typing import NamedTuple


class TextPart(NamedTuple):
    """A part of a text. The ids of a text are those of its parts, one after another."""

    text: str
    before: str = ""
    """The end of the previous part, with which this one is encoded; its ids are then removed."""
    position: int = 0
    """Characters of the text before this part."""
