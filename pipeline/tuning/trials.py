"""Trials of a graph: short runs whose items are counted at the sinks, or at the last stages if there is no sink.

A trial of a graph with more items than fit into it is one run, which is stopped: its speed is that between two
deliveries, the first one after a warm-up. A graph that ends sooner is run from its start to its end, several times if
it is very short. Which of both is decided by the first trial.

Ownership: each sink is iterated by one thread, which alone writes its `_Tally`; the thread that measures reads them.
"""

import math
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from threadloom.pipeline.core import Cancelled, PipelineError, StageFailure
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, RunStatistics, format_duration
from threadloom.pipeline.run import Run
from threadloom.pipeline.tuning.sizes import Build, Freedom, GraphSizes, freedoms_of, with_sizes

POLL = 0.01
"""Seconds between two looks at the clock in a trial."""
WARM_UP = 0.25
"""Seconds of warm-up after the first delivery, as a fraction of the seconds that are measured."""
MIN_ITEMS = 8
"""Deliveries of the declared graph in a trial, whose length follows from its first one."""
PATIENCE = 3.0
"""Whole runs are stopped after this multiple of the seconds of a trial."""
SHORT = 1.5
"""A graph that ends within this multiple of the seconds of a trial is run to its end."""
FIRST_ITEM = 10.0
"""The first delivery, and the next one after the warm-up, must come within this multiple of the seconds of a trial."""


class GraphTuningError(PipelineError):
    """A graph that cannot be tuned; the message names the stage, the cause and a remedy."""


@dataclass(frozen=True)
class GraphTrial:
    """The result of one trial."""

    score: float
    """Items per second; 0 if the run failed."""
    seconds: float
    """Duration of the whole trial, the creation of the graph included."""
    items: int
    """Number of items that were counted."""
    statistics: RunStatistics
    """Statistics of the measured interval."""
    failure: str = ""
    """The error of the run; empty if there was none."""


@dataclass(frozen=True)
class Interval:
    """The measured interval of one run."""

    items: int
    seconds: float
    statistics: RunStatistics
    ended: bool  # the sources ended, so the run is complete
    before: int  # items before the interval


