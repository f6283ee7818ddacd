"""Several sources with weights: which of them a training sequence is drawn from, and where it may begin.

The sources follow each other in one token file, and a sequence never crosses from one into the next. The source of a
sequence is a function of (seed, batch, sequence) alone, so neither threads nor lanes nor a resumed run change it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from threadloom.stages.data.draws import draws_of

_SOURCES = 0x736F_7572_6365_73
"""Second word of the generator's key: each use has its own stream under one seed."""
_DRAWS = 1 << 64


class Range(NamedTuple):
    """Positions in a token file, the end not included."""

    start: int
    end: int


@dataclass(frozen=True)
class Mixture:
    """The sources of a token file and the probabilities with which sequences are drawn from them."""

    ranges: tuple[Range, ...]
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
        return cls(tuple(map(Range, starts, ends)), bounds)

    def source(self, seed: int, batch: int, sequence: int) -> int:
        """Return the number of the source that a sequence of a batch is drawn from.

        It is the one in whose part of the 2^64 draws the first draw of the sequence lies, in a stream of its own.
        """
        return bisect_right(self.bounds, int(draws_of(seed, _SOURCES, batch, sequence).random_raw()))

    def range(self, seed: int, batch: int, sequence: int) -> Range:
        """Return the positions of that source."""
        return self.ranges[self.source(seed, batch, sequence)]
