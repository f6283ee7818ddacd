"""Runs of graphs: delivery, order, backpressure, statistics. Failures are tested in test_engine_failures."""

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import SKIP, Cancelled, Gather, Graph, InOrder, Node, Skip

pytestmark = pytest.mark.timeout(60)

SECOND = 1_000_000_000


def identity(item: int) -> int:
    return item


def test_each_stage_has_its_own_named_threads() -> None:
    seen = set()
    both = threading.Barrier(2, timeout=30)

    def work(item: int) -> int:
        both.wait()
        seen.add(threading.current_thread().name)
        return item

    graph = Graph("named")
    graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", range(4)), workers=2))
    with graph.start() as run:
        assert sorted(run) == [0, 1, 2, 3]
    assert seen == {"named.work-0", "named.work-1"}


def test_broadcast_when_and_merge() -> None:
    graph = Graph("fork")
    numbers = graph.source("numbers", range(6))
    square = graph.stage("square", lambda item: item * item, after=numbers)
    even = graph.stage("even", lambda item: -item, after=numbers, when=lambda item: item % 2 == 0)
    graph.sink("out", after=[square, even, numbers], when=lambda item: item != 25)
    with graph.start() as run:
        assert Counter(run) == Counter([0, 1, 4, 9, 16, 0, -2, -4, 0, 1, 2, 3, 4, 5])


def test_skip_ends_an_item_here_and_in_an_expansion() -> None:
    def odd(item: int) -> int | Skip:
        return item if item % 2 else SKIP

    graph = Graph("skip")
    kept = graph.stage("odd", odd, after=graph.source("numbers", range(5)))
    spread = graph.stage("spread", lambda item: [item, SKIP, item + 10], after=kept, expand=True)
    graph.sink("out", after=spread)
    with graph.start() as run:
        assert list(run) == [1, 11, 3, 13]
    statistics = run.statistics()
    assert (statistics["odd"].items_in, statistics["odd"].items_out) == (5, 2)
    assert (statistics["spread"].items_in, statistics["spread"].items_out) == (2, 4)


def test_gather_then_expand_lazily() -> None:
    def halves(group: list[tuple[int, int]]) -> Iterator[int]:
        assert len({batch for batch, _ in group}) == 1
        yield sum(micro for _, micro in group)
        yield -group[0][0]

    graph = Graph("gather")
    micros = graph.source("draw", [(batch, micro) for micro in range(4) for batch in range(3)])
    groups = Gather[tuple[int, int]](key=lambda item: item[0], count=4)
    graph.sink("out", after=graph.stage("reduce", halves, after=micros, gather=groups, expand=True))
    with graph.start() as run:
        assert list(run) == [6, 0, 6, -1, 6, -2]


