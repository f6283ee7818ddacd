"""Histograms of durations in fixed memory, at about 0.1 µs per duration.

Buckets are log-linear: each power of two is divided into 16 buckets of equal width, from 16 ns to centuries. A quantile
computed from them differs from the true one by at most 1/32 of it (3.2 %) plus 1 ns.

Ownership: one thread writes a `Histogram`; any thread may read it without a lock. Each update is one assignment of an
int, so at worst a reader misses the durations recorded during the read.

Assumption: durations are not negative, because the clock of a run is monotonic.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

STEPS = 16
"""Buckets per power of two."""
SIZE = (64 + 2) * STEPS  # enough for durations of 64 bits


class Histogram:
    """Counts of durations in nanoseconds. Written by one thread only."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * SIZE  # 8 KiB

    def add(self, duration: int) -> None:
        """Count one duration, in nanoseconds. `Worker` contains a copy of these lines, to save the call."""
        duration += STEPS  # so that there are at least five bits; `lower_bound` subtracts it
        exponent = duration.bit_length()
        self.counts[(exponent << 4) + (duration >> exponent - 5)] += 1


@dataclass(frozen=True, slots=True)
class Distribution:
    """A frozen distribution of durations. All times are in seconds, each within 1/32 of the true value.

    `later.since(earlier)` is the distribution of an interval, and `Distribution.of` merges several.
    """

    counts: tuple[int, ...] = field(default=(), repr=False)
    """Number of durations in each bucket, without empty buckets at the end. All other fields derive from it."""
    count: int = 0
    """Number of durations. Below about 100, p99 equals `longest`."""
    p50: float = 0.0
    """Median: the typical case. 0 if there are no durations, as for the fields below."""
    p90: float = 0.0
    """90th percentile. If far above p50, items differ in cost, or threads compete for cores."""
    p99: float = 0.0
    """99th percentile: the pauses that the capacity of a channel has to bridge."""
    longest: float = 0.0
    """Maximum."""

    @staticmethod
    def of(histograms: Iterable["Histogram | Distribution"]) -> "Distribution":
        """Return the sum of several histograms (such as those of the workers of a stage) or distributions."""
        tables = [each.counts for each in histograms]
        size = max(map(len, tables), default=0)
        total = [0] * size
        for table in tables:
            for place, count in enumerate(table):
                if count:
                    total[place] += count
        return _distribution(total)

    def since(self, earlier: "Distribution") -> "Distribution":
        """Return the durations recorded after `earlier`, an older state of the same histogram."""
        before = earlier.counts + (0,) * (len(self.counts) - len(earlier.counts))
        return _distribution([max(0, now - then) for now, then in zip(self.counts, before, strict=False)])

    def quantile(self, share: float) -> float:
        """Return the quantile at `share`, between 0 and 1, in seconds; 0 if there are no durations."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"expected a share between 0 and 1, got {share}")
        return _quantiles(self.counts, (share,))[0]


def _distribution(counts: list[int]) -> Distribution:
    while counts and not counts[-1]:
        counts.pop()
    p50, p90, p99, longest = _quantiles(counts, (0.5, 0.9, 0.99, 1.0))
    return Distribution(tuple(counts), sum(counts), p50, p90, p99, longest)


def _quantiles(counts: Iterable[int], shares: Iterable[float]) -> list[float]:
    """Return, for each share, the midpoint in seconds of the bucket of the k-th smallest duration, k = share ×
    count."""
    filled = [(place, count) for place, count in enumerate(counts) if count]
    sums = list(accumulate(count for _, count in filled))
    found = []
    for share in shares:
        rank = max(1, ceil(share * sums[-1])) if sums else 0
        at = next((place for (place, _), sum_ in zip(filled, sums, strict=True) if sum_ >= rank), None)
        found.append(0.0 if at is None else (lower_bound(at) + lower_bound(at + 1)) / 2 / 1e9)
    return found


def lower_bound(place: int) -> int:
    """Return the lower bound of bucket `place` in nanoseconds: the inverse of `Histogram.add`."""
    exponent, step = divmod(place - STEPS, STEPS)
    return (STEPS + step << exponent - 5) - STEPS
