"""What a run is made of, from what its graph declares: channels, runtimes and workers. It starts no thread.

Ownership: the lists of workers grow under the lock of the run; a reader sees them as they are at that moment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from threadloom.pipeline.core import SLICE
from threadloom.pipeline.observe import Counters, NodeKind, Stage, StageStatistics, summarise
from threadloom.pipeline.policy import FailFast, Join, NumberedAdmission, ReorderBuffer
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.deadlock import DeadlockDetector
from threadloom.pipeline.run.retry import FailureCounters
from threadloom.pipeline.run.routing import Edge
from threadloom.pipeline.run.source_gate import SourceGate
from threadloom.pipeline.run.watchdog import WorkerSnapshot
from threadloom.pipeline.run.worker import NULL_CONTEXT, StageRuntime, StageWorker, WorkerContext


class Assembly:
    """The parts of one run."""

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], int], context: WorkerContext) -> None:
        self.stages = tuple(stages)
        self._clock = clock
        self._context = context
        self.detector = DeadlockDetector()
        self.channels: dict[str, Channel[Any, Any]] = {
            each.name: self._channel_before(each) for each in stages if each.kind is not NodeKind.SOURCE
        }
        self.source_gates = {each.name: SourceGate() for each in stages if each.kind is NodeKind.SOURCE}
        self.runtimes = {each.name: self._runtime(each) for each in stages if each.kind is not NodeKind.SINK}
        self._workers: dict[str, list[StageWorker]] = {name: [] for name in self.runtimes}
        for each in stages:
            for _ in range(each.workers if each.name in self.runtimes else 0):
                self.add_worker(each.name)

    def watch(self, working: Callable[[], int]) -> None:
        """Begin to look out for a run that cannot go on; `working` counts the workers that have not ended."""
        sinks = [channel for name, channel in self.channels.items() if name not in self.runtimes]
        inner = [channel for name, channel in self.channels.items() if name in self.runtimes]
        self.detector.watch(inner, sinks, working)

    def drop_references(self) -> None:
        """Give up what refers back to the run, now that no thread is left."""
        self.detector.stop()
        self._context = NULL_CONTEXT
        for worker in self.workers():
            worker.drop_references()
        for runtime in self.runtimes.values():
            if runtime.failures:
                runtime.failures.freeze_total()

    def add_worker(self, name: str) -> StageWorker:
        """Make one more worker of a stage, with an index that none had before."""
        workers = self._workers[name]
        worker = StageWorker(self.runtimes[name], len(workers), self._context)
        workers.append(worker)
        return worker

    def workers(self) -> Iterator[StageWorker]:
        """Return every worker of every stage."""
        return chain.from_iterable(map(tuple, self._workers.values()))

    def workers_of(self, name: str) -> tuple[StageWorker, ...]:
        """Return every worker that a stage has or had."""
        return tuple(self._workers[name])

    def statistics(self, stage: Stage, counters: Sequence[Counters]) -> StageStatistics:
        """Sum up a stage from the counters of its workers, or of its sink."""
        channel = self.channels.get(stage.name)
        summary = summarise(
            stage.name, list(counters), channel.statistics() if channel else None, self._clock, stage.kind, stage.after
        )
        if channel is not None:
            summary = replace(summary, workers=channel.workers)
        failures = self.runtimes[stage.name].failures if stage.name in self.runtimes else None
        return replace(summary, skipped=failures.skipped, retried=failures.retried) if failures else summary

    def look(self, sinks: Mapping[str, Counters]) -> list[WorkerSnapshot]:
        """Return what every worker, and the caller at every open sink, is doing now."""
        now = self._clock()
        seen = [
            WorkerSnapshot(
                worker.stage.name,
                worker.stage.kind,
                worker.index,
                *worker.counters.in_progress(now),
                holds=worker.holds,
            )
            for worker in self.workers()
            if worker.counters.began is not None and worker.counters.ended is None
        ]
        for name, counters in sinks.items():
            channel = self.channels[name]
            waits, full = channel.receivers_wait, channel.senders_wait
            seen.append(WorkerSnapshot(name, NodeKind.SINK, 0, *counters.in_progress(now), parked=waits, full=full))
        return seen

    def _runtime(self, stage: Stage) -> StageRuntime:
        guarded = not isinstance(stage.on_error, FailFast)
        return StageRuntime(
            stage,
            self._edges_of(stage),
            self.channels.get(stage.name),
            self.source_gates.get(stage.name),
            ReorderBuffer() if stage.ordered else None,
            FailureCounters(stage.on_error, partial(self._begun, stage.name)) if guarded else None,
        )

    def _begun(self, name: str) -> int:
        return sum(worker.counters.items_in for worker in self.workers_of(name))

    def _channel_before(self, stage: Stage) -> Channel[Any, Any]:
        producers = sum(each.workers for each in self.stages for name in stage.after if each.name == name)
        admission = stage.admission.begin(stage.capacity)
        if stage.ordered:
            admission = NumberedAdmission(admission, stage.capacity, stage.workers)
        return Channel(
            admission,
            stage.capacity,
            producers,
            self._clock,
            stage.workers,
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
            for each in self.stages
            for place, (name, via) in enumerate(each.inputs())
            if name == stage.name
        ]
