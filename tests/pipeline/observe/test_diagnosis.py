"""Tests of the diagnosis on constructed statistics."""

import pytest

from threadloom.pipeline.observe.diagnosis import BottleneckKind, Wait, diagnose, find_bottleneck
from threadloom.pipeline.observe.histogram import Distribution, Histogram
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics

MS = 1_000_000


def stage(
    name: str,
    busy: float,
    waiting: float = 0.0,
    blocked: float = 0.0,
    *,
    after: tuple[str, ...] = (),
    kind: NodeKind = NodeKind.STAGE,
    workers: int = 1,
    task: int = 5 * MS,
    channel: tuple[float, float] = (0.0, 0.0),
    items: int = 100,
) -> StageStatistics:
    """Return the statistics of a stage with these seconds; `channel` is (blocked, starved) of its input channel."""
    histogram = Histogram()
    for _ in range(items):
        histogram.add(task)
    front = ChannelStatistics(4, 2, 2.0, 4, items, *channel) if after else None
    tasks = Distribution.of([histogram])
    return StageStatistics(name, workers, items, items, busy, waiting, blocked, front, tasks, kind=kind, after=after)


def run(*stages: StageStatistics, elapsed: float = 10.0) -> RunStatistics:
    return RunStatistics("constructed", elapsed, stages)


SOURCE = stage("read", 1.0, 0.0, 9.0, kind=NodeKind.SOURCE)
SLOW = stage("decode", 9.7, 0.2, 0.1, after=("read",), channel=(8.9, 0.2))
SINK = stage("show", 0.5, 9.5, 0.0, after=("decode",), kind=NodeKind.SINK, channel=(0.1, 9.4))


def test_the_busy_stage_between_a_blocked_and_a_starved_one() -> None:
    found = diagnose(run(SOURCE, SLOW, SINK))
    assert (found.kind, found.stage) == (BottleneckKind.STAGE, "decode")
    assert found.why == (
        "decode is the bottleneck: its 1 worker is busy 97% of the time, and a call takes 5.1 ms (p99 5.1 ms)"
    )
    assert found.remedy == "use more than 1 worker, or speed up its function"
    assert str(found) == f"{found.why}: {found.remedy}"
    assert [str(wait) for wait in found.waits] == [
        "show waits for items from decode 94% of its time",
        "read waits for capacity of decode 89% of its time",
    ]


def test_more_workers_are_not_recommended_without_cores() -> None:
    two = stage("decode", 19.0, 0.5, 0.5, after=("read",), workers=2, channel=(8.9, 0.2))
    assert diagnose(run(SOURCE, two, SINK), cores=2).kind is BottleneckKind.CORES
    assert "more workers do not help" in diagnose(run(SOURCE, two, SINK), cores=2).remedy
    found = diagnose(run(SOURCE, two, SINK), cores=8)
    assert (found.kind, "its 2 workers are busy" in found.why) == (BottleneckKind.STAGE, True)


def test_calls_shorter_than_a_handoff_should_be_batched() -> None:
    short = stage("decode", 9.0, 0.5, 0.5, after=("read",), task=3_000)
    found = diagnose(run(SOURCE, short, SINK))
    assert (found.kind, found.stage) == (BottleneckKind.HANDOFFS, "decode")
    assert "larger micro-batch" in found.remedy


def test_a_source_or_the_caller_may_be_the_bottleneck() -> None:
    slow = stage("read", 9.9, 0.0, 0.1, kind=NodeKind.SOURCE)
    idle = stage("decode", 0.5, 9.5, after=("read",), channel=(0.0, 9.5))
    assert (found := diagnose(run(slow, idle))).kind is BottleneckKind.SOURCE
    assert found.stage == "read"
    caller = stage("show", 9.9, 0.1, after=("decode",), kind=NodeKind.SINK)
    held_up = stage("decode", 0.5, 0.0, 9.5, after=("read",))
    assert (found := diagnose(run(SOURCE, held_up, caller))).kind is BottleneckKind.CALLER
    assert found.why == "the caller is the bottleneck: it keeps each item of show for 5.1 ms"


