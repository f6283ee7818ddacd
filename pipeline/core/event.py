"""A one-shot event.

Guarantees: `set` wakes all waiting threads, and later waits return at once. Any thread may set an event, any number of
times; it is never cleared. No lock is held, so a Ctrl-C at any instruction, a finaliser or a signal handler that sets
the event leave nothing locked, unlike with threading.Event.
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
        # Locked until the event is set. Invariant: after `set`, a thread that has locked it releases it at once.
        self._blocked = allocate_lock()
        self._blocked.acquire()
        self.is_set = False

    def set(self) -> None:
        """Set the event, and wake all waiting threads."""
        # No interrupt can occur between these two: CPython looks for one after a call, not between two assignments.
        self.is_set = True
        try:  # noqa: SIM105 - entering `suppress` is a call, after which an interrupt can occur
            self._blocked.release()
        except RuntimeError:
            pass  # released already

    def wait(self, seconds: float = -1) -> bool:
        """Wait until the event is set, at most `seconds` unless negative; return True if it is set."""
        if self.is_set:
            return True
        try:
            self._blocked.acquire(timeout=seconds)
        finally:  # also if a Ctrl-C arrives just after the acquisition
            done = self._pass_on()
        return done

    def _pass_on(self) -> bool:
        """Wake the next waiting thread if the event is set; return True if it is."""
        if self.is_set:
            self.set()
        return self.is_set


def wait_in_slices(wait: Callable[[float], bool], deadline: float) -> bool:
    """Call `wait(seconds)` in slices of at most SLICE until it returns True or the monotonic clock reaches `deadline`.

    Returns the result of the last call. For the caller's thread, which must notice Ctrl-C.
    """
    while not (done := wait(min(SLICE, max(0.0, deadline - monotonic())))) and monotonic() < deadline:
        pass
    return done
