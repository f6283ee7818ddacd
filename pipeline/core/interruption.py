"""Code that interrupts a thread (finalisers, weakref callbacks, signal handlers), and forked children.

CPython runs the garbage collector, and with it the `__del__` of any object, at almost any instruction of any thread;
since 3.12 also inside `with lock:` bodies that allocate nothing. Code that is run there meets the locks of the thread
that it has interrupted: waiting for one of them would never end. The engine therefore uses reentrant locks, finds out
with `holds` that it interrupts itself, and hands the call to another thread. `threading` has such a lock, too:
`interrupts_threading`.

In a child of os.fork only the forking thread exists. Locks that other threads held at that moment are never
released there, so that objects which belong to threads must not be used: `ForkCount` tells.
"""

import os
import threading
from _thread import RLock, allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import ClassVar

from threadloom.pipeline.core.errors import Cancelled


class ForkCount:
    """The number of forks between the first process of this program and the present one."""

    present: ClassVar[int] = 0
    """Changed only by `forked`, in a new child. An object that was created with another value belongs to the parent."""

    @classmethod
    def forked(cls) -> None:
        """Count a fork; called by Python in the child."""
        cls.present += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ForkCount.forked)


def holds(lock: RLock) -> bool:
    """Return True if the calling thread holds `lock`, which means that it has been interrupted in its body."""
    held: bool = lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition uses it
    return held


def interrupts_threading() -> bool:
    """Return True if this thread has been interrupted inside `threading`, where it holds the lock of that module.

    Every thread needs the lock as it starts and as it ends (CPython 3.11 to 3.14), so until the interrupting code
    returns, none does either: waiting for one would never end.
    """
    lock = getattr(threading, "_active_limbo_lock", None)  # a forked child has another
    return lock is not None and holds(lock)


def call_elsewhere(call: Callable[[], object]) -> None:
    """Make a call in a new thread, and return at once. Python reports its error as it reports those of a `__del__`."""
    start_new_thread(_unless_cancelled, (call,))


def _unless_cancelled(call: Callable[[], object]) -> None:
    with suppress(Cancelled):  # the run was stopped, and the call is not needed any longer
        call()


class PostponedCalls:
    """Calls by code that interrupted an operation, carried out one after the other by another thread.

    `add` never waits. The thread exists only while there are calls.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()  # its `put` is reentrant
        self._working = allocate_lock()  # locked while a thread carries out the calls; only tried, never waited for

    def add(self, call: Callable[[], object]) -> None:
        """Add a call, which is carried out after those added before it."""
        self._calls.put(call)
        self._start()

    def _start(self) -> None:
        if self._working.acquire(False):
            try:
                start_new_thread(self._work, ())
            except BaseException:
                self._working.release()
                raise

    def _work(self) -> None:
        try:
            while True:
                _unless_cancelled(self._calls.get_nowait())
        except Empty:
            pass
        finally:  # also after the error of a call, which Python reports
            self._working.release()
            if not self._calls.empty():  # added after the last look, while the lock was still locked
                self._start()
