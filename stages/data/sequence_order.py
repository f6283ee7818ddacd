"""The orders in which training sequences are taken: drawn at random, or by epochs, from one source or from several."""

from collections.abc import Sequence
from typing import Protocol

from threadloom.stages.data.draws import draws_of
from threadloom.stages.data.epochs import EpochOrder, EpochSequences
from threadloom.stages.data.mixture import Mixture, Range, SourceTurns

_STARTS = 0x7374_6172_7473
"""Second word of the generator's key: each use has its own stream under one seed."""


class SequenceOrder(Protocol):
    """The sequence that each number of a batch stands for."""

    @property
    def epochs(self) -> tuple[int, ...]:
        """Number of sequences of an epoch of each source; none if there are no epochs."""

    def start(self, batch: int, sequence: int) -> int:
        """Return what a sequence of a batch is read by; it may be called from any thread."""


class DrawnOrder:
    """Sequences that are drawn independently: of several sources, the source first, by its weight."""

    epochs: tuple[int, ...] = ()

    def __init__(self, sources: Sequence[Range], mixture: Mixture | None, seed: int) -> None:
        """`sources` has the first start of each source, and the one after the last."""
        self._sources, self._mixture, self._seed = sources, mixture, seed

    def start(self, batch: int, sequence: int) -> int:
        """Return the start of a sequence of a batch."""
        source = self._mixture.source(self._seed, batch, sequence) if self._mixture else 0
        first, end = self._sources[source]
        return first + drawn(self._seed, _STARTS, batch, sequence, end - first)


class OrderByEpochs:
    """Sequences of which none is taken twice within an epoch of its source.

    The epoch of a source ends when all of its sequences have been taken, at another time than those of the others. Only
    the sequences of several sources in turn have an order among sources, for which see `SourceTurns`.
    """

    def __init__(self, sources: Sequence[EpochSequences], per_update: int, mixture: Mixture | None, seed: int) -> None:
        """`sources` are the sequences of each; an update has `per_update`, gradient accumulation included."""
        self._sources, self._per_update = sources, per_update
        self._turns = SourceTurns(mixture.weights, seed) if mixture else None
        self._orders = [EpochOrder(each.count, seed_of(seed, number)) for number, each in enumerate(sources)]

    @property
    def epochs(self) -> tuple[int, ...]:
        """Number of sequences of an epoch of each source."""
        return tuple(source.count for source in self._sources)

    def start(self, batch: int, sequence: int) -> int:
        """Return what a sequence of a batch is read by."""
        source, number = 0, batch * self._per_update + sequence
        if self._turns:
            source, number = self._turns.place(number)
        return self._sources[source].start(*self._orders[source].place(number))


def drawn(seed: int, stream: int, batch: int, sequence: int, count: int) -> int:
    """Return a number below `count` that is drawn for a sequence: ⌊u · count / 2^64⌋ of the first draw u."""
    return int(draws_of(seed, stream, batch, sequence).random_raw()) * count >> 64


def seed_of(seed: int, source: int) -> int:
    """Return the seed of a source: that of the first is `seed`, and no two of any seeds of 64 bits are equal."""
    return seed + (source << 64)
