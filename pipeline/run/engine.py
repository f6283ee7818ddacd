"""A run of a graph, as its caller uses it: start, sinks, commands, outcome and shutdown.

Guarantees: the threads of a run exist only inside its `with` block. The first event that ends the run - the end of the
input, an error in any thread, `cancel`, leaving the block, Ctrl-C - decides its outcome, once. Then every channel and
resource is aborted, every thread ends after the call that it is in, and all threads are joined before the caller
continues. The caller gets the first error and none of its consequences. A thread that does not end within the grace
period is reported by name, with its stack. A second Ctrl-C during the shutdown is raised after the threads have been
joined. Nobody waits for threads that cannot end: if a worker of the run leaves the block (the garbage collector may
close a forgotten iterator in any thread), the run is stopped without waiting; at the exit of the interpreter and in a
child of os.fork, leaving does nothing.

Assumptions: one thread (the caller's) enters, iterates and leaves; a sink is iterated by one thread. `cancel`, `drain`,
`pause`, `resume`, `resize` and `statistics` may be called from any thread, also by a finaliser or a signal handler: one
that has interrupted the engine in its own thread returns at once, and the command is carried out by another thread.

Internal interface: `check_running`, `fail`, `shut_down`, `raise_outcome` and `exhausted` are for the run's own sinks;
`outcome`, `wait_decided` and `worker_control` are for `threadloom.pipeline.testing` and the tests. None is part of the
public API.
"""

import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, overload

from threadloom.pipeline.core import (
    Cancelled,
    PipelineError,
    ShutdownTimeout,
    StageFailure,
    interrupts_threading,
    wait_in_slices,
)
from threadloom.pipeline.observe import NodeKind, RunStatistics, Sink, Stage, StageStatistics, with_expected_items
from threadloom.pipeline.policy import RunControl
from threadloom.pipeline.run.async_run import AsyncRun
from threadloom.pipeline.run.inspection import Inspection
from threadloom.pipeline.run.observers import Observers
from threadloom.pipeline.run.settings import RunSettings
from threadloom.pipeline.run.sink_iterator import SinkIterator
from threadloom.pipeline.run.skip_report import report_skipped
from threadloom.pipeline.run.stall_detection import WorkerSnapshot
from threadloom.pipeline.run.watchdog import RunInspector, WatchdogThread
from threadloom.pipeline.run.worker_control import ControlledRun, WorkerChange, WorkerControl
from threadloom.pipeline.run.worker_threads import WorkerThreads

Item = TypeVar("Item")

DEFAULTS = RunSettings()
LOG = logging.getLogger("threadloom.pipeline.run")


