"""A process worker: the object that the worker thread of a process stage calls with each item.

Guarantees: the process exists only inside the worker's context, unless it is kept (`kept_processes`). It has ended and
been reaped before the worker thread ends, whether the run ended with its input, an error, a cancellation or a kill; its
descriptors are closed with it. An
exception in the process is raised here, with the traceback of the process as its `__cause__`. If the process dies, the
call raises `WorkerDied`, and the slots lent to the process are returned as soon as its item is released. `abort` ends
every wait at once; the process then has `ABORT_GRACE` seconds to finish its item and tear down before it is killed.

Ownership: a `ProcessWorker` belongs to its worker thread; `abort` and `kill_process` may be called from any thread.
`_child_lock` guards the fields that they share with it.

Internal interface: `pid` and `kill_process` are for `threadloom.pipeline.testing` and the tests; they are not part of
the public API.
"""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from threadloom.pipeline.core import Cancelled, PipelineError, SharedSlot
from threadloom.pipeline.processes.child_main import ErrorReport, Job
from threadloom.pipeline.processes.child_process import ChildProcess, ReplyTimeout
from threadloom.pipeline.processes.connection import MOST_AHEAD, ConnectionClosed, MessageKind, Payload
from threadloom.pipeline.processes.errors import ProcessError, ProcessTraceback
from threadloom.pipeline.processes.exit_errors import ChildPhase, death_of, timeout_of
from threadloom.pipeline.processes.kept_processes import KeptProcess, ProcessKeeper
from threadloom.pipeline.processes.pickling import MessagePickler, PoolHandle
from threadloom.pipeline.processes.sent_call import Reply, SentCall

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
    chunk: int = 1
    """Largest number of items sent to the process at once."""
    keeper: ProcessKeeper | None = None
    """Keeps processes between runs; None if each process ends with its worker."""


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
        self.chunk = settings.chunk
        """Largest number of items for `send_ahead`."""
        self._sent: deque[SentCall] = deque()  # the calls sent ahead whose results have not been returned

    def __enter__(self) -> Self:
        """Start the process and wait until it is set up."""
        self._active.add(self)
        try:
            self._start()
        except BaseException:
            self._active.discard(self)
            raise
        return self

    def send_ahead(self, items: Sequence[In]) -> None:
        """Send items to the process at once; each is then passed to a call, in the same order.

        An item that cannot be sent ahead, because it is too large or its process has to be started, is sent by its
        call.
        """
        child = self._child
        if child is None or self._sent:
            return
        payloads: list[Payload] = []
        size = 0
        for item in items:
            try:
                payload = self._dump(item)
            except Exception:
                continue
            size += len(payload.data) if payloads else 0
            if size > MOST_AHEAD:
                break
            if payload.pools:
                with suppress(ConnectionClosed):
                    self._send_pools(child, payload)
            payloads.append(payload)
            self._sent.append(SentCall(item, child))
        with suppress(ConnectionClosed):  # found by the first call, which then explains the end of the process
            child.connection.send_calls(payloads)

    def __call__(self, item: In) -> Out:
        """Return the result of the function for `item`, computed in the process."""
        sent = self._sent
        if not sent:
            return self._call_alone(item)
        if sent[0].item is not item:  # a repeated call: the process has to finish the others first
            for each in sent:
                self._receive_reply(each)
            return self._call_alone(item)
        call = sent[0]
        self._receive_reply(call)
        sent.popleft()
        return self._call_alone(item) if call.lost else self._result(call)

    def _call_alone(self, item: In) -> Out:
        """Send one item and return the result."""
        call = SentCall(item)
        child = self._child or self._start()
        payload = self._dump(item)
        try:
            kind, reply = self._exchange(child, MessageKind.CALL, payload, self._deadline(), item, call.lent)
        except BaseException:
            call.lent.clear()  # free again; the traceback refers to this frame
            raise
        call.reply = Reply(kind, reply, self._pickler, child.pid, call.lent)
        return self._result(call)

    def _receive_reply(self, call: SentCall) -> None:
        """Wait for the reply to a call that was sent ahead, unless it has been received or the call is lost."""
        child = self._child
        if call.reply is not None or call.lost:
            return
        if child is None or child is not call.child:
            call.lost = True
            return
        try:
            kind, reply = self._receive(child, self._deadline(), call.item, call.lent)
        except BaseException as error:
            call.lent.clear()
            if isinstance(error, Cancelled) or not isinstance(error, PipelineError):
                raise
            call.reply = error  # the process has ended in this call, and has not begun those after it
            return
        call.reply = Reply(kind, reply, self._pickler, child.pid, call.lent)

    def _result(self, call: SentCall) -> Out:
        """Return or raise the result of a call."""
        reply = call.reply
        # Slots that the process requested for this item; those that are not in its reply are free again afterwards.
        try:
            if isinstance(reply, PipelineError):
                raise reply
            assert reply is not None
            if reply.kind is MessageKind.ERROR:
                self._raise(reply.payload, reply.pid, reply.pickler)
            result: Out = reply.pickler.loads(reply.payload)
            return result
        finally:
            call.lent.clear()
            call.reply = reply = None  # the traceback of an error refers to this frame

    def _deadline(self) -> float | None:
        limit = self._settings.time_limit
        return None if limit is None else time.monotonic() + limit

    def flush(self) -> list[Out]:
        """Return the results of `flush` of the function, called in the process; none if there is no process."""
        child = self._child
        if child is None:
            return []
        lent: list[SharedSlot] = []
        try:
            kind, reply = self._exchange(child, MessageKind.FLUSH, None, None, ChildPhase.FLUSH, lent)
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
            if self._keep(child):
                return
            deadline = time.monotonic() + TEARDOWN_TIMEOUT
            reply, payload = self._exchange(child, MessageKind.END, None, deadline, ChildPhase.TEAR_DOWN)
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

    def tear_down(self, kept: KeptProcess) -> None:
        """Tear down and end a process that was kept; raise an error of its tear-down."""
        self._child, self._pickler = kept.child, kept.pickler
        self.__exit__(None, None, None)

    def _keep(self, child: ChildProcess) -> bool:
        """Keep the process for another worker; return False if it has to be ended."""
        keeper = self._settings.keeper
        if keeper is None:
            return False
        with self._child_lock:
            if self._aborted:
                return False
            self._child = None
        self._pickler.open_slot = _no_slots  # it would keep this worker
        if keeper.give_back(KeptProcess(child, self._pickler)):
            return True
        with self._child_lock:
            self._child = child
        return False

    def _start(self) -> ChildProcess:
        self._check_aborted()
        keeper = self._settings.keeper
        kept = None if keeper is None else keeper.take()
        if kept is not None:
            child = kept.child
        else:
            child = ChildProcess(self._title) if keeper is None else keeper.start(self._title)
        with self._child_lock:
            self._child = child
        try:
            self._check_aborted()  # `abort` may have been called before there was a connection to shut down
        except Cancelled:
            self._end(0.0)
            raise
        if kept is not None:
            self._pickler = kept.pickler
            self._pickler.open_slot = self._held_slot
            return child
        self._pickler = MessagePickler(self._held_slot, owner=True)
        job = self._pickler.dumps(self._settings.job, by_value=self._settings.by_value)
        kind, payload = self._exchange(child, MessageKind.BEGIN, job, None, ChildPhase.START)
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
        try:
            return child.end(timeout), child.crash_report()
        finally:
            if self._settings.keeper is not None:
                self._settings.keeper.ended()

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

        `doing` is the item or the `ChildPhase`, for error messages; `lent` receives the slots lent to the process.
        """
        try:
            if payload is not None and payload.pools:
                self._send_pools(child, payload)
            child.connection.send(kind, payload)
        except ConnectionClosed:
            raise self._explain_end(child, doing) from None
        except BaseException:
            self._end(ABORT_GRACE)
            raise
        return self._receive(child, deadline, doing, lent)

    def _receive(
        self, child: ChildProcess, deadline: float | None, doing: Any, lent: list[SharedSlot] | None
    ) -> tuple[MessageKind, Payload]:
        """Return the next reply; serve the process's requests for slots in between. Arguments as in `_exchange`."""
        try:
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
        return death_of(self._title, child.pid, exitcode, crash, doing)

    def _explain_timeout(self, child: ChildProcess, doing: Any) -> PipelineError:
        self._end(0.0)
        limit = TEARDOWN_TIMEOUT if isinstance(doing, ChildPhase) else self._settings.time_limit
        return timeout_of(self._title, child.pid, limit, doing)

    def _raise(self, payload: Payload, pid: int, pickler: MessagePickler | None = None) -> NoReturn:
        report: ErrorReport = (pickler or self._pickler).loads(payload)
        cause = ProcessTraceback(f"in process {pid} of {self._title!r}:\n{report.traceback}")
        raise (ProcessError(report.summary, report.types) if report.error is None else report.error) from cause


def _no_slots(pool: int, number: int, serial: int) -> SharedSlot:
    raise AssertionError("a process that is kept has no call in progress")
