"""The channels, stage runtimes and workers of one run, built from its declared stages. Starts no thread.

Ownership: the lists of workers grow under the lock of the run; other readers see a snapshot.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from threadloom.pipeline.core import SLICE, PipelineError
from threadloom.pipeline.observe import Counters, NodeKind, Stage, StageStatistics, summarise
from threadloom.pipeline.policy import FailFast, Join, NumberedAdmission, ReorderBuffer, RunAction
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.deadlock import DeadlockDetector
from threadloom.pipeline.run.flushing import Flushing
from threadloom.pipeline.run.late_calls import LateItem
from threadloom.pipeline.run.loop_workers import EventLoops
from threadloom.pipeline.run.retry import FailureCounters
from threadloom.pipeline.run.rounds import Rounds
from threadloom.pipeline.run.routing import Edge
from threadloom.pipeline.run.source_gate import SourceGate
from threadloom.pipeline.run.stage_runtime import NULL_CONTEXT, StageRuntime, WorkerContext
from threadloom.pipeline.run.stall_detection import WorkerSnapshot
from threadloom.pipeline.run.throttle import Throttle, ThrottledGate
from threadloom.pipeline.run.worker import StageWorker
from threadloom.pipeline.run.worker_state import PerWorker


def with_order(stages: Sequence[Stage]) -> Sequence[Stage]:
    """Return stages of which those with several workers are ordered, so that every node is a sequence."""
    return [
        replace(each, ordered=True) if each.kind is NodeKind.STAGE and each.threads > 1 else each for each in stages
    ]


class Assembly:
    """The parts of one run."""

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], int], context: WorkerContext) -> None:
        self.stages = tuple(stages)
        self._clock = clock
        self._context = context
        self.detector = DeadlockDetector()
        self._successors: dict[str, list[Stage]] = defaultdict(list)  # with each of their edges, in declared order
        self._producers: Counter[str] = Counter()  # node → threads that send to it
        counts = {each.name: each.threads for each in stages}
        for each in stages:
            for name in dict.fromkeys(each.after):
                self._successors[name].append(each)
            self._producers[each.name] = sum(counts[name] for name in each.after)
        self.channels: dict[str, Channel[Any, Any]] = {
            each.name: self._input_channel(each) for each in stages if each.kind is not NodeKind.SOURCE
        }
        self.throttles = {each.name: Throttle(each.rate, clock) for each in stages if each.rate is not None}
        self.source_gates = {
            each.name: ThrottledGate(self.throttles[each.name]) if each.name in self.throttles else SourceGate()
            for each in stages
            if each.kind is NodeKind.SOURCE
        }
        self.runtimes = {each.name: self._runtime(each) for each in stages if each.kind is not NodeKind.SINK}
        self._workers: dict[str, list[StageWorker]] = {name: [] for name in self.runtimes}
        for each in stages:
            for _ in range(each.threads if each.name in self.runtimes else 0):
                self.add_worker(each.name)

    def stage_channels(self) -> list[Channel[Any, Any]]:
        """Return the input channels of stages."""
        return [channel for name, channel in self.channels.items() if name in self.runtimes]

    def detect_deadlocks(self, alive: Callable[[], int]) -> None:
        """Start deadlock detection; `alive` returns the number of workers that have not ended."""
        sinks = [channel for name, channel in self.channels.items() if name not in self.runtimes]
        turns = [turn for runtime in self.runtimes.values() if runtime.rounds for turn in runtime.rounds.turns]
        self.detector.watch([*self.stage_channels(), *turns], sinks, alive)

    def apply(self, action: RunAction) -> None:
        """Apply an action to sources and channels; ABORT does nothing here, see `abortables`."""
        gates = self.source_gates.values()
        pausable: list[Channel[Any, Any] | SourceGate] = [*gates, *self.stage_channels()]
        match action:
            case RunAction.HOLD:
                for each in pausable:
                    each.hold()
            case RunAction.RELEASE:
                for each in pausable:
                    each.release()
            case RunAction.CLOSE_SOURCES:
                for gate in gates:
                    gate.close()
            case RunAction.TRUNCATE:
                for channel in self.channels.values():
                    channel.truncate()

    def discard_input(self, name: str) -> None:
        """Drop the items sent to a stage, now and from now on; a source has no input."""
        if name in self.channels:
            self.channels[name].discard()

    def resizable(self, graph: str, name: str, workers: int, *, drained: bool) -> Channel[Any, Any]:
        """Return the input channel of a stage; raise PipelineError if it cannot have `workers` workers."""
        stages = [each for each in self.runtimes if each in self.channels]
        if name not in stages:
            raise PipelineError(f"graph {graph!r} has no stage {name!r} with workers to change; it has {stages}")
        if workers < 1:
            raise PipelineError(f"stage {name!r} needs at least 1 worker, got workers={workers}: pause() stops all")
        if drained and not self.runtimes[name].stage.ordered:
            raise PipelineError(
                f"stage {name!r} of a run with on_failure='drain' has to keep its order, and was declared with one "
                f"worker: declare it with ordered=True to change the number of its workers"
            )
        return self.channels[name]

    def successors(self) -> dict[str, Collection[str]]:
        """Return the graph: node → the nodes that follow it, in the order of declaration."""
        return {stage.name: [each.name for each in self._successors[stage.name]] for stage in self.stages}

    def abortables(self) -> list[Channel[Any, Any] | SourceGate]:
        """Return every object that has to be aborted to stop the run."""
        turns = [turn for runtime in self.runtimes.values() if runtime.rounds for turn in runtime.rounds.turns]
        return [*self.channels.values(), *self.source_gates.values(), *turns]

    @property
    def interrupted(self) -> bool:
        """True if the calling thread has been interrupted in a method of a channel or a source gate."""
        return any(each.interrupted for each in self.abortables())

    def drop_references(self) -> None:
        """Break reference cycles to the run, after all threads have been joined."""
        self.detector.stop()
        self._context = NULL_CONTEXT
        for worker in self.workers():
            worker.drop_references()
        for runtime in self.runtimes.values():
            if runtime.failures:
                runtime.failures.freeze_total()
            if runtime.loops:
                runtime.loops.drop_references()

    def add_worker(self, name: str, late: LateItem | None = None) -> StageWorker:
        """Create one more worker of a stage, with the next unused index; it begins with the `late` item, if any."""
        workers = self._workers[name]
        worker = StageWorker(self.runtimes[name], len(workers), self._context, late)
        workers.append(worker)
        if late is None:  # else it takes the place of another
            worker.join()
        return worker

    def workers(self) -> Iterator[StageWorker]:
        """Return every worker of every stage."""
        return chain.from_iterable(map(tuple, self._workers.values()))

    def workers_of(self, name: str) -> tuple[StageWorker, ...]:
        """Return every worker of a stage, those that have ended included."""
        return tuple(self._workers[name])

    def statistics(self, stage: Stage, counters: Sequence[Counters]) -> StageStatistics:
        """Return the statistics of a stage or sink, from the counters of its workers."""
        channel = self.channels.get(stage.name)
        summary = summarise(
            stage.name, list(counters), channel.statistics() if channel else None, self._clock, stage.kind, stage.after
        )
        if channel is not None:
            summary = replace(summary, workers=channel.workers)
        if stage.name in self.throttles:
            summary = replace(summary, throttled=self.throttles[stage.name].seconds)
        failures = self.runtimes[stage.name].failures if stage.name in self.runtimes else None
        if failures is None:
            return summary
        replaced = sum(worker.given_up for worker in self.workers_of(stage.name))
        return replace(summary, skipped=failures.skipped, retried=failures.retried, replaced=replaced)

    def snapshots(self, sinks: Mapping[str, Counters]) -> list[WorkerSnapshot]:
        """Return a snapshot of every running worker, and of the caller at every open sink (name → its counters)."""
        now = self._clock()
        found = [
            WorkerSnapshot(
                each.stage.name,
                each.stage.kind,
                each.index,
                *each.in_progress(now),
                each.has_item,
                throttled=each.stage.name in self.throttles and self.throttles[each.stage.name].waiting,
            )
            for each in self.workers()
            if each.counters.began is not None and each.counters.ended is None
        ]
        for name, counters in sinks.items():
            channel = self.channels[name]
            waits, full = channel.receivers_wait, channel.senders_wait
            found.append(WorkerSnapshot(name, NodeKind.SINK, 0, *counters.in_progress(now), parked=waits, full=full))
        return found

    def _runtime(self, stage: Stage) -> StageRuntime:
        has_policy = not isinstance(stage.on_error, FailFast)
        loops = EventLoops(stage, self._context.spawn) if stage.concurrency is not None else None
        return StageRuntime(
            stage if loops is None else replace(stage, fn=PerWorker(loops.worker)),
            self._edges_of(stage),
            self.channels.get(stage.name),
            self.source_gates.get(stage.name),
            ReorderBuffer() if stage.ordered and stage.kind is NodeKind.STAGE else None,
            Rounds(stage.workers, self._clock, self.detector) if stage.ordered and stage.shards else None,
            FailureCounters(stage.on_error, partial(self._items_started, stage.name)) if has_policy else None,
            loops,
            Flushing(stage),
            self.throttles.get(stage.name),
        )

    def _items_started(self, name: str) -> int:
        workers, failures = self.workers_of(name), self.runtimes[name].failures
        if name in self.source_gates and failures is not None:
            return sum(worker.counters.items_out for worker in workers) + failures.skipped
        return sum(worker.counters.items_in for worker in workers)

    def _input_channel(self, stage: Stage) -> Channel[Any, Any]:
        admission = stage.admission.begin(stage.capacity)
        if stage.ordered:
            admission = NumberedAdmission(admission, stage.capacity, stage.threads)
        return Channel(
            admission,
            stage.capacity,
            self._producers[stage.name],
            self._clock,
            stage.threads,
            self.detector,
            SLICE if stage.kind is NodeKind.SINK else -1,
        )

    def _edges_of(self, stage: Stage) -> list[Edge]:
        return [
            Edge(
                each.name,
                self.channels[each.name],
                each.when,
                via,
                place if isinstance(each.admission, Join) else None,
            )
            for each in self._successors[stage.name]
            for place, (name, via) in enumerate(each.inputs())
            if name == stage.name
        ]
