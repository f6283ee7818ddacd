"""The view that the watchdog has of a run: a snapshot of each worker and sink, and the description of one of them.

Ownership: everything here is read without a lock; the values of one snapshot may be of slightly different moments.
"""

from collections.abc import Collection, Mapping
from typing import Any

from threadloom.pipeline.observe import NodeKind
from threadloom.pipeline.policy import RunState
from threadloom.pipeline.run.assembly import Assembly
from threadloom.pipeline.run.commands import Commands
from threadloom.pipeline.run.sink_iterator import SinkIterator
from threadloom.pipeline.run.stall_detection import WorkerSnapshot
from threadloom.pipeline.run.thread_group import ThreadGroup
from threadloom.pipeline.run.watchdog import StallReport


class Inspection:
    """The state of one run, as its watchdog reads it."""

    def __init__(
        self,
        parts: Assembly,
        sinks: Mapping[str, SinkIterator[Any]],
        open_sinks: Collection[str],
        threads: ThreadGroup,
        commands: Commands,
    ) -> None:
        self._parts = parts
        self._sinks = sinks
        self._open_sinks = open_sinks
        self._threads = threads
        self._commands = commands

    def inspect(self) -> tuple[object, list[WorkerSnapshot]]:
        """Return a value that changes with every counted item, and the snapshots; none while the run is paused."""
        if self._commands.control.state is RunState.PAUSED:
            return None, []
        sinks = {name: self._sinks[name].counters for name in tuple(self._open_sinks)}
        counted = [(each.counters.items_in, each.counters.items_out) for each in self._parts.workers()]
        return (counted, [each.items_in for each in sinks.values()]), self._parts.snapshots(sinks)

    def describe(self, snapshot: WorkerSnapshot, doing: str) -> StallReport:
        """Return the item, the thread and the stack of a worker; `doing` is its state as a phrase."""
        if snapshot.kind is NodeKind.SINK:
            return StallReport(snapshot.stage, 0, "", "its queued items", doing, snapshot.seconds, "")
        worker = self._parts.workers_of(snapshot.stage)[snapshot.worker]
        item = worker.describe_item()[1]
        name = thread_name(snapshot.stage, snapshot.worker)
        thread, stack = self._threads.full_name(name), worker.stack() or self._threads.stack(name)
        return StallReport(snapshot.stage, snapshot.worker, thread, item, doing, snapshot.seconds, stack)


def thread_name(stage: str, worker: int) -> str:
    """Return the name of the thread of a worker within its run."""
    return f"{stage}-{worker}"
