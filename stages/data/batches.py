"""Batch sources: pure functions of (seed, batch, micro-batch) that write token ids into the caller's buffers.

Guarantees: `fill` writes the same bits for the same (batch, micro) in any order and from any thread, keeps no state,
and checks every id. A batch is a list of sequences numbered from 0; micro-batch m of size b consists of the sequences
m·b to (m+1)·b − 1. Sequence s of batch k depends on (seed, k, s) alone, by the counter-based generator Philox (Salmon
et al. 2011). Hence neither the micro-batch size nor the lanes change a sequence, nor do k accumulation steps of b
sequences compared with one step of k·b.

Shapes: a micro-batch has R = b·T rows, b consecutive sequences of T = context tokens.

A target may be `IGNORED_TARGET`: it does not count. The loss of a batch is the mean over those that count in all of
its micro-batches, whose number `counted` says before the first of them is drawn.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import BatchSizes, Shuffle
from threadloom.stages.data.digit_places import PlaceOffsets
from threadloom.stages.data.draws import draws_of
from threadloom.stages.data.epochs import EpochSequences
from threadloom.stages.data.mixture import Mixture, Range
from threadloom.stages.data.sequence_figures import SequenceFigures
from threadloom.stages.data.sequence_order import DrawnOrder, OrderByEpochs, SequenceOrder, drawn, seed_of
from threadloom.stages.data.token_file import DataError, TokenFile
from threadloom.stages.models import Geometry

TokenIds = NDArray[np.int32]

_RANDOM_TOKENS, _OFFSETS = 0x746F_6B65_6E73, 0x6F66_6673_6574
"""Second words of the generators' keys: each use has its own stream under one seed."""


class BatchSource(Protocol):
    """The source that the stage `draw` reads from."""

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the input ids (R,) and target ids (R,) of one micro-batch to contiguous buffers.

        It may be called from any thread in any order. Raises DataError for an id outside the vocabulary, ValueError for
        a micro-batch that the batch does not have and for buffers of another size.
        """

    def counted(self, batch: int) -> int:
        """Return how many targets of all micro-batches of a batch count: those that are not `IGNORED_TARGET`."""


class Sequences(Protocol):
    """The sequences that batches consist of: windows of a token file, or packed documents.

    Sequence `start` is the window at that position, or the packed sequence of that number.
    """

    @property
    def context(self) -> int:
        """T, the rows of a sequence."""

    @property
    def path(self) -> Path:
        """The token file, for messages."""

    @property
    def starts(self) -> int:
        """Number of sequences."""

    @property
    def all_count(self) -> bool:
        """True if every target counts."""

    @property
    def padding(self) -> float | None:
        """Fraction of the rows that are padding; None if none can be."""

    def read(self, start: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the ids (T,) and targets (T,) of a sequence; raises DataError for an id outside the vocabulary."""

    def write_starts(self, start: int, starts: TokenIds) -> None:
        """Write the row at which the document of each row of a sequence begins (T,)."""

    def targets_counted(self, starts: Iterable[int]) -> int:
        """Return how many targets of some sequences count."""

    def starts_within(self, positions: Range) -> Range:
        """Return the first sequence whose tokens are in a source of the file, and the one after the last."""

    def epochs(self, starts: Range, seed: int) -> EpochSequences:
        """Return the sequences of each epoch, of those from one to another."""


