"""A run that is used from an event loop: `async with graph.start() as run`, and `async for item in run`.

Guarantees: the loop is never blocked. Calls that may wait (the start, each item, the end) run in a thread: one for
the run, and one for each sink that is iterated. An item is taken from a sink only when a task awaits it. If a task is
cancelled while it awaits an item or the end of the run, the run is cancelled. The `async with` block is left after all
threads have been joined, even if the task is cancelled again in the meantime.

Ownership: an `AsyncRun` and its iterators belong to the thread of their loop. A `CallThread` is used by its thread only
through its queue.

asyncio is imported on first use: it is a fifth of the modules of the engine.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

from threadloom.pipeline.observe import RunStatistics, Sink
from threadloom.pipeline.run.worker_control import WorkerChange

if TYPE_CHECKING:
    import asyncio

Item = TypeVar("Item")
T = TypeVar("T")

_END: Final = object()
"""Returned in place of StopIteration, which a future cannot hold."""


class BlockingRun(Protocol):
    """The part of a run that an `AsyncRun` uses; `Run` documents each method."""

    name: str

    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def items(self, sink: Any) -> Iterator[Any]: ...
    def wait(self) -> None: ...
    def cancel(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def drain(self) -> None: ...
    def resize(self, stage: str, *, workers: int) -> None: ...
    @property
    def worker_changes(self) -> tuple[WorkerChange, ...]: ...
    def statistics(self) -> RunStatistics: ...


class CallThread:
    """A thread that runs blocking calls for coroutines, one after the other, from the first call to `end`."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)

    async def call(self, fn: Callable[[], T]) -> T:
        """Return the result of a call in this thread. If the task is cancelled, the call continues."""
        import asyncio

        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((fn, answer))
        if self._thread.ident is None:
            self._thread.start()
        return await answer

    def end(self) -> None:
        """Let the thread end after its present call."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while (each := self._calls.get()) is not None:
            fn, answer = each
            try:
                _settle(answer, answer.set_result, fn())
            except BaseException as error:
                _settle(answer, answer.set_exception, error)
            del each, fn, answer  # a waiting thread keeps no item alive


def _settle(answer: "asyncio.Future[Any]", setter: Callable[[Any], None], value: Any) -> None:
    def settle() -> None:
        if not answer.done():  # cancelled with its task
            setter(value)

    with suppress(RuntimeError):  # if the loop is closed, and no task awaits the answer
        answer.get_loop().call_soon_threadsafe(settle)


class AsyncRun:
    """A running graph within an `async with` block; the counterpart of `Run`, whose waits are awaited."""

    def __init__(self, run: BlockingRun) -> None:
        self._run = run
        self._thread = CallThread(f"{run.name}.caller")
        self._sinks: list[CallThread] = []
        self._entered = False  # set once, by the thread of the run
        self._left = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterate(iter(self._run))

    @overload
    def items(self, sink: Sink[Item]) -> "AsyncSinkIterator[Item]": ...
    @overload
    def items(self, sink: str) -> "AsyncSinkIterator[Any]": ...
    def items(self, sink: Sink[Any] | str) -> "AsyncSinkIterator[Any]":
        """Return the asynchronous iterator over one sink. Iterate several sinks in one task each."""
        return self._iterate(self._run.items(sink))

    async def wait(self) -> None:
        """Wait until every stage has ended; raise the outcome, unless the run ended with its input."""
        await self.blocking(self._thread, self._run.wait)

    def cancel(self) -> None:
        """Stop every thread and discard the items in flight. Returns at once; leaving the block joins the threads."""
        self._run.cancel()

    def pause(self) -> None:
        """Let workers finish their current item and take no other; sources produce nothing."""
        self._run.pause()

    def resume(self) -> None:
        """Continue after `pause`."""
        self._run.resume()

    def drain(self) -> None:
        """Stop the sources and process the items in flight. Returns at once; keep iterating the sinks."""
        self._run.drain()

    async def resize(self, stage: str, *, workers: int) -> None:
        """Change the number of workers of a stage, and wait until the new ones run."""
        thread = CallThread(f"{self._run.name}.resize")
        try:
            await thread.call(partial(self._run.resize, stage, workers=workers))
        finally:
            thread.end()

    @property
    def worker_changes(self) -> tuple[WorkerChange, ...]:
        """The changes that the controller of the run has made so far, the earliest first."""
        return self._run.worker_changes

    def statistics(self) -> RunStatistics:
        """Return the current counters of every stage and channel."""
        return self._run.statistics()

    # Internal: for `Run`, and for the iterators.

    async def enter(self) -> "AsyncRun":
        """Start the threads of the run; the beginning of the `async with` block."""
        from asyncio import CancelledError

        try:
            await self._thread.call(self._begin)
        except CancelledError:
            await self.leave(None, None, None)  # after the start, which continues in its thread
            raise
        except BaseException:
            self._thread.end()
            raise
        return self

    async def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the run and join all threads; the end of the `async with` block."""
        self._left = True
        try:
            await _completed(self._thread.call(partial(self._end, kind, error, tb)))
        finally:
            self._thread.end()
            self._thread.join()  # which has nothing left to do

    def _begin(self) -> None:
        self._run.__enter__()
        self._entered = True

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self._entered:
                self._run.__exit__(kind, error, tb)
        finally:
            for thread in self._sinks:
                thread.end()
                thread.join()

    async def blocking(self, thread: CallThread, fn: Callable[[], T]) -> T:
        """Return the result of a call in a thread; cancel the run if the task is cancelled."""
        from asyncio import CancelledError

        try:
            return await thread.call(fn)
        except CancelledError:
            self._run.cancel()
            raise

    @property
    def left(self) -> bool:
        """True once the block is being left."""
        return self._left

    def _iterate(self, iterator: Iterator[Item]) -> "AsyncSinkIterator[Item]":
        thread = CallThread(f"{self._run.name}.sink")
        self._sinks.append(thread)
        return AsyncSinkIterator(self, iterator, thread)


class AsyncSinkIterator(Generic[Item]):
    """An asynchronous iterator over the items that arrive at one sink."""

    def __init__(self, run: AsyncRun, iterator: Iterator[Item], thread: CallThread) -> None:
        self._run = run
        self._iterator = iterator
        self._thread = thread

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        following: Callable[[], Any] = partial(next, self._iterator, _END)
        # The iterator of a run that is over does not wait.
        item = following() if self._run.left else await self._run.blocking(self._thread, following)
        if item is _END:
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]


async def _completed(call: Coroutine[Any, Any, None]) -> None:
    """Await a call to its end, even if the task is cancelled; the cancellation is raised then."""
    import asyncio

    task = asyncio.ensure_future(call)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
