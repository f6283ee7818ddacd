"""Skipped items are reported once, at the end of the run, and a run in which all were skipped fails."""

import logging
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import Graph, Retry, SkipFailed, StageFailure, TooManySkipped, on_processes

pytestmark = pytest.mark.timeout(60)

LOGGER = "threadloom.pipeline.skipped"


def fails(item: int) -> int:
    """Raise ValueError for multiples of 3, and KeyError for the others of 4."""
    if item % 3 == 0:
        raise ValueError(item)
    if item % 4 == 0:
        raise KeyError(item)
    return item


def graph_of(policy: Any, items: Any = range(1, 13), fn: Any = fails) -> Graph:
    graph = Graph("g")
    node = graph.stage("first", fn, after=graph.source("draw", items), workers=2, on_error=policy)
    second = graph.stage("second", lambda item: 1 // (item - 1), after=node, on_error=SkipFailed())
    graph.sink("out", after=second)
    return graph


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == LOGGER]


EXPECTED = (
    "the run of 'g' skipped items that raised: 6 of 12 by 'first' (4 ValueError, 2 KeyError); "
    "1 of 6 by 'second' (1 ZeroDivisionError)"
)


def test_a_run_says_once_what_it_skipped(caplog: pytest.LogCaptureFixture) -> None:
    graph = graph_of(SkipFailed())
    for number in (1, 2):
        assert len(list(graph)) == 5
        assert lines(caplog) == [EXPECTED] * number
    with graph.start() as run:
        list(run)
        assert len(lines(caplog)) == 2
    assert lines(caplog) == [EXPECTED] * 3
    assert {record.levelno for record in caplog.records if record.name == LOGGER} == {logging.WARNING}


def test_a_run_that_skipped_nothing_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(graph_of(SkipFailed(), [2, 5, 7]))) == 3
    assert caplog.records == []


def test_a_failed_run_says_what_it_skipped_before(caplog: pytest.LogCaptureFixture) -> None:
    graph = Graph("g")
    graph.stage("only", fails, after=graph.source("draw", [3, 6, 4]), on_error=SkipFailed(errors=ValueError))
    with pytest.raises(StageFailure, match="KeyError"):
        graph.run()
    assert lines(caplog) == ["the run of 'g' skipped items that raised: 2 of 3 by 'only' (2 ValueError)"]


def test_an_error_of_a_process_has_the_name_of_its_type(caplog: pytest.LogCaptureFixture) -> None:
    graph = Graph("g")
    graph.stage("only", on_processes(hard), after=graph.source("draw", [1, 2]), on_error=SkipFailed())
    graph.run()
    assert lines(caplog) == ["the run of 'g' skipped items that raised: 1 of 2 by 'only' (1 TwoArguments)"]


class TwoArguments(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def hard(item: int) -> int:
    """Raise TwoArguments for 1."""
    if item == 1:
        raise TwoArguments("1", "2")
    return item


@pytest.mark.parametrize("policy", [SkipFailed(), SkipFailed(most=9), Retry(times=1, first=0, then=SkipFailed())])
@pytest.mark.parametrize("count", [1, 5])
def test_a_run_in_which_all_items_were_skipped_fails(policy: Any, count: int) -> None:
    def misspelt(item: int) -> int:
        raise Boom("no such name")

    with pytest.raises(StageFailure, match="stage 'first'") as caught:
        list(graph_of(policy, range(count), misspelt))
    cause = caught.value.__cause__
    assert isinstance(cause, TooManySkipped)
    assert f"all {count} items were skipped, which only share=1 accepts, the first because of Boom" in str(cause)


def test_a_policy_accepts_that_all_items_are_skipped_and_an_empty_input_is_no_failure() -> None:
    assert list(graph_of(SkipFailed(share=1), [3, 6])) == []
    assert list(graph_of(SkipFailed(), [])) == []


def test_a_run_that_is_left_early_does_not_fail() -> None:
    graph = Graph("g")
    numbers = graph.source("draw", range(100))
    graph.stage("first", lambda item: 1 // 0, after=numbers, on_error=SkipFailed())
    graph.sink("out", after=numbers)
    for _ in graph:
        break