def test_in_order_exclusive_restores_the_order_of_each_key() -> None:
    later_sent = [threading.Event() for _ in range(8)]

    def shuffle(item: int) -> int:
        """Of every four consecutive items, send the last two first, so that both keys arrive out of order."""
        if item % 4 < 2:
            assert later_sent[item + 2].wait(30)
        later_sent[item].set()
        return item

    in_hand: Counter[int] = Counter()

    def collect(item: int) -> int:
        in_hand[item % 2] += 1
        assert in_hand[item % 2] == 1
        in_hand[item % 2] -= 1
        return item

    graph = Graph("order")
    mixed = graph.stage("shuffle", shuffle, after=graph.source("numbers", range(8)), workers=4, capacity=8)
    order = InOrder[int](order=lambda item: (item % 2, item // 2))
    graph.sink("out", after=graph.stage("collect", collect, after=mixed, workers=3, admission=order))
    with graph.start() as run:
        items = list(run)
    assert [item for item in items if item % 2 == 0] == [0, 2, 4, 6]
    assert [item for item in items if item % 2] == [1, 3, 5, 7]


def test_a_sink_can_restore_the_order() -> None:
    graph = Graph("order")
    numbers = graph.stage("work", identity, after=graph.source("numbers", range(50)), workers=3)
    graph.sink("out", after=numbers, admission=InOrder(order=lambda item: (0, item)))
    with graph.start() as run:
        assert list(run) == list(range(50))


def test_acquire_is_called_before_the_function_and_counts_as_waiting() -> None:
    now = [0]
    calls = []

    def acquire(item: int) -> None:
        calls.append(("acquire", item))
        now[0] += SECOND

    def work(item: int) -> int:
        calls.append(("work", item))
        now[0] += 10 * SECOND
        return item

    graph = Graph("acquire")
    graph.stage("work", work, after=graph.source("numbers", range(2)), acquire=acquire)
    statistics = graph.run(clock=lambda: now[0])["work"]
    assert calls == [("acquire", 0), ("work", 0), ("acquire", 1), ("work", 1)]
    assert statistics.busy == 20.0
    assert statistics.waiting >= 2.0
    assert statistics.busy_share + statistics.waiting_share + statistics.blocked_share == pytest.approx(1)


def test_an_item_in_progress_is_counted_as_busy() -> None:
    now = [0]
    begun, finish = threading.Event(), threading.Event()

    def work(item: int) -> None:
        begun.set()
        assert finish.wait(30)

    graph = Graph("long")
    graph.stage("work", work, after=graph.source("numbers", [1]))
    with graph.start(clock=lambda: now[0]) as run:
        assert begun.wait(30)
        now[0] = 7 * SECOND
        during = run.statistics()
        finish.set()
        run.wait()
    assert during["work"].busy == 7.0
    assert during["work"].items_in == 1
    assert during.elapsed == run.statistics().elapsed == 7.0
    assert list(during) == ["numbers", "work"]
    assert during["work"].busy_share == 1.0


def test_the_time_of_a_source_is_busy_and_the_callers_is_the_sinks() -> None:
    now = [0]

    def draw() -> Iterator[int]:
        now[0] += 5 * SECOND
        yield 1

    graph = Graph("times")
    graph.sink("out", after=graph.source("draw", draw))
    with graph.start(clock=lambda: now[0]) as run:
        for _ in run:
            now[0] += 3 * SECOND
    statistics = run.statistics()
    assert statistics["draw"].busy == 5.0
    assert statistics["out"].busy == 3.0
    assert (statistics["out"].items_in, statistics["out"].items_out) == (1, 1)


def test_the_number_of_items_in_flight_is_bounded() -> None:
    """The sink is not read, so each stage fills its channel and one item per worker."""
    produced = [0]
    full = threading.Event()
    # In flight: sink 1, work 2 workers + channel 3, source 1.
    bound = 1 + 2 + 3 + 1

    def draw() -> Iterator[int]:
        for item in range(100):
            produced[0] += 1
            if produced[0] == bound:
                full.set()
            yield item

    graph = Graph("slow")
    work = graph.stage("work", identity, after=graph.source("draw", draw), workers=2, capacity=3)
    graph.sink("out", after=work, capacity=1)
    taken = 0
    with graph.start() as run:
        assert full.wait(30)
        for _ in run:
            taken += 1
            assert produced[0] <= taken + bound
    assert taken == 100


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without the GIL an object is freed only when the thread that created it runs again, which waits here",
)
def test_a_waiting_worker_keeps_no_item_alive() -> None:
    class Thing:
        pass

    more = threading.Event()
    gone: list[weakref.ref[Thing]] = []

    def draw() -> Iterator[Thing]:
        thing = Thing()
        gone.append(weakref.ref(thing))
        yield thing
        del thing
        assert more.wait(30)

    graph = Graph("refs")
    graph.sink("out", after=graph.stage("work", lambda item: 1, after=graph.source("draw", draw)))
    with graph.start() as run:
        assert next(iter(run)) == 1
        reference = gone[0]
        thing = reference()
        if thing is not None:  # the worker may not have returned to its channel yet
            dropped = threading.Event()
            weakref.finalize(thing, dropped.set)
            del thing
            assert dropped.wait(30)
        more.set()


def test_a_run_lasts_until_its_sink_is_exhausted() -> None:
    """The workers end at once, and the caller processes the last item for three more seconds."""
    now = [0]
    graph = Graph("slow caller")
    out = graph.sink("out", after=graph.source("draw", [1]))
    with graph.start(clock=lambda: now[0]) as run:
        for _ in run.items(out):
            assert run.wait_decided(30)
            now[0] += 3 * SECOND
    now[0] += 5 * SECOND
    after = run.statistics()
    assert (after.elapsed, after["out"].busy, after["out"].waiting) == (3.0, 3.0, 0.0)


def test_a_sink_that_is_not_exhausted_stops_counting_with_the_run() -> None:
    now = [0]
    graph = Graph("left")
    out = graph.sink("out", after=graph.source("draw", [1, 2, 3]))
    with graph.start(clock=lambda: now[0]) as run:
        for _ in run.items(out):
            now[0] += 2 * SECOND
            break
    now[0] += 5 * SECOND
    after = run.statistics()
    assert (after.elapsed, after["out"].busy) == (2.0, 2.0)


def test_the_callers_time_after_the_end_of_the_run_is_not_counted() -> None:
    now = [0]
    graph = Graph("two callers")
    source = graph.source("draw", [1, 2])
    first, second = graph.sink("first", after=source), graph.sink("second", after=source)
    with graph.start(clock=lambda: now[0]) as run:
        next(iter(run.items(first)))
        items = iter(run.items(second))
        next(items)
        now[0] += SECOND
        run.cancel()
        with pytest.raises(Cancelled):
            next(iter(run.items(first)))
        now[0] += 2 * SECOND
        with pytest.raises(Cancelled):
            next(items)
    after = run.statistics()
    assert (after.elapsed, after["second"].busy, after["second"].waiting) == (1.0, 1.0, 0.0)


@st.composite
def layered(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return the predecessors and settings of nodes that follow node 0, the source."""
    return [
        {
            "after": sorted(draw(st.sets(st.integers(0, number - 1), min_size=1, max_size=3))),
            "workers": draw(st.integers(1, 3)),
            "capacity": draw(st.integers(1, 3)),
            "modulus": draw(st.sampled_from([None, None, 2, 3])),
            "copies": draw(st.sampled_from([1, 1, 2])),
        }
        for number in range(1, draw(st.integers(1, 5)) + 1)
    ]


@given(nodes=layered(), count=st.integers(0, 30))
def test_any_graph_delivers_each_item_once_per_path(nodes: list[dict[str, Any]], count: int) -> None:
    graph = Graph("random")
    built: list[Node[int]] = [graph.source("0", range(count))]
    arriving: list[Counter[int]] = [Counter(range(count))]
    for number, node in enumerate(nodes, 1):
        modulus, copies = node["modulus"], node["copies"]
        built.append(
            graph.stage(
                str(number),
                lambda item, copies=copies: [item] * copies,
                after=[built[each] for each in node["after"]],
                workers=node["workers"],
                capacity=node["capacity"],
                when=None if modulus is None else lambda item, modulus=modulus: item % modulus == 0,
                expand=True,
            )
        )
        merged = sum((arriving[each] for each in node["after"]), Counter[int]())
        arriving.append(
            Counter({item: many * copies for item, many in merged.items() if modulus is None or item % modulus == 0})
        )
    graph.sink("out", after=built)
    with graph.start() as run:
        assert Counter(run) == sum(arriving, Counter[int]())
    for statistics in run.statistics().stages:
        assert statistics.channel is None or statistics.channel.max_depth <= statistics.channel.capacity
        assert statistics.channel is None or statistics.channel.depth == 0
