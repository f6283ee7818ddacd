"""The state that the workers of one stage share, the callbacks of their run, and the end of their stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from time import perf_counter_ns
from typing import Any, Final

from threadloom.pipeline.core import Label, StageFailure
from threadloom.pipeline.observe import RawEvent, Stage
from threadloom.pipeline.policy import ReorderBuffer
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.flushing import Flushing
from threadloom.pipeline.run.loop_workers import EventLoops, Spawn
from threadloom.pipeline.run.retry import FailureCounters
from threadloom.pipeline.run.rounds import Rounds
from threadloom.pipeline.run.routing import Edge
from threadloom.pipeline.run.source_gate import SourceGate
from threadloom.pipeline.run.throttle import Throttle


@dataclass(frozen=True)
class WorkerContext:
    """The clock and the callbacks that a run passes to its workers."""

    clock: Callable[[], int]
    record: Callable[[RawEvent], None] | None
    label: Callable[[Any], Label] | None
    failed: Callable[[StageFailure], None]
    cancelled: Callable[[], None]
    ended: Callable[[Any], None]
    """Called by a worker with itself as its last action."""
    sleep: Callable[[float], None]
    """Sleeps for a number of seconds; raises Cancelled as soon as the run is stopped."""
    spawn: Spawn
    """Starts another thread of the run."""
    drains: bool = False
    """True if a failure ends the sequence of items before the failing one, instead of stopping the run."""


def _ignore(*_: object) -> None:
    pass


NULL_CONTEXT: Final = WorkerContext(perf_counter_ns, None, None, _ignore, _ignore, _ignore, _ignore, lambda *_: False)
"""Null context for workers after the run has ended."""


@dataclass(frozen=True)
class StageRuntime:
    """The state that the workers of one stage share."""

    stage: Stage
    edges: Sequence[Edge]
    channel: Channel[Any, Any] | None
    """The input channel; None for a source."""
    gate: SourceGate | None
    """The pause and close control of a source; None for others."""
    reorder: ReorderBuffer | None
    """The results of an ordered stage that are finished too early; None for others."""
    rounds: Rounds | None
    """The turns of the workers of an ordered source; None for others."""
    failures: FailureCounters | None
    """The counters of a stage or source with a failure policy; None with FailFast."""
    loops: EventLoops | None
    """The event loops of a stage of coroutines; None for others."""
    flushing: Flushing
    throttle: Throttle | None
    """The rate limit; None if there is none."""

    def acquirer(self, sleep: Callable[[float], object]) -> Callable[[Any], object] | None:
        """Return the function that a worker calls just before that of the stage; it waits for rate and resource."""
        throttle, acquire = self.throttle, self.stage.acquire
        if throttle is None:
            return acquire

        def wait_and_acquire(item: Any) -> None:
            throttle.wait(sleep)
            if acquire is not None:
                acquire(item)

        return wait_and_acquire


class LifecyclePhase(Enum):
    """The phases of a worker in which it has no item; the value stands in for the item in error messages."""

    SET_UP = "set-up"
    FLUSH = "flush"
    TEAR_DOWN = "tear-down"


def end_stage(runtime: StageRuntime, worker: int, failed: Callable[[StageFailure], None]) -> None:
    """Tear down the event loops of a stage and check its skipped items, after the end of its last worker.

    `failed` is called with the error of a tear-down, and if too many items were skipped or the policy raises.
    """
    name = runtime.stage.name
    try:
        if runtime.loops is not None:
            runtime.loops.close()
    except BaseException as error:
        failed(StageFailure(name, worker, {}, LifecyclePhase.TEAR_DOWN.value, error))
    try:
        if runtime.failures is not None:
            runtime.failures.check_end()
    except BaseException as error:
        failed(StageFailure(name, worker, {}, "the end of the input", error))
