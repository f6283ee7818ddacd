"""The workers of a stage of coroutines, and the event loops that they share; see `event_loop`.

Guarantees: each loop is started by one of its workers, and ended after the last worker of the stage.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING, Any

from threadloom.pipeline.core import Cancelled, OneShotEvent
from threadloom.pipeline.observe import Stage

if TYPE_CHECKING:
    from threadloom.pipeline.run.event_loop import CoroutineCall, EventLoop

Spawn = Callable[[Callable[[], None], str, OneShotEvent], bool]
"""Runs a function in a new thread of the run, which sets the event at its end; False if the run is over."""


class EventLoops:
    """The event loops of one stage in one run."""

    def __init__(self, stage: Stage, spawn: Spawn) -> None:
        assert stage.concurrency is not None
        self._stage = stage
        self._concurrency = stage.concurrency
        self._spawn: Spawn | None = spawn
        self._numbers = count()
        self._loops: dict[int, EventLoop] = {}
        self._error: BaseException | None = None  # the first with which a worker has ended, for the tear-down

    def worker(self) -> "LoopWorker":
        """Return the context of one more worker, at the loop that has room. Called by each worker in its thread."""
        from threadloom.pipeline.run.event_loop import EventLoop  # with asyncio, a fifth of the modules of the engine

        number = next(self._numbers)  # atomic, and so is setdefault
        place = number // self._concurrency
        loop = self._loops.setdefault(place, EventLoop(self._stage))
        return LoopWorker(self, loop, f"{self._stage.name}-loop-{place}" if number % self._concurrency == 0 else None)

    def start(self, loop: "EventLoop", name: str) -> None:
        """Start the thread of a loop; raise Cancelled if the run is over."""
        if self._spawn is None or not self._spawn(loop.run, name, loop.ended):
            raise Cancelled("the run was stopped before the start of an event loop")

    def fail(self, error: BaseException) -> None:
        """Record the error with which a worker ended."""
        if self._error is None:
            self._error = error

    def close(self) -> None:
        """Tear down and end every loop, after the last worker; raise the first error of a tear-down."""
        errors: list[BaseException] = []
        for loop in self._loops.values():
            try:
                loop.close(self._error)
            except BaseException as error:
                errors.append(error)
        self._error = None
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()

    def drop_references(self) -> None:
        """Break the reference cycle to the run, after all threads have been joined."""
        self._spawn = None


class LoopWorker(AbstractContextManager[Callable[..., Any]]):
    """One worker at its event loop, as the context manager of a stage with `per_worker`."""

    def __init__(self, loops: EventLoops, loop: "EventLoop", starts: str | None) -> None:
        self._loops = loops
        self._loop = loop
        self._call: CoroutineCall | None = None  # the call in progress, whose stack any thread may read
        self._starts = starts  # the name of the thread of the loop, for the worker that starts it

    def __enter__(self) -> Callable[..., Any]:
        if self._starts is not None:
            self._loops.start(self._loop, self._starts)
        self._loop.wait_ready()
        return self._process

    def _process(self, *args: Any) -> Any:
        self._call = call = self._loop.new_call(args)
        try:
            return self._loop.call(call)
        finally:
            self._call = None

    def stack(self) -> str:
        """Return the stack of the coroutine that the worker waits for; empty if there is none. From any thread."""
        call = self._call
        return "" if call is None else call.stack()

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is not None:
            self._loops.fail(error)

    def abort(self) -> None:
        """Cancel the tasks of the loop."""
        self._loop.abort()
