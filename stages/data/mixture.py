"""Several sources with weights: which of them a training sequence is taken from.

The sources follow each other in one token file, and a sequence never crosses from one into the next. The source of a
sequence is a function of the seed and of the sequence's number alone, so neither threads nor lanes nor a resumed run
change it. Drawn sequences have sources that are drawn too (`Mixture.source`). By epochs, the sources take turns
(`SourceTurns`), since the number of a sequence in its source is needed, without counting all those before it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.draws import draws_of

_SOURCES, _TURNS = 0x736F_7572_6365_73, 0x7475_726E_73
"""Second words of the generators' keys: each use has its own stream under one seed."""
_DRAWS = 1 << 64

TURNS = 1024
"""Sequences of a block, within which the sources are in random order."""


class Range(NamedTuple):
    """Positions in a token file, the end not included."""

    start: int
    end: int


@dataclass(frozen=True)
class Mixture:
    """The sources of a token file and the probabilities with which sequences are drawn from them."""

    ranges: tuple[Range, ...]
    weights: tuple[float, ...]
    bounds: tuple[int, ...]
    """Sum of the probabilities up to each source, as a number of the 2^64 draws, rounded down."""

    @classmethod
    def of(cls, weights: Sequence[float], starts: Sequence[int], tokens: int) -> "Mixture | None":
        """Return the mixture of sources that begin at `starts` in a file of `tokens` tokens; None without weights."""
        if not weights:
            return None
        if len(weights) != len(starts):
            raise ValueError(f"{len(weights)} weights for {len(starts)} sources")
        sums = list(accumulate(map(Fraction, weights)))
        ends = (*starts[1:], tokens)
        bounds = tuple(int(total * _DRAWS / sums[-1]) for total in sums)
        return cls(tuple(map(Range, starts, ends)), tuple(weights), bounds)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each source among the sequences."""
        exact = list(map(Fraction, self.weights))  # the sum of floats may be infinite
        return tuple(float(weight / sum(exact)) for weight in exact)

    def source(self, seed: int, batch: int, sequence: int) -> int:
        """Return the number of the source that a sequence of a batch is drawn from.

        It is the one in whose part of the 2^64 draws the first draw of the sequence lies, in a stream of its own.
        """
        return bisect_right(self.bounds, int(draws_of(seed, _SOURCES, batch, sequence).random_raw()))


class SourcePlace(NamedTuple):
    """A source, and the number of a sequence among all of that source in the run."""

    source: int
    number: int


class _Block(NamedTuple):
    """The places of the sequences of a block."""

    block: int
    sources: NDArray[np.int64]  # (TURNS,)
    numbers: NDArray[np.int64]  # (TURNS,)


class SourceTurns:
    """The sources of sequences that are numbered through, so that each has its share of any stretch of a run.

    After N blocks of 1024 sequences, source s has had n_s = ⌊q_s · r_s⌋ of the r_s = 1024 N − n_0 − … − n_{s−1} that
    the sources before it leave, where q_s is its weight divided by the sum of its own and those of the sources after
    it. Each n_s differs from its share by less than the number of sources, and grows with N, whatever the weights.
    Within a block the order of the sources is random.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        exact = list(map(Fraction, weights))
        self._shares = [weight / sum(exact[number:]) for number, weight in enumerate(exact)]
        self._seed = seed
        self._last = self._block(0)  # replaced as a whole, by any thread

    def place(self, number: int) -> SourcePlace:
        """Return the source of a sequence, and its number there; it may be called from any thread."""
        block, within = divmod(number, TURNS)
        found = self._last
        if found.block != block:
            self._last = found = self._block(block)
        return SourcePlace(int(found.sources[within]), int(found.numbers[within]))

    def _block(self, block: int) -> _Block:
        before, after = self._counts(block), self._counts(block + 1)
        order = np.argsort(draws_of(self._seed, _TURNS, block, 0).random_raw(TURNS), kind="stable")
        sources, numbers = np.empty((2, TURNS), np.int64)
        begin = 0
        for source, (first, end) in enumerate(zip(before, after, strict=True)):
            places = np.sort(order[begin : begin + end - first])
            sources[places], numbers[places] = source, np.arange(first, end)
            begin += end - first
        return _Block(block, sources, numbers)

    def _counts(self, blocks: int) -> list[int]:
        """Return how many sequences of each source the first blocks have."""
        left, counts = blocks * TURNS, list[int]()
        for share in self._shares:
            counts.append(floor(share * left))
            left -= counts[-1]
        return counts
