"""The threads of one run: created, started so that none is lost to a Ctrl-C, and joined.

`threading.Thread.start` may be interrupted after the thread has been created and before its object has recorded that.
Such a thread runs, or will run, but looks as if it had never been started, so nobody could join it. Python raises
KeyboardInterrupt in the main thread only; threads are therefore started by a separate starter thread.

It must also be certain whether the starter thread itself exists. It is created by a C function that is called from C,
which stores its result there as well: no Python instruction lies between the two at which an interrupt could be raised.

Guarantees: after `join`, every thread that was ever started has ended or is in the returned mapping.

Ownership: `create` and `start` are called under the lock of the run, or before any other thread of it exists.
"""

import sys
import threading
import traceback
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from threading import Thread

from threadloom.pipeline.core import OneShotEvent, wait_in_slices


class ThreadGroup:
    """The threads of one run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: list[tuple[Thread, OneShotEvent]] = []
        self._launchers: list[ThreadLauncher] = []

    def create(self, target: Callable[[], None], name: str, ended: OneShotEvent) -> Thread:
        """Return a new thread, not yet started. `target` has to set `ended` as its last action."""
        # A daemon, so that a function that never returns cannot keep the interpreter from exiting.
        thread = Thread(target=target, name=self.full_name(name), daemon=True)
        self._threads.append((thread, ended))
        return thread

    def start(self, threads: Sequence[Thread]) -> None:
        """Start threads and return once they run. If interrupted, the remaining ones are still started."""
        launcher = ThreadLauncher(threads)
        self._launchers.append(launcher)
        launcher.start()

    def join(self, deadline: float) -> dict[str, str]:
        """Join every thread until `deadline` on the monotonic clock; return the stacks of those left, by name."""
        left = {}
        for launcher in self._launchers:
            wait_in_slices(launcher.finished, deadline)
        for thread, ended in tuple(self._threads):
            if thread.ident is None:
                continue  # never started, and never will be
            # The event first: an interrupted Thread.join mistakes a running thread for an ended one (CPython 3.11).
            if wait_in_slices(ended.wait, deadline):
                thread.join()
            else:
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
        self._starter: list[int] = []  # ident of the starter thread once it exists; appended by `start` only
        self._finished = OneShotEvent()  # set when the starter thread exits
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start all threads and wait until they run; re-raise a start failure.

        If interrupted, starting continues in the background.
        """
        self._starter.extend(map(start_new_thread, (self._start_all,), ((),)))
        self._finished.wait()
        if self._error is not None:
            raise self._error

    def finished(self, seconds: float) -> bool:
        """Wait for at most `seconds`; return True if no further thread will be started."""
        return not self._starter or self._finished.wait(seconds)

    def _start_all(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException as error:
            self._error = error
        finally:
            self._finished.set()


def stack_of(thread: threading.Thread, frames: int | None = None) -> str:
    """Return the current stack of a thread, or its innermost `frames`, formatted like a traceback."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame, limit=frames)) if frame else "(its stack could not be read)\n"
