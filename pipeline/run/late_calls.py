"""Calls that exceed the time limit of their stage: given up, and their worker replaced, as the failure policy decides.

A thread cannot be interrupted in a call. The watchdog therefore takes the item away from a worker whose call is late,
and asks the failure policy with an `ItemTimeout`. Unless that fails the run, another worker takes the place of the late
one: it skips the item or calls the function again, and continues with the next items. The late worker drops the result
of its call when that returns, runs its tear-down, and ends.

Guarantees: each call is either finished by its worker or given up, never both. The number of workers that process items
stays the same. The end of a late worker is not waited for, except within the grace period at the end of the run.

Ownership: a `TimedCalls` is written by its worker's thread; `give_up` may be called from any thread.
"""

from _thread import LockType, allocate_lock
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from threadloom.pipeline.core import ItemTimeout
from threadloom.pipeline.policy import Decision, RetryAfter


class GivenUpError(BaseException):
    """Raised in a worker whose call has been given up, in place of the result or the error of that call."""


class TimedCall(NamedTuple):
    """A call in progress."""

    began: int
    """Time of its start, in nanoseconds."""
    item: Any
    attempt: int
    """Number of the call for this item, from 1."""
    ended: LockType
    """Locked by the first of `finish` and `give_up`, which decides how the call ends."""


class TimedCalls:
    """The calls of one worker of a stage with a time limit and a failure policy."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._call: TimedCall | None = None
        self.given_up = False
        """True once a call has been given up; the worker processes no further item."""
        self.expanding = False
        """True from the end of a call whose elements are sent as they are produced: those are not given up."""

    def begin(self, item: Any, attempt: int) -> None:
        """Record the start of a call."""
        self.expanding = False
        self._call = TimedCall(self._clock(), item, attempt, allocate_lock())

    def finish(self) -> None:
        """Record the end of the call; raise GivenUpError if it has been given up."""
        call, self._call = self._call, None
        if call is None or not call.ended.acquire(False):
            self.given_up = True  # `give_up` may not have come so far
            raise GivenUpError

    def seconds(self, now: int) -> float:
        """Return the seconds since the start of the call in progress at time `now`; 0 between two calls of one item."""
        call = self._call
        return 0.0 if call is None else max(0, now - call.began) / 1e9

    def give_up(self, limit: float) -> TimedCall | None:
        """Give up the call in progress if it has taken `limit` seconds, and return it; None if there is no such."""
        call = self._call
        if call is None or self._clock() - call.began < limit * 1e9 or not call.ended.acquire(False):
            return None
        self.given_up = True
        return call


@dataclass(frozen=True)
class LateItem:
    """An item whose call was given up, for the worker that takes the place of the late one."""

    item: Any
    number: int
    """Its number among the items taken, for an ordered stage."""
    worker: int
    """Index of the late worker, which has taken the item from the input channel."""
    attempt: int
    """Number of the call that was given up."""
    error: ItemTimeout
    decision: Decision | RetryAfter
    """The policy's decision: SKIP, or another call."""
