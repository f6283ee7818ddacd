"""Stages on processes, for pure-Python work that holds the GIL.

    blur = graph.stage("blur", on_processes(blur_image), after=images, workers=4)

Each worker thread of the stage owns one process and waits, without the GIL, for its answer to each item; so everything
that holds of a stage - order, capacity, failure, statistics - holds of this one. Processes are spawned, never forked.
The function is imported by the process, or carried over by dill where it cannot be imported (a lambda, a closure, a
notebook). Items and results are pickled; arrays of a `SharedPool` cross without a copy.

Guarantees: a process lives inside the worker's context and nowhere else: it is gone, and reaped, before the worker
thread ends, after the end of the input, an error, a cancellation or a kill alike; descriptors are closed with it. An
exception in the process is raised here, its `__cause__` the traceback from there. A process that dies raises
`WorkerDied`, and slots that it had been lent are free again as soon as its item is let go. `abort` ends every wait at
once; the process then has `ABORT_GRACE` to finish its item and tear down, and is killed. Nothing outlives a parent
that is killed. Nothing is written to /dev/shm.

Ownership: a `ProcessWorker` belongs to its worker thread; `abort` may come from any thread, and `_guard` is what the
two share.

Assumptions: a script that starts a run does so under `if __name__ == "__main__":`, because every process imports it.
"""

import reprlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from threadloom.pipeline.core import Cancelled, PipelineError, SharedSlot
from threadloom.pipeline.processes.child_main import ErrorReport, Job
from threadloom.pipeline.processes.child_process import GUARD_REMEDY, ChildProcess, ReplyTimeout
from threadloom.pipeline.processes.wire import ConnectionClosed, MessageKind, Payload, Pickles, PoolHandle
from threadloom.pipeline.run import PerWorker

In = TypeVar("In")
Out = TypeVar("Out")

ABORT_GRACE: Final = 0.5
"""Seconds that a process may take to finish its item and tear down when the run was stopped; then it is killed."""
TEARDOWN_TIMEOUT: Final = 10.0
"""Seconds that a process may take to tear down at the end of the input."""
LARGE_PICKLE: Final = 1 << 20
"""A pickle of more bytes than this is worth a warning."""


