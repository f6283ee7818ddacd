"""A process worker: the object that the worker thread of a process stage calls with each item.

Guarantees: the process exists only inside the worker's context. It has ended and been reaped before the worker thread
ends, whether the run ended with its input, an error, a cancellation or a kill; its descriptors are closed with it. An
exception in the process is raised here, with the traceback of the process as its `__cause__`. If the process dies, the
call raises `WorkerDied`, and the slots lent to the process are returned as soon as its item is released. `abort` ends
every wait at once; the process then has `ABORT_GRACE` seconds to finish its item and tear down before it is killed.

Ownership: a `ProcessWorker` belongs to its worker thread; `abort` and `kill_process` may be called from any thread.
`_child_lock` guards the fields that they share with it.

Internal interface: `pid` and `kill_process` are for `threadloom.pipeline.testing` and the tests; they are not part of
the public API.
"""

import os
import reprlib
import signal
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from threadloom.pipeline.core import Cancelled, PipelineError, SharedSlot
from threadloom.pipeline.processes.child_main import ErrorReport, Job
from threadloom.pipeline.processes.child_process import GUARD_REMEDY, ChildProcess, ReplyTimeout
from threadloom.pipeline.processes.connection import ConnectionClosed, MessageKind, Payload
from threadloom.pipeline.processes.errors import ProcessError, ProcessTraceback, WorkerDied, WorkerTimeout
from threadloom.pipeline.processes.pickling import MessagePickler, PoolHandle

In = TypeVar("In")
Out = TypeVar("Out")

ABORT_GRACE: Final = 0.5
"""Seconds that a process has to finish its item and tear down after the run was stopped, before it is killed."""
TEARDOWN_TIMEOUT: Final = 10.0
"""Seconds that a process has to tear down at the end of the input."""
LARGE_PICKLE: Final = 1 << 20
"""Size in bytes above which pickling an item causes a warning."""


@dataclass(frozen=True)
class ProcessSettings:
    """The settings that the process workers of one stage share."""

    job: Job
    by_value: bool
    """True if the process cannot import the main module (a notebook, python -c), so that it is sent by value."""
    time_limit: float | None
    """Seconds for one item; None for no limit."""


class _ChildPhase(Enum):
    """The phases of a process in which it has no item, as error messages call them."""

    START = "during its start and set-up"
    FLUSH = "during its flush"
    TEAR_DOWN = "during its tear-down"


