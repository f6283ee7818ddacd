"""The worker threads of one run: created, added to, replaced, and counted until the last has ended.

Guarantees: the end of a worker is counted once. A worker that replaces a late one is not counted in addition to it. The
event `decided` of the commands is set after the last end, even if the end of a stage raises. If a failure is pending
(`on_failure="drain"`), the run is stopped once all items before the failing one have been processed and delivered.

Ownership: `_active` and `alive` are guarded by the lock of `commands`, and so is adding workers. Threads are started
and waited for without it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

from threadloom.pipeline.core import Cancelled, OneShotEvent, StageFailure
from threadloom.pipeline.observe import Stage
from threadloom.pipeline.policy import ACTIVE_STATES, OnFailure
from threadloom.pipeline.run.assembly import Assembly, with_order
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.commands import Commands
from threadloom.pipeline.run.inspection import thread_name
from threadloom.pipeline.run.late_calls import LateItem
from threadloom.pipeline.run.replacement import resolve_late_call
from threadloom.pipeline.run.settings import RunSettings
from threadloom.pipeline.run.stage_runtime import WorkerContext, end_stage
from threadloom.pipeline.run.thread_group import ThreadGroup
from threadloom.pipeline.run.watchdog import StallReport
from threadloom.pipeline.run.worker import StageWorker


class WorkerThreads:
    """The workers of one run, with the parts that they work on and the commands that stop them.

    `open_sinks` is the set of the sinks that have not delivered everything; the run removes each that has.
    """

    def __init__(self, name: str, stages: Sequence[Stage], settings: RunSettings, open_sinks: Collection[str]) -> None:
        self._name = name
        self._clock = settings.clock
        self._open_sinks = open_sinks
        on_failure = OnFailure(settings.on_failure)
        drains = on_failure is OnFailure.DRAIN
        context = WorkerContext(
            settings.clock,
            settings.recorder(stages),
            settings.label,
            self._worker_failed,
            self._cancelled,
            self._worker_ended,
            self._sleep,
            self._spawn,
            drains,
        )
        self.parts = Assembly(with_order(stages) if drains else stages, settings.clock, context)
        self.threads = ThreadGroup(name)
        self._variables = settings.context()  # context variables, of which each worker has a copy
        self.commands = Commands(name, self.parts, settings.resources, self.threads, on_failure)
        self._active = Counter(worker.stage.name for worker in self.parts.workers())  # workers at work, by stage
        self.alive = self._active.total()
        """Number of workers that have not ended."""
        self.finished: int | None = None
        """Time when the last worker had ended and the last sink was exhausted, in nanoseconds."""
        self.parts.detect_deadlocks(lambda: self.alive)

    def create_all(self) -> list[Thread]:
        """Return a new thread for each worker, not yet started."""
        return [self._thread_of(worker) for worker in self.parts.workers()]

    def resize(self, stage: str, workers: int) -> None:
        """Change the number of workers of a stage; see `Run.resize`."""
        channel = self.check_resizable(stage, workers)
        if self.commands.postpone(partial(self.resize, stage, workers)):
            return
        added: list[tuple[StageWorker, Thread]] = []
        threads = replace(self.parts.runtimes[stage].stage, workers=workers).threads
        with self.commands.lock:
            if self.commands.control.state not in ACTIVE_STATES:
                return  # the run has ended, or is about to
            for worker in [self.parts.add_worker(stage) for _ in range(channel.set_consumers(threads))]:
                if not worker.register():
                    break  # the stage has processed all of its input
                self._active[stage] += 1
                self.alive += 1
                added.append((worker, self._thread_of(worker)))
        try:
            self.threads.start([thread for _, thread in added])
        except KeyboardInterrupt:  # the threads are still being started
            raise
        except BaseException:
            self._dismiss(added)
            raise
        self._dismiss(added)  # those that the end of the run has prevented from starting

    def check_resizable(self, stage: str, workers: int) -> Channel[Any, Any]:
        """Return the input channel of a stage; raise PipelineError if it cannot have `workers` workers."""
        return self.parts.resizable(self._name, stage, workers, drained=self.commands.control.cuts is not None)

    def _dismiss(self, added: Sequence[tuple[StageWorker, Thread]]) -> None:
        """Let the workers whose threads could not be started end."""
        for worker, thread in added:
            if thread.ident is None:
                worker.unregister()
                self._worker_ended(worker)

    def _thread_of(self, worker: StageWorker) -> Thread:
        name = thread_name(worker.stage.name, worker.index)
        return self.threads.create(self._in_context(worker.run), name, worker.ended)

    def _in_context(self, target: Callable[[], None]) -> Callable[[], None]:
        """Return the target of a thread with a copy of the context variables of the run, if it has any."""
        return target if self._variables is None else partial(self._variables.copy().run, target)

    # Called by the watchdog, in its thread.

    def resolve_late(self, report: StallReport, limit: float) -> None:
        """Replace a worker whose call is late, or fail the run, as the failure policy of its stage decides."""
        worker = self.parts.workers_of(report.stage)[report.worker]
        failures = self.parts.runtimes[report.stage].failures
        late = resolve_late_call(worker, failures, report, limit, self._clock())
        if isinstance(late, LateItem):
            self._replace(worker, late)
        elif late is not None:
            self.commands.stop_once(late)
            if worker.given_up:
                self._count_end(worker)

    def _replace(self, late: StageWorker, item: LateItem) -> None:
        """Start a worker in the place of one whose call was given up. It also takes over its place as a producer."""
        with self.commands.lock:
            worker = self.parts.add_worker(late.stage.name, item)
        thread = self._thread_of(worker)
        try:
            self.threads.start([thread])
        except BaseException as error:
            self.commands.stop_once(StageFailure(late.stage.name, worker.index, {}, "its start", error))
        self._dismiss([(worker, thread)])  # if the end of the run has prevented its start

    # Called by workers, in their threads.

    def _worker_failed(self, failure: StageFailure) -> None:
        self.commands.fail(failure)
        self.stop_if_drained()

    def stop_if_drained(self) -> None:
        """End a run with a pending failure once all items before the failing one have been processed and delivered."""
        cuts = self.commands.control.cuts
        if cuts is None or cuts.first is None or self._open_sinks:
            return
        with self.commands.lock:
            drained = not any(self._active[name] for name in cuts.needed())
        if drained:
            self.commands.stop_once()

    def _cancelled(self) -> None:
        """End the run after a worker got Cancelled, as all do once it has been stopped."""
        self.commands.stop_once()

    def _sleep(self, seconds: float) -> None:
        if self.commands.decided.wait(seconds):
            raise Cancelled("the run was stopped before an item was tried again")

    def _spawn(self, target: Callable[[], None], name: str, ended: OneShotEvent) -> bool:
        """Start another thread of the run, for a worker; return False if no thread is started any longer."""
        thread = self.threads.create(self._in_context(target), name, ended)
        self.threads.start([thread])
        return thread.ident is not None

    def _worker_ended(self, worker: StageWorker) -> None:
        """Count a worker that ends, unless another has taken its place. Raises nothing."""
        try:
            if not worker.given_up:
                self._count_end(worker)
        finally:
            worker.ended.set()

    def _count_end(self, worker: StageWorker) -> None:
        """Count the end of a worker; decide the outcome after the last one."""
        with self.commands.lock:
            self._active[worker.stage.name] -= 1
            stage_ended = not self._active[worker.stage.name]
        try:
            if stage_ended:
                end_stage(self.parts.runtimes[worker.stage.name], worker.index, self._worker_failed)
                self.stop_if_drained()
        finally:
            with self.commands.lock:
                self.alive -= 1
                last = not self.alive
                if last:
                    self.commands.control.end()
            if last:
                self._finish()

    def _finish(self) -> None:
        """Decide the outcome, after the last worker has ended."""
        try:
            if not self._open_sinks:
                self.finished = self._clock()
        finally:
            self.commands.decided.set()
