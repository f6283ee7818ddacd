"""The packed documents of a token file as sequences of batches.

A sequence has T rows: the inputs and targets of its pieces, then padding with the id 0 and ignored targets. If
attention ends at borders, each piece is a document of its own, and so is the padding.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.bordered_tokens import documents_of
from threadloom.stages.data.epochs import EpochSequences
from threadloom.stages.data.mixture import Range
from threadloom.stages.data.packing import PackedDocuments
from threadloom.stages.data.token_file import IGNORED_TARGET, DataError, TokenFile

TokenIds = NDArray[np.int32]


class PackedSequences:
    """Packed sequences, read by their numbers. Implements `Sequences`; any number of threads may read concurrently."""

    def __init__(self, tokens: TokenFile, *, bordered: bool, sources: Sequence[int] = (0,)) -> None:
        """Pack the documents; raises ConfigError if the file has none, DataError if none of them has a target.

        Documents of different sources, which begin at the positions `sources`, are in different sequences.
        """
        documents = documents_of(tokens, "data.packing")
        self._tokens, self._sources = tokens, tuple(sources)
        self.packed = PackedDocuments(documents, len(tokens), tokens.context, bordered=bordered, sources=sources)
        if not len(self.packed):
            raise DataError(
                str(tokens.path),
                expected="documents of at least two tokens",
                got=f"{len(documents):,} of one token",
                hint="use more text, or data.packing=windows",
            )

    @property
    def context(self) -> int:
        """Rows of a sequence."""
        return self._tokens.context

    @property
    def path(self) -> Path:
        """The token file."""
        return self._tokens.path

    @property
    def starts(self) -> int:
        """Number of sequences."""
        return len(self.packed)

    @property
    def all_count(self) -> bool:
        """False: padding does not count."""
        return False

    @property
    def padding(self) -> float | None:
        """Fraction of the rows of all sequences that are padding."""
        return self.packed.padding

    def starts_within(self, positions: Range) -> Range:
        """Return the number of the first sequence of a source, and the one after its last; there may be none."""
        return self.packed.sources[self._sources.index(positions.start)]

    def epochs(self, starts: Range, seed: int) -> EpochSequences:
        """Return the sequences of each epoch, which are the same in all of them."""
        return _SameInEveryEpoch(starts)

    def read(self, start: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the ids (T,) and targets (T,) of a sequence; raises DataError for an id outside the vocabulary."""
        spans = self._spans(start)
        inputs = [self._tokens.span(first, end) for first, end in spans]
        outputs = [self._targets(first, end) for first, end in spans]
        if self.packed.bordered:
            given, wanted = np.concatenate([each[:-1] for each in inputs]), np.concatenate([e[1:] for e in outputs])
        else:
            given, wanted = np.concatenate(inputs)[:-1], np.concatenate(outputs)[1:]
        rows = len(given)
        ids[:rows], ids[rows:] = given, 0
        targets[:rows], targets[rows:] = wanted, IGNORED_TARGET

    def write_starts(self, start: int, starts: TokenIds) -> None:
        """Write the row at which the document of each row begins to `starts` (T,)."""
        row = 0
        if not self.packed.bordered:
            starts.fill(0)
            return
        for length in self.packed.pieces(start).lengths.tolist():
            starts[row : row + length - 1] = row
            row += length - 1
        starts[row:] = row

    def targets_counted(self, starts: Iterable[int]) -> int:
        """Return how many targets of some sequences count."""
        return sum(map(self._targets_counted, starts))

    def _targets_counted(self, sequence: int) -> int:
        spans = self._spans(sequence)
        if self.packed.bordered:
            return sum(self._counted(first + 1, end) for first, end in spans)
        begin, _ = spans[0]  # the first token of any other piece is a target
        return sum(self._counted(*span) for span in spans) - self._counted(begin, begin + 1)

    def _spans(self, sequence: int) -> list[tuple[int, int]]:
        """Return the first position of each piece, and the one after its last."""
        pieces = self.packed.pieces(sequence)
        return list(zip(pieces.starts.tolist(), (pieces.starts + pieces.lengths).tolist(), strict=True))

    def _targets(self, first: int, end: int) -> TokenIds:
        targets, counted = self._tokens.span(first, end), self._tokens.counted
        if counted is not None:
            targets[counted[first:end] == 0] = IGNORED_TARGET
        return targets

    def _counted(self, first: int, end: int) -> int:
        counted = self._tokens.counted
        return end - first if counted is None else int(np.count_nonzero(counted[first:end]))


class _SameInEveryEpoch:
    """Sequences that are read by their number in any epoch."""

    def __init__(self, starts: Range) -> None:
        self.count = starts.end - starts.start
        self._first = starts.start

    def start(self, epoch: int, number: int) -> int:
        return self._first + number