class TokenBatches:
    """Training batches: sequences of a token file, drawn uniformly with replacement or, by epochs, without.

    Start of sequence s of batch k: ⌊u · starts / 2^64⌋ with u the first 64-bit draw of Philox4x64-10 keyed by
    (seed, stream) at the counter (1, s, k, 0), where NumPy begins when set to (0, s, k, 0). The probabilities of two
    starts differ by less than one in 2^64 / starts. With `offsets`, one of 0 to their largest is drawn for each
    sequence in the same way from another stream, and added to the places of its digits.

    With `mixture` the source of each sequence is drawn first, and its start from the sequences of the source.

    With `Shuffle.EPOCHS` the sequences of each epoch are those of `Sequences.epochs` in the order of `EpochOrder`, each
    source of a mixture for itself.
    """

    def __init__(
        self,
        tokens: Sequences,
        sizes: BatchSizes,
        seed: int,
        offsets: PlaceOffsets | None = None,
        shuffle: Shuffle = Shuffle.DRAWN,
        mixture: Mixture | None = None,
    ) -> None:
        """Raises DataError for a source of a mixture that has no sequence."""
        self._tokens, self._sizes, self._seed, self._offsets, self._mixture = tokens, sizes, seed, offsets, mixture
        self._order = _order(tokens, sizes, seed, shuffle, mixture)

    @property
    def figures(self) -> SequenceFigures:
        """The lengths of its epochs and its padding."""
        counts, shares = self._order.epochs, self._mixture.shares if self._mixture else (1.0,)
        return SequenceFigures(counts, shares if counts else (), self._tokens.padding)

    def start(self, batch: int, sequence: int) -> int:
        """Return the position in the token file at which a sequence of a batch starts, or its number."""
        return self._order.start(batch, sequence)

    def offset(self, batch: int, sequence: int) -> int:
        """Return the number that is added to the places of the digits of a sequence of a batch."""
        return drawn(self._seed, _OFFSETS, batch, sequence, self._offsets.largest + 1) if self._offsets else 0

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the sequences of one micro-batch; see `BatchSource`."""
        size, length = self._sizes.micro_batch, self._tokens.context
        _require_buffers(micro, self._sizes.micro_batches, size * length, ids, targets)
        for row in range(size):
            span = slice(row * length, (row + 1) * length)
            sequence = micro * size + row
            self._tokens.read(self.start(batch, sequence), ids[span], targets[span])
            if self._offsets:
                offset = self.offset(batch, sequence)
                self._offsets.add(offset, ids[span])
                self._offsets.add(offset, targets[span])

    def fill_starts(self, batch: int, micro: int, starts: TokenIds) -> None:
        """Write the borders of the documents of one micro-batch; see `BorderedSource`."""
        size, length = self._sizes.micro_batch, self._tokens.context
        for row in range(size):
            self._tokens.write_starts(self.start(batch, micro * size + row), starts[row * length : (row + 1) * length])

    def counted(self, batch: int) -> int:
        """Return how many targets of a batch count; see `BatchSource`."""
        sequences = self._sizes.sequences
        if self._tokens.all_count:
            return sequences * self._tokens.context
        return self._tokens.targets_counted(self.start(batch, sequence) for sequence in range(sequences))


class RandomTokens:
    """Uniformly random tokens for benchmarks: no file is needed and there is nothing to learn.

    Sequence s of batch k is drawn from Philox keyed by (seed, stream) from the counter (1, s, k, 0) on; its targets are
    its ids shifted by one.
    """

    def __init__(self, geometry: Geometry, sizes: BatchSizes, seed: int) -> None:
        self._geometry, self._sizes, self._seed = geometry, sizes, seed

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the random sequences of one micro-batch; see `BatchSource`."""
        size, length = self._sizes.micro_batch, self._geometry.context
        _require_buffers(micro, self._sizes.micro_batches, size * length, ids, targets)
        for row in range(size):
            generator = np.random.Generator(draws_of(self._seed, _RANDOM_TOKENS, batch, micro * size + row))
            window = generator.integers(self._geometry.vocabulary, size=length + 1, dtype=np.int32)
            ids[row * length : (row + 1) * length] = window[:-1]
            targets[row * length : (row + 1) * length] = window[1:]

    def counted(self, batch: int) -> int:
        """Return the number of targets of a batch, all of which count."""
        return self._sizes.sequences * self._geometry.context

    def fill_starts(self, batch: int, micro: int, starts: TokenIds) -> None:
        """Make each sequence one document."""
        starts.fill(0)


