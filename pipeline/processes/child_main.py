"""The main function of a worker process, which serves one worker thread of its parent.

Guarantees: the process ends when its parent does, however the parent ends and even inside a call: the kernel kills it
(Linux), or a thread notices that the parent's end of a pipe was closed. Ctrl-C in the terminal is ignored here
and handled by the parent. An exception of the function is sent to the parent with its traceback; a crash (for example a
segmentation fault) leaves the Python stack in the file `crash`, for the parent to report. Waiting for the parent uses
no CPU time.

Ownership: the shared arrays of an item belong to this process during the call. A function that keeps one fails, because
their memory is reused for other items; arrays that were sent together with the function remain valid.

Assumptions: slots of a pool are requested by the thread in which the function is called. BLAS is limited to one thread,
because the stage has several processes.
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
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from inspect import isgenerator
from typing import Any, NamedTuple

import multiprocess
import threadpoolctl

from threadloom.pipeline.core import (
    PipelineError,
    SharedPool,
    SharedSlot,
    flushed,
    format_error,
    map_memory,
    type_names,
)
from threadloom.pipeline.processes.connection import Connection, ConnectionClosed, MessageKind, Payload
from threadloom.pipeline.processes.pickling import MessagePickler, PoolHandle

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Job(NamedTuple):
    """The work of a worker process, as it is sent to it."""

    make: Callable[[], AbstractContextManager[Callable[[Any], Any]]]
    """Returns a context manager, entered once in the process, that yields the function to call with each item."""


class ErrorReport(NamedTuple):
    """An exception of the function, as it is sent to the parent."""

    summary: str
    traceback: str
    error: BaseException | None  # None if it cannot be pickled
    types: tuple[str, ...]  # names of its type and base types


def child_main(connection: int, crash: int, parent: int, title: str) -> None:
    """Run a worker process; the target of `multiprocess.Process`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked while the process was started
    faulthandler.enable(crash)
    _end_with(parent, title)
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        parent_connection = Connection(socket.socket(fileno=connection))
        _Server(parent_connection).run()
        parent_connection.close()