class WorkerDied(PipelineError):
    """A worker process ended in the middle of its work: killed, crashed, or by os._exit."""

    def __init__(self, message: str, pid: int, exitcode: int | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        """What it returned, or minus the number of the signal that ended it; None if somebody else reaped it."""


class WorkerTimeout(PipelineError, TimeoutError):
    """A worker process took longer than the stage's time limit for one item, and was killed."""


class ProcessTraceback(Exception):
    """The traceback of an exception in a worker process: the `__cause__` of that exception here."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


class ProcessError(PipelineError):
    """Stands in for an exception in a worker process that cannot be pickled; its `__cause__` has the traceback."""


class _ChildPhase(Enum):
    """What a process does while it has no item."""

    START = "while it started and was set up"
    TEAR_DOWN = "while it tore down"


class ProcessWorker(Generic[In, Out]):
    """What a worker thread calls with each item; starts its process anew after it died."""

    def __init__(self, owner: "OnProcesses[In, Out]", title: str) -> None:
        self._owner = owner
        self._title = title
        self._guard = threading.Lock()
        self._aborted = False  # set once, under the guard
        self._child: ChildProcess | None = None  # set by the worker thread alone, under the guard
        self._pickles = Pickles(self._held, owner=True)  # a new one for each process
        self._warned = False

    def __enter__(self) -> Self:
        """Start the process and wait until it is set up."""
        self._owner.workers.add(self)
        try:
            self._start()
        except BaseException:
            self._owner.workers.discard(self)
            raise
        return self

    def __call__(self, item: In) -> Out:
        child = self._child or self._start()
        payload = self._dump(item)
        limit = self._owner.time_limit
        deadline = None if limit is None else time.monotonic() + limit
        # The slots that the process takes for this item; those that are not in its answer are free again afterwards.
        taken: list[SharedSlot] = []
        try:
            kind, answer = self._exchange(child, MessageKind.CALL, payload, deadline, item, taken)
            if kind is MessageKind.ERROR:
                self._raise(answer, child.pid)
            result: Out = self._pickles.loads(answer)
            return result
        finally:
            taken.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Let the process tear down, wait for its end, and raise what its tear-down raises; be brief after an error."""
        try:
            child = self._child
            if child is None:
                return
            if error is not None:
                self._end(ABORT_GRACE)
                return
            deadline = time.monotonic() + TEARDOWN_TIMEOUT
            answer, payload = self._exchange(child, MessageKind.END, None, deadline, _ChildPhase.TEAR_DOWN)
            self._end(ABORT_GRACE)
            if answer is MessageKind.ERROR:
                self._raise(payload, child.pid)
        finally:
            self._owner.workers.discard(self)

    def abort(self) -> None:
        """End the wait for the process, now and from now on. From any thread, any number of times."""
        with self._guard:
            self._aborted = True
            if self._child is not None:
                self._child.wire.shut_down()

    def _start(self) -> ChildProcess:
        self._check_stopped()
        child = ChildProcess(self._title)
        with self._guard:
            self._child = child
        try:
            self._check_stopped()  # `abort` may have come before there was anything to hang up
        except Cancelled:
            self._end(0.0)
            raise
        self._pickles = Pickles(self._held, owner=True)
        job = self._pickles.dumps(self._owner.job, by_value=self._owner.by_value)
        kind, payload = self._exchange(child, MessageKind.BEGIN, job, None, _ChildPhase.START)
        if kind is MessageKind.ERROR:
            self._end(ABORT_GRACE)
            self._raise(payload, child.pid)
        return child

    def _check_stopped(self) -> None:
        if self._aborted:
            raise Cancelled(f"{self._title} was stopped")

    def _end(self, patience: float) -> tuple[int | None, str]:
        """Have no process any more; return how it ended."""
        assert self._child is not None
        child = self._child
        with self._guard:
            self._child = None  # before its descriptors are closed: `abort` must not meet others of their numbers
        return child.end(patience), child.crash_report()

    def _dump(self, value: Any) -> Payload:
        payload = self._pickles.dumps(value)
        if len(payload.data) > LARGE_PICKLE and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._title} pickles {len(payload.data):,} bytes for one item; arrays of a SharedPool would cross "
                f"without a copy",
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
        taken: list[SharedSlot] | None = None,
    ) -> tuple[MessageKind, Payload]:
        """Send a message and return the answer, serving what the process asks for meanwhile."""
        try:
            if payload is not None and payload.pools:
                self._send_pools(child, payload)
            child.wire.send(kind, payload)
            while True:
                answer, data = child.receive(deadline)
                if answer is not MessageKind.TAKE:
                    return answer, data
                child.wire.send(MessageKind.SLOT, self._take(data, [] if taken is None else taken))
        except ConnectionClosed:
            raise self._explain_end(child, doing) from None
        except ReplyTimeout:
            raise self._explain_delay(child, doing) from None
        except BaseException:  # the conversation stopped halfway: Cancelled by a pool, for instance
            self._end(ABORT_GRACE)
            raise

    def _send_pools(self, child: ChildProcess, payload: Payload) -> None:
        for pool in payload.pools:
            handle = PoolHandle(pool.name, pool.slots, pool.slot_bytes)
            child.wire.send(MessageKind.POOL, self._pickles.dumps(handle), pool.fd())
        self._pickles.mark_pools_sent()

    def _take(self, data: Payload, taken: list[SharedSlot]) -> Payload:
        number, timeout = self._pickles.loads(data)
        slot = self._pickles.pools[number].lend(timeout)
        taken.append(slot)
        return self._pickles.dumps((slot.number, slot.serial))

    def _held(self, pool: int, number: int, serial: int) -> SharedSlot:
        return self._pickles.pools[pool].held(number, serial)

    def _explain_end(self, child: ChildProcess, doing: Any) -> PipelineError:
        exitcode, crash = self._end(ABORT_GRACE)
        if self._aborted:
            return Cancelled(f"{self._title} was stopped")
        what = doing.value if isinstance(doing, _ChildPhase) else f"while it worked on item {reprlib.repr(doing)}"
        how = "ended" if exitcode is None else f"left with exit code {exitcode}"
        remedy = "Something in it called os._exit, or closed its connection"
        if exitcode is not None and exitcode < 0:
            with suppress(ValueError):
                how = f"was killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
            remedy = (
                "Its own code crashed" if crash else "Something outside killed it, perhaps for lack of memory (dmesg)"
            )
        if doing is _ChildPhase.START:
            remedy = f"What it printed is on stderr. {GUARD_REMEDY}"
        stack = f"\n{crash}" if crash else ""
        message = f"process {child.pid} of {self._title!r} {how} {what}. {remedy}{stack}"
        return WorkerDied(message, child.pid, exitcode)

    def _explain_delay(self, child: ChildProcess, doing: Any) -> PipelineError:
        self._end(0.0)
        late = f"its tear-down took longer than {TEARDOWN_TIMEOUT:g} s"
        if not isinstance(doing, _ChildPhase):
            late = f"item {reprlib.repr(doing)} took longer than the time limit of {self._owner.time_limit:g} s"
        return WorkerTimeout(f"process {child.pid} of {self._title!r} was killed: {late}")

    def _raise(self, payload: Payload, pid: int) -> NoReturn:
        report: ErrorReport = self._pickles.loads(payload)
        cause = ProcessTraceback(f"in process {pid} of {self._title!r}:\n{report.traceback}")
        raise (ProcessError(report.summary) if report.error is None else report.error) from cause


