"""Sources: failure policies, and shards that several workers iterate."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    Cancelled,
    DeadLetter,
    FailFast,
    Graph,
    GraphError,
    OnError,
    Retry,
    Shards,
    SkipFailed,
    StageFailure,
    TooManySkipped,
    Trace,
)
from threadloom.pipeline.run.rounds import Rounds

pytestmark = pytest.mark.timeout(60)


class Flaky(Iterator[int]):
    """Counts to `end`, and raises in the calls with the numbers in `fails`; such a call does not count."""

    def __init__(self, end: int, *fails: int) -> None:
        self.end = end
        self.fails = fails
        self.calls = self.number = 0
        self.closed = False

    def __next__(self) -> int:
        self.calls += 1
        if self.calls in self.fails:
            raise Boom(self.calls)
        if self.number == self.end:
            raise StopIteration
        self.number += 1
        return self.number

    def close(self) -> None:
        self.closed = True


def graph_of(items: Any, **options: Any) -> Graph:
    graph = Graph("g")
    graph.sink("out", after=graph.source("read", items, **options))
    return graph


def test_without_a_policy_the_first_error_of_a_source_ends_the_run() -> None:
    with pytest.raises(StageFailure, match=r"'read' .* failed on item 1 of the source: Boom: 2"):
        list(graph_of(Flaky(4, 2)))


def test_a_source_skips_errors_and_counts_them() -> None:
    with graph_of(Flaky(5, 1, 3, 4), on_error=SkipFailed()).start() as run:
        assert list(run) == [1, 2, 3, 4, 5]
    read = run.statistics()["read"]
    assert (read.items_out, read.skipped, read.retried) == (5, 3, 0)


def test_a_source_repeats_a_call_and_then_skips() -> None:
    policy = Retry(times=2, first=0, then=SkipFailed())
    with graph_of(Flaky(3, 1, 3, 4, 5, 6, 7), on_error=policy).start() as run:
        assert list(run) == [1, 2, 3]
    read = run.statistics()["read"]
    # Call 1 is repeated; calls 3 to 5 are three attempts, and so are 6 to 8, of which the last succeeds.
    assert (read.skipped, read.retried) == (1, 5)


@pytest.mark.parametrize(
    ("policy", "cause"), [(SkipFailed(most=1), Boom), (SkipFailed(errors=OSError), Boom), (FailFast(), Boom)]
)
def test_a_policy_of_a_source_can_fail_the_run(policy: OnError, cause: type[Exception]) -> None:
    with pytest.raises(StageFailure) as caught:
        list(graph_of(Flaky(5, 2, 4), on_error=policy))
    assert caught.value.stage == "read"
    assert isinstance(caught.value.__cause__, cause)


def test_the_share_of_a_source_counts_the_elements_that_were_requested() -> None:
    # One of four elements is skipped: a quarter is allowed, less is not.
    assert list(graph_of(Flaky(3, 2), on_error=SkipFailed(share=0.25))) == [1, 2, 3]
    with pytest.raises(StageFailure) as caught:
        list(graph_of(Flaky(3, 2), on_error=SkipFailed(share=0.24)))
    assert isinstance(caught.value.__cause__, TooManySkipped)
    # With `least=1` the second call is one of two: a half.
    assert list(graph_of(Flaky(3, 2), on_error=SkipFailed(share=0.5, least=1))) == [1, 2, 3]
    with pytest.raises(StageFailure, match="'read'"):
        list(graph_of(Flaky(3, 2), on_error=SkipFailed(share=0.49, least=1)))


def test_the_dead_letters_of_a_source_have_the_number_of_the_element() -> None:
    graph = Graph("g")
    read = graph.source("read", Flaky(2, 2, 4), on_error=SkipFailed())
    graph.sink("out", after=[read, graph.dead_letters(read)])
    found = list(graph)
    letters = [each for each in found if isinstance(each, DeadLetter)]
    assert [each for each in found if not isinstance(each, DeadLetter)] == [1, 2]
    assert [(each.stage, each.item, each.attempts, str(each.error)) for each in letters] == [
        ("read", 1, 1, "2"),
        ("read", 3, 1, "4"),
    ]


def generator() -> Iterator[int]:
    yield 1
    raise Boom


def test_a_generator_cannot_be_continued() -> None:
    for items in (generator, generator(), Shards(generator)):
        with pytest.raises(GraphError, match=r"source 'read' is a generator, and on_error=.* ended once it has raised"):
            graph_of(items, on_error=SkipFailed())
    graph_of(generator, on_error=FailFast())
    with pytest.raises(StageFailure, match=r"'read' .* Boom") as caught:  # found only once it is called
        list(graph_of(lambda: generator(), on_error=SkipFailed()))  # noqa: PLW0108
    assert isinstance(caught.value.__cause__, Boom)
    assert "cannot continue it" in caught.value.__cause__.__notes__[0]


def test_a_source_that_ends_directly_after_an_error_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert list(graph_of(map(int, generator()), on_error=SkipFailed())) == [1]
    assert "source 'read' ended directly after an error that was skipped (Boom())" in caplog.text
    caplog.clear()
    assert list(graph_of(Flaky(1, 1), on_error=SkipFailed())) == [1]
    assert "ended directly" not in caplog.text


def test_a_source_that_always_raises_can_be_drained_and_cancelled() -> None:
    reached = threading.Event()

    class Broken(Iterator[int]):
        calls = 0

        def __next__(self) -> int:
            self.calls += 1
            if self.calls == 1000:
                reached.set()
            raise Boom

    with graph_of(Broken(), on_error=SkipFailed(share=1)).start() as run:
        assert reached.wait(30)
        run.drain()
        assert list(run) == []
    reached.clear()
    with pytest.raises(Cancelled), graph_of(Broken(), on_error=SkipFailed(share=1)).start() as run:
        assert reached.wait(30)
        run.cancel()
        list(run)


def test_a_stop_ends_the_delay_before_a_retry() -> None:
    failed = threading.Event()

    class Broken(Iterator[int]):
        def __next__(self) -> int:
            failed.set()
            raise Boom

    with pytest.raises(Cancelled), graph_of(Broken(), on_error=Retry(first=3600, longest=3600)).start() as run:
        assert failed.wait(30)
        run.cancel()
        list(run)


def test_only_an_iterator_that_the_source_created_is_closed() -> None:
    flaky = Flaky(2, 1)
    assert list(graph_of(flaky, on_error=SkipFailed())) == [1, 2]
    assert not flaky.closed
    assert list(graph_of(lambda: flaky, on_error=SkipFailed())) == []  # used up
    assert flaky.closed


# Shards.


def test_all_elements_of_all_shards_arrive_each_shard_in_order() -> None:
    graph = graph_of(Shards(range(10), lambda: iter(range(100, 150)), [1000]))
    for _ in range(2):
        with graph.start(trace=Trace()) as run:
            found = list(run)
        assert sorted(found) == [*range(10), *range(100, 150), 1000]
        assert [each for each in found if each < 100] == list(range(10))
        assert [each for each in found if 100 <= each < 1000] == list(range(100, 150))
        assert (run.statistics()["read"].workers, run.statistics()["read"].items_out) == (3, 61)


def test_shards_are_iterated_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=30)

    def shard() -> Iterator[int]:
        yield barrier.wait()

    assert sorted(graph_of(Shards(shard, shard, shard))) == [0, 1, 2]


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_ordered_shards_are_sent_in_rounds(lengths: list[int]) -> None:
    shards = [[(element, shard) for element in range(length)] for shard, length in enumerate(lengths)]
    expected = sorted(element for shard in shards for element in shard)
    assert list(graph_of(Shards(*shards), ordered=True)) == expected


def test_ordered_shards_keep_the_order_when_one_is_late() -> None:
    """The first element of shard 0 comes after shard 1 has computed its own, which waits for its turn."""
    computed = threading.Event()

    def late() -> Iterator[str]:
        assert computed.wait(30)
        yield "a0"
        yield "a1"

    def early() -> Iterator[str]:
        yield "b0"
        computed.set()
        yield "b1"

    def first() -> Iterator[str]:
        computed.set()
        yield "c0"

    assert list(graph_of(Shards(late, early, first), ordered=True)) == ["a0", "b0", "c0", "a1", "b1"]


@pytest.mark.parametrize("ordered", [False, True])
def test_an_error_of_one_shard_ends_the_run_also_while_the_others_wait(ordered: bool) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise Boom

    with pytest.raises(StageFailure, match=r"'read' \(worker 1\) .* Boom"):
        list(graph_of(Shards(range(10**9), broken, range(10**9)), ordered=ordered))


@pytest.mark.parametrize("ordered", [False, True])
def test_sharded_sources_pause_resume_and_drain(ordered: bool) -> None:
    closed: list[int] = []

    def endless(first: int) -> Iterator[int]:
        try:
            yield from range(first, 10**9)
        finally:
            closed.append(first)

    with graph_of(Shards(lambda: endless(0), lambda: endless(10**8)), ordered=ordered).start() as run:
        items = iter(run)
        next(items)
        run.pause()
        run.resume()
        next(items)
        run.drain()
        list(items)
    assert sorted(closed) == [0, 10**8]


def test_an_iterator_that_was_passed_as_a_shard_stays_open() -> None:
    mine = (number for number in range(10**9))
    with pytest.raises(Cancelled), graph_of(Shards(mine, [1])).start() as run:
        run.cancel()
        list(run)
    assert next(mine) >= 0


def test_a_deadlock_downstream_of_ordered_shards_is_certain_although_a_shard_waits_for_its_turn() -> None:
    """Every second element lacks a partner: the join fills up, and the shard with the turn cannot send."""
    graph = Graph("g")
    read = graph.source("read", Shards(range(100), range(100)), ordered=True)
    half = graph.stage("half", int, after=read, when=lambda item: item % 2 == 0)
    graph.sink("out", after=graph.join("join", sum, after=(read, half)))
    with pytest.raises(StageFailure, match="deadlock"):
        list(graph)


def test_mistakes_in_the_declaration_of_shards() -> None:
    with pytest.raises(GraphError, match="at least one shard"):
        Shards()
    with pytest.raises(GraphError, match=r"shard 1 needs an iterable, .* got 5"):
        Shards([1], 5)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"'read' has ordered=True and one worker, .* Shards"):
        graph_of([1], ordered=True)
    with pytest.raises(GraphError, match=r"needs on_error to be a failure policy .* got the class SkipFailed"):
        graph_of([1], on_error=SkipFailed)
    graph = graph_of(Shards([1], [2]))
    with pytest.raises(GraphError, match=r"'read' has one worker per shard, 2, got workers=3"):
        graph.resize("read", workers=3)


def test_rounds_as_events() -> None:
    """Drives the turns without threads: no call here has to wait."""
    rounds = Rounds(3)
    sent: list[str] = []
    send = [rounds.sender(worker, sent.append) for worker in range(3)]
    send[0]("a")
    send[1]("b")
    rounds.leave(2)
    send[0]("c")
    rounds.leave(1)
    send[0]("d")
    send[0]("e")
    rounds.leave(0)
    assert sent == ["a", "b", "c", "d", "e"]
    assert [turn.depth for turn in rounds.turns] == [0, 0, 0]
