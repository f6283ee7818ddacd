"""Failures of runs. conftest checks after every test that no thread is left; see test_engine_stopping for stopping."""

import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tests.pipeline.run.helpers import Boom, WaitingResource, consume
from threadloom.pipeline import (
    Cancelled,
    Gather,
    Graph,
    InOrder,
    PipelineError,
    ShutdownTimeout,
    StageFailure,
    Trace,
)

pytestmark = pytest.mark.timeout(60)

COUNT = 24


Fn = Callable[[Any], Any]


def line(fns: dict[str, Fn]) -> Graph:
    graph = Graph("line")
    node = graph.source("draw", lambda: map(fns["draw"], range(COUNT)))
    for name in ("one", "two", "three"):
        node = graph.stage(name, fns[name], after=node, workers=2)
    graph.sink("out", after=node)
    return graph


def diamond(fns: dict[str, Fn]) -> Graph:
    graph = Graph("diamond")
    source = graph.source("draw", lambda: map(fns["draw"], range(COUNT)))
    one = graph.stage("one", fns["one"], after=source)
    two = graph.stage("two", fns["two"], after=source, capacity=1)
    three = graph.stage("three", fns["three"], after=[one, two], workers=3)
    graph.sink("out", after=[three, two])
    return graph


def training(fns: dict[str, Fn]) -> Graph:
    """Return a graph with a gathering stage, an expansion, an order and a stage without successors."""
    graph = Graph("training")
    source = graph.source("draw", lambda: map(fns["draw"], range(COUNT)))
    order = InOrder[int](order=lambda item: (item % 2, item // 2))
    one = graph.stage("one", fns["one"], after=source, workers=3, admission=order)
    groups = Gather[int](key=lambda item: item // 4, count=4)
    two = graph.stage("two", lambda items: [fns["two"](item) for item in items], after=one, gather=groups, expand=True)
    graph.stage("three", fns["three"], after=two)
    graph.sink("out", after=two)
    return graph


def no_sink(fns: dict[str, Fn]) -> Graph:
    graph = Graph("no sink")
    one = graph.stage("one", fns["one"], after=graph.source("draw", lambda: map(fns["draw"], range(COUNT))))
    two = graph.stage("two", fns["two"], after=one, workers=2)
    graph.stage("three", fns["three"], after=[one, two])
    return graph


SHAPES = {shape.__name__: shape for shape in (line, diamond, training, no_sink)}


def label(item: object) -> dict[str, int | str]:
    return {"item": item} if isinstance(item, int) else {}


@pytest.mark.parametrize("raised", [Boom, SystemExit, MemoryError])
@pytest.mark.parametrize("at", [0, COUNT // 2, COUNT - 1])
@pytest.mark.parametrize("stage", ["draw", "one", "two", "three"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_caller_gets_the_first_error_of_any_stage_at_any_item(
    shape: str, stage: str, at: int, raised: type[BaseException]
) -> None:
    error = raised("at the item")

    def failing(item: int) -> int:
        if item == at:
            raise error
        return item

    fns: dict[str, Fn] = {name: failing if name == stage else int for name in ("draw", "one", "two", "three")}
    pool = WaitingResource()
    with pytest.raises(StageFailure) as caught, SHAPES[shape](fns).start(resources=[pool], label=label) as run:
        consume(run)
    failure = caught.value
    assert failure.stage == stage
    assert failure.__cause__ is error
    assert failing.__name__ in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert f"stage {stage!r} (worker {failure.worker}) failed on" in str(failure)
    if stage != "draw" and not (shape == "training" and stage == "two"):
        assert failure.label == {"item": at}
    assert pool.aborted.is_set()


CALLABLES = ("acquire", "when", "order", "label", "key")


@pytest.mark.parametrize("which", CALLABLES)
@pytest.mark.parametrize("at", [0, COUNT - 1])
def test_an_error_in_any_other_function_is_reported_too(which: str, at: int) -> None:
    def failing(item: int) -> int:
        if item == at:
            raise Boom(which)
        return item

    fns: dict[str, Fn] = dict.fromkeys(CALLABLES, int) | {which: failing}
    graph = Graph("functions")
    source = graph.source("draw", range(COUNT))
    order = InOrder[int](order=lambda item: (0, fns["order"](item)))
    one = graph.stage("one", int, after=source, acquire=fns["acquire"], admission=order)
    two = graph.stage("two", int, after=one, when=lambda item: fns["when"](item) >= 0)
    groups = Gather[int](key=lambda item: fns["key"](item) // 2, count=2)
    graph.sink("out", after=graph.stage("three", sum, after=two, gather=groups))
    with pytest.raises(StageFailure) as caught:
        with graph.start(label=lambda item: {"item": fns["label"](item)}, trace=Trace()) as run:
            consume(run)
    assert isinstance(caught.value.__cause__, Boom)
    expected = {"acquire": "one", "when": "one", "order": "draw", "label": "draw", "key": "two"}
    assert caught.value.stage == expected[which]
    if which in ("when", "order", "key"):
        successor = {"when": "two", "order": "one", "key": "three"}[which]
        assert f"while sending to stage {successor!r}" in caught.value.__cause__.__notes__[0]


def test_only_the_first_of_several_errors_is_reported() -> None:
    first_raised = threading.Event()

    class Late(WaitingResource):
        def abort(self) -> None:  # called once the outcome is decided
            first_raised.set()

    def work(item: int) -> int:
        if item == 0:
            raise Boom("first")
        assert first_raised.wait(30)
        raise Boom("consequence")

    graph = Graph("two errors")
    graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", range(4)), workers=3))
    with pytest.raises(StageFailure, match="first") as caught, graph.start(resources=[Late()]) as run:
        consume(run)
    assert str(caught.value.__cause__) == "first"
    assert "item 0" not in caught.value.item
    assert caught.value.item == "0"


def test_an_error_reaches_workers_that_wait_for_a_resource() -> None:
    pool = WaitingResource()

    def fail_when_other_waits(item: int) -> int:
        assert pool.entered.wait(30)
        raise Boom

    graph = Graph("resources")
    source = graph.source("draw", range(COUNT))
    waiting = graph.stage("waiting", int, after=source, acquire=pool.take)
    failing = graph.stage("failing", fail_when_other_waits, after=source)
    graph.sink("out", after=[waiting, failing])
    with pytest.raises(StageFailure) as caught, graph.start(resources=[pool]) as run:
        consume(run)
    assert caught.value.stage == "failing"


def test_all_resources_are_aborted_even_if_one_abort_raises() -> None:
    class Broken:
        def abort(self) -> None:
            raise ValueError("cannot")

    def work(item: int) -> int:
        raise Boom

    pool = WaitingResource()
    graph = Graph("broken")
    graph.stage("work", work, after=graph.source("draw", [1]))
    with pytest.raises(StageFailure) as caught:
        graph.run(resources=[Broken(), pool])
    assert pool.aborted.is_set()
    assert "abort() of Broken raised ValueError: cannot" in caught.value.__notes__


def test_a_failure_after_the_sink_is_exhausted_is_raised() -> None:
    out_ended = threading.Event()

    def slow(item: int) -> None:
        assert out_ended.wait(30)
        raise Boom

    graph = Graph("leaf")
    source = graph.source("draw", [1])
    graph.stage("leaf", slow, after=source)
    graph.sink("out", after=source)
    with pytest.raises(StageFailure, match="'leaf'"), graph.start() as run:
        for _ in run:
            out_ended.set()


def test_a_failure_that_was_not_raised_before_is_raised_at_the_end_of_the_block() -> None:
    pool = WaitingResource()

    def work(item: int) -> int:
        raise Boom

    graph = Graph("unseen")
    graph.stage("work", work, after=graph.source("draw", [1]))
    with pytest.raises(StageFailure), graph.start(resources=[pool]):
        assert pool.aborted.wait(30)
    with pytest.raises(KeyError) as caught, graph.start(resources=[pool := WaitingResource()]):
        assert pool.aborted.wait(30)
        raise KeyError
    assert "StageFailure: stage 'work'" in caught.value.__notes__[0]


def test_missing_items_of_an_ordered_sink_are_a_failure_of_the_sink() -> None:
    graph = Graph("gap")
    order = InOrder[int](order=lambda item: (0, item))
    graph.sink("out", after=graph.source("draw", [0, 2]), admission=order)
    with pytest.raises(StageFailure, match="waits for item 1 and holds 2") as caught, graph.start() as run:
        consume(run)
    assert caught.value.stage == "out"


def test_an_incomplete_group_is_a_failure_of_its_stage() -> None:
    graph = Graph("groups")
    graph.stage("sum", sum, after=graph.source("draw", range(5)), gather=Gather(count=2))
    with pytest.raises(StageFailure, match="None has 1") as caught:
        graph.run()
    assert caught.value.stage == "sum"


def test_a_label_that_fails_does_not_hide_the_error() -> None:
    def broken(item: object) -> dict[str, int | str]:
        raise ValueError

    def work(item: int) -> int:
        raise Boom("the one")

    graph = Graph("labels")
    graph.stage("work", work, after=graph.source("draw", [1]))
    with pytest.raises(StageFailure, match=r"an item of type int \(its label raised ValueError\): Boom: the one"):
        graph.run(label=broken)


def test_errors_are_pipeline_errors() -> None:
    assert all(issubclass(each, PipelineError) for each in (StageFailure, Cancelled, ShutdownTimeout))
