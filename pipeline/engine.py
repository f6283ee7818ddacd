"""A run of a graph: its threads, channels and outcome.

Guarantees: the threads of a run live inside its `with` block and nowhere else. Whatever ends it first - the end of the
input, an error in any thread, `cancel`, leaving the block, Ctrl-C - decides its outcome, once; then every channel and
resource is aborted, every thread ends with what it is calling right now, and all are joined before the caller goes on.
The caller gets the first error and no consequence of it. A thread that does not end within the grace period is
reported by name with its stack. A second Ctrl-C meanwhile is raised when the threads have been joined.

Assumptions: one thread (the caller's) enters, iterates and leaves; a sink is iterated by one thread. `cancel` and
`statistics` may be called from any thread. From a signal handler, raise an exception rather than call `cancel`: the
handler may have interrupted a channel that holds its lock.

Ownership: `_outcome`, `_alive` belong to `_lock`; a Gate is opened by anyone and never closed.
"""

import sys
import threading
import traceback
from _thread import allocate_lock
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from time import monotonic, perf_counter_ns
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, overload

from pipeline.channel import Channel
from pipeline.errors import Cancelled, Closed, Label, PipelineError, StageFailure, ThreadsLeft
from pipeline.join import Join
from pipeline.ordered import Numbered, Turns
from pipeline.sending import Edge
from pipeline.stage import Kind, Sink, Stage
from pipeline.statistics import Counters, Phase, RunStatistics, StageStatistics, summarise
from pipeline.trace import Trace
from pipeline.worker import Surroundings, Worker

Item = TypeVar("Item")


class Abortable(Protocol):
    """A resource that workers wait on: a slot pool, a weight bank."""

    def abort(self) -> None:
        """Wake everyone with Cancelled, now and from now on. Called from any thread, perhaps more than once."""


