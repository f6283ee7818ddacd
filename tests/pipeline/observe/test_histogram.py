"""Tests of histograms of durations: the error bound, merging, differences, and the cost per duration."""

from collections.abc import Callable
from itertools import chain
from math import ceil
from timeit import repeat

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import Graph
from threadloom.pipeline.observe.histogram import SIZE, Distribution, Histogram, lower_bound

pytestmark = pytest.mark.timeout(60)

nanoseconds = st.integers(0, 2**40) | st.integers(0, 2**63 - 1) | st.integers(0, 100)


def histogram(durations: list[int]) -> Histogram:
    histogram = Histogram()
    for each in durations:
        histogram.add(each)
    return histogram


@given(nanoseconds)
def test_a_duration_is_within_the_bounds_of_its_bucket(duration: int) -> None:
    (place,) = [place for place, count in enumerate(histogram([duration]).counts) if count]
    assert lower_bound(place) <= duration < lower_bound(place + 1)


@given(st.lists(nanoseconds, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_one_part_in_32(durations: list[int], share: float) -> None:
    true = sorted(durations)[max(1, ceil(share * len(durations))) - 1]
    found = Distribution.of([histogram(durations)]).quantile(share) * 1e9
    assert abs(found - true) <= true / 32 * (1 + 1e-9) + 1


def test_the_named_quantiles() -> None:
    found = Distribution.of([histogram([1000 * each for each in range(1, 1001)])])
    assert found.count == 1000
    for value, true in ((found.p50, 500e-6), (found.p90, 900e-6), (found.p99, 990e-6), (found.longest, 1e-3)):
        assert value == pytest.approx(true, rel=1 / 32)
    assert found.p50 == found.quantile(0.5)


def test_an_empty_distribution_is_zero() -> None:
    assert Distribution.of([]) == Distribution.of([Histogram()]) == Distribution()
    assert (Distribution().p99, Distribution().quantile(0.5)) == (0.0, 0.0)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Distribution().quantile(share)


@given(st.lists(st.lists(nanoseconds, max_size=20), max_size=4))
def test_merging_equals_recording_together(parts: list[list[int]]) -> None:
    merged = Distribution.of([histogram(part) for part in parts])
    assert merged == Distribution.of([histogram(list(chain(*parts)))])
    assert merged == Distribution.of([Distribution.of([histogram(part)]) for part in parts])


@given(st.lists(nanoseconds, max_size=30), st.lists(nanoseconds, max_size=30))
def test_since_is_the_difference(before: list[int], after: list[int]) -> None:
    earlier, later = (Distribution.of([histogram(each)]) for each in (before, before + after))
    assert later.since(earlier) == Distribution.of([histogram(after)])
    assert earlier.since(earlier) == Distribution()


def test_the_memory_is_fixed() -> None:
    assert len(histogram([0, 1, 2**63, 2**63 + 2**62]).counts) == SIZE


def test_recording_costs_a_few_calls() -> None:
    """Two additions, two shifts and an update of a list: less than eight calls of an empty function."""
    add = Histogram().add

    def nothing(value: int) -> None:
        """Do nothing."""

    def fastest(call: Callable[[int], None]) -> float:
        return min(repeat(lambda: call(123_456), number=500, repeat=40))

    assert fastest(add) < 8 * fastest(nothing)


def test_a_run_counts_tasks_and_waits_of_every_stage() -> None:
    """The clock advances by 1 µs at each reading, in any thread."""
    ticks = iter(range(0, 10**9, 1000))
    graph = Graph("timed")
    twice = graph.stage("twice", lambda item: item * 2, after=graph.source("count", range(20)))
    spread = graph.stage("spread", lambda item: (each for each in (item, item)), after=twice, expand=True)
    graph.sink("out", after=spread)
    with graph.start(clock=lambda: next(ticks)) as run:
        assert len(list(run)) == 40
        statistics = run.statistics()
    assert {name: stage.tasks.count for name, stage in statistics.items()} == {
        "count": 20,
        "twice": 20,
        "spread": 40,  # one per element, computed in `next`
        "out": 40,
    }
    assert {name: stage.waits.count for name, stage in statistics.items()} == {
        "count": 0,
        "twice": 20,
        "spread": 20,
        "out": 40,
    }
    assert statistics["twice"].tasks.p50 >= 0.9e-6
