"""Exporters: totals over runs that have ended and runs in progress, read through Prometheus and OpenTelemetry."""

import sys
from dataclasses import replace
from typing import Any

import pytest

from threadloom.pipeline import (
    Distribution,
    Graph,
    OpenTelemetryExporter,
    PipelineError,
    PrometheusExporter,
    RunStatistics,
    StageStatistics,
)
from threadloom.pipeline.observe.exporter import METRICS, MetricKind, StatisticsExporter
from threadloom.pipeline.observe.histogram import Histogram
from threadloom.pipeline.observe.prometheus import cumulative_buckets

pytestmark = pytest.mark.timeout(60)


def squares(items: int) -> Graph:
    graph = Graph("squares")
    graph.sink("out", after=graph.stage("square", lambda n: n * n, after=graph.source("numbers", range(items))))
    return graph


def value(exporter: StatisticsExporter, name: str, stage: str = "square") -> float | None:
    totals = exporter.totals()[("squares", stage)]
    return next((each for metric, each in totals.values.items() if metric.name == name), None)


def test_counters_include_runs_that_have_ended_and_gauges_do_not() -> None:
    exporter = StatisticsExporter()
    for _ in range(2):
        with squares(10).start(observers=[exporter]) as run:
            assert len(list(run)) == 10
    assert value(exporter, "items_out") == 20
    assert value(exporter, "workers") is None
    with squares(5).start(observers=[exporter]) as run, squares(3).start(observers=[exporter]) as other:
        first, second = iter(run), iter(other)
        next(first), next(second)
        so_far = value(exporter, "items_out")
        assert so_far is not None
        assert 20 + 2 <= so_far <= 28
        assert value(exporter, "workers") == 2, "one for each run in progress"
        assert (len(list(first)), len(list(second))) == (4, 2)
    assert value(exporter, "items_out") == 28
    assert exporter.totals()[("squares", "square")].tasks.count == 28


def test_a_run_that_fails_is_counted_and_not_kept() -> None:
    exporter = StatisticsExporter()
    graph = Graph("squares")
    graph.sink("out", after=graph.stage("square", lambda n: 1 // (n - 3), after=graph.source("numbers", range(9))))
    with pytest.raises(Exception, match="square"), graph.start(observers=[exporter]) as run:
        list(run)
    assert value(exporter, "items_in") == 4
    assert exporter._running == []


def scraped(registry: Any) -> dict[str, float]:
    """Return the samples of the stage `square`: name, with the limit of a bucket, → value."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.labels.get("stage") == "square":
                assert sample.labels["graph"] == "squares"
                found[sample.name + (f" {sample.labels['le']}" if "le" in sample.labels else "")] = sample.value
    return found


def test_prometheus() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    exporter = PrometheusExporter(registry)
    with squares(12).start(observers=[exporter]) as run:
        items = iter(run)
        next(items)
        assert scraped(registry)["threadloom_queue_capacity"] == 2
        assert len(list(items)) == 11
    found = scraped(registry)
    assert found["threadloom_items_out_total"] == 12
    assert found["threadloom_items_skipped_total"] == 0
    assert found["threadloom_call_seconds_count"] == found["threadloom_call_seconds_bucket +Inf"] == 12
    assert found["threadloom_call_seconds_sum"] == found["threadloom_busy_seconds_total"] > 0
    assert "threadloom_queue_capacity" not in found
    text = prometheus.generate_latest(registry).decode()
    assert 'threadloom_items_in_total{graph="squares",stage="square"} 12.0' in text
    exporter.close()
    assert list(registry.collect()) == []


def test_buckets_are_cumulative_with_exact_limits() -> None:
    histogram = Histogram()
    for nanoseconds in (500, 2_000, 2_000, 3_000_000, 10**10):
        histogram.add(nanoseconds)
    buckets = cumulative_buckets(Distribution.of([histogram]))
    assert buckets[-1] == ("+Inf", 5.0)
    for limit, below in buckets[:-1]:
        assert below == sum(each < float(limit) * 1e9 for each in (500, 2_000, 2_000, 3_000_000, 10**10)), limit
    # A power of two, less the offset of the histogram: stable from run to run.
    assert [float(limit) * 1e9 for limit, _ in buckets[:3]] == pytest.approx([2**10 - 16, 2**12 - 16, 2**14 - 16])


def test_open_telemetry() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    exporter = OpenTelemetryExporter(provider.get_meter("test"))
    with squares(7).start(observers=[exporter]) as run:
        items = iter(run)
        next(items)
        during = points(reader)
        assert len(list(items)) == 6
    after = points(reader)
    provider.shutdown()
    assert during["threadloom.queue_capacity"][0] == 2
    assert during["threadloom.items_out"][0] >= 1
    assert {name: after[f"threadloom.{name}"][0] for name in ("items_in", "items_out")} == {
        "items_in": 7,
        "items_out": 7,
    }
    units = {name: unit for name, (_, unit) in after.items()}
    assert units["threadloom.busy"] == "s"
    assert units["threadloom.items_in"] == "{item}"
    assert "threadloom.queue_depth" not in units


def points(reader: Any) -> dict[str, tuple[float, str]]:
    """Return instrument → (value, unit) of the stage `square`."""
    return {
        metric.name: (point.value, metric.unit)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if dict(point.attributes) == {"graph": "squares", "stage": "square"}
    }


@pytest.mark.parametrize(
    ("exporter", "package", "sentence"),
    [
        (PrometheusExporter, "prometheus_client", r"prometheus-client: pip install 'threadloom\[prometheus\]'"),
        (OpenTelemetryExporter, "opentelemetry.metrics", r"opentelemetry-api: pip install 'threadloom\[opentelem"),
    ],
)
def test_a_missing_package_is_a_sentence(
    exporter: type[StatisticsExporter], package: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PipelineError, match=sentence):
        exporter()


def test_every_metric_has_a_meaning_and_a_value_of_a_stage() -> None:
    stage = StageStatistics("square", 2, 10, 9, 1.0, 2.0, 3.0, None, skipped=1, expected=12)
    found = {metric.name: metric.value(stage) for metric in METRICS}
    assert found["items_skipped"] == 1
    assert found["expected_items"] == 12
    assert found["queue_depth"] is None
    assert all(metric.description.endswith(".") for metric in METRICS)
    doubled = StatisticsExporter()
    run = RunStatistics("squares", 1.0, (replace(stage, items_in=20),))
    doubled.begin(lambda: run)
    assert {metric.kind for metric in doubled.totals()[("squares", "square")].values} == set(MetricKind)
