"""The metrics of runs for monitoring systems: a table of metrics, and their totals over all runs that are followed.

Monitoring systems read the metrics at times that they choose, in their own threads. Counters must not decrease, so the
totals of a (graph, stage) include runs that have ended; gauges are of the runs in progress. Several runs may be
followed at the same time; those of graphs with one name are added up.

Ownership: the totals and the set of runs are guarded by the lock. Statistics are computed outside of it, because they
call `len` of users' data sets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from threading import Lock
from typing import Any

from threadloom.pipeline.core import PipelineError
from threadloom.pipeline.observe.histogram import Distribution
from threadloom.pipeline.observe.statistics import RunStatistics, StageStatistics

Key = tuple[str, str]
"""(graph, stage): the labels of a metric."""


class MetricKind(Enum):
    """The kind of a metric."""

    COUNTER = "counter"
    """A total that only increases."""
    GAUGE = "gauge"
    """A present value, of runs in progress only."""


class Unit(Enum):
    """The unit of a metric: the value is its symbol in the Unified Code for Units of Measure."""

    ITEMS = "{item}"
    SECONDS = "s"
    THREADS = "{thread}"


@dataclass(frozen=True)
class Metric:
    """One metric of a stage."""

    name: str
    """Name in lower case with underscores, with the unit and without a prefix."""
    kind: MetricKind
    unit: Unit
    description: str
    value: Callable[[StageStatistics], float | None]
    """Returns the value of a stage; None if it has none."""


METRICS = (
    Metric("items_in", MetricKind.COUNTER, Unit.ITEMS, "Items or groups that the stage has started.",
           lambda stage: stage.items_in),
    Metric("items_out", MetricKind.COUNTER, Unit.ITEMS, "Results that the stage has sent.",
           lambda stage: stage.items_out),
    Metric("items_skipped", MetricKind.COUNTER, Unit.ITEMS, "Items skipped by the failure policy of the stage.",
           lambda stage: stage.skipped),
    Metric("items_retried", MetricKind.COUNTER, Unit.ITEMS, "Repeated calls of the stage function.",
           lambda stage: stage.retried),
    Metric("busy_seconds", MetricKind.COUNTER, Unit.SECONDS, "Time of the workers inside the stage function.",
           lambda stage: stage.busy),
    Metric("waiting_seconds", MetricKind.COUNTER, Unit.SECONDS, "Time of the workers waiting for input.",
           lambda stage: stage.waiting),
    Metric("blocked_seconds", MetricKind.COUNTER, Unit.SECONDS, "Time of the workers blocked by a full channel.",
           lambda stage: stage.blocked),
    Metric("workers", MetricKind.GAUGE, Unit.THREADS, "Workers of the stage.", lambda stage: stage.workers),
    Metric("queue_depth", MetricKind.GAUGE, Unit.ITEMS, "Items in the input channel.",
           lambda stage: None if stage.channel is None else stage.channel.depth),
    Metric("queue_capacity", MetricKind.GAUGE, Unit.ITEMS, "Capacity of the input channel.",
           lambda stage: None if stage.channel is None else stage.channel.capacity),
    Metric("expected_items", MetricKind.GAUGE, Unit.ITEMS, "Estimated number of items at the end of the run.",
           lambda stage: stage.expected),
)  # fmt: skip
"""Every metric of a stage but the distribution of the durations of its calls."""


@dataclass
class StageTotals:
    """The values of one (graph, stage)."""

    values: dict[Metric, float] = field(default_factory=dict)
    tasks: Distribution = field(default_factory=Distribution)
    """Durations of the calls of the stage function."""

    def add(self, stage: StageStatistics, kinds: frozenset[MetricKind]) -> None:
        """Add the statistics of one run, of the metrics of these kinds."""
        for metric in METRICS:
            value = metric.value(stage) if metric.kind in kinds else None
            if value is not None:
                self.values[metric] = self.values.get(metric, 0.0) + value
        self.tasks = Distribution.of([self.tasks, stage.tasks])


class StatisticsExporter:
    """An observer that adds up the statistics of its runs; the base of the exporters. It can follow several runs.

    Pass one exporter to all runs of a program: `graph.start(observers=[exporter])`.
    """

    interval: float | None = None
    """None: the monitoring system decides when the metrics are read."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: list[Callable[[], RunStatistics]] = []
        self._finished: dict[Key, StageTotals] = {}  # counters of the runs that have ended

    def begin(self, statistics: Callable[[], RunStatistics]) -> None:
        """Follow a run."""
        with self._lock:
            self._running.append(statistics)

    def update(self) -> None:
        """Do nothing: the metrics are computed when they are read."""

    def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
        """Add the final counters of a run to the totals."""
        final = statistics()
        with self._lock:
            self._running.remove(statistics)
            _add(self._finished, final, frozenset([MetricKind.COUNTER]))

    def totals(self) -> Mapping[Key, StageTotals]:
        """Return (graph, stage) → the present values, of all runs."""
        with self._lock:
            running = self._running.copy()
            found = {key: StageTotals(dict(each.values), each.tasks) for key, each in self._finished.items()}
        for statistics in running:
            _add(found, statistics(), frozenset(MetricKind))
        return found

    def values(self, metric: Metric) -> Iterator[tuple[Key, float]]:
        """Return ((graph, stage), value) of every stage that has this metric."""
        for key, totals in self.totals().items():
            if metric in totals.values:
                yield key, totals.values[metric]


def imported(module: str, exporter: str, distribution: str, extra: str) -> Any:
    """Return the module that an exporter needs. Raises PipelineError if its distribution is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise PipelineError(f"{exporter} needs the package {distribution}: pip install 'threadloom[{extra}]'") from None


def _add(found: dict[Key, StageTotals], run: RunStatistics, kinds: frozenset[MetricKind]) -> None:
    for stage in run.stages:
        found.setdefault((run.graph, stage.name), StageTotals()).add(stage, kinds)
