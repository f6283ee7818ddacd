"""Context variables in workers: initial values by default, those of the caller of `start` on request."""

import decimal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar

import numpy as np
import pytest

from threadloom.pipeline import Graph, Run, per_worker

pytestmark = pytest.mark.timeout(60)

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="none")


def seen(_: int) -> tuple[str, int, str]:
    """Return the context of the calling worker: a variable, decimal's precision, NumPy's error mode."""
    return REQUEST.get(), decimal.getcontext().prec, np.geterr()["divide"]


def observed(run: Run) -> set[tuple[str, int, str]]:
    with run:
        return set(run)


def graph() -> Graph:
    made = Graph("context")
    made.sink("out", after=made.stage("see", seen, after=made.source("numbers", range(20)), workers=3))
    return made


def test_workers_have_initial_values_by_default_and_a_copy_on_request() -> None:
    token = REQUEST.set("outer")
    try:
        with decimal.localcontext(prec=7), np.errstate(divide="raise"):
            plain, carried = graph().start(), graph().start(copy_context=True)
        assert observed(plain) == {("none", 28, "warn")}
        REQUEST.set("later")
        assert observed(carried) == {("outer", 7, "raise")}
    finally:
        REQUEST.reset(token)


def test_workers_do_not_share_their_copies() -> None:
    def change(item: int) -> str:
        before = REQUEST.get()
        REQUEST.set(f"item {item}")
        return before

    made = Graph("context")
    numbers = made.source("numbers", range(3))
    made.sink("out", after=made.stage("second", str, after=made.stage("change", change, after=numbers)))
    with made.start(copy_context=True) as run:
        assert list(run) == ["none", "item 0", "item 1"]
    assert REQUEST.get() == "none"


def test_a_worker_added_during_the_run_has_the_context_of_start() -> None:
    made = graph()
    token = REQUEST.set("outer")
    run = made.start(copy_context=True)
    REQUEST.reset(token)
    with run:
        run.resize("see", workers=5)
        assert {name for name, _, _ in run} == {"outer"}


def test_coroutines_and_their_set_up_have_the_context_of_start() -> None:
    @asynccontextmanager
    async def set_up() -> AsyncIterator[Callable[[int], Coroutine[None, None, tuple[str, str]]]]:
        at_set_up = REQUEST.get()

        async def see(item: int) -> tuple[str, str]:
            return at_set_up, REQUEST.get()

        yield see

    made = Graph("context")
    made.sink("out", after=made.stage("see", per_worker(set_up), after=made.source("numbers", range(9)), concurrency=3))
    token = REQUEST.set("outer")
    try:
        with made.start(copy_context=True) as run:
            assert set(run) == {("outer", "outer")}
    finally:
        REQUEST.reset(token)