class GraphTrials:
    """Measures sizes of one graph. Used by one thread."""

    def __init__(
        self,
        build: Build,
        seconds: float,
        fixed: Collection[str] = (),
        any_order: bool = False,
        longest: float = math.inf,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Read the declared sizes. `build` is documented at `tune_graph`.

        A trial measures `seconds`, and up to `longest` if that is too short for `MIN_ITEMS` items.
        """
        self._build, self._seconds, self._longest, self._clock = build, seconds, longest, clock
        self._is_new = True  # each run has a graph of its own
        self._latest: Graph | None = None
        graph = self._graph()
        self._declared = graph.stages
        unknown = sorted(set(fixed) - {stage.name for stage in self._declared})
        if unknown:
            raise GraphTuningError(f"graph {graph.name!r} has no stage {unknown[0]!r}; it has {self.names}")
        self._again: Graph | None = graph  # used by the first trial, so that nothing is created in vain
        self.name = graph.name
        self.declared = GraphSizes.of(self._declared)
        self.freedoms: Mapping[str, Freedom] = freedoms_of(self._declared, fixed, any_order)
        self._whole: bool | None = None  # whole runs are measured; None before the first trial
        self._runs = 0

    @property
    def names(self) -> list[str]:
        """The names of all nodes."""
        return [stage.name for stage in self._declared]

    @property
    def counted(self) -> list[str]:
        """The names of the nodes at which items are counted: the sinks, or the last stages if there is none."""
        sinks = [stage.name for stage in self._declared if stage.kind is NodeKind.SINK]
        followed = {name for stage in self._declared for name in stage.after}
        return sinks or [stage.name for stage in self._declared if stage.name not in followed]

    def __call__(self, sizes: GraphSizes) -> GraphTrial:
        """Measure the graph with these sizes. Raises GraphTuningError if the graph as declared fails."""
        begin = self._clock()
        try:
            intervals = [self._run(sizes)]
            while self._whole and intervals[-1].ended and sum(each.seconds for each in intervals) < self._seconds:
                intervals.append(self._run(sizes))
        except StageFailure as failure:
            return self._failed(sizes, failure, self._clock() - begin)
        items, seconds = sum(each.items for each in intervals), sum(each.seconds for each in intervals)
        last = intervals[-1]
        if self._whole is None:
            self._whole = last.ended
            if not last.ended:  # slow items need longer trials
                self._seconds = max(self._seconds, min(self._longest, MIN_ITEMS * seconds / items))
        return GraphTrial(items / max(seconds, 1e-9), self._clock() - begin, items, last.statistics)

    @property
    def measured_seconds(self) -> float:
        """Duration of the measured interval of a trial."""
        return self._seconds

    def calibrate(self) -> float:
        """Run the first trial, which decides how long the others measure; return its duration."""
        return self(self.declared).seconds

    def restore(self) -> None:
        """Give a graph that was passed itself its declared sizes."""
        if isinstance(self._build, Graph):
            with_sizes(self._build, self.declared, self.freedoms)

    def _graph(self) -> Graph:
        graph = self._build if isinstance(self._build, Graph) else self._built(self._build)
        if graph is self._latest or graph is self._build:
            self._is_new = False
            _check_repeatable(graph)
        self._latest = graph
        graph.check()
        return graph

    def _built(self, build: Callable[[], Graph]) -> Graph:
        try:
            graph = build()
        except Exception as error:
            raise GraphTuningError(
                f"the function that creates the graph raised {type(error).__name__}: {error}. It is called without "
                f"arguments, once per run"
            ) from error
        if not isinstance(graph, Graph):
            raise GraphTuningError(f"expected a function that returns a Graph; it returned {graph!r}")
        return graph

    def _run(self, sizes: GraphSizes) -> Interval:
        graph, self._again = self._again or self._graph(), None
        if [stage.name for stage in graph.stages] != self.names:
            raise GraphTuningError(
                f"the function returned a graph with the stages {[stage.name for stage in graph.stages]}, and before "
                f"that one with {self.names}: it must return the same graph every time"
            )
        with_sizes(graph, sizes, self.freedoms)
        self._runs += 1
        interval = measure_run(graph, self._seconds, self.counted, bool(self._whole), self._clock)
        if interval.items == 0:
            self._explain_nothing(interval)
        return interval

    def _explain_nothing(self, interval: Interval) -> None:
        if not interval.ended:
            busiest = max(interval.statistics.stages, key=lambda stage: stage.busy_share)
            item = f"no item after the first {interval.before}" if interval.before else "no item"
            raise GraphTuningError(
                f"{item} reached {_listed(self.counted)} within {format_duration(FIRST_ITEM * self._seconds)}; in "
                f"that time {busiest.name} was busy {busiest.busy_share:.0%}. Use a longer budget, or smaller items"
            )
        if self._runs == 1:
            raise GraphTuningError(f"graph {self.name!r} ended without an item at {_listed(self.counted)}")
        raise GraphTuningError(
            f"graph {self.name!r} yielded items in its first run and none in run {self._runs}: a trial needs the same "
            f"items every time. {_FACTORY}"
        )

    def _failed(self, sizes: GraphSizes, failure: StageFailure, seconds: float) -> GraphTrial:
        cause = failure.__cause__
        message = f"stage {failure.stage!r} raised {type(cause).__name__}: {cause} (on {failure.item})"
        if sizes == self.declared:
            when = "as declared" if self._runs == 1 else f"in run {self._runs}, as declared, and not in the first"
            remedy = "correct its function" if self._runs == 1 or self._is_new else _FACTORY
            raise GraphTuningError(f"graph {self.name!r} fails {when}: {message}. Hint: {remedy}") from cause
        return GraphTrial(0.0, seconds, 0, RunStatistics(self.name, 0.0, ()), message)


_FACTORY = (
    "Pass a function that creates and returns the graph, with its files, pools and other state, so that every trial "
    "begins anew"
)


def _check_repeatable(graph: Graph) -> None:
    """Raise GraphTuningError if a source of a graph that is started several times yields its items once."""
    for stage in graph.stages:
        if stage.kind is not NodeKind.SOURCE or stage.closes or stage.fn is None:
            continue
        items = stage.fn()  # a given iterable, not a function of the user's
        if hasattr(items, "__next__") or hasattr(items, "__anext__"):
            raise GraphTuningError(
                f"source {stage.name!r} of graph {graph.name!r} is an iterator, which yields its items once, and "
                f"trials need the same items every time. {_FACTORY}"
            )


def _listed(names: Collection[str]) -> str:
    return " and ".join(map(repr, names))


class _Tally:
    """The deliveries of one run: their number, and the time of the latest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._count, self._last = 0, clock()

    def add(self, count: int = 1) -> None:
        """Count deliveries, now."""
        with self._lock:
            self._count += count
            self._last = self._clock()

    def read(self) -> tuple[int, float]:
        """Return the number of deliveries, and the time of the latest."""
        with self._lock:
            return self._count, self._last


class _Consumers:
    """The threads that iterate the sinks of a run, or wait for its end if it has none."""

    def __init__(self, run: Run, sinks: Collection[str], tally: _Tally) -> None:
        self._run, self._tally = run, tally
        self._open = len(sinks) or 1
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        works: list[Callable[[], None]] = [partial(self._iterate, name) for name in sinks] or [run.wait]
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=f"{run.name}:trial", daemon=True) for work in works
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads, after the run has ended."""
        for thread in self._threads:
            thread.join()

    def _iterate(self, sink: str) -> None:
        for _ in self._run.items(sink):
            self._tally.add()

    def _guard(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            work()
        except Cancelled:
            pass  # the trial is over
        except BaseException as raised:
            error = raised
        with self._lock:
            self.error = self.error or error
            self._open -= 1
            if not self._open or error:
                self.ended.set()


def measure_run(
    graph: Graph, seconds: float, counted: Collection[str], whole: bool, clock: Callable[[], float]
) -> Interval:
    """Run a graph once and return the measured interval.

    With `whole` the run is measured from its start to its end, if that comes within `PATIENCE` times the seconds.
    Raises the failure of the run.
    """
    sinks = [stage.name for stage in graph.stages if stage.kind is NodeKind.SINK]
    began = clock()
    tally = _Tally(clock)
    with graph.start(progress=False, observers=(), trace=None) as run:
        consumers = _Consumers(run, sinks, tally)
        try:
            watched = _Watched(run, consumers, tally, clock, () if sinks else tuple(counted))
            found = watched.measure(began, seconds, whole)
        finally:
            run.cancel()
            consumers.join()
    if consumers.error is not None:
        raise consumers.error
    return found


@dataclass
class _Watched:
    """A run that is being measured."""

    run: Run
    consumers: _Consumers
    tally: _Tally
    clock: Callable[[], float]
    stages: tuple[str, ...]
    """The stages whose items are counted; empty if sinks are."""

    def measure(self, began: float, seconds: float, whole: bool) -> Interval:
        self._until(began + FIRST_ITEM * seconds, lambda: self.tally.read()[0] > 0)
        first = self.tally.read()
        if whole or not first[0]:
            if first[0]:
                self._until(began + PATIENCE * seconds, lambda: False)
            return self._interval((0, began), None)
        self._until(first[1] + WARM_UP * seconds, lambda: False)
        if self._ended_within(began + SHORT * seconds):
            return self._interval((0, began), None)
        mark, before = self.tally.read(), self.run.statistics()
        self._until(mark[1] + seconds, lambda: False)
        self._until(mark[1] + FIRST_ITEM * seconds, lambda: self.tally.read()[0] > mark[0])
        done = self.tally.read()[0]
        if self._ended_within(began + SHORT * seconds) or (self.consumers.ended.is_set() and 2 * mark[0] > done):
            return self._interval((0, began), None)
        return self._interval(mark, before)

    def _ended_within(self, deadline: float) -> bool:
        return self.consumers.ended.is_set() and self.tally.read()[1] <= deadline

    def _interval(self, mark: tuple[int, float], before: RunStatistics | None) -> Interval:
        count, last = self.tally.read()
        ended = self.consumers.ended.is_set() and self.consumers.error is None
        seconds = max(last - mark[1], 1e-9)
        return Interval(count - mark[0], seconds, self.run.statistics().since(before), ended, mark[0])

    def _until(self, deadline: float, reached: Callable[[], bool]) -> None:
        """Wait until the deadline, the end of the run, or a condition."""
        while not reached() and (left := deadline - self.clock()) > 0:
            ended = self.consumers.ended.wait(min(POLL, left))
            self._count_stages()
            if ended:
                return

    def _count_stages(self) -> None:
        if self.stages:
            statistics = self.run.statistics()
            done = sum(statistics[name].tasks.count for name in self.stages)
            if more := done - self.tally.read()[0]:
                self.tally.add(more)