class OnProcesses(PerWorker[In, Out]):
    """What `on_processes` returns. It holds nothing of a run, so that a graph can be started again.

    `abort` ends the waits of all its workers that are at work now. A run that is stopped should call it: hand it to
    `start(resources=...)` where the engine does not do so by itself. Without it, the run waits for the item in hand.
    """

    def __init__(self, fn: Callable[[In], Out], time_limit: float | None) -> None:
        super().__init__(self.worker)
        self.time_limit = time_limit
        self.job = Job(fn.make if isinstance(fn, PerWorker) else partial(_as_context, fn))
        main = sys.modules["__main__"]
        self.by_value = getattr(main, "__spec__", None) is None and not hasattr(main, "__file__")
        """Whether the process cannot import what was defined in the main module: a notebook, python -c."""
        self.workers: set[ProcessWorker[In, Out]] = set()
        """Those at work. Each adds and discards itself; the calls of a set are atomic, also without the GIL."""
        self._name = getattr(fn, "__qualname__", repr(fn))
        Pickles(_nothing_held, owner=True).dumps(self.job, by_value=self.by_value)  # what cannot cross fails here

    def worker(self) -> ProcessWorker[In, Out]:
        """Return a worker, to be entered and called by one thread; also of use without a graph."""
        return ProcessWorker(self, threading.current_thread().name)

    def abort(self) -> None:
        """End the waits of all workers, from any thread."""
        for worker in self.workers.copy():
            worker.abort()

    def __repr__(self) -> str:
        return f"on_processes({self._name})"


def _as_context(fn: Callable[[In], Out]) -> nullcontext[Callable[[In], Out]]:
    return nullcontext(fn)


def _nothing_held(pool: int, number: int, serial: int) -> SharedSlot:
    raise AssertionError("nothing is received here")


def on_processes(fn: Callable[[In], Out], *, time_limit: float | None = None) -> OnProcesses[In, Out]:
    """Return a stage function that runs `fn` in a process of its own for every worker of the stage.

    With `per_worker(make)` for `fn`, set-up and tear-down happen in the process. An item that takes longer than
    `time_limit` seconds raises `WorkerTimeout`, and its process is killed. A generator is run to its end in the
    process, so that a stage with `expand` gets its elements together.
    """
    if not callable(fn):
        raise TypeError(f"on_processes needs a function, got {fn!r}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"a time limit needs to be more than 0 seconds, got {time_limit}")
    return OnProcesses(fn, time_limit)
