"""One spawned process and the connection to it, as its parent holds them.

Guarantees: the process inherits its end of the connection and nothing else that is ours. `end` leaves neither the
process, nor a zombie, nor a descriptor. Its end is noticed even if a fork of its own holds the connection open.

Ownership: belongs to one thread, which also made it (on Linux the process dies with that thread); `wire.shut_down`
may be called from others until `end`. `_SPAWNING` guards the table of children that multiprocess keeps for one thread.
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
from typing import IO, Any, Final

import multiprocess
from multiprocess import resource_tracker
from multiprocess.reduction import DupFd

from threadloom.pipeline.core import PipelineError
from threadloom.pipeline.processes.child_main import child_main
from threadloom.pipeline.processes.wire import ConnectionClosed, MessageKind, Payload, Wire

_SPAWNING: Final = threading.Lock()

GUARD_REMEDY = (
    "Every process imports the main script. If that is where the run is started, put the start under "
    "`if __name__ == '__main__':`"
)


class ReplyTimeout(Exception):
    """No answer came in time."""


class _Inherited:
    """A descriptor that the process inherits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _detach, (DupFd(self._fd),)


def _detach(inherited: Any) -> int:
    fd: int = inherited.detach()
    return fd


def _scratch_file() -> IO[bytes]:
    """Return a file without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("threadloom-crash", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Let a process start with SIGINT blocked, until it ignores it by itself."""
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ChildProcess:
    """One process and the connection to it."""

    def __init__(self, title: str) -> None:
        if getattr(multiprocess.current_process(), "_inheriting", False):
            raise PipelineError(f"a run was started while its own worker process was being set up. {GUARD_REMEDY}")
        self._crash = _scratch_file()
        ours, theirs = socket.socketpair()
        with theirs:
            self.wire = Wire(ours)
            arguments = (_Inherited(theirs.fileno()), _Inherited(self._crash.fileno()), os.getpid(), title)
            context = multiprocess.get_context("spawn")
            self._process = context.Process(target=child_main, args=arguments, name=title, daemon=True)
            try:
                with _SPAWNING, _no_ctrl_c():
                    self._process.start()
            except BaseException:
                ours.close()
                self._crash.close()
                raise
        self.pid: int = self._process.pid
        # Readable once the process has ended, even if others hold its end of the connection (a fork of its own).
        pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        self._pidfd = pidfd
        self._ended: int = self._process.sentinel if pidfd is None else pidfd
        self._poll = select.poll()
        for fd in (self.wire.fileno(), self._ended):
            self._poll.register(fd, select.POLLIN)

    def receive(self, deadline: float | None) -> tuple[MessageKind, Payload]:
        """Return the next message. The thread waits here, without the GIL."""
        milliseconds = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1e3))
        ready = [fd for fd, _ in self._poll.poll(milliseconds)]
        if not ready:
            raise ReplyTimeout
        if self.wire.fileno() not in ready:
            raise ConnectionClosed("the process has ended")
        kind, payload, _ = self.wire.receive()
        return kind, payload

    def end(self, patience: float) -> int | None:
        """Wait for the process to end, and kill it if it does not; return its exit code, and keep nothing of it."""
        self.wire.shut_down()
        over = select.poll()
        over.register(self._ended, select.POLLIN)
        if not over.poll(patience * 1e3):
            self._process.kill()
            over.poll()
        with _SPAWNING:
            self._process.join()
            exitcode: int | None = self._process.exitcode
            with suppress(ValueError):  # reaped by somebody else
                self._process.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.wire.close()
        return exitcode

    def crash_report(self) -> str:
        """Return the Python stack that a crash left, and close the file."""
        with self._crash as file:
            file.seek(0)
            return file.read().decode(errors="replace").strip()
