"""A sequence of tokens as segments of text: what counts in the loss, special tokens, borders of documents, padding."""

import enum
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data import IGNORED_TARGET, Tokenizer


class Kind(enum.Enum):
    """The kinds of segments."""

    TEXT = "text"
    SPECIAL = "special"
    """A special token."""
    BORDER = "border"
    """The beginning of another document; it has no text."""
    PADDING = "padding"
    """Rows after the last document."""


class Segment(NamedTuple):
    """Consecutive tokens of a kind."""

    kind: Kind
    text: str
    counts: bool
    """True if their losses count."""
    tokens: int


@dataclass(frozen=True)
class Rows:
    """Rows of a sequence that follow each other, and what is known of them."""

    ids: NDArray[np.int32]
    """Inputs (T,)."""
    targets: NDArray[np.int32]
    """(T,), IGNORED_TARGET for those that do not count."""
    borders: frozenset[int]
    """Tokens, of T + 1, with which a document begins, without the first one of the sequence."""


@dataclass(frozen=True)
class ShownSequence:
    """A sequence as it is shown."""

    title: str
    segments: tuple[Segment, ...]


def tokens_of(rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the tokens of a sequence (N,) and whether the loss of each counts (N,).

    They are the inputs and the last target, unless that does not count. The first one is no target.
    """
    counts = np.concatenate([[False], rows.targets != IGNORED_TARGET])
    ids = np.concatenate([rows.ids, rows.targets[-1:]])
    return (ids, counts) if counts[-1] else (ids[:-1], counts[:-1])


def segments_of(rows: Rows, tokenizer: Tokenizer, special: Collection[int]) -> tuple[Segment, ...]:
    """Return the segments of a sequence; `special` are the ids of special tokens, each a segment by itself."""
    ids, counts = tokens_of(rows)
    return tuple(_segment(group, tokenizer) for group in _groups(ids, counts, rows.borders, special))


BORDER = Segment(Kind.BORDER, "", False, 0)


def padding(rows: int) -> tuple[Segment, ...]:
    """Return the segment of some rows of padding; none for none."""
    return (Segment(Kind.PADDING, "", False, rows),) if rows else ()


class _Group(NamedTuple):
    kind: Kind
    ids: Sequence[int]
    counts: bool


def _groups(
    ids: NDArray[np.int32], counts: NDArray[np.bool_], borders: frozenset[int], special: Collection[int]
) -> Iterator[_Group]:
    """Yield the ids in groups of one kind."""
    begin = 0
    for end in range(1, len(ids) + 1):
        alone = end < len(ids) and (ids[end] in special or ids[end - 1] in special)
        if end == len(ids) or end in borders or alone or counts[end] != counts[begin]:
            kind = Kind.SPECIAL if ids[begin] in special else Kind.TEXT
            yield _Group(kind, ids[begin:end].tolist(), bool(counts[begin]))
            if end in borders and end < len(ids):
                yield _Group(Kind.BORDER, (), False)
            begin = end


def _segment(group: _Group, tokenizer: Tokenizer) -> Segment:
    text = tokenizer.decode_following(group.ids) if group.ids else ""
    return Segment(group.kind, text, group.counts, len(group.ids))
