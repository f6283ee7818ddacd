"""A spawned worker process and the connection to it, from the parent's side.

Guarantees: the process inherits its end of the connection, the file for crash reports, and no other descriptor of this
program. `end` leaves neither the process, nor a zombie, nor a descriptor. The end of the process is noticed even if a
process that it forked keeps the connection open.

Ownership: a `ChildProcess` is used by one thread at a time, and has to be ended before the thread that created it ends
(on Linux the process dies with that thread); `connection.shut_down` may be called from other threads until `end`.
"""

import math
import os
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, ClassVar, Final

import multiprocess
from multiprocess import resource_tracker
from multiprocess.reduction import DupFd

from threadloom.pipeline.core import PipelineError
from threadloom.pipeline.processes.child_main import child_main
from threadloom.pipeline.processes.connection import MOST_AHEAD, Connection, ConnectionClosed, MessageKind, Payload

GUARD_REMEDY = (
    "Every worker process imports the main script. If that script starts the run, put the start under "
    "`if __name__ == '__main__':`"
)


SEND_BUFFER: Final = 4 * MOST_AHEAD
"""Size of the buffer of the parent's socket in bytes, larger than all that is sent ahead, with its overhead."""


class ReplyTimeout(Exception):
    """No reply was received before the deadline."""


class _InheritedFd:
    """A descriptor that the process inherits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _detach, (DupFd(self._fd),)


def _detach(inherited: Any) -> int:
    fd: int = inherited.detach()
    return fd


def _crash_file() -> IO[bytes]:
    """Return an unnamed file for the crash report of the process."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("threadloom-crash", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT while a process is started: it inherits the mask, and unblocks SIGINT once it ignores the signal."""
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ChildProcess:
    """One worker process and the connection to it."""

    _children_lock: ClassVar = threading.RLock()
    """Guards the table of child processes that multiprocess keeps for the whole program without a lock. Reentrant: a
    finaliser that interrupts its holder may start or end another process."""

    def __init__(self, title: str) -> None:
        if getattr(multiprocess.current_process(), "_inheriting", False):
            raise PipelineError(f"a run was started during the set-up of its own worker process. {GUARD_REMEDY}")
        self._crash = _crash_file()
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        with theirs:
            self.connection = Connection(ours)
            arguments = (_InheritedFd(theirs.fileno()), _InheritedFd(self._crash.fileno()), os.getpid(), title)
            context = multiprocess.get_context("spawn")
            self._process = context.Process(target=child_main, args=arguments, name=title, daemon=True)
            try:
                with self._children_lock, _sigint_blocked():
                    self._process.start()
            except BaseException:
                ours.close()
                self._crash.close()
                raise
        self.pid: int = self._process.pid
        # Readable once the process has ended, even if a process that it forked holds the connection open.
        pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        self._pidfd = pidfd
        self._ended: int = self._process.sentinel if pidfd is None else pidfd
        self._poll = select.poll()
        for fd in (self.connection.fileno(), self._ended):
            self._poll.register(fd, select.POLLIN)

    def receive(self, deadline: float | None) -> tuple[MessageKind, Payload]:
        """Return the next message; wait for it with the GIL released, until `deadline` on the monotonic clock."""
        if self.connection.has_reply:
            return self.connection.receive_reply()
        milliseconds = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1e3))
        ready = [fd for fd, _ in self._poll.poll(milliseconds)]
        if not ready:
            raise ReplyTimeout
        if self.connection.fileno() not in ready:
            raise ConnectionClosed("the process has ended")
        return self.connection.receive_reply()

    @property
    def alive(self) -> bool:
        """True if the process has not ended, nor closed its connection or sent something unasked."""
        return not self._poll.poll(0)

    def end(self, timeout: float) -> int | None:
        """Wait `timeout` seconds for the process to end, then kill it; release everything and return its exit code."""
        self.connection.shut_down()
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        if not poll.poll(timeout * 1e3):
            self._process.kill()
            poll.poll()
        with self._children_lock:
            self._process.join()
            exitcode: int | None = self._process.exitcode
            with suppress(ValueError):  # another thread has reaped it
                self._process.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.connection.close()
        return exitcode

    def crash_report(self) -> str:
        """Return the Python stack that a crash has written, empty if there is none, and close the file."""
        with self._crash as file:
            file.seek(0)
            return file.read().decode(errors="replace").strip()
