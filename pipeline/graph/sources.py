"""Declarations of sources: one iterable, or shards, which several workers iterate at the same time."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from inspect import isasyncgen, isgenerator
from itertools import chain
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import GraphError, kind_of
from threadloom.pipeline.graph.argument_checks import check_source
from threadloom.pipeline.graph.function_checks import needs_loop
from threadloom.pipeline.graph.lengths import length_of
from threadloom.pipeline.graph.settings import Items
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.policy import FailFast, OnError, Rate

Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)


class Shards(Generic[Out_co]):
    """The items of a source in several parts, each iterated by a worker thread of the source.

        graph.source("read", Shards(*(partial(read_lines, path) for path in paths)), ordered=True)

    A shard is an iterable or a function that returns one, as for a source with one worker. There is one worker per
    shard; for many more shards than threads, use a source of their names, and a stage with `expand` and some workers.
    """

    def __init__(self, *shards: Items[Out_co] | Callable[[], Items[Out_co]]) -> None:
        if not shards:
            raise GraphError("Shards needs at least one shard, an iterable or a function that returns one")
        for number, shard in enumerate(shards):
            check_source(f"shard {number}", shard)
        self.shards = shards

    def __repr__(self) -> str:
        return f"<{len(self.shards)} shards>"


def source_stage(name: str, items: Any, on_error: OnError, ordered: bool, rate: Rate | float | None) -> Stage:
    """Return the declaration of a source. Raises GraphError if its items or their number do not fit the settings."""
    if isinstance(items, Shards):
        opened = [_function_of(shard) for shard in items.shards]
        for number, shard in enumerate(items.shards):
            _check_resumable(f"shard {number} of source {name!r}", shard, on_error)
        return Stage(
            name,
            NodeKind.SOURCE,
            fn=lambda worker: _open(*opened[worker]),
            workers=len(opened),
            shards=len(opened),
            closes=True,
            ordered=ordered,
            on_error=on_error,
            rate=rate,
            length=length_of(*items.shards),
            concurrency=1 if any(map(needs_loop, items.shards)) else None,
        )
    if ordered:
        raise GraphError(
            f"source {name!r} has ordered=True and one worker, which keeps the order: omit ordered, or pass its items "
            f"as Shards(...)"
        )
    check_source(f"source {name!r}", items)
    _check_resumable(f"source {name!r}", items, on_error)
    fn, created_here = _function_of(items)
    return Stage(
        name,
        NodeKind.SOURCE,
        fn=fn,
        closes=created_here,
        on_error=on_error,
        rate=rate,
        length=length_of(items),
        concurrency=1 if needs_loop(items) else None,
    )


def _function_of(items: Any) -> tuple[Callable[[], Items[Any]], bool]:
    """Return a function that returns the iterable, and True if it is created in each run, so that it may be closed."""
    if callable(items) and not isinstance(items, (Iterable, AsyncIterable)):
        return items, True
    return lambda: items, False


def _open(fn: Callable[[], Items[Any]], created_here: bool) -> Items[Any]:
    """Return the iterable of a shard, with a `close` only if the worker has to call it."""
    items = fn()
    if created_here:
        return items
    return _elements(items) if isinstance(items, AsyncIterable) else chain(items)


async def _elements(items: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for item in items:
        yield item


def _check_resumable(subject: str, items: object, on_error: OnError) -> None:
    """Raise GraphError if a policy is to continue a generator after an error."""
    if not isinstance(on_error, FailFast) and (isgenerator(items) or isasyncgen(items) or kind_of(items).generates):
        raise GraphError(
            f"{subject} is a generator, and on_error={on_error!r} cannot continue a generator, which has ended once it "
            f"has raised: iterate an object whose __next__ can be called again, or let the source yield names and read "
            f"them in a stage with the policy"
        )
