"""Packing of documents into sequences of T + 1 tokens, without splitting those that fit.

A document of more than T + 1 tokens is split into pieces of T + 1, each of which begins with the last token of the one
before: so every token but the first of a document is a target once, and T inputs and T targets fill a sequence. All
pieces, and the whole documents, are packed by best fit in the order of decreasing length (Johnson, 1973; for language
models Ding et al., 2024): each goes to the sequence with the least room that holds it. What room remains is padding.

If attention ends at borders, the last token of a piece is a target only: a piece of n tokens takes n − 1 of T rows.
Otherwise it is an input too, whose target is the first token of the next piece: a piece takes n of T + 1 tokens.

The result depends on the lengths alone. It takes two int64 per piece and one per sequence, and the time of a few sorts:
pieces of one length and sequences with the same room are handled at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.mixture import Range

Integers = NDArray[np.int64]


class Pieces(NamedTuple):
    """Parts of documents, in the order of the token file."""

    starts: Integers  # (P,) position of the first token
    lengths: Integers  # (P,) tokens, at most T + 1


class PackedDocuments:
    """The sequences into which the documents of a token file are packed."""

    def __init__(
        self, documents: Integers, tokens: int, context: int, *, bordered: bool, sources: Sequence[int] = (0,)
    ) -> None:
        """`documents` are the positions of their first tokens, in ascending order, in a file of `tokens` tokens.

        With `bordered` attention ends at borders. Documents without a target are left out. The documents of each
        source, which begin at the positions `sources`, are packed by themselves.
        """
        ends = (*sources[1:], tokens)
        within = (documents[slice(*np.searchsorted(documents, pair))] for pair in zip(sources, ends, strict=True))
        packs = [_pack(found, end, context, bordered=bordered) for found, end in zip(within, ends, strict=True)]
        self._starts, self._lengths, counts = (np.concatenate(parts) for parts in zip(*packs, strict=True))
        self._ends = np.cumsum(counts)
        numbers = [0, *accumulate(len(pack.counts) for pack in packs)]
        self.sources = tuple(Range(*pair) for pair in pairwise(numbers))
        """The sequences of each source."""
        self.context, self.bordered = context, bordered

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._ends)

    def pieces(self, sequence: int) -> Pieces:
        """Return the pieces of a sequence, in the order of the token file."""
        span = slice(int(self._ends[sequence - 1]) if sequence else 0, int(self._ends[sequence]))
        return Pieces(self._starts[span], self._lengths[span])

    @property
    def padding(self) -> float:
        """Fraction of the rows of all sequences that are padding."""
        rows = int(self._lengths.sum()) - (len(self._lengths) if self.bordered else len(self))
        return 1 - rows / (len(self) * self.context)


class _Pack(NamedTuple):
    """The pieces of a source by their sequences."""

    starts: Integers  # (P,)
    lengths: Integers  # (P,)
    counts: Integers  # (S,) pieces of each sequence


def _pack(documents: Integers, end: int, context: int, *, bordered: bool) -> _Pack:
    """Return the sequences of documents, of which the last one ends at `end`."""
    pieces = split_documents(documents, end, context, bordered=bordered)
    room = pieces.lengths - 1 if bordered else pieces.lengths
    sequence_of = best_fit(room, context if bordered else context + 1)
    order = np.argsort(sequence_of, kind="stable")
    starts, lengths, counts = pieces.starts[order], pieces.lengths[order], np.bincount(sequence_of)
    if len(counts) and lengths[-counts[-1] :].sum() == 1:  # a single token, which no other had room for, has no target
        starts, lengths, counts = starts[:-1], lengths[:-1], counts[:-1]
    return _Pack(starts, lengths, counts)


def split_documents(documents: Integers, tokens: int, context: int, *, bordered: bool) -> Pieces:
    """Return the pieces of all documents: of at most T + 1 tokens, each but the first with one token of overlap."""
    lengths = np.diff(documents, append=tokens)
    counts = -(-(lengths - 1) // context)  # ceiling
    if not bordered:
        counts[lengths == 1] = 1  # the token is the target of the one before
    counts[lengths == 0] = 0
    before = np.cumsum(counts) - counts
    offsets = (np.arange(counts.sum(), dtype=np.int64) - np.repeat(before, counts)) * context
    lasting = np.repeat(lengths, counts) - offsets
    return Pieces(np.repeat(documents, counts) + offsets, np.minimum(lasting, context + 1))


def best_fit(sizes: Integers, capacity: int) -> Integers:
    """Return the number of the bin of each item (P,), by best fit in decreasing order of their sizes.

    Bins of `capacity`, which no size exceeds, are numbered from 0 in the order in which they are opened.
    """
    order = np.argsort(-sizes, kind="stable")
    bin_of = np.empty(len(sizes), np.int64)
    bins = _Bins(capacity)
    ends = np.flatnonzero(np.diff(sizes[order], append=-1)) + 1
    begin = 0
    for end in map(int, ends):
        items = order[begin:end]
        bin_of[items] = bins.place(int(sizes[items[0]]), len(items))
        begin = end
    return bin_of


class _Bins:
    """Bins by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._opened = 0
        self._with_room: defaultdict[int, list[Integers]] = defaultdict(list)
        self._rooms = 0  # bit r is set if there is a bin with the room r

    def place(self, size: int, count: int) -> Integers:
        """Return the bins (count,) that equal items are put into one after another, each into the fullest that fits."""
        chosen: list[Integers] = []
        while count:
            room = self._least_room(size)
            bins = self._take(room) if room else self._open(-(-count // (self._capacity // size)))
            room = room or self._capacity
            each = room // size  # an item makes its bin the fullest that the next one fits into
            full = min(len(bins), count // each)
            chosen.append(np.repeat(bins[:full], each))
            self._keep(room - each * size, bins[:full])
            count -= full * each
            if full < len(bins):
                chosen.append(np.repeat(bins[full], count))
                self._keep(room - count * size, bins[full : full + 1])
                self._keep(room, bins[full + 1 :])
                count = 0
        return np.concatenate(chosen)

    def _least_room(self, size: int) -> int:
        """Return the least room of at least `size` that a bin has, 0 if none has."""
        rooms = self._rooms >> size
        return (rooms & -rooms).bit_length() - 1 + size if rooms else 0

    def _take(self, room: int) -> Integers:
        self._rooms ^= 1 << room
        return np.concatenate(self._with_room.pop(room))

    def _keep(self, room: int, bins: Integers) -> None:
        if room and len(bins):
            self._with_room[room].append(bins)
            self._rooms |= 1 << room

    def _open(self, count: int) -> Integers:
        self._opened += count
        return np.arange(self._opened - count, self._opened, dtype=np.int64)