class Run:
    """A running graph, created by `Graph.start` and used as a context manager."""

    def __init__(self, name: str, stages: Sequence[Stage], settings: RunSettings = DEFAULTS) -> None:
        self.name = name
        self._grace = settings.grace
        self.clock = settings.clock
        self._outcome_raised = False  # True once the caller has received the outcome
        self._began: int | None = None
        self._joined = False  # True once no thread is left, or those left have been reported
        self._left: ShutdownTimeout | None = None
        self._open_sinks = {each.name for each in stages if each.kind is NodeKind.SINK}
        stages = settings.in_order(name, stages)
        self._workers = WorkerThreads(name, stages, settings, self._open_sinks)
        self._parts, self._threads, self._commands = self._workers.parts, self._workers.threads, self._workers.commands
        self._sinks = {
            each.name: SinkIterator(self, each, self._parts.channels[each.name])
            for each in stages
            if each.kind is NodeKind.SINK
        }
        # Event loops enforce the limits of their stages.
        limits = {each.name: each.limit for each in stages if each.limit is not None and each.concurrency is None}
        self._inspection = Inspection(self._parts, self._sinks, self._open_sinks, self._threads, self._commands)
        inspector = RunInspector(
            self._inspection.inspect,
            self._inspection.describe,
            self._handle_late,
            self.fail,
            lambda: self.clock() / 1e9,
            self._commands.decided,
        )
        self._watchdog = WatchdogThread(settings.watchdog, limits, inspector) if settings.watchdog or limits else None
        self._changes: list[WorkerChange] = []
        self.worker_control = self._create_control(settings, stages)
        self._observers = Observers(settings.all_observers(), self._commands.decided)

    def __enter__(self) -> Self:
        if self._began is not None:
            raise PipelineError(f"this run of {self.name!r} has already been used: create another with Graph.start()")
        self._began = self.clock()
        self._commands.order(RunControl.begin)
        for sink in self._sinks.values():
            sink.counters.began = self._began
        try:
            threads = self._workers.create_all()
            if self._watchdog:
                threads.append(self._threads.create(self._watchdog.run, "watchdog", self._watchdog.ended))
            if self.worker_control:
                threads.append(self._threads.create(self.worker_control.run, "controller", self.worker_control.ended))
            if self._observers.begin(self.statistics):
                threads.append(self._threads.create(self._observers.run, "observers", self._observers.ended))
            self._threads.start(threads)
        except BaseException:
            self.shut_down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._threads.forked:
            return  # the outcome is that of the parent
        self.shut_down()
        failures = [] if self._outcome_raised or not isinstance(self.outcome, StageFailure) else [self.outcome]
        unreported: list[PipelineError] = [*failures, *([self._left] if self._left else [])]
        self._outcome_raised = True
        if self._joined:
            report_skipped(self.name, self._parts.runtimes.values())
            self._commands.forget_frames()
            if not self._left:
                self._drop_references()
        if isinstance(error, GeneratorExit) and self._left:  # a forgotten iterator, where no error can be raised
            LOG.warning("the loop over graph %r has been left: %s", self.name, self._left)
        for problem in unreported:
            if error is None:
                raise problem
            if error is not problem:
                error.add_note(f"{type(problem).__name__}: {problem}")

    async def __aenter__(self) -> AsyncRun:
        """Start the run without blocking the event loop, and return its counterpart for coroutines."""
        self._async_run = await AsyncRun(self).enter()
        return self._async_run

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._async_run.leave(kind, error, tb)

    def __iter__(self) -> SinkIterator[Any]:
        if len(self._sinks) != 1:
            remedy = "iterate one with run.items(name)" if self._sinks else "use run.wait()"
            raise PipelineError(f"graph {self.name!r} has {len(self._sinks)} sinks: {remedy}")
        (sink,) = self._sinks.values()
        return sink

    @overload
    def items(self, sink: Sink[Item]) -> SinkIterator[Item]: ...
    @overload
    def items(self, sink: str) -> SinkIterator[Any]: ...
    def items(self, sink: Sink[Any] | str) -> SinkIterator[Any]:
        """Return the iterator over one sink. Iterate several sinks in one thread each: a full one blocks the others."""
        name = sink if isinstance(sink, str) else sink.name
        if name not in self._sinks:
            raise PipelineError(f"graph {self.name!r} has no sink {name!r}; it has {sorted(self._sinks)}")
        return self._sinks[name]

    def wait(self) -> None:
        """Wait until every stage has ended; raise the outcome, unless the run ended with its input."""
        self.check_running()
        if self._open_sinks:
            raise PipelineError(f"graph {self.name!r} has sinks {sorted(self._open_sinks)}: iterate them, then wait")
        self._wait_for_end()

    def cancel(self) -> None:
        """Stop every thread and discard the items in flight. Returns at once; leaving the `with` block joins."""
        self._commands.cancel()

    def pause(self) -> None:
        """Let workers finish their current item and take no other; sources produce nothing.

        Items that have already arrived at a sink can still be iterated.
        """
        self._commands.order(RunControl.pause)

    def resume(self) -> None:
        """Continue after `pause`."""
        self._commands.order(RunControl.resume)

    def drain(self) -> None:
        """Stop the sources and process the items in flight; the run then ends as it does at the end of its input.

        Returns at once; keep iterating the sinks, or call `wait`. A source that is inside `next` ends after it.
        """
        self._commands.order(RunControl.drain)

    def resize(self, stage: str, *, workers: int) -> None:
        """Change the number of workers of a stage during the run. Excess workers end after their current item."""
        self._workers.resize(stage, workers)

    @property
    def worker_changes(self) -> tuple[WorkerChange, ...]:
        """The changes that the controller of the run has made so far, the earliest first."""
        return tuple(self._changes)

    def statistics(self) -> RunStatistics:
        """Return the current counters of every stage and channel."""
        end = self.clock() if self._workers.finished is None else self._workers.finished
        elapsed = 0.0 if self._began is None else (end - self._began) / 1e9
        found = tuple(map(self._statistics_of, self._parts.stages))
        return RunStatistics(self.name, elapsed, with_expected_items(self._parts.stages, found))

    def _statistics_of(self, stage: Stage) -> StageStatistics:
        sink = self._sinks.get(stage.name)
        workers = () if sink else self._parts.workers_of(stage.name)
        return self._parts.statistics(stage, [sink.counters] if sink else [worker.counters for worker in workers])

    def _create_control(self, settings: RunSettings, stages: Sequence[Stage]) -> WorkerControl | None:
        if settings.controller is None:
            return None
        run = ControlledRun(
            self.statistics,
            self._workers.resize,
            self._workers.check_resizable,
            lambda: self._commands.control.state,
            self._commands.decided,
        )
        return WorkerControl(settings.controller, self.name, stages, run, self._changes)

    def _handle_late(self, snapshot: WorkerSnapshot, limit: float) -> None:
        """Replace a worker whose call is late, or fail the run. Called by the watchdog, in its thread."""
        self._workers.resolve_late(self._inspection.describe(snapshot, "has been inside its function"), limit)

    def fail(self, failure: StageFailure) -> None:
        """End the run at once with this failure, unless its outcome is decided."""
        self._commands.stop_once(failure)

    # Stopping. Every method here may be called again, because a Ctrl-C may have interrupted it.

    def shut_down(self) -> None:
        """End and join every thread. An interrupt during the shutdown is raised at its end.

        Threads that the caller cannot wait for are not waited for.
        """
        if self._threads.gone:
            return
        if self._threads.includes_caller or interrupts_threading():
            self.cancel()
            return
        interrupt: KeyboardInterrupt | None = None
        deadline = monotonic() + self._grace
        while not self._joined:
            try:
                if self._workers.alive or self._open_sinks:
                    self.cancel()
                self._join(deadline)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _join(self, deadline: float) -> None:
        left = self._threads.join(deadline)
        if left:
            self._left = ShutdownTimeout(left, self._grace)
        for sink in self._sinks.values():
            sink.end(self.clock())  # a caller that read the clock earlier has read a time before `finished`
        if self._workers.finished is None:
            self._workers.finished = self.clock()
        self._observers.end(complete=self.outcome is None)
        self._joined = True

    def _drop_references(self) -> None:
        """Break the reference cycles of the run, so that its memory is freed without the garbage collector."""
        self._watchdog = self.worker_control = None
        self._parts.drop_references()
        for sink in self._sinks.values():
            sink.drop_references(self.outcome)

    # Called by the caller's thread.

    def exhausted(self, name: str) -> None:
        """Record that a sink has delivered everything; after the last one, wait for the end of the run."""
        self._open_sinks.discard(name)
        if not self._open_sinks:
            self._workers.stop_if_drained()
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        """Wait for the stages that are still at work; raise the outcome if one of them fails."""
        if self._threads.includes_caller:
            raise PipelineError(f"a worker of {self.name!r} waits for the end of its own run: wait in another thread")
        try:
            wait_in_slices(self._commands.decided.wait, float("inf"))
        except BaseException:
            self.shut_down()
            raise
        self._raise_outcome_if_any()

    def _raise_outcome_if_any(self) -> None:
        self.shut_down()
        if self.outcome is not None:
            self._outcome_raised = True
            if self._left is not None:
                self.outcome.add_note(str(self._left))
                self._left = None
            raise self.outcome

    def raise_outcome(self) -> NoReturn:
        """Shut down and raise the outcome, which must be a failure or a cancellation."""
        self._raise_outcome_if_any()
        raise AssertionError("a channel was aborted without an outcome")

    def check_running(self) -> None:
        """Raise PipelineError if the run has not been started, or was started by another process."""
        if self._began is None:
            raise PipelineError(f"this run of {self.name!r} has not been started: use `with graph.start() as run:`")
        self._commands.check_process()

    @property
    def outcome(self) -> StageFailure | Cancelled | None:
        """The failure or cancellation that ended the run; None while it is undecided or if the input ended."""
        return self._commands.outcome

    def wait_decided(self, seconds: float = -1) -> bool:
        """Wait until the outcome is decided or the last worker has ended, for at most `seconds` (-1: no limit)."""
        return self._commands.decided.wait(seconds)