class ProcessWorker(Generic[In, Out]):
    """A callable that runs a function in its own process; if the process has died, the next call starts another.

    `active` is the set of the stage's workers in use: the worker adds itself on entry, and removes itself on exit.
    """

    def __init__(self, settings: ProcessSettings, title: str, active: "set[ProcessWorker[In, Out]]") -> None:
        self._settings = settings
        self._title = title
        self._active = active
        self._child_lock = threading.RLock()  # reentrant: a finaliser may interrupt its holder
        self._aborted = False  # set once, under the lock
        self._child: ChildProcess | None = None  # set by the worker thread only, under the lock
        self._pickler = MessagePickler(self._held_slot, owner=True)  # replaced with each process
        self._warned = False

    def __enter__(self) -> Self:
        """Start the process and wait until it is set up."""
        self._active.add(self)
        try:
            self._start()
        except BaseException:
            self._active.discard(self)
            raise
        return self

    def __call__(self, item: In) -> Out:
        """Return the result of the function for `item`, computed in the process."""
        child = self._child or self._start()
        payload = self._dump(item)
        limit = self._settings.time_limit
        deadline = None if limit is None else time.monotonic() + limit
        # Slots that the process requests for this item; those that are not in its reply are free again afterwards.
        lent: list[SharedSlot] = []
        try:
            kind, reply = self._exchange(child, MessageKind.CALL, payload, deadline, item, lent)
            if kind is MessageKind.ERROR:
                self._raise(reply, child.pid)
            result: Out = self._pickler.loads(reply)
            return result
        finally:
            lent.clear()

    def flush(self) -> list[Out]:
        """Return the results of `flush` of the function, called in the process; none if there is no process."""
        child = self._child
        if child is None:
            return []
        lent: list[SharedSlot] = []
        try:
            kind, reply = self._exchange(child, MessageKind.FLUSH, None, None, _ChildPhase.FLUSH, lent)
            if kind is MessageKind.ERROR:
                self._raise(reply, child.pid)
            results: list[Out] = self._pickler.loads(reply)
            return results
        finally:
            lent.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Wait for the process to tear down and end; raise an error of its tear-down. After an error, only end it."""
        try:
            child = self._child
            if child is None:
                return
            if error is not None:
                self._end(ABORT_GRACE)
                return
            deadline = time.monotonic() + TEARDOWN_TIMEOUT
            reply, payload = self._exchange(child, MessageKind.END, None, deadline, _ChildPhase.TEAR_DOWN)
            self._end(ABORT_GRACE)
            if reply is MessageKind.ERROR:
                self._raise(payload, child.pid)
        finally:
            self._active.discard(self)

    def abort(self) -> None:
        """End every wait for the process, now and from now on. May be called from any thread, any number of times."""
        with self._child_lock:
            self._aborted = True
            if self._child is not None:
                self._child.connection.shut_down()

    @property
    def pid(self) -> int | None:
        """Id of the current process; None if there is none."""
        child = self._child
        return None if child is None else child.pid

    def kill_process(self, pid: int) -> None:
        """Kill the process `pid` with SIGKILL if it is still the current one. May be called from any thread."""
        with self._child_lock:  # while it is held the process is not reaped, so that its id is not reused
            if self._child is not None and self._child.pid == pid:
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> ChildProcess:
        self._check_aborted()
        child = ChildProcess(self._title)
        with self._child_lock:
            self._child = child
        try:
            self._check_aborted()  # `abort` may have been called before there was a connection to shut down
        except Cancelled:
            self._end(0.0)
            raise
        self._pickler = MessagePickler(self._held_slot, owner=True)
        job = self._pickler.dumps(self._settings.job, by_value=self._settings.by_value)
        kind, payload = self._exchange(child, MessageKind.BEGIN, job, None, _ChildPhase.START)
        if kind is MessageKind.ERROR:
            self._end(ABORT_GRACE)
            self._raise(payload, child.pid)
        return child

    def _check_aborted(self) -> None:
        if self._aborted:
            raise Cancelled(f"{self._title} was stopped")

    def _end(self, timeout: float) -> tuple[int | None, str]:
        """End the process within `timeout` seconds; return its exit code and its crash report."""
        assert self._child is not None
        child = self._child
        with self._child_lock:
            self._child = None  # before its descriptors are closed: `abort` must not use reused descriptor numbers
        return child.end(timeout), child.crash_report()

    def _dump(self, value: Any) -> Payload:
        payload = self._pickler.dumps(value)
        if len(payload.data) > LARGE_PICKLE and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._title} pickles {len(payload.data):,} bytes for one item; arrays of a SharedPool are passed "
                f"without copying",
                RuntimeWarning,
                stacklevel=2,
            )
        return payload

    def _exchange(
        self,
        child: ChildProcess,
        kind: MessageKind,
        payload: Payload | None,
        deadline: float | None,
        doing: Any,
        lent: list[SharedSlot] | None = None,
    ) -> tuple[MessageKind, Payload]:
        """Send a message and return the reply; serve the process's requests for slots in between.

        `doing` is the item or the `_ChildPhase`, for error messages; `lent` receives the slots lent to the process.
        """
        try:
            if payload is not None and payload.pools:
                self._send_pools(child, payload)
            child.connection.send(kind, payload)
            while True:
                reply, data = child.receive(deadline)
                if reply is not MessageKind.TAKE:
                    return reply, data
                child.connection.send(MessageKind.SLOT, self._lend(data, [] if lent is None else lent))
        except ConnectionClosed:
            raise self._explain_end(child, doing) from None
        except ReplyTimeout:
            raise self._explain_timeout(child, doing) from None
        except BaseException:  # the exchange is incomplete, for example because a pool raised Cancelled
            self._end(ABORT_GRACE)
            raise

    def _send_pools(self, child: ChildProcess, payload: Payload) -> None:
        for pool in payload.pools:
            handle = PoolHandle(pool.name, pool.slots, pool.slot_bytes)
            child.connection.send(MessageKind.POOL, self._pickler.dumps(handle), pool.fd())
        self._pickler.mark_pools_sent()

    def _lend(self, data: Payload, lent: list[SharedSlot]) -> Payload:
        number, timeout = self._pickler.loads(data)
        slot = self._pickler.pools[number].lend(timeout)
        lent.append(slot)
        return self._pickler.dumps((slot.number, slot.serial))

    def _held_slot(self, pool: int, number: int, serial: int) -> SharedSlot:
        return self._pickler.pools[pool].held(number, serial)

    def _explain_end(self, child: ChildProcess, doing: Any) -> PipelineError:
        exitcode, crash = self._end(ABORT_GRACE)
        if self._aborted:
            return Cancelled(f"{self._title} was stopped")
        when = doing.value if isinstance(doing, _ChildPhase) else f"while processing item {reprlib.repr(doing)}"
        how = "ended" if exitcode is None else f"exited with code {exitcode}"
        hint = "Its code called os._exit, or closed its connection"
        if exitcode is not None and exitcode < 0:
            with suppress(ValueError):
                how = f"was killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
            hint = "Its own code crashed" if crash else "It was killed from outside, possibly out of memory (see dmesg)"
        if doing is _ChildPhase.START:
            hint = f"Its output is on stderr. {GUARD_REMEDY}"
        stack = f"\n{crash}" if crash else ""
        message = f"process {child.pid} of {self._title!r} {how} {when}. {hint}{stack}"
        return WorkerDied(message, child.pid, exitcode)

    def _explain_timeout(self, child: ChildProcess, doing: Any) -> PipelineError:
        self._end(0.0)
        late = f"its tear-down exceeded {TEARDOWN_TIMEOUT:g} s"
        if not isinstance(doing, _ChildPhase):
            late = f"item {reprlib.repr(doing)} exceeded the time limit of {self._settings.time_limit:g} s"
        return WorkerTimeout(f"process {child.pid} of {self._title!r} was killed: {late}")

    def _raise(self, payload: Payload, pid: int) -> NoReturn:
        report: ErrorReport = self._pickler.loads(payload)
        cause = ProcessTraceback(f"in process {pid} of {self._title!r}:\n{report.traceback}")
        raise (ProcessError(report.summary, report.types) if report.error is None else report.error) from cause
