"""Instrumentation of a graph: its functions are wrapped so that they report to a journal and inject faults.

Guarantees: the wrapped stages have the same shape. Items are not wrapped, so the engine and the user's functions see
the same objects as without instrumentation.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from threadloom.pipeline.core import flushed, has_flush
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import Branch, NodeKind, Route, Stage, Via
from threadloom.pipeline.policy import Attempt, Decision, Expansion, FailFast, OnError, RetryAfter
from threadloom.pipeline.processes import ProcessWorker
from threadloom.pipeline.run import PerWorker
from threadloom.pipeline.testing.async_wrappers import AsyncSourceElements, remember_caller, wrap_coroutine
from threadloom.pipeline.testing.faults import PolicyFault
from threadloom.pipeline.testing.injection import FaultInjector
from threadloom.pipeline.testing.journal import Journal


def instrument(graph: Graph, journal: Journal, faults: FaultInjector) -> list[Stage]:
    """Return the stages of a graph with every function wrapped. Consumers of sinks report by themselves."""
    wrap = _Wrapper(journal, faults)
    return [wrap.stage(stage) for stage in graph.stages]


class _Wrapper:
    """The wrapping of one graph's functions."""

    def __init__(self, journal: Journal, faults: FaultInjector) -> None:
        self._journal = journal
        self._faults = faults
        self._routes: dict[Route, Route] = {}  # original → wrapped: the branches of a route share one wrapped route

    def stage(self, stage: Stage) -> Stage:
        changes: dict[str, Any] = {"via": tuple(self._via(via) for via in stage.via)}
        if stage.when is not None:
            changes["when"] = self._when(stage.name, stage.when)
        if stage.kind is NodeKind.SOURCE:
            assert stage.fn is not None
            changes |= {"fn": self._source(stage, stage.fn), "closes": True}
        elif stage.kind is NodeKind.STAGE:
            assert stage.fn is not None
            fn = stage.fn
            if stage.concurrency is not None:
                changes["acquire"] = remember_caller(stage.acquire)
            changes["fn"] = self._per_worker(stage, fn) if isinstance(fn, PerWorker) else self._function(stage, fn)
        if not isinstance(stage.on_error, FailFast):
            changes["on_error"] = FaultyPolicy(stage.on_error, stage.on_error.expansion)
        return replace(stage, **changes)

    def _when(self, name: str, when: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def wrapped(item: Any) -> bool:
            accepted = when(item)
            self._journal.select(name, item, accepted=accepted)
            return accepted

        return wrapped

    def _via(self, via: Via) -> Via:
        if not isinstance(via, Branch):
            return via
        route = via.route

        def key(item: Any) -> Hashable:
            chosen = route.key(item)
            self._journal.choose(Branch(route, chosen), item)
            return chosen

        if route not in self._routes:
            self._routes[route] = replace(route, key=key)
        return Branch(self._routes[route], via.key)

    def _source(self, stage: Stage, fn: Callable[..., Any]) -> Callable[..., Any]:
        if stage.concurrency is not None:
            return lambda *worker: AsyncSourceElements(aiter(fn(*worker)), stage, self._journal, self._faults)
        return lambda *worker: _SourceElements(iter(fn(*worker)), stage, self._journal, self._faults)

    def _function(self, stage: Stage, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        journal, faults, name = self._journal, self._faults, stage.name
        if stage.concurrency is not None:
            return wrap_coroutine(stage, fn, journal, faults, self._finish)

        def wrapped(item: Any) -> Any:
            number = journal.next_call(name)
            journal.begin(name, item)
            try:
                faults.inject(name, number, after=False)
                result = fn(item)
                faults.inject(name, number, after=True)
            except BaseException:
                journal.end(name, item, error=True)
                raise
            return self._finish(stage, item, result)

        return _Flushable(wrapped, self._flushed(stage, fn)) if has_flush(fn) else wrapped

    def _finish(self, stage: Stage, item: Any, result: Any) -> Any:
        """Report the result of a call, or return an iterable that reports its elements."""
        if stage.expand:
            elements = self._elements(stage, item, result)
            # A lazy result stays lazy and others do not: the engine closes and traces the two differently.
            return elements if hasattr(result, "__next__") else _Elements(elements)
        self._journal.end(stage.name, item, error=False)
        self._journal.emit(stage.name, result)
        return result

    def _flushed(self, stage: Stage, fn: Any) -> Callable[[], Iterator[Any]]:
        record = self._journal.of[stage.name]

        def flush() -> Iterator[Any]:
            for count, element in enumerate(flushed(fn), 1):
                record.most_emitted = max(record.most_emitted, count)
                self._journal.emit(stage.name, element)
                yield element

        return flush

    def _elements(self, stage: Stage, item: Any, result: Iterable[Any]) -> Iterator[Any]:
        error, count = True, 0
        record = self._journal.of[stage.name]
        try:
            for element in result:
                count += 1
                record.most_emitted = max(record.most_emitted, count)
                self._journal.emit(stage.name, element)
                yield element
            error = False
        finally:
            self._journal.end(stage.name, item, error=error)
            if hasattr(result, "close"):
                result.close()

    def _per_worker(self, stage: Stage, fn: PerWorker[Any, Any]) -> PerWorker[Any, Any]:
        wrap_function, workers, make = self._function, self._faults.workers, fn.make

        class Wrapped(AbstractContextManager[Callable[[Any], Any]]):
            def __init__(self) -> None:
                self.inner = make()

            def __enter__(self) -> Callable[[Any], Any]:
                entered = self.inner.__enter__()
                if isinstance(entered, ProcessWorker):
                    workers[threading.current_thread()] = entered
                return wrap_function(stage, entered)

            def __exit__(self, *error: Any) -> None:
                self.inner.__exit__(*error)

            @property
            def chunk(self) -> int:
                return getattr(self.inner, "chunk", 1)

            def send_ahead(self, items: Any) -> None:
                sender: Any = self.inner
                sender.send_ahead(items)

        wrapped = copy(fn)  # keeps other abilities, for example to abort its processes
        wrapped.make = Wrapped
        return wrapped


@dataclass(frozen=True)
class FaultyPolicy(OnError):
    """A failure policy that raises for a POLICY fault, and is `policy` otherwise."""

    policy: OnError
    expansion: Expansion = Expansion.COLLECTED

    @property
    def skips(self) -> bool:
        return self.policy.skips

    def decide(self, attempt: Attempt) -> Decision | RetryAfter:
        if isinstance(attempt.error, PolicyFault):
            raise attempt.error
        return self.policy.decide(attempt)

    def final_check(self, skipped: int, items: int) -> str | None:
        return self.policy.final_check(skipped, items)


class _SourceElements(Iterator[Any]):
    """The elements of a source or a shard. Not a generator, which could not continue after an injected error."""

    def __init__(self, iterator: Iterator[Any], stage: Stage, journal: Journal, faults: FaultInjector) -> None:
        self._iterator = iterator
        self._stage = stage
        self._journal = journal
        self._faults = faults

    def __next__(self) -> Any:
        name = self._stage.name
        number = self._journal.next_call(name)
        try:
            self._faults.inject(name, number, after=False)
            element = next(self._iterator)
            self._faults.inject(name, number, after=True)
        except StopIteration:
            raise
        except BaseException:
            self._journal.fail_element(name)
            raise
        self._journal.emit(name, element)
        return element

    def close(self) -> None:
        if self._stage.closes and hasattr(self._iterator, "close"):
            self._iterator.close()


class _Flushable:
    """A wrapped function with a wrapped `flush`."""

    def __init__(self, call: Callable[[Any], Any], flush: Callable[[], Iterator[Any]]) -> None:
        self._call = call
        self.flush = flush

    def __call__(self, item: Any) -> Any:
        return self._call(item)


class _Elements:
    """An iterable that is not an iterator, like a list."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self._elements = elements

    def __iter__(self) -> Iterator[Any]:
        return self._elements
