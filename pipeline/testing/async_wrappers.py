"""Wrappers of coroutine functions and asynchronous sources, which report to a journal and inject faults.

The items of several workers are processed in the thread of one event loop. `acquire`, which is called in the thread of
the worker, stores that thread in a context variable, which the task of the item inherits (`journal.caller`).
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.observe import Stage
from threadloom.pipeline.testing.injection import FaultInjector
from threadloom.pipeline.testing.journal import CALLER, Journal

Finish = Callable[[Stage, Any, Any], Any]
"""Reports the result of a call for an item; returns the result for the engine."""


def remember_caller(acquire: Callable[[Any], object] | None) -> Callable[[Any], object]:
    """Return an `acquire` that also stores the thread of the worker."""

    def wrapped(item: Any) -> object:
        CALLER.set(threading.current_thread())
        return None if acquire is None else acquire(item)

    return wrapped


def wrap_coroutine(
    stage: Stage, fn: Callable[[Any], Any], journal: Journal, faults: FaultInjector, finish: Finish
) -> Callable[[Any], Any]:
    """Return a coroutine function, or a function that returns an asynchronous generator, wrapped."""
    name = stage.name

    def wrapped(item: Any) -> Any:
        number = journal.next_call(name)
        journal.begin(name, item)
        try:
            faults.inject(name, number, after=False)
            result = fn(item)
        except BaseException:
            journal.end(name, item, error=True)
            raise
        if hasattr(result, "__aiter__"):
            return elements(item, number, result)
        return awaited(item, number, result)

    async def awaited(item: Any, number: int, result: Awaitable[Any]) -> Any:
        try:
            value = await result
            faults.inject(name, number, after=True)
        except BaseException:
            journal.end(name, item, error=True)
            raise
        return finish(stage, item, value)

    async def elements(item: Any, number: int, result: Any) -> AsyncIterator[Any]:
        error, count, record = True, 0, journal.of[name]
        try:
            faults.inject(name, number, after=True)
            async for element in result:
                count += 1
                record.most_emitted = max(record.most_emitted, count)
                journal.emit(name, element)
                yield element
            error = False
        finally:
            journal.end(name, item, error=error)
            await result.aclose()

    return wrapped


@dataclass
class AsyncSourceElements(AsyncIterator[Any]):
    """The elements of an asynchronous source. Not a generator, which could not continue after an injected error."""

    iterator: AsyncIterator[Any]
    stage: Stage
    journal: Journal
    faults: FaultInjector

    async def __anext__(self) -> Any:
        journal, name = self.journal, self.stage.name
        number = journal.next_call(name)
        try:
            self.faults.inject(name, number, after=False)
            element = await anext(self.iterator)
            self.faults.inject(name, number, after=True)
        except StopAsyncIteration:
            raise
        except BaseException:
            journal.fail_element(name)
            raise
        journal.emit(name, element)
        return element

    async def aclose(self) -> None:
        if self.stage.closes and hasattr(self.iterator, "aclose"):
            await self.iterator.aclose()
