"""A run of a graph: its threads, channels and outcome.

Guarantees: the threads of a run live inside its `with` block and nowhere else. Whatever ends it first - the end of the
input, an error in any thread, `cancel`, leaving the block, Ctrl-C - decides its outcome, once; then every channel and
resource is aborted, every thread ends with what it is calling right now, and all are joined before the caller goes on.
The caller gets the first error and no consequence of it. A thread that does not end within the grace period is
reported by name with its stack. A second Ctrl-C meanwhile is raised when the threads have been joined.

Assumptions: one thread (the caller's) enters, iterates and leaves; a sink is iterated by one thread. `cancel`, `drain`,
`pause`, `resume`, `resize` and `statistics` may be called from any thread. From a signal handler, raise an exception
rather than call one of these: the handler may have interrupted a channel that holds its lock.

Ownership: `_control`, `_working` and `_alive` belong to `_lock`, and so does adding workers, gates and threads.
"""

import threading
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, perf_counter_ns
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar, overload

from threadloom.pipeline.core import (
    Cancelled,
    Label,
    OneShotEvent,
    PipelineError,
    ShutdownTimeout,
    StageFailure,
    wait_in_slices,
)
from threadloom.pipeline.observe import NodeKind, RunStatistics, Sink, Stage, StageStatistics, Trace
from threadloom.pipeline.policy import ACTIVE_STATES, RunAction, RunControl, RunState
from threadloom.pipeline.run.assembly import Assembly
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.launch import ThreadLauncher
from threadloom.pipeline.run.sink_iterator import SinkIterator
from threadloom.pipeline.run.source_gate import SourceGate
from threadloom.pipeline.run.watchdog import (
    RunInspector,
    StallReport,
    Watchdog,
    WatchdogThread,
    WorkerSnapshot,
    stack_of,
)
from threadloom.pipeline.run.worker import StageWorker, WorkerContext

Item = TypeVar("Item")


class Abortable(Protocol):
    """A resource that workers wait on: a slot pool, a weight bank."""

    def abort(self) -> None:
        """Wake everyone with Cancelled, now and from now on. Called from any thread, perhaps more than once."""


