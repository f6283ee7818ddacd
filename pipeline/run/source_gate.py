"""The way that a source passes before it draws an element, so that it can be held up and closed.

Guarantees: while `needs_check` is false nobody waits or takes a lock; `hold` stops a source before its next element,
`release` lets it go on, `close` ends it for good, `abort` ends it with Cancelled. What is being drawn when the order
comes is still sent. Ownership: every field belongs to the lock; `needs_check` is read without it, as a glance.
"""

from _thread import LockType, allocate_lock

from threadloom.pipeline.core import Cancelled


class SourceGate:
    """In front of one source."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._held = self._closed = self._aborted = False
        self._parked: LockType | None = None  # of the source's one thread; locked, and released once, by `_change`
        self.needs_check = False
        """Whether there is a reason to call `check`."""

    def check(self) -> bool:
        """Wait while held up; return whether another element may be drawn."""
        while True:
            with self._lock:
                if self._aborted:
                    raise Cancelled("the run was stopped before its source drew another element")
                if self._closed or not self._held:
                    return not self._closed
                parked = self._parked = allocate_lock()
                parked.acquire()
            parked.acquire()

    def hold(self) -> None:
        self._change(held=True)

    def release(self) -> None:
        self._change(held=False)

    def close(self) -> None:
        self._change(closed=True)

    def abort(self) -> None:
        self._change(aborted=True)

    def _change(self, held: bool | None = None, closed: bool = False, aborted: bool = False) -> None:
        with self._lock:
            self._held = self._held if held is None else held
            self._closed |= closed
            self._aborted |= aborted
            self.needs_check = self._held or self._closed or self._aborted
            if self._parked is not None:
                if self._parked.locked():
                    self._parked.release()
                self._parked = None
