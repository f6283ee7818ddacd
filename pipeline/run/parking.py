"""Parked threads of a channel, each represented by a locked lock of its own, and the sums of their waiting times.

A thread parks under the lock of the channel, waits outside it, and checks its condition again when it is woken.
"""

from _thread import LockType, allocate_lock
from collections import deque


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
