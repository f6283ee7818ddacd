"""A one-shot event.

Guarantees: `set` wakes all waiting threads, and later waits return at once. Unlike threading.Event, whose internal lock
can stay locked if a KeyboardInterrupt arrives inside it, it is safe under Ctrl-C at any instruction. Any thread may set
an event; it is never cleared.
"""

from _thread import allocate_lock
from collections.abc import Callable
from time import monotonic

SLICE = 0.2
"""Longest single wait of the caller's thread, in seconds: CPython notices a Ctrl-C that arrives as a wait begins only
when that wait ends. Workers need no slices, because the caller's thread wakes them."""


class OneShotEvent:
    """An event that is initially not set."""

    def __init__(self) -> None:
        self._blocked = allocate_lock()  # locked until the event is set
        self._blocked.acquire()
        self._lock = allocate_lock()
        self.is_set = False

    def set(self) -> None:
        """Set the event, and wake all waiting threads."""
        with self._lock:
            if not self.is_set:
                self.is_set = True
                self._blocked.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until the event is set, at most `seconds` unless negative; return True if it is set."""
        if not self.is_set and self._blocked.acquire(timeout=seconds):
            self._blocked.release()
        return self.is_set


def wait_in_slices(wait: Callable[[float], bool], deadline: float) -> bool:
    """Call `wait(seconds)` in slices of at most SLICE until it returns True or the monotonic clock reaches `deadline`.

    Returns the result of the last call. For the caller's thread, which must notice Ctrl-C.
    """
    while not (done := wait(min(SLICE, max(0.0, deadline - monotonic())))) and monotonic() < deadline:
        pass
    return done
