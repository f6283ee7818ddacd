"""Rate limits: a token bucket as a pure function of the times at which items ask to pass.

    graph.stage("fetch", fetch, after=urls, workers=8, rate=Rate(10, burst=5))

The bucket holds up to `burst` tokens and gains `per_second` of them per second; each item takes one. In any period of
t seconds at most `burst` + t × `per_second` items pass. An item that finds no token reserves the next one: items pass
in the order in which they asked, each at the earliest time that the limit allows.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Rate:
    """A limit on the items that a stage or source starts, shared by its workers."""

    per_second: float
    """Items per second in the long run."""
    burst: int = 1
    """Items that may pass at once after a pause. With 1, items are at least 1 / `per_second` apart."""

    def __post_init__(self) -> None:
        if not _is_number(self.per_second, Real) or not 0 < self.per_second < math.inf:
            raise ValueError(f"Rate: expected per_second to be a positive number, got {self.per_second!r}")
        if not _is_number(self.burst, Integral) or self.burst < 1:
            raise ValueError(f"Rate: expected burst to be a whole number of at least 1, got {self.burst!r}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


class TokenBucket:
    """The state of a `Rate` in one run. Times are in nanoseconds; calls must not overlap."""

    def __init__(self, rate: Rate) -> None:
        self._period = 1e9 / float(rate.per_second)
        self._allowance = (int(rate.burst) - 1) * self._period
        # Time at which the bucket would be full had it lost no token since: the further ahead, the emptier it is.
        self._full = -math.inf

    def reserve(self, now: int) -> int:
        """Take a token, and return the time at which the item may pass: `now`, or a later time."""
        full = max(self._full, float(now))
        self._full = full + self._period
        return max(now, math.ceil(full - self._allowance))