class Run:
    """A graph at work; made by `Graph.start`, and used as a context manager."""

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        resources: Sequence[Abortable] = (),
        trace: Trace | None = None,
        label: Callable[[Any], Label] | None = None,
        grace: float = 10.0,
        watchdog: Watchdog | None = Watchdog(),  # noqa: B008 - frozen
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self.name = name
        self._resources = tuple(resources)
        self._grace = grace
        self.clock = clock
        self._lock = allocate_lock()
        self._control = RunControl()
        self._outcome_raised = False  # whether the caller has been given the outcome
        self._over = OneShotEvent()  # opens when the outcome is decided, or when the last worker has ended
        self._began: int | None = None
        self._finished: int | None = None  # when the last worker had ended and the last sink had delivered everything
        self._joined = False  # set once no thread is left, or those left have been reported
        self._left: ShutdownTimeout | None = None
        if trace is not None:
            some = {each.name for each in stages if each.when or each.via}
            trace.declare({each.name: each.after for each in stages}, selective=some)
        record = trace.record if trace is not None else None
        context = WorkerContext(clock, record, label, self.fail, self.cancel, self._worker_ended, self._pause_for)
        self._parts = Assembly(stages, clock, context)
        self._sinks = {
            each.name: SinkIterator(self, each, self._parts.channels[each.name])
            for each in stages
            if each.kind is NodeKind.SINK
        }
        self._open_sinks = set(self._sinks)
        self._threads: list[tuple[threading.Thread, OneShotEvent]] = []
        self._launchers: list[ThreadLauncher] = []
        self._gates: dict[StageWorker, OneShotEvent] = {worker: OneShotEvent() for worker in self._parts.workers()}
        self._working = Counter(worker.stage.name for worker in self._gates)  # workers that have work, by stage
        self._alive = len(self._gates)  # workers that have not ended
        self._parts.watch(lambda: self._alive)
        limits = {each.name: each.limit for each in stages if each.limit is not None}
        inspector = RunInspector(self._look, self._describe, self.fail, lambda: self.clock() / 1e9, self._over)
        self._watch = WatchdogThread(watchdog, limits, inspector) if watchdog or limits else None

    @property
    def _outcome(self) -> StageFailure | Cancelled | None:
        """What ended the run, if it was not the end of the input."""
        return self._control.outcome

    def __enter__(self) -> Self:
        if self._began is not None:
            raise PipelineError(f"this run of {self.name!r} has been used: make another with Graph.start()")
        self._began = self.clock()
        self._order(RunControl.begin)
        for sink in self._sinks.values():
            sink.counters.began = self._began
        try:
            threads = [self._thread_of(worker) for worker in tuple(self._gates)]
            if self._watch:
                threads.append(self._thread(self._watch.run, "watchdog", self._watch.ended))
            self._launch(threads)
        except BaseException:
            self.shut_down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shut_down()
        if not self._left:
            self._drop_references()
        problems = [] if self._outcome_raised or not isinstance(self._outcome, StageFailure) else [self._outcome]
        unsaid: list[PipelineError] = [*problems, *([self._left] if self._left else [])]
        self._outcome_raised = True
        for problem in unsaid:
            if error is None:
                raise problem
            if error is not problem:
                error.add_note(f"{type(problem).__name__}: {problem}")

    def __iter__(self) -> Iterator[Any]:
        if len(self._sinks) != 1:
            remedy = "iterate one with run.items(name)" if self._sinks else "use run.wait()"
            raise PipelineError(f"graph {self.name!r} has {len(self._sinks)} sinks: {remedy}")
        return iter(*self._sinks.values())

    @overload
    def items(self, sink: Sink[Item]) -> Iterator[Item]: ...
    @overload
    def items(self, sink: str) -> Iterator[Any]: ...
    def items(self, sink: Sink[Any] | str) -> Iterator[Any]:
        """Iterate one sink. To drain several, use a thread for each: a full one holds up the rest."""
        name = sink if isinstance(sink, str) else sink.name
        if name not in self._sinks:
            raise PipelineError(f"graph {self.name!r} has no sink {name!r}; it has {sorted(self._sinks)}")
        return self._sinks[name]

    def wait(self) -> None:
        """Wait until every stage has ended, and raise what ended the run if it was not the input."""
        self.check_running()
        if self._open_sinks:
            raise PipelineError(f"graph {self.name!r} has sinks {sorted(self._open_sinks)}: iterate them, then wait")
        self._settle()

    def cancel(self) -> None:
        """Tell every thread to end, and drop what is in flight. Returns at once; leaving the block joins."""
        self._stop(Cancelled(f"the run of {self.name!r} was cancelled"))

    def pause(self) -> None:
        """Let every worker finish its item and take no other; sources draw nothing. Sinks hand out what is there."""
        self._order(RunControl.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._order(RunControl.resume)

    def drain(self) -> None:
        """Take nothing more from the sources, and let what is in finish: then the run ends as at the end of the input.

        Returns at once; go on iterating the sinks, or `wait`. A source that is inside its `next` ends after it.
        """
        self._order(RunControl.drain)

    def resize(self, stage: str, *, workers: int) -> None:
        """Give a stage another number of workers while it runs. Those too many end after their current item."""
        channel = self._parts.channels.get(stage)
        if channel is None or stage in self._sinks:
            stages = [name for name in self._parts.runtimes if name in self._parts.channels]
            raise PipelineError(f"graph {self.name!r} has no stage {stage!r} with workers to change; it has {stages}")
        if workers < 1:
            raise PipelineError(f"stage {stage!r} needs at least 1 worker, got workers={workers}: pause() stops all")
        with self._lock:
            if self._control.state not in ACTIVE_STATES:
                return  # too late to matter
            added = [self._parts.add_worker(stage) for _ in range(channel.set_consumers(workers))]
            threads = []
            for worker in added:
                if not worker.register():
                    break  # the stage has had all of its input
                self._gates[worker] = OneShotEvent()
                self._working[stage] += 1
                self._alive += 1
                threads.append(self._thread_of(worker))
            self._launch(threads)

    def statistics(self) -> RunStatistics:
        """Return the counters of every stage and channel as of now."""
        end = self.clock() if self._finished is None else self._finished
        elapsed = 0.0 if self._began is None else (end - self._began) / 1e9
        return RunStatistics(self.name, elapsed, tuple(map(self._statistics_of, self._parts.stages)))

    def _statistics_of(self, stage: Stage) -> StageStatistics:
        sink = self._sinks.get(stage.name)
        workers = () if sink else self._parts.workers_of(stage.name)
        return self._parts.statistics(stage, [sink.counters] if sink else [worker.counters for worker in workers])

    def _thread_of(self, worker: StageWorker) -> threading.Thread:
        return self._thread(worker.run, f"{worker.stage.name}-{worker.index}", self._gates[worker])

    def _thread(self, target: Callable[[], None], name: str, ended: OneShotEvent) -> threading.Thread:
        # A daemon, so that a function that never returns cannot keep the interpreter from exiting.
        thread = threading.Thread(target=target, name=f"{self.name}.{name}", daemon=True)
        self._threads.append((thread, ended))
        return thread

    def _launch(self, threads: Sequence[threading.Thread]) -> None:
        launch = ThreadLauncher(threads)
        self._launchers.append(launch)
        launch.start()

    # What the watchdog asks for, in its own thread.

    def _look(self) -> tuple[object, list[WorkerSnapshot]]:
        if self._control.state is RunState.PAUSED:
            return None, []
        sinks = {name: self._sinks[name].counters for name in tuple(self._open_sinks)}
        counted = [(each.counters.items_in, each.counters.items_out) for each in self._parts.workers()]
        return (counted, [each.items_in for each in sinks.values()]), self._parts.look(sinks)

    def _describe(self, snapshot: WorkerSnapshot, doing: str) -> StallReport:
        if snapshot.kind is NodeKind.SINK:
            return StallReport(snapshot.stage, 0, "", "what waits there", doing, snapshot.seconds, "")
        item = self._parts.workers_of(snapshot.stage)[snapshot.worker].in_hand()[1]
        name = f"{self.name}.{snapshot.stage}-{snapshot.worker}"
        stacks = [stack_of(thread) for thread, _ in tuple(self._threads) if thread.name == name]
        return StallReport(snapshot.stage, snapshot.worker, name, item, doing, snapshot.seconds, "".join(stacks))

    # What workers report, in their own threads.

    def fail(self, failure: StageFailure) -> None:
        """End the run with this failure, if nothing has ended it yet."""
        self._stop(failure)

    def _pause_for(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise Cancelled("the run was stopped before an item was tried again")

    def _worker_ended(self, worker: StageWorker) -> None:
        stage = worker.stage.name
        with self._lock:
            self._working[stage] -= 1
            stage_over = not self._working[stage]
        if stage_over:
            self._check_end_of(worker)
        with self._lock:
            self._alive -= 1
            last = not self._alive
            if last:
                self._control.end()
        if last:
            if not self._open_sinks:
                self._finished = self.clock()
            self._over.set()
        elif self._parts.detector.suspected:
            self._parts.detector.check()
        self._gates[worker].set()

    def _check_end_of(self, worker: StageWorker) -> None:
        failures = self._parts.runtimes[worker.stage.name].failures
        if failures is None:
            return
        try:
            failures.check_end()
        except PipelineError as error:
            self.fail(StageFailure(worker.stage.name, worker.index, {}, "the end of the input", error))

    # Stopping. Everything here may be repeated, as a Ctrl-C may have cut it short.

    def _stop(self, outcome: StageFailure | Cancelled) -> None:
        self._order(partial(RunControl.stop, outcome=outcome))
        self._over.set()
        for worker in self._parts.workers():  # after that: who sets itself up now sees the end, or is met here
            worker.abort()

    def _order(self, give: Callable[[RunControl], Sequence[RunAction]]) -> None:
        """Give an order, and have channels and sources do what it asks."""
        with self._lock:  # held meanwhile, so that they see orders in the order in which they were given
            actions = give(self._control)
            for action in actions:
                self._carry_out(action)
        if RunAction.ABORT in actions:
            self._abort()

    def _carry_out(self, action: RunAction) -> None:
        sources = self._parts.source_gates.values()
        stages = [channel for name, channel in self._parts.channels.items() if name not in self._sinks]
        held: list[SourceGate | Channel[Any, Any]] = [*sources, *stages]
        match action:
            case RunAction.HOLD:
                for each in held:
                    each.hold()
            case RunAction.RELEASE:
                for each in held:
                    each.release()
            case RunAction.CLOSE_SOURCES:
                for source in sources:
                    source.close()

    def _abort(self) -> None:
        own: list[Abortable] = [*self._parts.channels.values(), *self._parts.source_gates.values()]
        for each in (*own, *self._resources):
            try:
                each.abort()
            except Exception as error:  # the others must be woken all the same
                note = f"abort() of {type(each).__name__} raised {type(error).__name__}: {error}"
                if self._outcome is not None:
                    self._outcome.add_note(note)

    def shut_down(self) -> None:
        """End and join every thread. An interrupt meanwhile is raised afterwards."""
        interrupt: KeyboardInterrupt | None = None
        deadline = monotonic() + self._grace
        while not self._joined:
            try:
                if self._alive or self._open_sinks:
                    self.cancel()
                self._join(deadline)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _join(self, deadline: float) -> None:
        left = {}
        for launch in self._launchers:
            wait_in_slices(launch.over, deadline)
        for thread, gate in tuple(self._threads):
            if thread.ident is None:
                continue  # it never started, and will not
            # The gate first: an interrupted Thread.join takes a living thread for a dead one (CPython 3.11).
            if wait_in_slices(gate.wait, deadline):
                thread.join()
            else:
                left[thread.name] = stack_of(thread)
        if left:
            self._left = ShutdownTimeout(left, self._grace)
        for sink in self._sinks.values():
            sink.end(self.clock())  # a caller who has read the clock before this has read less than `_finished`
        if self._finished is None:
            self._finished = self.clock()
        self._joined = True

    def _drop_references(self) -> None:
        """Cut the cycles that lead back here: memory goes with the last reference, and waits for no collector."""
        self._watch = None
        self._parts.drop_references()
        for sink in self._sinks.values():
            sink.drop_references(self._outcome)

    # What the caller's thread asks for.

    def exhausted(self, name: str) -> None:
        """Note that a sink has delivered everything; after the last, the run ends here."""
        self._open_sinks.discard(name)
        if not self._open_sinks:
            self._settle()
        elif self._parts.detector.suspected:
            self._parts.detector.check()  # what it held may have been all that kept them from being certain

    def _settle(self) -> None:
        """Wait for the stages that are still at work, and raise if one of them fails."""
        try:
            wait_in_slices(self._over.wait, float("inf"))
        except BaseException:
            self.shut_down()
            raise
        self._raise_outcome_if_any()

    def _raise_outcome_if_any(self) -> None:
        self.shut_down()
        if self._outcome is not None:
            self._outcome_raised = True
            if self._left is not None:
                self._outcome.add_note(str(self._left))
                self._left = None
            raise self._outcome

    def raise_outcome(self) -> NoReturn:
        """Raise what ended the run."""
        self._raise_outcome_if_any()
        raise AssertionError("a channel was aborted without an outcome")

    def check_running(self) -> None:
        """Raise if the run has not begun."""
        if self._began is None:
            raise PipelineError(f"this run of {self.name!r} has not begun: use `with graph.start() as run:`")
