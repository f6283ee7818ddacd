"""Starts threads so that it is always known which of them exist, Ctrl-C or not.

`threading.Thread.start` may be interrupted between the making of the thread and the moment at which its object knows
of it: such a thread is there, or will be, and looks as if it had never been started; nobody could join it. So threads
are started by a thread of the launch's own. Python raises an interrupt in the main thread alone, never in that one.

Whether that one was made must be certain too: it is made by a function of C that is called from C, which notes its
result there as well, so there is no instruction in between at which an interrupt could be raised.
"""

from _thread import start_new_thread
from collections.abc import Sequence
from threading import Thread

from threadloom.pipeline.core import OneShotEvent


class ThreadLauncher:
    """Threads to start, in this order; none after one that could not be started."""

    def __init__(self, threads: Sequence[Thread]) -> None:
        self._threads = tuple(threads)
        self._made: list[int] = []  # one ident as soon as the launch's own thread exists; only `start` adds it
        self._done = OneShotEvent()  # opened by that thread, as its last deed
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start them all and wait until they run; raise what kept one from it. Interrupted, it goes on by itself."""
        self._made.extend(map(start_new_thread, (self._start_all,), ((),)))
        self._done.wait()
        if self._error is not None:
            raise self._error

    def over(self, seconds: float) -> bool:
        """Wait for at most so long; return whether nothing will be started any more."""
        return not self._made or self._done.wait(seconds)

    def _start_all(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()
