"""Keyword arguments of stages that do not depend on the type of items, and of runs."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from threadloom.pipeline.core import Label
from threadloom.pipeline.graph.function_checks import needs_loop
from threadloom.pipeline.observe import Observer, Skip, Trace
from threadloom.pipeline.policy import OnError, OnFailure, Rate
from threadloom.pipeline.processes import OnProcesses
from threadloom.pipeline.run import Abortable, Controller, Watchdog

Out = TypeVar("Out")

Items = Iterable[Out] | AsyncIterable[Out]
"""The items of a source."""
Later = Iterator[Out | Skip] | AsyncIterator[Out | Skip] | Coroutine[Any, Any, Out | Skip]
"""Return types of generator and coroutine functions, for results of type Out."""
Elements = Iterable[Out | Skip] | AsyncIterable[Out | Skip] | Coroutine[Any, Any, Iterable[Out | Skip]]
"""Return types of functions of a stage with `expand`."""


class StageOptions(TypedDict, total=False):
    """Keyword arguments of every `stage` and `join`."""

    workers: int
    """Number of threads that call the function. 1 by default."""
    concurrency: int
    """Number of items in flight per worker, for a coroutine function, which runs on an event loop of the worker. 1 by
    default. Pass it for a function that returns a coroutine without being marked as a coroutine function, too."""
    capacity: int
    """Capacity of the input channel: items, groups or tuples. 2 by default."""
    ordered: bool
    """If True, results are sent in the order in which their items were taken from the input channel, instead of in the
    order of completion. Skipped items leave no gap. At most workers (times concurrency) + capacity items are taken
    but not sent; the elements of an expanded item are collected before they are sent."""
    on_error: OnError
    """Failure policy for items whose function raises: FailFast() by default, or SkipFailed(...), Retry(...)."""
    limit: float
    """Time limit in seconds of each call of the function, of each element of an expansion, and of a whole expansion
    under a failure policy. Pauses before retries do not count.

    A call that exceeds it fails with `ItemTimeout`, with the stack of its thread, and `on_error` decides: by default
    the run fails. A thread cannot be interrupted in a call. If the item is skipped or retried, another thread
    therefore takes the place of the late one, which ends when its call returns; the result is dropped. `replaced` in
    the statistics counts these threads: bound their number, for example by `SkipFailed(most=...)`. Those that have
    not ended at the end of the run are reported after the `grace` period, by `ShutdownTimeout`. A process of
    `on_processes` is ended at once.

    A coroutine is cancelled at the limit, and the item fails in the same way."""
    rate: Rate | float
    """Rate limit: items per second that the workers of the stage start together, or Rate(per_second, burst=...).
    Repeated calls of a failure policy do not count."""


def set_defaults(fn: object, options: StageOptions) -> None:
    """Set the options whose defaults depend on the function of a stage."""
    if needs_loop(fn):
        options.setdefault("concurrency", 1)
    if isinstance(fn, OnProcesses) and fn.chunk > 1:
        options.setdefault("capacity", 2 * fn.chunk)


class RunOptions(TypedDict, total=False):
    """Keyword arguments of `start` and `run`."""

    resources: Sequence[Abortable]
    """Objects to abort together with the channels, so that no worker waits for them forever."""
    trace: Trace | None
    """Recorder of all calls of stage functions."""
    label: Callable[[Any], Label] | None
    """Returns the label of an item for errors and traces; must accept all types of items in the graph."""
    grace: float
    """Seconds within which threads must end after a stop before `ShutdownTimeout` is raised. 10 by default."""
    on_failure: OnFailure | Literal["stop", "drain"]
    """Handling of the items before the failing one. By default ("stop") the first error ends the run at once, and which
    earlier results have been delivered depends on timing. With "drain" the results of all items before the failing one
    are delivered, in order, and then the error is raised; see `OnFailure`."""
    watchdog: Watchdog | None
    """Detects stalled runs. Watchdog() by default, which logs a warning after a minute without progress."""
    controller: Controller | None
    """Moves workers from stages that wait to the bottleneck while the run goes on; None by default. Results and their
    order do not change."""
    progress: bool
    """If True, a progress bar is drawn on stderr, or a line every five seconds if it is not a terminal."""
    observers: Sequence[Observer]
    """Objects that follow the run: a `ProgressBar` with settings, exporters of the statistics, or your own."""
    copy_context: bool
    """If True, every worker has a copy of the context variables of the caller of `start`: ContextVar,
    `decimal.localcontext`, `np.errstate`. By default they have their initial values in workers, as in other thread
    pools. They do not cross to the processes of `on_processes`."""
    clock: Callable[[], int]
    """Returns nanoseconds; monotonic. time.perf_counter_ns by default."""
