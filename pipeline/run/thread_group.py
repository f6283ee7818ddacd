"""The threads of one run: created, started so that none is lost to a Ctrl-C, and joined.

`threading.Thread.start` may be interrupted after the thread has been created and before its object has recorded that.
Such a thread runs, or will run, but looks as if it had never been started, so nobody could join it. Python raises
KeyboardInterrupt in the main thread only; threads are therefore started by a separate starter thread.

It must also be certain whether the starter thread itself exists. It is created by a C function that is called from C,
which stores its result there as well: no Python instruction lies between the two at which an interrupt could be raised.

Guarantees: after `join`, every thread that was ever started has ended or is in the returned mapping, and no other will
be started. All threads are daemons: a function that never returns cannot keep the interpreter from exiting.

Ownership: every field is guarded by the lock. No foreign code runs while it is held, apart from code that interrupts
its thread, which meets a reentrant lock and no condition that it could break.
"""

import sys
import threading
import traceback
from _thread import RLock, get_ident, start_new_thread
from collections.abc import Callable, Sequence
from threading import Thread
from time import monotonic

from threadloom.pipeline.core import ForkCount, OneShotEvent, PipelineError, interrupts_threading, wait_in_slices

LAST_STEPS = 1.0
"""Seconds for Python to end a thread whose target has returned. It needs a lock that another thread may hold."""


class ThreadGroup:
    """The threads of one run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = RLock()
        self._closed = False  # True from the begin of `join`: no thread is started any longer
        self._threads: list[tuple[Thread, OneShotEvent]] = []
        self._launchers: list[ThreadLauncher] = []
        self._forks = ForkCount.present  # of the process in which the threads run

    def create(self, target: Callable[[], None], name: str, ended: OneShotEvent) -> Thread:
        """Return a new thread, not yet started. `target` has to set `ended` as its last action."""
        thread = Thread(target=target, name=self.full_name(name), daemon=True)
        with self._lock:
            self._threads.append((thread, ended))
        return thread

    def start(self, threads: Sequence[Thread]) -> None:
        """Start threads and return once they run. If interrupted, the remaining ones are still started.

        Starts none after `join`. Raises the error of a thread that cannot be started; the threads after it are not
        started either. A thread that was not and will not be started has no ident. Raises PipelineError if the caller
        has interrupted `threading`.
        """
        if interrupts_threading():
            raise PipelineError(
                f"threads of {self._name!r} cannot be started here: this finaliser or signal handler has interrupted "
                "the threading module, and no thread starts until it returns. Start them elsewhere"
            )
        launcher = ThreadLauncher(threads)
        try:
            with self._lock:
                if self._closed:
                    return
                self._launchers.append(launcher)
            launcher.start()
        finally:
            launcher.give_up()

    @property
    def forked(self) -> bool:
        """True in a child of os.fork, which has none of the threads."""
        return self._forks != ForkCount.present

    @property
    def gone(self) -> bool:
        """True if the threads will not run again: in a forked child, and once the interpreter exits.

        The locks that they hold are then never released.
        """
        return self.forked or sys.is_finalizing()

    @property
    def includes_caller(self) -> bool:
        """True in a thread of this group, which must not wait for the group."""
        me = get_ident()  # may have been that of a thread that has ended
        if any(me in launcher.starter and not launcher.finished.is_set for launcher in tuple(self._launchers)):
            return True
        return any(thread.ident == me and thread.is_alive() for thread, _ in tuple(self._threads))

    def join(self, deadline: float) -> dict[str, str]:
        """Join every thread until `deadline` on the monotonic clock; return the stacks of those left, by name."""
        with self._lock:
            self._closed = True
        left = {}
        for launcher in self._launchers:
            wait_in_slices(launcher.finished.wait, deadline)
        for thread, ended in tuple(self._threads):
            if thread.ident is None:
                continue  # never started, and never will be
            # The event first: an interrupted Thread.join mistakes a running thread for an ended one (CPython 3.11).
            if wait_in_slices(ended.wait, deadline):
                thread.join(max(deadline - monotonic(), LAST_STEPS))
            if not ended.is_set or thread.is_alive():
                left[thread.name] = stack_of(thread)
        return left

    def stack(self, name: str) -> str:
        """Return the stack of the thread called `name` within this group; empty if there is none."""
        full_name = self.full_name(name)
        return "".join(stack_of(thread) for thread, _ in tuple(self._threads) if thread.name == full_name)

    def full_name(self, name: str) -> str:
        """Return the name of a thread as debuggers and logs show it."""
        return f"{self._name}.{name}"


class ThreadLauncher:
    """A list of threads and the starter thread that starts them in order, up to the first that cannot be started."""

    def __init__(self, threads: Sequence[Thread]) -> None:
        self._threads = tuple(threads)
        self.starter: list[int] = []
        """Ident of the starter thread once it exists; appended by `start` only."""
        self.finished = OneShotEvent()
        """Set once no further thread will be started."""
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start all threads and wait until they run; re-raise a start failure.

        If interrupted, starting continues in the background.
        """
        self.starter.extend(map(start_new_thread, (self._start_all,), ((),)))
        self.finished.wait()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Start no thread, unless the starter thread exists."""
        if not self.starter:
            self.finished.set()

    def _start_all(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException as error:
            self._error = error
        finally:
            self.finished.set()


def stack_of(thread: threading.Thread, frames: int | None = None) -> str:
    """Return the current stack of a thread, or its innermost `frames`, formatted like a traceback."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame, limit=frames)) if frame else "(its stack could not be read)\n"
