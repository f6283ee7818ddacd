"""Waits for the rate limit of a stage or source, which its workers share.

Guarantees: an item passes at the earliest time that the limit allows, by the clock of the run; waits end when the run
is stopped, and those of a source also when it is drained. User code runs without the lock held.

Ownership: the bucket is guarded by the lock. The waiting times may be read without it.
"""

from _thread import RLock
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from threadloom.pipeline.policy import Rate, TokenBucket
from threadloom.pipeline.run.parking import begin_wait, end_wait
from threadloom.pipeline.run.source_gate import SourceGate


class Throttle:
    """The rate limit of one stage or source in one run."""

    def __init__(self, rate: Rate | float, clock: Callable[[], int]) -> None:
        self._bucket = TokenBucket(rate if isinstance(rate, Rate) else Rate(rate))
        self._clock = clock
        self._lock = RLock()
        self._waits = (0, 0)  # waiting workers and the sum of their waiting times, see `begin_wait`

    @property
    def waiting(self) -> bool:
        """True while a worker waits."""
        return self._waits[0] > 0

    @property
    def seconds(self) -> float:
        """Total seconds that workers have waited, waits in progress included."""
        (workers, nanoseconds), now = self._waits, self._clock()
        return max(0, nanoseconds + now * workers) / 1e9

    def wait(self, sleep: Callable[[float], object]) -> None:
        """Wait until an item may pass; `sleep` waits for a number of seconds and may raise."""
        for seconds in self.delays():
            sleep(seconds)

    def delays(self) -> Iterator[float]:
        """Reserve a place, and yield the seconds that are left until it is due, again after each wait."""
        now = self._clock()
        with self._lock:
            due = self._bucket.reserve(now)
        if due > now:
            with self._counted():
                while (ahead := due - self._clock()) > 0:
                    yield ahead / 1e9

    @contextmanager
    def _counted(self) -> Iterator[None]:
        now = self._clock()
        with self._lock:
            self._waits = begin_wait(self._waits, now)
        try:
            yield
        finally:
            now = self._clock()
            with self._lock:
                self._waits = end_wait(self._waits, now)


class ThrottledGate(SourceGate):
    """The gate of a source with a rate limit."""

    def __init__(self, throttle: Throttle) -> None:
        super().__init__(always=True)
        self._throttle = throttle

    def check(self) -> bool:
        """Wait while the gate is held, and for the rate limit; return True if another element may be produced."""
        if not super().check():
            return False
        for seconds in self._throttle.delays():
            if not self.pause(seconds):
                return False
        return super().check()
