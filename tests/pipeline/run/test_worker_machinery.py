"""Errors outside the stage function: in a policy, a clock, a context manager, or the text of an error. None hangs.

Every graph has an endless source, so that a worker that ended without a word would leave the others waiting.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom
from threadloom.pipeline import (
    Attempt,
    Decision,
    Graph,
    OnError,
    Retry,
    SkipFailed,
    StageFailure,
    per_worker,
)

pytestmark = pytest.mark.timeout(10)


class BadText(Exception):
    """An error whose text cannot be formatted."""

    def __str__(self) -> str:
        raise Boom


class BadItem:
    """An item of which nothing works but its identity."""

    def __repr__(self) -> str:
        raise Boom

    def __eq__(self, other: object) -> bool:
        raise Boom

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class BadPolicy(OnError):
    """A policy that raises in one of its methods."""

    at: str

    @property
    def skips(self) -> bool:
        return True

    def decide(self, attempt: Attempt) -> Decision:
        if self.at == "decide":
            raise Boom
        return Decision.FAIL if self.at == "__str__" and attempt.skipped else Decision.SKIP

    def final_check(self, skipped: int, items: int) -> str | None:
        if self.at == "final_check":
            raise Boom
        return None

    def __str__(self) -> str:
        raise Boom


def divide(item: int) -> float:
    return 1 / (item - item)


def graph_of(fn: Callable[..., Any], *, items: Callable[[], Iterator[Any]] = itertools.count, **options: Any) -> Graph:
    graph = Graph("defective")
    node = graph.stage("work", fn, after=graph.source("draw", items), workers=2, **options)
    graph.sink("out", after=graph.stage("next", lambda item: item, after=node))
    return graph


@contextmanager
def raising_at_the_end() -> Iterator[Callable[[int], int]]:
    try:
        yield lambda item: item
    finally:
        raise Boom


class AbortRaises:
    """A set-up whose `abort` raises, which must not keep the others from being aborted."""

    def __enter__(self) -> Callable[[int], float]:
        return divide

    def __exit__(self, *error: object) -> None:
        raise Boom

    def abort(self) -> None:
        raise Boom


FINITE: dict[str, Any] = {"items": lambda: iter(range(5))}
DEFECTIVE: dict[str, tuple[Graph, type[Exception]]] = {
    "a policy raises in decide": (graph_of(divide, on_error=BadPolicy("decide")), Boom),
    "a policy raises in final_check": (graph_of(divide, on_error=BadPolicy("final_check"), **FINITE), Boom),
    "a policy inside another raises": (
        graph_of(divide, on_error=Retry(times=1, first=0, then=BadPolicy("final_check")), **FINITE),
        Boom,
    ),
    "the text of a policy raises": (graph_of(divide, on_error=BadPolicy("__str__")), ZeroDivisionError),
    "a decision is of no known type": (
        graph_of(divide, on_error=type("Odd", (OnError,), {"decide": lambda self, attempt: None})()),
        TypeError,
    ),
    "the text of an error raises": (graph_of(lambda item: (_ for _ in ()).throw(BadText())), BadText),
    "an item has no text": (graph_of(lambda item: 1 / 0, items=lambda: itertools.repeat(BadItem())), ZeroDivisionError),
    "a tear-down raises": (graph_of(per_worker(raising_at_the_end), **FINITE), Boom),
    "a tear-down and an abort raise": (graph_of(per_worker(AbortRaises)), ZeroDivisionError),
    "a set-up gives no context": (graph_of(per_worker(lambda: 3)), AttributeError),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("name", DEFECTIVE)
def test_the_run_ends_with_the_error(name: str) -> None:
    graph, expected = DEFECTIVE[name]
    with pytest.raises(StageFailure) as caught:
        list(graph)
    assert caught.value.stage == "work"
    assert isinstance(caught.value.__cause__, expected)


@pytest.mark.parametrize("reading", [1, 2, 3, 5, 8, 13, 40])
def test_a_clock_that_raises_in_any_worker_ends_the_run(reading: int) -> None:
    """A clock is called in each step of a worker, and in its last."""
    readings = itertools.count()  # `next` is atomic

    def clock() -> int:
        number = next(readings)
        if number >= 20 + reading and number % 2:  # the run itself reads it as it starts
            raise Boom
        return number

    graph = graph_of(lambda item: item)
    with pytest.raises((StageFailure, Boom)), graph.start(clock=clock, watchdog=None, grace=2) as run:
        for _ in run:
            pass


def test_items_that_cannot_be_compared_pass_and_are_skipped() -> None:
    graph = graph_of(
        lambda item: item, items=lambda: itertools.repeat(BadItem(), 5), on_error=SkipFailed(), ordered=True
    )
    assert len(list(graph)) == 5
