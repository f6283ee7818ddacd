"""Processes that are kept between runs, set up, for the next run with the same function.

Guarantees: a process serves one worker at a time. It is kept only after a run, or a part of one, that has ended without
an error; one that has died in the meantime, or that maps the memory of a pool which has been closed, is replaced.
`close` tears the idle processes down; those in use are ended by their workers. Kept processes end with the program,
also if it is killed: they are started by a thread that lives until the last of them has ended, because Linux ends a
process together with the thread that started it.

Ownership: every field is guarded by the lock, which is held for a few operations only. A child of os.fork has none
of the processes.
"""

from _thread import RLock
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from threadloom.pipeline.core import ForkCount, OneShotEvent, call_elsewhere
from threadloom.pipeline.processes.child_process import ChildProcess
from threadloom.pipeline.processes.pickling import MessagePickler


@dataclass(frozen=True)
class KeptProcess:
    """A process that is set up, with the pickler that knows its pools."""

    child: ChildProcess
    pickler: MessagePickler

    @property
    def usable(self) -> bool:
        """True if the process lives, and every pool that it knows is open."""
        return self.child.alive and not any(pool.closed for pool in self.pickler.pools)

    def end(self, timeout: float) -> None:
        """Wait `timeout` seconds for the process to end, then kill it; release everything."""
        self.child.end(timeout)
        self.child.crash_report()


class _Start:
    """The start of a process by the thread of a `ProcessKeeper`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.done = OneShotEvent()
        self.child: ChildProcess | None = None
        self.error: BaseException | None = None

    def make(self) -> None:
        try:
            self.child = ChildProcess(self.title)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class ProcessKeeper:
    """The idle processes of one function, and the thread that starts its processes."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._forks = ForkCount.present
        self._forget()
        self._closed = False

    def _forget(self) -> None:
        self._idle: list[KeptProcess] = []
        self._alive = 0  # processes that were started and have not ended
        self._starts: SimpleQueue[_Start | None] | None = None  # of the thread, if there is one; None ends it

    def start(self, title: str) -> ChildProcess:
        """Start a process in the thread of the keeper and return it."""
        start = _Start(title)
        with self._lock:
            self._notice_fork()
            self._alive += 1
            if self._starts is None:
                self._starts = SimpleQueue()
                Thread(target=_serve, args=(self._starts.get,), name="process keeper", daemon=True).start()
            self._starts.put(start)
        start.done.wait()
        if start.child is None:
            self.ended()
            assert start.error is not None
            raise start.error
        return start.child

    def take(self) -> KeptProcess | None:
        """Return an idle process for use, or None if there is none."""
        while True:
            with self._lock:
                self._notice_fork()
                kept = self._idle.pop() if self._idle else None
            if kept is None or kept.usable:
                return kept
            kept.end(0.0)
            self.ended()

    def give_back(self, kept: KeptProcess) -> bool:
        """Keep a process that is set up and has no call; return False if the keeper is closed."""
        with self._lock:
            if self._closed:
                return False
            self._idle.append(kept)
            return True

    def ended(self) -> None:
        """Record that a process has been ended by its user."""
        with self._lock:
            self._alive -= 1
            if not self._alive and self._starts is not None:
                self._starts.put(None)
                self._starts = None

    def close(self) -> list[KeptProcess]:
        """Keep no process from now on; return the idle ones, for the caller to end."""
        with self._lock:
            self._notice_fork()
            self._closed = True
            idle, self._idle = self._idle, []
            return idle

    def drop(self) -> None:
        """End the idle processes without waiting: for a finaliser, and at the exit of the program."""
        idle = self.close()
        for kept in idle:
            kept.child.connection.shut_down()  # the process tears down and ends
        if idle:
            with suppress(RuntimeError):  # no thread can be started at the exit, and the processes need not be awaited
                call_elsewhere(lambda: self._reap(idle))

    def _reap(self, idle: list[KeptProcess]) -> None:
        for kept in idle:
            kept.end(1.0)
            self.ended()

    def _notice_fork(self) -> None:
        if self._forks != ForkCount.present:
            self._forks = ForkCount.present
            self._forget()


def _serve(get: Callable[[], _Start | None]) -> None:
    """Start processes until the last one has ended."""
    while (start := get()) is not None:
        start.make()
