"""Tests of failure policies: the decisions without threads, and their effect in runs."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import (
    Attempt,
    Cancelled,
    DeadLetter,
    Decision,
    FailFast,
    Gather,
    Graph,
    GraphError,
    Node,
    OnError,
    Retry,
    RetryAfter,
    SkipFailed,
    StageFailure,
    TooManySkipped,
)

pytestmark = pytest.mark.timeout(60)

FAIL, SKIP = Decision.FAIL, Decision.SKIP


class Boom(Exception):
    pass


def attempt(number: int = 1, skipped: int = 0, items: int = 1000, error: Exception | None = None) -> Attempt:
    return Attempt(error or Boom(), number, skipped, items)


DECISIONS: dict[str, tuple[OnError, Attempt, Decision | RetryAfter]] = {
    "fail fast": (FailFast(), attempt(), FAIL),
    "skip any number": (SkipFailed(), attempt(skipped=999), SKIP),
    "skip the last one allowed": (SkipFailed(most=3), attempt(skipped=2), SKIP),
    "one too many": (SkipFailed(most=3), attempt(skipped=3), FAIL),
    "none allowed": (SkipFailed(most=0), attempt(), FAIL),
    "within the share": (SkipFailed(share=0.1), attempt(skipped=99), SKIP),
    "over the share": (SkipFailed(share=0.1), attempt(skipped=100), FAIL),
    "too early to judge": (SkipFailed(share=0.1, least=50), attempt(skipped=9, items=10), SKIP),
    "late enough to judge": (SkipFailed(share=0.1, least=50), attempt(skipped=5, items=50), FAIL),
    "both bounds": (SkipFailed(most=2, share=0.9), attempt(skipped=2), FAIL),
    "another error": (SkipFailed(errors=(ValueError,)), attempt(), FAIL),
    "this error": (SkipFailed(errors=(ValueError,)), attempt(error=UnicodeDecodeError("u", b"", 0, 1, "")), SKIP),
    "first retry": (Retry(times=3, first=0.5), attempt(1), RetryAfter(0.5)),
    "third retry": (Retry(times=3, first=0.5, factor=3), attempt(3), RetryAfter(4.5)),
    "longest pause": (Retry(times=9, longest=2), attempt(9), RetryAfter(2)),
    "no overflow": (Retry(times=9999, longest=2), attempt(9000), RetryAfter(2)),
    "no more retries": (Retry(times=3), attempt(4), FAIL),
    "then skip": (Retry(times=3, then=SkipFailed(most=1)), attempt(4), SKIP),
    "then skip no more": (Retry(times=3, then=SkipFailed(most=1)), attempt(4, skipped=1), FAIL),
    "no retry of other errors": (Retry(errors=(ValueError,), then=SkipFailed()), attempt(1), SKIP),
    "retry one way, then another": (Retry(times=1, first=1, then=Retry(times=3, first=0)), attempt(2), RetryAfter(0)),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decisions(case: str) -> None:
    policy, event, decision = DECISIONS[case]
    assert policy.decide(event) == decision


@given(
    fails=st.lists(st.booleans(), max_size=80), most=st.integers(0, 9), share=st.floats(0, 1), least=st.integers(1, 20)
)
def test_skipped_items_stay_within_the_bounds(fails: list[bool], most: int, share: float, least: int) -> None:
    policy, skipped = SkipFailed(most=most, share=share, least=least), 0
    for items, failed in enumerate(fails, 1):
        if failed and policy.decide(attempt(1, skipped, items)) is FAIL:
            assert skipped + 1 > most or skipped + 1 > share * items
            return
        skipped += failed
        assert skipped <= most
    assert (policy.final_check(skipped, len(fails)) is None) == (skipped <= share * len(fails))


@pytest.mark.parametrize(
    "make",
    [lambda: SkipFailed(most=-1), lambda: SkipFailed(share=2), lambda: Retry(times=0), lambda: Retry(factor=0.5)],
)
def test_invalid_settings_are_rejected(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="expected"):
        make()


def odd_fail(item: int) -> int:
    if item % 2:
        raise Boom(item)
    return item


def graph_of(policy: OnError, count: int = 10, ordered: bool = False, workers: int = 2) -> Graph:
    graph = Graph("g")
    drawn = graph.source("draw", range(count))
    work = graph.stage("work", odd_fail, after=drawn, workers=workers, ordered=ordered, on_error=policy)
    graph.sink("out", after=work)
    return graph


def test_skipped_items_are_counted_and_leave_no_gap() -> None:
    with graph_of(SkipFailed(), ordered=True).start() as run:
        assert list(run) == [0, 2, 4, 6, 8]
    statistics = run.statistics()["work"]
    assert (statistics.items_in, statistics.items_out, statistics.skipped, statistics.retried) == (10, 5, 5, 0)


def test_one_skip_too_many_fails_the_run_and_reports_the_count() -> None:
    with pytest.raises(StageFailure, match="failed on 5: Boom: 5") as caught:
        list(graph_of(SkipFailed(most=2), workers=1))
    assert caught.value.__cause__ is not None
    assert "2 of 6 items of this stage were skipped before: SkipFailed(most=2" in caught.value.__cause__.__notes__[0]


def test_the_share_is_checked_at_the_end_too() -> None:
    with pytest.raises(StageFailure, match=r"5 of 10 items were skipped, more than the allowed share of 0.4") as caught:
        list(graph_of(SkipFailed(share=0.4)))
    assert isinstance(caught.value.__cause__, TooManySkipped)
    assert len(list(graph_of(SkipFailed(share=0.5)))) == 5


def test_a_retry_that_succeeds_delivers_once() -> None:
    calls: list[int] = []

    def flaky(item: int) -> Iterator[int]:
        calls.append(item)
        yield item
        if calls.count(item) < 3:
            raise Boom
        yield -item

    graph = Graph("g")
    drawn = graph.source("draw", [1, 2])
    work = graph.stage("work", flaky, after=drawn, expand=True, on_error=Retry(times=2, first=0))
    graph.sink("out", after=work)
    with graph.start() as run:
        assert list(run) == [1, -1, 2, -2]
    assert calls == [1, 1, 1, 2, 2, 2]
    assert run.statistics()["work"].retried == 4


@pytest.mark.parametrize("how", ["cancel", "leave", "failure"])
def test_the_end_of_the_run_ends_a_pause_of_an_hour(how: str) -> None:
    failed = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            failed.set()
            raise Boom
        assert failed.wait(30)
        if how == "failure":
            raise KeyError
        return item

    graph = Graph("g")
    drawn = graph.source("draw", [0, 1])
    hour = Retry(first=3600, longest=3600, errors=(Boom,))
    graph.sink("out", after=graph.stage("work", work, after=drawn, workers=2, on_error=hour))
    if how == "failure":
        with pytest.raises(StageFailure, match="KeyError"):
            list(graph)
        return
    with graph.start() as run:
        assert next(iter(run)) == 1
        if how == "cancel":
            run.cancel()
            with pytest.raises(Cancelled):
                list(run)


def test_dead_letters_have_the_item_the_error_and_the_stage() -> None:
    graph = Graph("g")
    drawn = graph.source("draw", range(6))
    policy = Retry(times=1, first=0, then=SkipFailed(share=1))
    work = graph.stage("work", lambda items: odd_fail(sum(items)), after=drawn, gather=Gather(count=2), on_error=policy)
    letters: list[DeadLetter] = []
    graph.stage("letters", letters.append, after=graph.dead_letters(work))
    assert list(graph.sink("out", after=work)) == []
    assert [letter.item for letter in letters] == [[0, 1], [2, 3], [4, 5]]
    assert {(letter.stage, letter.attempts, type(letter.error)) for letter in letters} == {("work", 2, Boom)}


def test_results_and_dead_letters_can_be_merged() -> None:
    graph = Graph("g")
    work = graph.stage("work", odd_fail, after=graph.source("draw", range(4)), on_error=SkipFailed())

    def describe(item: int | DeadLetter) -> str:
        return f"failed {item.item}" if isinstance(item, DeadLetter) else f"done {item}"

    both: list[Node[int | DeadLetter]] = [work, graph.dead_letters(work)]
    texts = graph.stage("describe", describe, after=both)
    assert list(graph.sink("out", after=texts)) == ["done 0", "failed 1", "done 2", "failed 3"]


@pytest.mark.parametrize("policy", [FailFast(), Retry()])
def test_a_stage_that_skips_nothing_has_no_dead_letters(policy: OnError) -> None:
    graph = Graph("g")
    work = graph.stage("work", odd_fail, after=graph.source("draw", [1]), on_error=policy)
    with pytest.raises(
        GraphError, match=r"stage 'work' has no dead letters, because on_error=.* skips no items: use .*SkipFailed"
    ):
        graph.dead_letters(work)


def test_errors_outside_of_the_item_are_never_skipped() -> None:
    graph = Graph("g")

    def work(item: int) -> int:
        raise SystemExit

    graph.stage("work", work, after=graph.source("draw", [1]), on_error=Retry(then=SkipFailed()))
    with pytest.raises(StageFailure, match="SystemExit"):
        graph.run()
    graph = Graph("g")
    graph.stage("work", int, after=graph.source("draw", [1]), acquire=odd_fail, on_error=SkipFailed())
    with pytest.raises(StageFailure, match="Boom"):
        graph.run()
