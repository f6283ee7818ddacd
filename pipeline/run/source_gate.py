"""The gate that each worker of a source checks before an element, so that the source can be paused and stopped.

Guarantees: while `needs_check` is False a source neither waits nor takes a lock. `hold` pauses the source before its
next element, `release` lets it continue, `close` ends it normally, and `abort` ends it with Cancelled. An element that
is being produced when the order arrives is still sent.

Ownership: every field is guarded by the lock; `needs_check` is read without it, as a hint.
"""

from _thread import LockType, RLock
from collections import deque
from contextlib import suppress

from threadloom.pipeline.core import Cancelled, holds
from threadloom.pipeline.run.parking import park, wake_all


class SourceGate:
    """Pause and close control of one source."""

    def __init__(self, *, always: bool = False) -> None:
        self._lock = RLock()
        self._always = always  # True if `check` has to be called before every element
        self._held = self._closed = self._aborted = False
        self._parked: deque[LockType] = deque()  # the workers that wait while the gate is held; woken by `_update`
        self.needs_check = always
        """True if the source has to call `check` before its next element."""

    @property
    def interrupted(self) -> bool:
        """True if the calling thread has been interrupted in a method of this gate."""
        return holds(self._lock)

    def check(self) -> bool:
        """Wait while the gate is held; return True if another element may be produced."""
        while True:
            with self._lock:
                if self._aborted:
                    raise Cancelled("the run was stopped before its source produced another element")
                if self._closed or not self._held:
                    return not self._closed
                parked = park(self._parked)
            parked.acquire()

    def pause(self, seconds: float) -> bool:
        """Wait `seconds`, or until an order arrives; return False if the source is to end."""
        with self._lock:
            if self._aborted:
                raise Cancelled("the run was stopped before its source produced another element")
            if self._closed:
                return False
            parked = park(self._parked)
        if not parked.acquire(timeout=seconds):
            with self._lock, suppress(ValueError):  # woken in the meantime
                self._parked.remove(parked)
        return True

    def hold(self) -> None:
        """Pause the source before its next element."""
        self._update(held=True)

    def release(self) -> None:
        """Let the source continue."""
        self._update(held=False)

    def close(self) -> None:
        """End the source before its next element."""
        self._update(closed=True)

    def abort(self) -> None:
        """Make `check` raise Cancelled, now and from now on."""
        self._update(aborted=True)

    def _update(self, *, held: bool | None = None, closed: bool = False, aborted: bool = False) -> None:
        with self._lock:
            self._held = self._held if held is None else held
            self._closed |= closed
            self._aborted |= aborted
            self.needs_check = self._always or self._held or self._closed or self._aborted
            wake_all(self._parked)
