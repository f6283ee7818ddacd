"""How long things took: a histogram of fixed memory that costs a tenth of a microsecond a duration.

Buckets are log-linear: each power of two is cut into 16 buckets of equal width, from 16 ns to centuries. A quantile
that is read off them differs from the true one by at most 1/32 of it (3.2 %) plus 1 ns, whatever was recorded.

Ownership: a `Histogram` is written by one thread, and read by anyone without a lock: each count is one assignment of an
int, so a reader sees at worst a distribution that lacks the durations recorded while it looked.

Assumption: a duration is not negative, because the clock of a run never goes back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

STEPS = 16
"""Buckets for each power of two."""
SIZE = (64 + 2) * STEPS  # a duration of 64 bits falls into the last but a few


class Histogram:
    """Counts of durations in nanoseconds. Written by one thread alone."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * SIZE  # 8 KiB

    def add(self, duration: int) -> None:
        """Count one duration. About 0.1 µs. `Worker` has a copy of these lines."""
        duration += STEPS  # so that five bits are always there to shift down to; `_lower` takes it off again
        exponent = duration.bit_length()
        self.counts[(exponent << 4) + (duration >> exponent - 5)] += 1


@dataclass(frozen=True, slots=True)
class Distribution:
    """The durations of something, frozen. All times are in seconds; each is within 1/32 of the true one.

    What lies between two of them is `later.since(earlier)`, and `Distribution.of` merges any number.
    """

    counts: tuple[int, ...] = field(default=(), repr=False)
    """Durations in each bucket, without the empty buckets at the end; what the rest is read off."""
    count: int = 0
    """How many durations there are. Below about 100 the p99 is just the longest of them."""
    p50: float = 0.0
    """Half of them took at most this: the ordinary case. 0 when there is none, as for the two below."""
    p90: float = 0.0
    """Nine of ten took at most this. Far above p50: the items differ, or the threads get in each other's way."""
    p99: float = 0.0
    """All but one in a hundred took at most this: the pauses that a channel's capacity has to bridge."""
    longest: float = 0.0
    """The longest of them."""

    @staticmethod
    def of(histograms: Iterable["Histogram | Distribution"]) -> "Distribution":
        """Merge histograms (of the workers of a stage) or distributions into one."""
        tables = [each.counts for each in histograms]
        size = max(map(len, tables), default=0)
        total = [0] * size
        for table in tables:
            for place, count in enumerate(table):
                if count:
                    total[place] += count
        return _distribution(total)

    def since(self, earlier: "Distribution") -> "Distribution":
        """Return the durations that have come in since `earlier`, a former state of the same histogram."""
        before = earlier.counts + (0,) * (len(self.counts) - len(earlier.counts))
        return _distribution([max(0, now - then) for now, then in zip(self.counts, before, strict=False)])

    def quantile(self, share: float) -> float:
        """Return the seconds that `share` of the durations did not exceed; 0 when there is none."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a quantile is asked for by a share between 0 and 1, got {share}")
        return _quantiles(self.counts, (share,))[0]


def _distribution(counts: list[int]) -> Distribution:
    while counts and not counts[-1]:
        counts.pop()
    p50, p90, p99, longest = _quantiles(counts, (0.5, 0.9, 0.99, 1.0))
    return Distribution(tuple(counts), sum(counts), p50, p90, p99, longest)


def _quantiles(counts: Iterable[int], shares: Iterable[float]) -> list[float]:
    """Return the middle of the bucket that holds the k-th smallest duration, k = share × count, for each share."""
    filled = [(place, count) for place, count in enumerate(counts) if count]
    sums = list(accumulate(count for _, count in filled))
    found = []
    for share in shares:
        rank = max(1, ceil(share * sums[-1])) if sums else 0
        at = next((place for (place, _), sum_ in zip(filled, sums, strict=True) if sum_ >= rank), None)
        found.append(0.0 if at is None else (_lower(at) + _lower(at + 1)) / 2 / 1e9)
    return found


def _lower(place: int) -> int:
    """Return the smallest duration of a bucket, in nanoseconds: the inverse of `Histogram.add`."""
    exponent, step = divmod(place - STEPS, STEPS)
    return (STEPS + step << exponent - 5) - STEPS