def test_waiting_with_an_item_is_waiting_for_a_resource() -> None:
    short_of_slots = stage("embed", 2.0, 7.0, 1.0, after=("read",), channel=(8.0, 0.5))
    found = diagnose(run(SOURCE, short_of_slots, SINK))
    assert (found.kind, found.stage) == (BottleneckKind.RESOURCE, "embed")
    assert "65% of its time" in found.why


def test_a_caller_that_iterated_late_waited_for_no_resource() -> None:
    late = stage("show", 0.5, 9.5, after=("decode",), kind=NodeKind.SINK, channel=(0.0, 0.5))
    assert diagnose(run(SOURCE, SLOW, late)).stage == "decode"


def test_a_channel_that_is_full_and_empty_alternately_is_too_small() -> None:
    uneven = stage("decode", 5.0, 3.0, 2.0, after=("read",), channel=(4.0, 3.0))
    found = diagnose(run(stage("read", 5.0, 0.0, 5.0, kind=NodeKind.SOURCE), uneven, SINK))
    assert (found.kind, found.stage) == (BottleneckKind.BURSTS, "decode")
    assert "from 4 to 8" in found.remedy


def test_many_handoffs_of_little_work_are_the_bottleneck() -> None:
    short = stage("split", 0.5, 6.0, 3.5, after=("read",), channel=(3.0, 5.9), items=300_000, task=900)
    found = diagnose(run(SOURCE, short, SINK))
    assert (found.kind, found.stage) == (BottleneckKind.HANDOFFS, None)
    assert "30,020 items per second" in found.why


def test_no_stage_is_busy() -> None:
    calm = stage("decode", 3.0, 7.0, after=("read",), channel=(0.0, 7.0))
    found = diagnose(run(stage("read", 4.0, 0.0, 6.0, kind=NodeKind.SOURCE), calm))
    assert (found.kind, found.stage) == (BottleneckKind.NO_STAGE, None)
    assert "read, is busy 40%" in found.why


@pytest.mark.parametrize("statistics", [run(), run(stage("read", 0.0, items=0)), run(stage("read", 1.0, items=0))])
def test_no_items_yet(statistics: RunStatistics) -> None:
    assert diagnose(statistics).kind is BottleneckKind.NOTHING_YET


def test_waits_are_divided_among_the_senders_of_one_channel() -> None:
    first, second = stage("a", 2.0, 0.0, 8.0, kind=NodeKind.SOURCE), stage("b", 8.0, 0.0, 2.0, kind=NodeKind.SOURCE)
    both = stage("c", 9.9, 0.1, after=("a", "b"), channel=(10.0, 0.1))
    assert diagnose(run(first, second, both)).waits == (Wait("a", "c", True, 0.8), Wait("b", "c", True, 0.2))


def test_an_interval_excludes_earlier_events() -> None:
    earlier, now = run(SOURCE, SLOW, SINK, elapsed=10.0), run(SOURCE, SLOW, SINK, elapsed=12.0)
    late = now.since(earlier)
    assert (late.elapsed, late["decode"].items_in, late["decode"].busy) == (2.0, 0, 0.0)
    assert late["decode"].tasks == Distribution()
    assert diagnose(late).kind is BottleneckKind.NOTHING_YET
    assert now.since(None) is now


def test_the_bottleneck_is_the_busiest_stage_if_it_is_busy_enough() -> None:
    assert find_bottleneck({"read": 0.2, "decode": 0.9, "write": 0.9}) == "decode"
    assert find_bottleneck({"read": 0.2, "decode": 0.55}) is None
    assert find_bottleneck({"read": 0.2, "decode": 0.55}, least=0.5) == "decode"
    assert find_bottleneck({}) is None
