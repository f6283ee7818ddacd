"""Parked threads of a channel, each represented by a separate locked lock, and the sums of their waiting times.

A thread parks under the lock of the channel, waits outside it, and checks its condition again when it is woken.
"""

from _thread import TIMEOUT_MAX, LockType, allocate_lock
from collections import deque
from collections.abc import Callable


def begin_wait(waits: tuple[int, int], now: int) -> tuple[int, int]:
    """Return (waiting threads, sum of waiting times in nanoseconds minus the start of each wait in progress)."""
    return waits[0] + 1, waits[1] - now


def end_wait(waits: tuple[int, int], now: int) -> tuple[int, int]:
    """Return the same pair after the end of a wait."""
    return waits[0] - 1, waits[1] + now


def park(queue: deque[LockType]) -> LockType:
    """Return a locked lock that the next wake-up of `queue` releases; acquire it outside the channel's lock."""
    parked = allocate_lock()
    parked.acquire()
    queue.append(parked)
    return parked


def wake(queue: deque[LockType]) -> None:
    """Wake the thread that has been parked longest, if there is one."""
    if queue:
        # Released before it is removed: an interrupt in between must not lose a sleeping thread. The code that has
        # interrupted may have removed it; then it must not remove another one here.
        parked = queue[0]
        if parked.locked():
            parked.release()
        if queue and queue[0] is parked:
            queue.popleft()


def wake_all(queue: deque[LockType]) -> None:
    """Wake every parked thread."""
    while queue:
        wake(queue)


class WaitLimit:
    """The time at which a thread stops waiting, on the clock of its channel."""

    __slots__ = ("_clock", "_end", "due")

    def __init__(self, clock: Callable[[], int], timeout: float | None) -> None:
        self._clock = clock
        self._end = None if timeout is None else clock() + round(timeout * 1e9)  # nanoseconds; None for no limit
        self.due: int | None = None
        """The time at which the thread has to check its condition again, if that is earlier."""

    def expired(self) -> bool:
        """Return True if the time limit of the call has passed."""
        return self._end is not None and self._clock() >= self._end

    def has_come(self) -> bool:
        """Return True if the thread has to check its condition again."""
        return self.expired() or (self.due is not None and self._clock() >= self.due)

    def seconds(self, most: float) -> float:
        """Return the seconds to wait, at most `most` unless that is negative; -1 for no limit."""
        now = self._clock()
        waits = [max(0.0, (each - now) / 1e9) for each in (self._end, self.due) if each is not None]
        if most >= 0:
            waits.append(most)
        return min(*waits, TIMEOUT_MAX) if waits else -1
