"""An event loop of a stage of coroutines: a thread that serves up to `concurrency` workers of the stage.

A worker hands each of its items to its loop, and waits for the result. To the rest of the engine it is an ordinary
worker, so that order, capacity, resources, failure policies, statistics and traces are those of other stages. An item
in flight costs one waiting thread; the coroutines themselves share the thread of the loop.

Guarantees: a loop is set up once, before its first item, and torn down after the last worker of the stage has ended.
Everything asynchronous happens in its thread, each item or expansion in one task. When the run is stopped, all tasks
are cancelled, and the workers wait for their ends, so that clean-up in `finally` and `async with` is complete. If a
loop ends for any other reason, every worker that waits for it gets an error.

Ownership: a call belongs to its worker until it is posted, then to the loop until its last answer. The set of calls is
changed by both, each time by one atomic method.
"""

import asyncio
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from inspect import isawaitable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from threadloom.pipeline.core import Cancelled, ItemTimeout, OneShotEvent, PipelineError
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.run.worker_state import PerWorker, check_entered

T = TypeVar("T")

_END: Final = object()
"""The last answer of an expansion."""


@dataclass(frozen=True)
class _Raised:
    """The answer of a task that has ended with an error."""

    error: BaseException
    last: bool = True
    """False if the task continues: the iterator of a source may return more elements."""


class EventLoop:
    """One event loop with the set-up of one worker; `run` is the target of its thread."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.fn: Callable[..., Any] | None = None
        """The function of the stage, once it is set up."""
        self.ended = OneShotEvent()
        self._ready = OneShotEvent()  # set once calls are possible, or will never be
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[BaseException | None] | None = None
        self._aborted = False  # set once, by `abort`
        self._cancelled = False  # set once, by `_cancel_tasks`
        self._calls: set[CoroutineCall] = set()
        self._error: BaseException | None = None  # of set-up, tear-down or the loop itself, until it is raised

    # Called in the thread of the loop.

    def run(self) -> None:
        """Run the loop from set-up to tear-down."""
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not (self._aborted and isinstance(error, asyncio.CancelledError)):
                self._error = error
        finally:
            self._loop = self._stopping = None
            self._ready.set()
            for call in self._calls.copy():
                call.answers.put(_Raised(self._no_loop()))
            self.ended.set()

    async def _serve(self) -> None:
        self._loop, self._main_task = asyncio.get_running_loop(), asyncio.current_task()
        self._stopping = self._loop.create_future()
        if self._aborted:
            return
        if not isinstance(self.stage.fn, PerWorker):
            self.fn = self.stage.fn
            self._main_task = None
            self._ready.set()
            await self._stopping
            return
        manager: Any = self.stage.fn.make()
        asynchronous = hasattr(type(manager), "__aenter__")
        self.fn = await manager.__aenter__() if asynchronous else manager.__enter__()
        check_entered(self.stage, self.fn)
        self._main_task = None  # from here on nothing cancels it: a tear-down is awaited
        self._ready.set()
        error = await self._stopping
        self.fn = None
        details = type(error) if error else None, error, error.__traceback__ if error else None
        del error
        if asynchronous:
            await manager.__aexit__(*details)
        else:
            manager.__exit__(*details)

    def _start(self, call: "CoroutineCall") -> None:
        if self._aborted:
            call.answers.put(_Raised(asyncio.CancelledError()))
        else:
            call.task = asyncio.get_running_loop().create_task(call.run())
            call.task.add_done_callback(call.answer_if_cancelled)

    def _cancel_tasks(self) -> None:
        if self._cancelled:
            return  # a second time would cancel the clean-up
        self._cancelled = True
        for task in [self._main_task, *(call.task for call in self._calls.copy())]:
            if task is not None:
                task.cancel()

    def _stop(self, error: BaseException | None) -> None:
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(error)

    # Called by other threads.

    def wait_ready(self) -> None:
        """Wait until the loop is set up; raise the error of its set-up, in one of the threads that wait."""
        self._ready.wait()
        self._raise_error()
        if self._aborted or self.fn is None:
            raise Cancelled("the run was stopped before the set-up of an event loop")

    def new_call(self, args: tuple[Any, ...]) -> "CoroutineCall":
        """Return a call of the function of the stage with these arguments, for `call`."""
        return CoroutineCall(self, args)

    def call(self, call: "CoroutineCall") -> Any:
        """Return the result of the function of the stage, or an iterator over the elements of an expansion."""
        self._calls.add(call)
        self.post(self._start, call)
        answer = call.receive()
        if answer is not call:
            self._calls.discard(call)
        return answer

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call a function in the thread of the loop; raise PipelineError if the loop has ended."""
        loop = self._loop
        if loop is None:
            raise self._no_loop()
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # closed just now
            raise self._no_loop() from None

    def abort(self) -> None:
        """Cancel every task, now and from now on. From any thread, any number of times."""
        self._aborted = True
        self._ready.set()
        if self._loop is not None:
            with suppress(PipelineError):
                self.post(self._cancel_tasks)

    def close(self, error: BaseException | None) -> None:
        """Tear down and end the loop, and wait for that; raise the error of the tear-down."""
        if self._loop is not None:
            with suppress(PipelineError):
                self.post(self._stop, error)
            self.ended.wait()
        self._raise_error()

    @property
    def aborted(self) -> bool:
        """True after `abort`."""
        return self._aborted

    def discard(self, call: "CoroutineCall") -> None:
        """Forget a call after its last answer."""
        self._calls.discard(call)

    def _no_loop(self) -> PipelineError:
        if self._aborted:
            return Cancelled("the run was stopped")
        return PipelineError(f"an event loop of stage {self.stage.name!r} has ended: a callback or a task stopped it")

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # the frame must not refer to the error, which refers to the frame


