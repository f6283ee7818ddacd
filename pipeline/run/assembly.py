"""What a run is made of, from what its graph declares: channels, posts and workers. It starts no thread.

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
from threadloom.pipeline.run.deadlock import Doubts
from threadloom.pipeline.run.output import Edge
from threadloom.pipeline.run.retry import Tally
from threadloom.pipeline.run.source_gate import Turnstile
from threadloom.pipeline.run.watchdog import Sight
from threadloom.pipeline.run.worker import OVER, Post, Surroundings, Worker


class Assembly:
    """The parts of one run."""

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], int], around: Surroundings) -> None:
        self.stages = tuple(stages)
        self._clock = clock
        self._around = around
        self.doubts = Doubts()
        self.channels: dict[str, Channel[Any, Any]] = {
            each.name: self._channel_before(each) for each in stages if each.kind is not NodeKind.SOURCE
        }
        self.turnstiles = {each.name: Turnstile() for each in stages if each.kind is NodeKind.SOURCE}
        self.posts = {each.name: self._post(each) for each in stages if each.kind is not NodeKind.SINK}
        self._workers: dict[str, list[Worker]] = {name: [] for name in self.posts}
        for each in stages:
            for _ in range(each.workers if each.name in self.posts else 0):
                self.hire(each.name)

    def watch(self, working: Callable[[], int]) -> None:
        """Begin to look out for a run that cannot go on; `working` counts the workers that have not ended."""
        sinks = [channel for name, channel in self.channels.items() if name not in self.posts]
        inner = [channel for name, channel in self.channels.items() if name in self.posts]
        self.doubts.watch(inner, sinks, working)

    def let_go(self) -> None:
        """Give up what refers back to the run, now that no thread is left."""
        self.doubts.forget()
        self._around = OVER
        for worker in self.workers():
            worker.let_go()
        for post in self.posts.values():
            if post.tally:
                post.tally.settle()

    def hire(self, name: str) -> Worker:
        """Make one more worker of a stage, with an index that none had before."""
        workers = self._workers[name]
        worker = Worker(self.posts[name], len(workers), self._around)
        workers.append(worker)
        return worker

    def workers(self) -> Iterator[Worker]:
        """Return every worker of every stage."""
        return chain.from_iterable(map(tuple, self._workers.values()))

    def workers_of(self, name: str) -> tuple[Worker, ...]:
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
        tally = self.posts[stage.name].tally if stage.name in self.posts else None
        return replace(summary, skipped=tally.skipped, retried=tally.retried) if tally else summary

    def look(self, sinks: Mapping[str, Counters]) -> list[Sight]:
        """Return what every worker, and the caller at every open sink, is doing now."""
        now = self._clock()
        seen = [
            Sight(
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
            seen.append(Sight(name, NodeKind.SINK, 0, *counters.in_progress(now), parked=waits, full=full))
        return seen

    def _post(self, stage: Stage) -> Post:
        guarded = not isinstance(stage.on_error, FailFast)
        return Post(
            stage,
            self._edges_of(stage),
            self.channels.get(stage.name),
            self.turnstiles.get(stage.name),
            ReorderBuffer() if stage.ordered else None,
            Tally(stage.on_error, partial(self._begun, stage.name)) if guarded else None,
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
            self.doubts,
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
