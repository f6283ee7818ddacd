"""Process stages, for pure-Python work that holds the GIL.

    blur = graph.stage("blur", on_processes(blur_image), after=images, workers=4)

Each worker thread of the stage owns one process and waits for its reply to each item, with the GIL released.
Everything that holds for a stage therefore holds for a process stage: order, capacity, failure policies, statistics.
Processes are spawned, never forked. The process imports the function; a function that cannot be imported (a lambda, a
closure, a function of a notebook) is sent to it with dill. Items and results are pickled; arrays of a `SharedPool` are
passed without copying.

Guarantees: those of `process_worker`. No process outlives its parent, even if the parent is killed. Nothing is written
to /dev/shm.

Ownership: an `OnProcesses` holds no state of a run except the set of its active workers, which add and remove
themselves; the methods of a set are atomic, also without the GIL.

Assumptions: a script that starts a run does so under `if __name__ == "__main__":`, because every process imports it.
"""

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from threadloom.pipeline.core import FunctionKind, PipelineError, SharedSlot, kind_of
from threadloom.pipeline.processes.child_main import Job
from threadloom.pipeline.processes.kept_processes import ProcessKeeper
from threadloom.pipeline.processes.pickling import MessagePickler
from threadloom.pipeline.processes.process_worker import ProcessSettings, ProcessWorker
from threadloom.pipeline.run import PerWorker

In = TypeVar("In")
Out = TypeVar("Out")


class OnProcesses(PerWorker[In, Out]):
    """A stage function that runs in worker processes, returned by `on_processes`. A graph with it can be run again.

    A stopped run aborts each of its workers, so that it does not wait for their current items. Other users of `worker`
    have to call `abort`.
    """

    def __init__(self, fn: Callable[[In], Out], time_limit: float | None, chunk: int = 1, keep: bool = False) -> None:
        super().__init__(self.worker)
        main = sys.modules["__main__"]
        self._settings = ProcessSettings(
            job=Job(fn.make if isinstance(fn, PerWorker) else partial(_as_context, fn)),
            by_value=getattr(main, "__spec__", None) is None and not hasattr(main, "__file__"),
            time_limit=time_limit,
            chunk=chunk,
            keeper=ProcessKeeper() if keep else None,
        )
        if self._settings.keeper is not None:
            weakref.finalize(self, self._settings.keeper.drop)
        self.chunk = chunk
        """Largest number of items sent to a process at once."""
        self.workers: set[ProcessWorker[In, Out]] = set()
        """The active workers."""
        self._name = getattr(fn, "__qualname__", repr(fn))
        self._kind = fn.kind if isinstance(fn, PerWorker) else kind_of(fn)
        # A function that cannot be sent to a process is rejected here.
        MessagePickler(_no_slots, owner=True).dumps(self._settings.job, by_value=self._settings.by_value)

    @property
    def kind(self) -> FunctionKind:
        """The kind of the function."""
        return self._kind

    def worker(self) -> ProcessWorker[In, Out]:
        """Return a new worker, to be entered and called by one thread. It can be used without a graph."""
        return ProcessWorker(self._settings, threading.current_thread().name, self.workers)

    def abort(self) -> None:
        """End the waits of all active workers. May be called from any thread."""
        for worker in self.workers.copy():
            worker.abort()

    def close(self) -> None:
        """End the processes that are kept, after their tear-down; raise the first error of a tear-down.

        Those in use end with their runs. Later runs start processes that are not kept.
        """
        errors: list[Exception] = []
        for kept in self._settings.keeper.close() if self._settings.keeper is not None else ():
            try:
                self.worker().tear_down(kept)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"on_processes({self._name})"


def _as_context(fn: Callable[[In], Out]) -> nullcontext[Callable[[In], Out]]:
    return nullcontext(fn)


def _no_slots(pool: int, number: int, serial: int) -> SharedSlot:
    raise AssertionError("this pickler is used for sending only")


def on_processes(
    fn: Callable[[In], Out], *, time_limit: float | None = None, chunk: int = 1, keep: bool = False
) -> OnProcesses[In, Out]:
    """Return a stage function that calls `fn` in one process per worker of the stage.

    If `fn` is `per_worker(make)`, set-up and tear-down run in the process. If an item takes longer than `time_limit`
    seconds, its process is killed and the call raises `WorkerTimeout`. The elements of a generator are computed in the
    process and returned together, so that its stage sends them as it does those of a list.

    With `chunk`, a worker takes up to `chunk` items that are ready in the input channel, without waiting for more, and
    sends them to its process at once. Errors, policies, order and labels are those of single items: only the waits of
    the process for the parent between them are saved, which pays for items of less than about 0.1 ms. The capacity of
    the stage is then 2 × chunk unless it is set. If the process dies, the item that it was working on fails, and the
    rest of the chunk is sent to another process.

    With `keep`, the processes of a run that has ended without an error are kept, set up, for the next run with this
    object, until its `close`, the end of its `with` block, or the exit of the program. A process that has died in the
    meantime is replaced. Set-up and tear-down then happen once for each process, and not in each run.

    Raises PipelineError if `fn` cannot be sent to another process, or is a coroutine function, which needs no process.
    """
    if not callable(fn):
        raise TypeError(f"on_processes needs a function, got {fn!r}")
    kind = fn.kind if isinstance(fn, PerWorker) else kind_of(fn)
    if kind.asynchronous:
        raise PipelineError(
            f"on_processes needs an ordinary or a generator function, got {kind.value} {fn!r}: pass it to the stage "
            f"itself, which runs it on an event loop in this process"
        )
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"on_processes needs time_limit > 0 seconds, got {time_limit}")
    if type(chunk) is not int or chunk < 1:
        raise ValueError(f"on_processes needs chunk to be a whole number of at least 1, got {chunk!r}")
    return OnProcesses(fn, time_limit, chunk, keep)