class Gate:
    """Something that happens once and can be waited for. Safe under Ctrl-C, unlike Event, which may lose its lock."""

    def __init__(self) -> None:
        self._closed = allocate_lock()
        self._closed.acquire()
        self._guard = allocate_lock()
        self.is_open = False

    def open(self) -> None:
        with self._guard:
            if not self.is_open:
                self.is_open = True
                self._closed.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until it opens, at most `seconds` if given; return whether it is open."""
        if not self.is_open and self._closed.acquire(timeout=seconds):
            self._closed.release()
        return self.is_open


class Delivery(Generic[Item]):
    """What comes out of one sink, for the caller's thread to iterate."""

    def __init__(self, run: "Run", stage: Stage, channel: Channel[Any, Item]) -> None:
        self._run = run
        self._channel = channel
        self._exclusive: bool = getattr(stage.admission, "exclusive", False)
        self.stage = stage
        self.counters = Counters()  # busy is the time the caller spends between two items
        self._mark: int | None = None
        self._holds = False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        self._run._check_running()
        try:
            self._give_back()
            item = self._channel.get()
        except Closed:
            self._finish()
            raise StopIteration from None
        except Cancelled:
            self._run._raise_outcome()
        except PipelineError as error:
            self._run._fail(StageFailure(self.stage.name, 0, {}, "the end of the input", error))
            self._run._raise_outcome()
        except BaseException:  # Ctrl-C: what was interrupted halfway cannot go on
            self._run._shut_down()
            raise
        self._mark = self._switch(Phase.BUSY)
        self._holds = True
        self.counters.items_in += 1
        return item

    def _give_back(self) -> None:
        """Count the item before as dealt with."""
        if self._holds:
            self._holds = False
            self._mark = self._switch(Phase.WAITING)
            self.counters.items_out += 1
            if self._exclusive:
                self._channel.done()

    def _switch(self, phase: Phase) -> int:
        counters, now = self.counters, self._run._clock()
        since = self._mark if self._mark is not None else counters.began
        assert since is not None
        if phase is Phase.BUSY:
            counters.waiting += now - since
            counters.waits.add(now - since)
        else:
            counters.busy += now - since
            counters.tasks.add(now - since)
        counters.phase = phase
        return now

    def _finish(self) -> None:
        if self.counters.ended is None:
            self.counters.ended = self._run._clock()
        self._run._exhausted(self)


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
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        self.name = name
        self._stages = tuple(stages)
        self._resources = tuple(resources)
        self._grace = grace
        self._clock = clock
        self._lock = allocate_lock()
        # None while the run is on, and after a good end. Set once, by `_decide`: the first comer is the outcome.
        self._outcome: StageFailure | Cancelled | None = None
        self._told = False  # whether the caller has been given the outcome
        self._over = Gate()  # opens when the outcome is decided, or when the last worker has ended
        self._began: int | None = None
        self._finished: int | None = None
        self._joined = False  # set once no thread is left, or those left have been reported
        self._left: ThreadsLeft | None = None
        channels = {each.name: self._channel_before(each) for each in stages if each.kind is not Kind.SOURCE}
        self._channels: dict[str, Channel[Any, Any]] = channels
        self._sinks = {
            each.name: Delivery(self, each, channels[each.name]) for each in stages if each.kind is Kind.SINK
        }
        self._open_sinks = set(self._sinks)
        turns = {each.name: Turns() for each in stages if each.ordered}
        if trace is not None:
            some = {each.name for each in stages if each.when or each.via}
            trace.declare({each.name: each.after for each in stages}, selective=some)
        around = Surroundings(
            clock, trace.record if trace is not None else None, label, self._fail, self.cancel, self._worker_ended
        )
        self._workers = {
            each.name: [
                Worker(each, index, channels.get(each.name), self._edges_of(each), around, turns.get(each.name))
                for index in range(each.workers)
            ]
            for each in stages
            if each.kind is not Kind.SINK
        }
        self._threads: list[tuple[threading.Thread, Gate]] = []
        self._gates = {worker: Gate() for worker in chain(*self._workers.values())}
        self._alive = len(self._gates)  # workers that have not ended

    def __enter__(self) -> Self:
        if self._began is not None:
            raise PipelineError(f"this run of {self.name!r} has been used: make another with Graph.start()")
        self._began = self._clock()
        for sink in self._sinks.values():
            sink.counters.began = self._began
        try:
            for worker, gate in self._gates.items():
                name = f"{self.name}.{worker.stage.name}-{worker.index}"
                # A daemon, so that a function that never returns cannot keep the interpreter from exiting.
                thread = threading.Thread(target=worker.run, name=name, daemon=True)
                self._threads.append((thread, gate))
                thread.start()
        except BaseException:
            self._shut_down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._shut_down()
        problems = [] if self._told or not isinstance(self._outcome, StageFailure) else [self._outcome]
        unsaid: list[PipelineError] = [*problems, *([self._left] if self._left else [])]
        self._told = True
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
        self._check_running()
        if self._open_sinks:
            raise PipelineError(f"graph {self.name!r} has sinks {sorted(self._open_sinks)}: iterate them, then wait")
        self._settle()

    def cancel(self) -> None:
        """Tell every thread to end, and drop what is in flight. Returns at once; leaving the block joins."""
        self._stop(Cancelled(f"the run of {self.name!r} was cancelled"))

    def statistics(self) -> RunStatistics:
        """Return the counters of every stage and channel as of now."""
        end = self._clock() if self._finished is None else self._finished
        elapsed = 0.0 if self._began is None else (end - self._began) / 1e9
        return RunStatistics(self.name, elapsed, tuple(map(self._statistics_of, self._stages)))

    def _statistics_of(self, stage: Stage) -> StageStatistics:
        channel = self._channels.get(stage.name)
        sink = self._sinks.get(stage.name)
        counters = [sink.counters] if sink else [worker.counters for worker in self._workers[stage.name]]
        return summarise(
            stage.name, counters, channel.statistics() if channel else None, self._clock, stage.kind, stage.after
        )

    def _channel_before(self, stage: Stage) -> Channel[Any, Any]:
        producers = sum(each.workers for each in self._stages for name in stage.after if each.name == name)
        admission = stage.admission.begin(stage.capacity)
        if stage.ordered:
            admission = Numbered(admission, stage.workers + stage.capacity)
        return Channel(admission, stage.capacity, producers, self._clock)

    def _edges_of(self, stage: Stage) -> list[Edge]:
        return [
            Edge(
                each.name,
                self._channels[each.name],
                each.when,
                via,
                place if isinstance(each.admission, Join) else None,
            )
            for each in self._stages
            for place, (name, via) in enumerate(each.inputs())
            if name == stage.name
        ]

    # What workers report, in their own threads.

    def _fail(self, failure: StageFailure) -> None:
        self._stop(failure)

    def _worker_ended(self, worker: Worker) -> None:
        with self._lock:
            self._alive -= 1
            last = not self._alive
        if last:
            self._finished = self._clock()
            self._over.open()
        self._gates[worker].open()

    # Stopping. Everything here may be repeated, as a Ctrl-C may have cut it short.

    def _stop(self, outcome: StageFailure | Cancelled) -> None:
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
        for each in (*self._channels.values(), *self._resources):
            try:
                each.abort()
            except Exception as error:  # the others must be woken all the same
                self._outcome.add_note(f"abort() of {type(each).__name__} raised {type(error).__name__}: {error}")
        self._over.open()

    def _shut_down(self) -> None:
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
        for thread, gate in self._threads:
            if thread.ident is None:
                continue  # it never started
            # The gate first: an interrupted Thread.join takes a living thread for a dead one (CPython 3.11).
            if gate.wait(max(0.0, deadline - monotonic())):
                thread.join()
            else:
                left[thread.name] = _stack_of(thread)
        if left:
            self._left = ThreadsLeft(left, self._grace)
        self._joined = True

    # What the caller's thread asks for.

    def _exhausted(self, sink: Delivery[Any]) -> None:
        self._open_sinks.discard(sink.stage.name)
        if not self._open_sinks:
            self._settle()

    def _settle(self) -> None:
        """Wait for the stages that are still at work, and raise if one of them fails."""
        try:
            self._over.wait()
        except BaseException:
            self._shut_down()
            raise
        self._raise_outcome_if_any()

    def _raise_outcome_if_any(self) -> None:
        self._shut_down()
        if self._outcome is not None:
            self._told = True
            if self._left is not None:
                self._outcome.add_note(str(self._left))
                self._left = None
            raise self._outcome

    def _raise_outcome(self) -> None:
        self._raise_outcome_if_any()
        raise AssertionError("a channel was aborted without an outcome")

    def _check_running(self) -> None:
        if self._began is None:
            raise PipelineError(f"this run of {self.name!r} has not begun: use `with graph.start() as run:`")


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(its stack could not be read)\n"
