"""Signals that stop a command: Ctrl-C, SIGTERM, SIGHUP and the time limit; and SIGUSR1, which asks for a checkpoint.

A stopped command exits with status 128 plus the number of the signal, as shells report it. The first stop signal raises
`Stopped` in the main thread, where the command cleans up; inside `StopSignals.deferred` it calls a function instead,
which saves the work and ends it. A second stop signal ends the process at once.

The main thread may be inside a compiled call, or in a library that swallows exceptions. Signals are therefore also
written to a socket, which a thread reads: it ends the process if the main thread does not react within `GRACE` seconds.
Signals that the system lacks (SIGHUP and SIGUSR1 on Windows) are left out. SIGINT and SIGHUP stay ignored if they were
ignored at the start, as `nohup` and background jobs of a shell arrange.

Assumption: `StopSignals` is created, entered and left in the main thread, which alone may set handlers.
"""

import _thread
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from loguru import logger

from threadloom.stages.console.signal_numbers import CHECKPOINT_SIGNALS, MAY_STAY_IGNORED, STOP_SIGNALS

GRACE = 3.0
"""Seconds after which a command that does not react to a stop signal is ended."""
REPEAT = 0.25
"""Seconds within which a signal counts as the same one: `timeout` and closing terminals send it twice."""
TIME_LIMIT = "the time limit"
"""Name of the time limit in messages."""
_RETRY = 0.02  # seconds
_LONGEST_WAIT = 3600.0  # seconds; a socket's timeout has an upper limit
_SHOW_CURSOR = "\r\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """A stop signal, or the time limit, which acts as SIGTERM."""

    def __init__(self, number: int, name: str | None = None) -> None:
        self.number = number
        self.name = name or ("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        super().__init__(f"stopped by {self.name}")

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 128 + self.number


class _Mode(Enum):
    """The reaction to the first stop signal."""

    EXIT = auto()  # end the process: the command has nothing to clean up
    RAISE = auto()  # raise Stopped in the main thread
    DEFER = auto()  # call the function that was passed to `deferred`


class StopSignals:
    """The signal handlers of a command, installed from entering to leaving the block."""

    def __init__(self) -> None:
        self._mode = _Mode.EXIT  # changed by the main thread
        self._lock = threading.Lock()  # held while the mode changes, and while the thread reacts according to it
        self._first: Stopped | None = None  # the first stop signal; set by the handler or the thread
        self._seen: float | None = None  # time at which the thread saw it; used by the thread only
        self._deadline = float("inf")  # of the command's reaction; used by the thread only
        self._raised = False  # True once Stopped has been raised in the main thread
        self._limit = float("inf")  # end of the time limit
        self._again = float("inf")  # time to raise an exception again that did not propagate
        self._remains: Callable[[], str] = str
        self._stop: Callable[[Stopped], object] | None = None
        self._save: Callable[[], object] | None = None
        self._before: list[tuple[int, Any]] = []
        self._sockets: tuple[socket.socket, socket.socket] | None = None  # (read by the thread, written by signals)
        self._wakeup_before = -1
        self._thread: threading.Thread | None = None
        self._main = threading.get_ident()

    def __enter__(self) -> Self:
        for number in (*STOP_SIGNALS, *CHECKPOINT_SIGNALS):
            before = signal.getsignal(number)
            if number not in MAY_STAY_IGNORED or before is not signal.SIG_IGN:
                self._before.append((number, before))
                signal.signal(number, self._handle)
        with suppress(OSError, RuntimeError):  # if no socket or thread can be had, the handlers alone do most of it
            self._sockets = socket.socketpair()
            self._sockets[1].setblocking(False)
            thread = threading.Thread(target=self._watch, args=(self._sockets[0],), name="signals", daemon=True)
            thread.start()
            self._thread = thread
            self._wakeup_before = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, before in self._before:
            signal.signal(number, before)
        if self._thread and self._sockets:
            signal.set_wakeup_fd(self._wakeup_before)
            self._sockets[1].close()  # the thread reads the end of the stream
            self._thread.join()
        for each in self._sockets or ():
            each.close()

    @contextmanager
    def raising(self, remains: Callable[[], str] = str) -> Iterator[None]:
        """Raise `Stopped` in the main thread at the first stop signal, until the block ends.

        `remains` returns a text on the state that a stopped command leaves, for the message of a sudden end.
        """
        self._remains = remains
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        try:
            self._enter(_Mode.RAISE)
            yield
        finally:
            self._mode = _Mode.EXIT
            sys.unraisablehook = hook

    @contextmanager
    def deferred(self, stop: Callable[[Stopped], object], save: Callable[[], object]) -> Iterator[None]:
        """Call `stop` at the first stop signal and `save` at each SIGUSR1, until the block ends.

        Both are called in any thread, even in a signal handler, and must return at once. After a stop signal the end of
        the block raises `Stopped`, unless the block raises another error.
        """
        self._stop, self._save = stop, save
        self._enter(_Mode.DEFER)
        try:
            yield
        finally:
            with self._lock:
                self._mode = _Mode.RAISE
        if self._first:
            self._raised = True
            raise self._first

    @property
    def stopped(self) -> bool:
        """True if a stop signal has arrived."""
        return self._first is not None

    def limit_time(self, seconds: float) -> None:
        """Stop the command in `seconds` seconds, as SIGTERM does."""
        self._limit = monotonic() + seconds
        self._wake()

    def _wake(self) -> None:
        """Let the thread compute its next wait."""
        if self._sockets:
            self._sockets[1].send(b"\0")

    def _enter(self, mode: _Mode) -> None:
        with self._lock:
            if self._first is None:
                self._mode = mode
                return
        self._raised = True
        raise self._first

    # In the main thread, between any two instructions.

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in CHECKPOINT_SIGNALS:
            if self._thread is None and self._mode is _Mode.DEFER and self._save:
                self._save()
            return
        if self._mode is _Mode.EXIT and not self._raised:
            self._end(self._first or Stopped(number))
        if self._mode is _Mode.RAISE and not self._raised:
            self._raised = True
            self._first = self._first or Stopped(number)
            raise self._first
        if self._thread is None:
            self._react(number)

    def _unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Deliver a signal again whose exception was raised where nothing propagates, as in a destructor."""
        if isinstance(unraisable.exc_value, Stopped):
            self._again = monotonic() + _RETRY  # not now, since the exception would be raised in this call
            self._wake()
        else:
            sys.__unraisablehook__(unraisable)

    # In the thread.

    def _watch(self, source: socket.socket) -> None:
        while True:
            now = monotonic()
            if now >= self._deadline and self._first:
                self._end(self._first)
            if now >= self._limit:
                self._limit = float("inf")
                self._end_of_time()
            if now >= self._again and self._first:
                self._again, self._raised = float("inf"), False
                self._interrupt(self._first.number)
            source.settimeout(min(max(0.01, min(self._deadline, self._limit, self._again) - now), _LONGEST_WAIT))
            try:
                numbers = source.recv(64)
            except TimeoutError:
                continue
            if not numbers:
                return
            for number in numbers:
                self._react(number)

    def _end_of_time(self) -> None:
        if self._first is None:
            self._first = Stopped(int(signal.SIGTERM), TIME_LIMIT)
            self._react(self._first.number)
            if self._mode is not _Mode.DEFER:
                self._interrupt(self._first.number)

    def _interrupt(self, number: int) -> None:
        """Call the handler of a signal in the main thread."""
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self._main, number)  # interrupts a system call that waits
        else:
            _thread.interrupt_main(signal.Signals(number))

    def _react(self, number: int) -> None:
        if number in CHECKPOINT_SIGNALS:
            with self._lock:
                saving = self._save if self._mode is _Mode.DEFER else None
            if saving:
                saving()
            else:
                logger.info("{}: there is nothing to save yet", signal.Signals(number).name)
        elif number in STOP_SIGNALS:
            now = monotonic()
            if self._seen is None:
                self._seen = now
                self._begin_stop(number, now)
            elif now - self._seen > REPEAT:
                self._end(Stopped(number))

    def _begin_stop(self, number: int, now: float) -> None:
        with self._lock:
            self._first = self._first or Stopped(number)
            if self._mode is _Mode.DEFER and self._stop:
                self._stop(self._first)
            else:
                self._deadline = now + GRACE

    def _end(self, stopped: Stopped) -> NoReturn:
        """End the process; files are complete or absent at any time, and child processes end with their input."""
        remains = ""
        with suppress(Exception):
            remains = self._remains()
        with suppress(Exception):
            cursor = _SHOW_CURSOR if os.isatty(2) else ""
            os.write(2, f"{cursor}stopped by {stopped.name}, at once{remains}\n".encode(errors="replace"))
        os._exit(stopped.status)
