"""Proposals from constructed statistics."""

from dataclasses import replace

from threadloom.pipeline.observe.histogram import Distribution, Histogram
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics
from threadloom.pipeline.tuning.proposals import MOST_WORKERS, propose
from threadloom.pipeline.tuning.sizes import Freedom, GraphSizes, StageSize

FREEDOMS = {
    "read": Freedom(NodeKind.SOURCE, False, False, "a source has one worker"),
    "decode": Freedom(NodeKind.STAGE, True, True),
    "store": Freedom(NodeKind.STAGE, True, True),
}


def stage(
    name: str, busy: float, waiting: float, blocked: float, *, after: str = "", starved: float = 0.0,
    senders: float = 0.0, workers: int = 1, throttled: float = 0.0, call: int = 5_000_000,
) -> StageStatistics:  # fmt: skip
    """Return statistics with these seconds; `senders` is the blocked time of its input channel."""
    calls = Histogram()
    for _ in range(100):
        calls.add(call)
    channel = ChannelStatistics(2, 1, 1.0, 2, 100, senders, starved) if after else None
    kind = NodeKind.STAGE if after else NodeKind.SOURCE
    return StageStatistics(
        name, workers, 100, 100, busy, waiting, blocked, channel, Distribution.of([calls]), kind=kind,
        after=(after,) if after else (), throttled=throttled,
    )  # fmt: skip


def sizes(decode: int = 1, store: int = 1, capacity: int = 2) -> GraphSizes:
    return GraphSizes(
        (StageSize("read", 1, 2), StageSize("decode", decode, capacity), StageSize("store", store, capacity))
    )


SLOW_DECODE = RunStatistics(
    "constructed",
    10.0,
    (
        stage("read", 0.5, 0.0, 9.5),
        stage("decode", 9.6, 0.2, 0.2, after="read", starved=0.2, senders=9.5),
        stage("store", 3.0, 7.0, 0.0, after="decode", starved=7.0, senders=0.1),
    ),
)


def test_the_bottleneck_gets_more_workers_first() -> None:
    found = propose(sizes(), SLOW_DECODE, FREEDOMS)
    assert [each.sizes["decode"].workers for each in found[:2]] == [2, 4]
    assert all(each.sizes["store"] == sizes()["store"] for each in found)
    assert found[0].why == (
        "decode is the bottleneck: its 1 worker is busy 96% of the time, and a call takes 5.1 ms (p99 5.1 ms); read "
        "waits for capacity of decode 95% of its time; store waits for items from decode 70% of its time"
    )


def test_sizes_are_proposed_once() -> None:
    found = propose(sizes(), SLOW_DECODE, FREEDOMS)
    assert propose(sizes(), SLOW_DECODE, FREEDOMS, {each.sizes for each in found}) == []


def test_workers_have_a_maximum() -> None:
    most = sizes(decode=MOST_WORKERS)
    assert [each for each in propose(most, SLOW_DECODE, FREEDOMS) if each.sizes["decode"].workers > MOST_WORKERS] == []


def test_a_stage_that_may_not_be_resized_gets_nothing() -> None:
    fixed = {**FREEDOMS, "decode": replace(FREEDOMS["decode"], workers=False, capacity=False)}
    assert all(each.sizes["decode"] == sizes()["decode"] for each in propose(sizes(), SLOW_DECODE, fixed))


def test_a_rate_limit_is_not_answered_with_workers() -> None:
    limited = RunStatistics(
        "limited",
        10.0,
        (
            stage("read", 0.5, 0.0, 9.5),
            stage("decode", 1.0, 8.9, 0.1, after="read", starved=0.1, senders=9.5, throttled=8.8),
            stage("store", 1.0, 9.0, 0.0, after="decode", starved=9.0),
        ),
    )
    assert propose(sizes(), limited, FREEDOMS) == []


def test_a_source_that_limits_frees_the_idle_workers() -> None:
    slow_source = RunStatistics(
        "source",
        10.0,
        (
            stage("read", 9.9, 0.0, 0.1),
            stage("decode", 8.0, 72.0, 0.0, after="read", starved=72.0, workers=8),
            stage("store", 1.0, 9.0, 0.0, after="decode", starved=9.0),
        ),
    )
    (found,) = propose(sizes(decode=8), slow_source, FREEDOMS)
    assert found.sizes["decode"].workers == 1
    assert found.why.startswith("workers waited for input: those of decode 90% of their time; read is the bottleneck")


def test_very_short_calls_get_larger_channels() -> None:
    handoffs = RunStatistics(
        "handoffs",
        1.0,
        (
            stage("read", 0.9, 0.0, 0.1, call=900),
            stage("decode", 0.8, 0.1, 0.1, after="read", starved=0.1, senders=0.02, call=900),
            stage("store", 0.1, 0.9, 0.0, after="decode", starved=0.9, call=900),
        ),
    )
    found = propose(sizes(), handoffs, FREEDOMS)
    assert any(each.sizes["decode"].capacity == each.sizes["store"].capacity == 8 for each in found)