def _end_with(parent: int, title: str) -> None:
    """Ensure that this process ends with its parent; also set the process name that `top` shows."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NAME, title.encode()[-15:], 0, 0, 0)
        # Linux sends the signal when the thread that started this process ends: the worker thread, which waits for the
        # end of this process before its own.
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0:
            if os.getppid() != parent:  # it ended before the call
                os._exit(1)
            return
    threading.Thread(target=_exit_after_parent, daemon=True, name="QueueManagerThread").start()


def _exit_after_parent() -> None:
    multiprocess.parent_process().join()
    os._exit(1)


class _AttachedPool(SharedPool):
    """A pool of the parent, attached in this process: `empty` and `copy` request slots from the parent."""

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
        raise AttributeError(f"pool {self.name!r} belongs to the parent process; {name!r} is available only there")

    def slot(self, number: int, serial: int) -> SharedSlot:
        return SharedSlot(self, self._memory, number, serial)

    def lend(self, timeout: float | None = None) -> SharedSlot:
        return self._server.request_slot(self, timeout)


class _Server:
    """The process's side of the protocol."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pickler = MessagePickler(self._open_slot, owner=False)
        self._lent: list[weakref.ref[SharedSlot]] = []
        """The slots of the call in progress."""
        self._queued: deque[tuple[MessageKind, Payload]] = deque()
        """Calls that were sent ahead, and received while the call in progress waited for a slot."""

    def run(self) -> None:
        """Set up, serve calls and tear down, until the parent ends the conversation."""
        stack = ExitStack()
        with suppress(ConnectionClosed):
            try:
                fn = self._set_up(stack)
            except ConnectionClosed:
                raise
            except BaseException as error:
                self._send_error(error)
                return
            self._connection.send(MessageKind.READY)
            try:
                self._serve_calls(fn)
            except ConnectionClosed:  # the run was stopped, and nobody receives an error of the tear-down
                with suppress(Exception):
                    stack.close()
                raise
            try:
                stack.close()
            except BaseException as error:
                self._send_error(error)
            else:
                self._connection.send(MessageKind.READY)

    def request_slot(self, pool: _AttachedPool, timeout: float | None) -> SharedSlot:
        """Return a slot of a pool, lent by the parent for the call in progress."""
        number = next(index for index, each in enumerate(self._pickler.pools) if each is pool)
        self._connection.send(MessageKind.TAKE, self._pickler.dumps((number, timeout)))
        while True:
            kind, payload = self._receive_message()
            if kind is not MessageKind.CALL:
                break
            self._queued.append((kind, payload))
        answer = self._pickler.loads(payload)
        if kind is MessageKind.ERROR:
            raise answer
        return self._track(pool.slot(*answer))

    def _open_slot(self, pool: int, number: int, serial: int) -> SharedSlot:
        attached = self._pickler.pools[pool]
        assert isinstance(attached, _AttachedPool)
        return self._track(attached.slot(number, serial))

    def _track(self, slot: SharedSlot) -> SharedSlot:
        self._lent.append(weakref.ref(slot))
        return slot

    def _receive(self) -> tuple[MessageKind, Payload]:
        """Return the next message other than POOL, in the order of sending."""
        return self._queued.popleft() if self._queued else self._receive_message()

    def _receive_message(self) -> tuple[MessageKind, Payload]:
        """Return the next message other than POOL from the connection; attach the pools that arrive before it."""
        while True:
            kind, payload, fd = self._connection.receive()
            if kind is not MessageKind.POOL:
                return kind, payload
            assert fd is not None
            self._pickler.pools.append(_AttachedPool(self._pickler.loads(payload), fd, self))

    def _set_up(self, stack: ExitStack) -> Callable[[Any], Any]:
        _, payload = self._receive()
        job: Job = self._pickler.loads(payload)
        return stack.enter_context(job.make())

    def _serve_calls(self, fn: Callable[[Any], Any]) -> None:
        while True:
            kind, payload = self._receive()
            if kind is MessageKind.END:
                return
            self._lent.clear()
            try:
                answer = self._flush(fn) if kind is MessageKind.FLUSH else self._call(fn, payload)
                self._check_nothing_is_kept(fn)
            except ConnectionClosed:
                raise
            except BaseException as error:  # SystemExit too
                self._send_error(error)
            else:
                self._connection.send(MessageKind.RESULT, answer)

    def _call(self, fn: Callable[[Any], Any], payload: Payload) -> Payload:
        result = fn(self._pickler.loads(payload))
        if isgenerator(result):  # replaced by an iterator over the same elements that can be pickled
            result = iter(list(result))
        return self._pickler.dumps(result)

    def _flush(self, fn: Callable[[Any], Any]) -> Payload:
        return self._pickler.dumps(list(flushed(fn)))

    def _check_nothing_is_kept(self, fn: Callable[[Any], Any]) -> None:
        if any(ref() is not None for ref in self._lent):
            gc.collect()  # a reference cycle may keep them alive
            kept = [slot for ref in self._lent if (slot := ref()) is not None]
            if kept:
                raise PipelineError(
                    f"{getattr(fn, '__qualname__', type(fn).__name__)} kept {len(kept)} array(s) of the shared pool "
                    f"{kept[0].pool.name!r} after it returned, but their memory is reused for other items: keep a copy "
                    f"(array.copy())"
                )

    def _send_error(self, error: BaseException) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:  # start at the function's own frame
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
        summary, types = format_error(error), type_names(type(error))
        report = self._pickler.dumps(ErrorReport(summary, text, None, types))
        with suppress(Exception):  # some exceptions can be pickled but not unpickled
            full = self._pickler.dumps(ErrorReport(summary, text, error, types))
            self._pickler.loads(full)
            report = full
        self._connection.send(MessageKind.ERROR, report)
