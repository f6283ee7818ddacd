"""Random stage functions, each with its expected outputs.

The outputs of a function do not depend on the order of its calls or on the calling thread.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

from threadloom.pipeline.observe import SKIP, Skip
from threadloom.pipeline.run import per_worker

Function = Callable[[int], int | Skip]
Expansion = Callable[[int], Any]


def random_function(choose: random.Random, items: list[int]) -> tuple[Function, list[int]]:
    """Return a function that moves items or skips some, and its results for `items`."""
    add, skipped = 1000 * choose.randint(1, 9), choose.choice([None, None, 2, 3])

    def move(item: int) -> int | Skip:
        return SKIP if skipped is not None and item % skipped == 0 else item + add

    functions: list[Function] = [move, move, lambda item: item]
    chosen = choose.choice(functions)
    results = map(chosen, items)
    return chosen, [result for result in results if not isinstance(result, Skip)]


def random_expansion(choose: random.Random, items: list[int]) -> tuple[Expansion, list[int]]:
    """Return a function that returns zero to two copies of an item, lazily or as a list, and its elements."""
    copies = choose.randint(0, 2)
    if choose.random() < 0.5:

        def lazily(item: int) -> Iterator[int | Skip]:
            for copy in range(copies):
                yield item + 100_000 * copy
                yield SKIP

        chosen: Expansion = lazily
    else:
        chosen = lambda item: [item + 100_000 * copy for copy in range(copies)]  # noqa: E731
    return chosen, [item + 100_000 * copy for item in items for copy in range(copies)]


class Accumulator:
    """An expansion that holds items back: it returns `count` of them at once, and the rest by `flush`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = Lock()
        self._held: list[int] = []

    def __call__(self, item: int) -> list[int]:
        with self._lock:
            self._held.append(item)
            if len(self._held) < self._count:
                return []
            held, self._held = self._held, []
            return held

    def flush(self) -> Iterator[int]:
        """Yield the items that are held."""
        held, self._held = self._held, []
        yield from held


def random_accumulator(choose: random.Random) -> Any:
    """Return an expansion with a state that is flushed, one for all workers or one for each."""
    count = choose.randint(2, 5)
    if choose.random() < 0.5:
        return Accumulator(count)
    return per_worker(lambda: nullcontext(Accumulator(count)))


def as_coroutine(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `fn` as a coroutine function, which lets others run before and after it."""

    async def call(item: Any) -> Any:
        await asyncio.sleep(0)
        result = fn(item)
        await asyncio.sleep(0)
        return result

    return call


def as_async_generator(fn: Callable[[Any], Iterable[Any]]) -> Callable[[Any], Any]:
    """Return an expansion as an asynchronous generator function."""

    async def generate(item: Any) -> AsyncIterator[Any]:
        for element in fn(item):
            await asyncio.sleep(0)
            yield element

    return generate


def then_release(fn: Callable[[int], Any], release: Callable[[], None] | None) -> Callable[[int], Any]:
    """Return `fn` followed by `release`, unless that is None."""
    if release is None:
        return fn

    def call(item: int) -> Any:
        try:
            return fn(item)
        finally:
            release()

    return call


def with_set_up(fn: Callable[[int], Any]) -> Any:
    """Return `fn` as a stage function with set-up and tear-down in each worker."""

    @contextmanager
    def context() -> Iterator[Callable[[int], Any]]:
        yield fn

    return per_worker(context)
