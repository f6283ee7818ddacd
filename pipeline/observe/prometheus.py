"""An exporter of the statistics to Prometheus. It needs prometheus-client (`pip install 'threadloom[prometheus]'`)."""

from collections.abc import Iterable, Iterator
from typing import Any

from threadloom.pipeline.observe.exporter import METRICS, MetricKind, StatisticsExporter, imported
from threadloom.pipeline.observe.histogram import STEPS, Distribution, lower_bound

PREFIX = "threadloom_"
LABELS = ("graph", "stage")
BOUNDS = tuple(exponent * STEPS for exponent in range(12, 46, 2))
"""Buckets of a `Histogram` whose lower bounds are the limits of the exported ones: 1 µs to 1.2 hours, factors of 4."""


class PrometheusExporter(StatisticsExporter):
    """An observer that exports the statistics of its runs to Prometheus, as a collector of a registry.

        exporter = PrometheusExporter()
        start_http_server(9000)  # of prometheus_client
        with graph.start(observers=[exporter]) as run: ...

    The metrics begin with `threadloom_` and have the labels `graph` and `stage`. They are computed when the registry is
    scraped; a run has no cost until then. Counters include the runs of the exporter that have ended.
    """

    def __init__(self, registry: Any = None) -> None:
        """Register with `registry`, by default that of prometheus_client.

        Raises PipelineError if prometheus-client is not installed.
        """
        super().__init__()
        client = imported("prometheus_client", "PrometheusExporter", "prometheus-client", "prometheus")
        self._registry = client.REGISTRY if registry is None else registry
        self._registry.register(self)

    def close(self) -> None:
        """Remove the metrics from the registry."""
        self._registry.unregister(self)

    def describe(self) -> Iterable[Any]:
        """Return no metrics: their names are fixed, and the registry would compute them to learn their names."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Return the metrics; called by the registry, in any thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families = {MetricKind.COUNTER: CounterMetricFamily, MetricKind.GAUGE: GaugeMetricFamily}
        totals = self.totals()
        for metric in METRICS:
            family = families[metric.kind](PREFIX + metric.name, metric.description, labels=LABELS)
            for key, each in totals.items():
                if metric in each.values:
                    family.add_metric(key, each.values[metric])
            yield family
        durations = HistogramMetricFamily(
            f"{PREFIX}call_seconds", "Durations of the calls of the stage function.", labels=LABELS
        )
        busy = next(metric for metric in METRICS if metric.name == "busy_seconds")
        for key, each in totals.items():
            durations.add_metric(key, cumulative_buckets(each.tasks), each.values[busy])
        yield durations


def cumulative_buckets(tasks: Distribution) -> list[tuple[str, float]]:
    """Return (upper limit in seconds, number of durations below it), the last with the limit +Inf."""
    below = [(str(lower_bound(place) / 1e9), float(sum(tasks.counts[:place]))) for place in BOUNDS]
    return [*below, ("+Inf", float(tasks.count))]
