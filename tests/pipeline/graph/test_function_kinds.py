"""Kinds of stage functions: generator functions expand, and no function is accepted whose body would never run."""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from threadloom.pipeline import (
    Gather,
    Graph,
    GraphError,
    InOrder,
    PipelineError,
    StageFailure,
    on_processes,
    per_worker,
)
from threadloom.pipeline.core import FunctionKind, kind_of

pytestmark = pytest.mark.timeout(60)


def twice(item: int) -> Iterator[int]:
    yield item
    yield -item


async def fetch(item: int) -> int:
    return item


async def fetch_twice(item: int) -> AsyncIterator[int]:
    yield item


class Model:
    """An object with each kind of method, and a context manager."""

    def __init__(self, unit: int = 1) -> None:
        self.unit = unit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, item: int) -> Iterator[int]:
        yield from twice(item)

    def plain(self, item: int) -> int:
        return item

    def generate(self, first: int, item: int) -> Iterator[int]:
        yield first
        yield item

    async def fetch(self, item: int) -> int:
        return item


unordered: Any = fetch


class Fetcher:
    """An object that is called like a coroutine function."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    async def __call__(self, item: int) -> int:
        return item


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (len, FunctionKind.PLAIN),
        (str, FunctionKind.PLAIN),
        (lambda item: item, FunctionKind.PLAIN),
        (Model().plain, FunctionKind.PLAIN),
        (Model, FunctionKind.PLAIN),
        (twice, FunctionKind.GENERATOR),
        (Model(), FunctionKind.GENERATOR),
        (partial(Model()), FunctionKind.GENERATOR),
        (Model().generate, FunctionKind.GENERATOR),
        (partial(partial(Model().generate), 3), FunctionKind.GENERATOR),
        (fetch, FunctionKind.COROUTINE),
        (Model().fetch, FunctionKind.COROUTINE),
        (Fetcher(), FunctionKind.COROUTINE),
        (partial(Fetcher()), FunctionKind.COROUTINE),
        (fetch_twice, FunctionKind.ASYNC_GENERATOR),
    ],
)
def test_the_kind_of_a_function(fn: Callable[..., Any], kind: FunctionKind) -> None:
    assert kind_of(fn) is kind


@contextmanager
def generating() -> Iterator[Callable[[int], Iterator[int]]]:
    yield twice


@pytest.mark.parametrize("fn", [twice, Model(), per_worker(Model), per_worker(partial(Model, 2))])
def test_a_generator_function_expands(fn: Callable[[int], Iterator[int]]) -> None:
    graph = Graph("generators")
    out = graph.sink("out", after=graph.stage("twice", fn, after=graph.source("draw", [1, 2])))
    assert list(out) == [1, -1, 2, -2]


def test_a_generator_function_without_a_sink_runs() -> None:
    seen: list[int] = []

    def keep(item: int) -> Iterator[int]:
        seen.append(item)
        yield item

    graph = Graph("no sink")
    graph.stage("keep", keep, after=graph.source("draw", [1, 2]))
    assert graph.run()["keep"].items_out == 2
    assert seen == [1, 2]


def test_a_generator_function_on_processes_expands() -> None:
    graph = Graph("processes")
    graph.stage("twice", on_processes(twice), after=graph.source("draw", [1]))
    assert graph.stages[1].expand
    assert not graph.stages[0].expand


def test_a_generator_function_that_a_set_up_returns_needs_expand() -> None:
    for expand, expected in ((True, [1, -1]), (None, None)):
        graph = Graph("set-up")
        options: Any = {} if expand is None else {"expand": expand}
        node = graph.stage("twice", per_worker(generating), after=graph.source("draw", [1]), **options)
        out = graph.sink("out", after=node)
        if expected:
            assert list(out) == expected
        else:
            with pytest.raises(StageFailure, match=r"set-up: .*a generator function: pass expand=True"):
                list(out)


Build = Callable[[Any, Any], Any]  # untyped, because mypy rejects some of these calls too

REFUSED: dict[str, tuple[Build, str]] = {
    "generator, not expanded": (
        lambda g, n: g.stage("b", twice, after=n, expand=False),
        "stage 'b' has a generator function and expand=False, .*: omit expand, or return a list",
    ),
    "generator in a join": (
        lambda g, n: g.join("b", twice, after=(n, g.source("c", [1]))),
        "join 'b' has a generator function, but a join sends one result",
    ),
    "class with a call": (
        lambda g, n: g.stage("b", Model, after=n),
        r"stage 'b' needs a function, got the class Model, .*: pass an instance, Model\(...\), or per_worker\(Model\)",
    ),
    "class in a partial": (lambda g, n: g.stage("b", partial(Model, 2), after=n), "got the class Model"),
    "class in a join": (
        lambda g, n: g.join("b", Fetcher, after=(n, g.source("c", [1]))),
        "'b' needs a function, got the class Fetcher",
    ),
    "asynchronous when": (
        lambda g, n: g.stage("b", int, after=n, when=fetch),
        "stage 'b' needs when to be an ordinary function, got a coroutine function",
    ),
    "generating acquire": (
        lambda g, n: g.stage("b", int, after=n, acquire=twice),
        "stage 'b' needs acquire to be an ordinary function, got a generator function",
    ),
    "asynchronous route": (lambda g, n: g.route("b", fetch, after=n, to=[1]), "route 'b' needs key to be an ordinary"),
    "asynchronous group": (
        lambda g, n: g.stage("b", len, after=n, gather=Gather[Any](key=unordered, count=2)),
        "stage 'b' needs gather.key to be an ordinary function",
    ),
    "asynchronous order": (
        lambda g, n: g.sink("b", after=n, admission=InOrder[Any](order=unordered)),
        "sink 'b' needs admission.order to be an ordinary function",
    ),
    "asynchronous key": (
        lambda g, n: g.join("b", len, after=(n, g.source("c", [1])), keys=(abs, fetch)),
        r"'b' needs keys\[1\] to be an ordinary function",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_functions_whose_body_would_not_run_are_refused(case: str) -> None:
    build, message = REFUSED[case]
    graph = Graph("g")
    with pytest.raises(GraphError, match=message):
        build(graph, graph.source("a", [1]))


def test_classes_that_convert_are_legal() -> None:
    kinds: list[Any] = [str, float, complex, Path, io.BytesIO]
    for kind in kinds:
        graph = Graph("classes")
        graph.stage("convert", kind, after=graph.source("draw", ["1"]))


@pytest.mark.parametrize("fn", [fetch, fetch_twice, Fetcher(), per_worker(Fetcher)])
def test_coroutine_functions_are_refused_on_processes(fn: Callable[[int], Any]) -> None:
    with pytest.raises(
        PipelineError, match=r"on_processes needs an ordinary or a generator function, got .*: pass it to"
    ):
        on_processes(fn)