class EvaluationWindows:
    """A fixed list of sequences of a token file, the same for every evaluation; `evaluation_batches` chooses them."""

    def __init__(self, tokens: Sequences, starts: NDArray[np.int64], micro_batch: int) -> None:
        """`starts` has the positions or numbers of the sequences, a multiple of `micro_batch`; raises ValueError.

        Raises DataError if no target of the windows counts.
        """
        if micro_batch < 1 or not len(starts) or len(starts) % micro_batch:
            raise ValueError(f"micro-batches of {micro_batch} sequences do not divide {len(starts)} sequences")
        if starts.min() < 0 or starts.max() >= tokens.starts:
            raise ValueError(f"windows start from 0 to {tokens.starts - 1}, got {starts.min()} to {starts.max()}")
        self.starts = starts.copy()
        self.starts.flags.writeable = False
        self._tokens, self._micro_batch = tokens, micro_batch
        self._counted = tokens.targets_counted(self.starts.tolist())
        if not self._counted:
            raise DataError(
                str(tokens.path),
                expected="a token that counts in the windows of an evaluation",
                got=f"none in {len(starts):,} windows of {tokens.context:,} tokens",
                hint="use a validation text of which parts are to be learned, or a larger evaluation.batches",
            )

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of one evaluation."""
        return len(self.starts) // self._micro_batch

    @property
    def tokens(self) -> int:
        """Number of target tokens of one evaluation that count, over which the loss is averaged."""
        return self._counted

    def counted(self, batch: int) -> int:
        """Return the number of target tokens that count, which does not depend on `batch`."""
        return self._counted

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the windows of one micro-batch, which do not depend on `batch`; see `BatchSource`."""
        first, length = micro * self._micro_batch, self._tokens.context
        _require_buffers(micro, self.micro_batches, self._micro_batch * length, ids, targets)
        for row in range(self._micro_batch):
            span = slice(row * length, (row + 1) * length)
            self._tokens.read(int(self.starts[first + row]), ids[span], targets[span])

    def fill_starts(self, batch: int, micro: int, starts: TokenIds) -> None:
        """Write the borders of the documents of one micro-batch; see `BorderedSource`."""
        first, length = micro * self._micro_batch, self._tokens.context
        for row in range(self._micro_batch):
            self._tokens.write_starts(int(self.starts[first + row]), starts[row * length : (row + 1) * length])


def evaluation_batches(tokens: TokenFile, *, batch_size: int, micro_batch: int, batches: int) -> EvaluationWindows:
    """Choose the windows of an evaluation: at most `batches` × `batch_size`, in whole micro-batches.

    A token file of N tokens has ⌊(N − 1) / T⌋ windows that do not overlap. All of them are used if they are not more
    than the maximum, otherwise as many as the maximum, evenly spaced. Only whole micro-batches are computed, so up to
    micro_batch − 1 windows are omitted, again evenly spaced. If there are fewer windows than one micro-batch has, one
    micro-batch of overlapping windows covers the file from the first token to the last.
    """
    available = (len(tokens) - 1) // tokens.context
    count = min(available, batches * batch_size) // micro_batch * micro_batch
    if count:
        starts = np.arange(count, dtype=np.int64) * available // count * tokens.context
    else:
        starts = np.arange(micro_batch, dtype=np.int64) * (tokens.starts - 1) // max(1, micro_batch - 1)
    return EvaluationWindows(tokens, starts, micro_batch)


def _order(tokens: Sequences, sizes: BatchSizes, seed: int, shuffle: Shuffle, mixture: Mixture | None) -> SequenceOrder:
    starts = _starts(tokens, mixture)
    if shuffle is Shuffle.DRAWN:
        return DrawnOrder(starts, mixture, seed)
    sources = [tokens.epochs(found, seed_of(seed, number)) for number, found in enumerate(starts)]
    return OrderByEpochs(sources, sizes.sequences, mixture, seed)


def _starts(tokens: Sequences, mixture: Mixture | None) -> list[Range]:
    """Return the sequences of each source; raises DataError for one without any."""
    if mixture is None:
        return [Range(0, tokens.starts)]
    found = [tokens.starts_within(positions) for positions in mixture.ranges]
    for number, (first, end) in enumerate(found):
        if end <= first:
            positions = mixture.ranges[number]
            raise DataError(
                f"data.text, entry {number + 1}",
                expected=f"at least one sequence of a context of {tokens.context:,} from each source",
                got=f"none in {positions.end - positions.start:,} training tokens",
                hint="use more text of this source, a smaller model.context, or leave the source out",
            )
    return found


def _require_buffers(micro: int, count: int, rows: int, ids: TokenIds, targets: TokenIds) -> None:
    if not 0 <= micro < count:
        raise ValueError(f"a batch has the micro-batches 0 to {count - 1}, got {micro}")
    for name, buffer in (("ids", ids), ("targets", targets)):
        if buffer.shape != (rows,) or buffer.dtype != np.int32:
            raise ValueError(f"{name} needs int32 ({rows},), got {buffer.dtype} {buffer.shape}")
