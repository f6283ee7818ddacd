"""An exporter of the statistics to OpenTelemetry. It needs opentelemetry-api (`threadloom[opentelemetry]`)."""

from collections.abc import Callable, Iterator
from typing import Any

from threadloom.pipeline.observe.exporter import METRICS, Metric, MetricKind, StatisticsExporter, imported

PREFIX = "threadloom."


class OpenTelemetryExporter(StatisticsExporter):
    """An observer that exports the statistics of its runs to OpenTelemetry, as observable instruments of a meter.

        exporter = OpenTelemetryExporter()
        with graph.start(observers=[exporter]) as run: ...

    The instruments begin with `threadloom.` and have the attributes `graph` and `stage`. The reader of the meter's
    provider decides when they are computed. Counters include the runs of the exporter that have ended. An instrument
    cannot be removed from a meter: create one exporter per program.
    """

    def __init__(self, meter: Any = None) -> None:
        """Create the instruments in `meter`, by default of the global provider.

        Raises PipelineError if opentelemetry-api is not installed.
        """
        super().__init__()
        api = imported("opentelemetry.metrics", "OpenTelemetryExporter", "opentelemetry-api", "opentelemetry")
        meter = api.get_meter("threadloom") if meter is None else meter
        create = {
            MetricKind.COUNTER: meter.create_observable_counter,
            MetricKind.GAUGE: meter.create_observable_gauge,
        }
        self._instruments = [
            create[metric.kind](
                PREFIX + metric.name.removesuffix("_seconds"), [self._observe(metric)], metric.unit.value,
                metric.description,
            )
            for metric in METRICS
        ]  # fmt: skip

    def _observe(self, metric: Metric) -> Callable[[Any], Iterator[Any]]:
        """Return the callback of the instrument of a metric."""

        def observations(_: Any) -> Iterator[Any]:
            from opentelemetry.metrics import Observation

            for (graph, stage), value in self.values(metric):
                yield Observation(value, {"graph": graph, "stage": stage})

        return observations
