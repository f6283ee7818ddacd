"""Something that happens once and can be waited for.

Guarantees: whoever waits is woken when it happens, and never waits after that. Safe under Ctrl-C at any instruction,
unlike threading.Event, which may lose its lock. Ownership: a gate is opened by anyone and never closed.
"""

from _thread import allocate_lock
from collections.abc import Callable
from time import monotonic

SLICE = 0.2
"""Seconds that the caller's thread waits at a time: CPython notices a Ctrl-C that comes as a wait begins only when that
wait ends. Workers need no slices, because the caller tells them."""


class OneShotEvent:
    """Closed until `open` is called."""

    def __init__(self) -> None:
        self._closed = allocate_lock()
        self._closed.acquire()
        self._guard = allocate_lock()
        self.is_set = False

    def set(self) -> None:
        """Let everyone pass, now and from now on."""
        with self._guard:
            if not self.is_set:
                self.is_set = True
                self._closed.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until it opens, at most `seconds` if given; return whether it is open."""
        if not self.is_set and self._closed.acquire(timeout=seconds):
            self._closed.release()
        return self.is_set


def wait_in_slices(wait: Callable[[float], bool], deadline: float) -> bool:
    """Wait until a moment of the monotonic clock in the caller's thread; return whether it came about."""
    while not (over := wait(min(SLICE, max(0.0, deadline - monotonic())))) and monotonic() < deadline:
        pass
    return over
