"""The inside of a worker process: it serves one worker thread of its parent until either is gone.

Guarantees: the process ends when its parent does, by whatever death and whatever it is doing: the kernel kills it
(Linux), or a thread sees the parent's end of a pipe close. Ctrl-C in the terminal is the parent's business alone. What
the function raises goes to the parent with its traceback; a fault of the machine (a segmentation fault) leaves the
Python stack in `crash`, for the parent to report. A wait for the parent uses no CPU.

Ownership: the shared arrays of an item are this process's for the time of the call. One that the function keeps is an
error, as its memory is given to somebody else afterwards; arrays that came with the function itself stay.

Assumptions: pools are asked for slots by the thread that the function was called in. BLAS is held to one thread, as
there are processes enough.
"""

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from inspect import isgenerator
from typing import Any, NamedTuple

import multiprocess
import threadpoolctl

from threadloom.pipeline.core import PipelineError, SharedPool, SharedSlot, map_memory
from threadloom.pipeline.processes.wire import ConnectionClosed, MessageKind, Payload, Pickles, PoolHandle, Wire

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Job(NamedTuple):
    """What a worker process is to do, as it is sent to it."""

    make: Callable[[], AbstractContextManager[Callable[[Any], Any]]]
    """Entered once, in the process; what it yields is called with each item."""


class ErrorReport(NamedTuple):
    """What a function raised, as it is sent to the parent."""

    summary: str
    traceback: str
    error: BaseException | None  # None if it cannot be pickled


def child_main(connection: int, crash: int, parent: int, title: str) -> None:
    """Be a worker process; the target of `multiprocess.Process`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked while we started
    faulthandler.enable(crash)
    _die_with(parent, title)
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        wire = Wire(socket.socket(fileno=connection))
        _Server(wire).run()
        wire.close()


def _die_with(parent: int, title: str) -> None:
    """See to it that this process does not outlive its parent; also set the name that `top` shows."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NAME, title.encode()[-15:], 0, 0, 0)
        # The signal comes when the thread that made us ends: the worker thread, which waits for our end before its own.
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0:
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)
            return
    threading.Thread(target=_outlive_nobody, daemon=True, name="QueueManagerThread").start()


def _outlive_nobody() -> None:
    multiprocess.parent_process().join()
    os._exit(1)


class _AttachedPool(SharedPool):
    """A pool of the parent's, as the function sees it: `empty` and `copy` ask the parent for a slot."""

    def __init__(self, handle: PoolHandle, fd: int, server: "_Server") -> None:
        self._fd = fd
        self._server = server
        super().__init__(handle.slots, handle.slot_bytes, name=handle.name)

    def _set_up(self) -> None:
        try:
            self._memory = map_memory(self._fd, self.nbytes)
        finally:
            os.close(self._fd)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"pool {self.name!r} belongs to the parent process, and {name!r} is known only there")

    def slot(self, number: int, serial: int) -> SharedSlot:
        return SharedSlot(self, self._memory, number, serial)

    def lend(self, timeout: float | None = None) -> SharedSlot:
        return self._server.ask(self, timeout)


class _Server:
    """The conversation with the parent."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._pickles = Pickles(self._open_slot, owner=False)
        self._lent: list[weakref.ref[SharedSlot]] = []
        """The slots of the call in progress."""

    def run(self) -> None:
        stack = ExitStack()
        with suppress(ConnectionClosed):
            try:
                fn = self._set_up(stack)
            except ConnectionClosed:
                raise
            except BaseException as error:
                self._send_error(error)
                return
            self._wire.send(MessageKind.READY)
            try:
                self._serve(fn)
            except ConnectionClosed:  # the run was stopped, and nobody listens any more
                with suppress(Exception):
                    stack.close()
                raise
            try:
                stack.close()
            except BaseException as error:
                self._send_error(error)
            else:
                self._wire.send(MessageKind.READY)

    def ask(self, pool: _AttachedPool, timeout: float | None) -> SharedSlot:
        number = next(index for index, each in enumerate(self._pickles.pools) if each is pool)
        self._wire.send(MessageKind.TAKE, self._pickles.dumps((number, timeout)))
        kind, payload, _ = self._wire.receive()
        answer = self._pickles.loads(payload)
        if kind is MessageKind.ERROR:
            raise answer
        return self._lend(pool.slot(*answer))

    def _open_slot(self, pool: int, number: int, serial: int) -> SharedSlot:
        attached = self._pickles.pools[pool]
        assert isinstance(attached, _AttachedPool)
        return self._lend(attached.slot(number, serial))

    def _lend(self, slot: SharedSlot) -> SharedSlot:
        self._lent.append(weakref.ref(slot))
        return slot

    def _receive(self) -> tuple[MessageKind, Payload]:
        while True:
            kind, payload, fd = self._wire.receive()
            if kind is not MessageKind.POOL:
                return kind, payload
            assert fd is not None
            self._pickles.pools.append(_AttachedPool(self._pickles.loads(payload), fd, self))

    def _set_up(self, stack: ExitStack) -> Callable[[Any], Any]:
        _, payload = self._receive()
        job: Job = self._pickles.loads(payload)
        return stack.enter_context(job.make())

    def _serve(self, fn: Callable[[Any], Any]) -> None:
        while True:
            kind, payload = self._receive()
            if kind is MessageKind.END:
                return
            self._lent.clear()
            try:
                answer = self._call(fn, payload)
                self._check_nothing_is_kept(fn)
            except ConnectionClosed:
                raise
            except BaseException as error:  # SystemExit too
                self._send_error(error)
            else:
                self._wire.send(MessageKind.RESULT, answer)

    def _call(self, fn: Callable[[Any], Any], payload: Payload) -> Payload:
        result = fn(self._pickles.loads(payload))
        if isgenerator(result):  # an iterator that can be pickled, with the same elements
            result = iter(list(result))
        return self._pickles.dumps(result)

    def _check_nothing_is_kept(self, fn: Callable[[Any], Any]) -> None:
        if any(ref() is not None for ref in self._lent):
            gc.collect()  # perhaps it was only a cycle
            kept = [slot for ref in self._lent if (slot := ref()) is not None]
            if kept:
                raise PipelineError(
                    f"{getattr(fn, '__qualname__', type(fn).__name__)} kept {len(kept)} array(s) of the shared pool "
                    f"{kept[0].pool.name!r} after it returned, and their memory goes to other items now: keep a copy "
                    f"(array.copy())"
                )

    def _send_error(self, error: BaseException) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:  # begin with the function's own
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
        summary = f"{type(error).__name__}: {error}"
        report = self._pickles.dumps(ErrorReport(summary, text, None))
        with suppress(Exception):  # an exception that pickles may still not come back
            full = self._pickles.dumps(ErrorReport(summary, text, error))
            self._pickles.loads(full)
            report = full
        self._wire.send(MessageKind.ERROR, report)