class CoroutineCall:
    """One call of the function, as a task of the loop; afterwards an iterator, if the result is asynchronous."""

    def __init__(self, loop: EventLoop, args: tuple[Any, ...]) -> None:
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.task: asyncio.Task[None] | None = None
        self._loop = loop
        self._args = args
        self._requests: asyncio.Queue[bool] = asyncio.Queue()  # True: the next element, False: close
        self._ended = False  # written by the worker: the last answer has been received

    # Called in the thread of the loop.

    async def run(self) -> None:
        """Answer with the result or the error; with the elements one by one, as they are requested."""
        try:
            self.answers.put(await self._result())
        except BaseException as error:  # CancelledError too; an error that left the task would be lost
            self.answers.put(_Raised(error))  # in no variable of this frame, to which the traceback of the error refers

    def answer_if_cancelled(self, task: "asyncio.Task[None]") -> None:
        """Answer for a task that was cancelled before its first step, so that `run` has not been entered."""
        if task.cancelled():
            self.answers.put(_Raised(asyncio.CancelledError()))

    async def _result(self) -> Any:
        stage, fn = self._loop.stage, self._loop.fn
        assert fn is not None
        result = fn(*self._args)
        source = stage.kind is NodeKind.SOURCE
        expands = stage.expand or source
        if isawaitable(result):
            result = await self._limited(result)
        elif not (source or (expands and hasattr(result, "__aiter__"))):
            raise PipelineError(
                f"the function of a stage with `concurrency` returned {type(result).__name__}, expected a coroutine: "
                f"use `workers` for an ordinary function"
            )
        if not expands or not hasattr(result, "__aiter__"):
            return result
        self.answers.put(self)
        await self._answer_requests(result)
        return _END

    async def _answer_requests(self, elements: AsyncIterable[Any]) -> None:
        iterator: AsyncIterator[Any] = aiter(elements)
        try:
            while await self._requests.get():
                try:
                    element = await self._limited(anext(iterator))
                except StopAsyncIteration:
                    return
                except Exception as error:
                    if self._loop.stage.kind is not NodeKind.SOURCE:
                        raise
                    self.answers.put(_Raised(error, last=False))
                    continue
                self.answers.put(element)
                del element
        finally:
            if self._loop.stage.closes and hasattr(iterator, "aclose"):
                await iterator.aclose()

    async def _limited(self, awaitable: Awaitable[T]) -> T:
        """Await within the time limit of the stage."""
        limit = self._loop.stage.limit
        try:
            async with asyncio.timeout(limit) as scope:
                return await awaitable
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ItemTimeout(f"the item exceeded the time limit of {limit:g} s, and was cancelled") from error

    # Called by other threads.

    def stack(self) -> str:
        """Return the stack of the coroutine, formatted like a traceback."""
        awaited: Any = None if self.task is None else self.task.get_coro()
        frames = []
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            if frame.f_code.co_filename != __file__:
                frames += traceback.format_stack(frame, limit=1)
            awaited = awaited.cr_await
        return "".join(frames)

    # Called by the worker.

    def receive(self) -> Any:
        """Wait for an answer; return it, or raise its error."""
        answer = self.answers.get()
        if not isinstance(answer, _Raised):
            return answer
        if answer.last:
            self._ended = True
            self._loop.discard(self)
        try:
            if self._loop.aborted and isinstance(answer.error, asyncio.CancelledError):
                raise Cancelled("the run was stopped") from None
            raise answer.error
        finally:
            del answer  # as in `_raise_error`

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        self._loop.post(self._requests.put_nowait, True)
        answer = self.receive()
        if answer is _END:
            self._ended = True
            self._loop.discard(self)
            raise StopIteration
        return answer

    def close(self) -> None:
        """Close the asynchronous iterator, and wait for that."""
        if not self._ended:
            with suppress(Cancelled):
                self._loop.post(self._requests.put_nowait, False)
                self.receive()
            self._ended = True
            self._loop.discard(self)
