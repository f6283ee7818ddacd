"""Checks of the functions of a graph, by their kind: none is accepted whose body would never run."""

from collections.abc import AsyncIterable, Callable
from typing import Any

from threadloom.pipeline.core import FunctionKind, GraphError, actor_class, has_flush, kind_of
from threadloom.pipeline.processes import OnProcesses
from threadloom.pipeline.run import PerWorker


def kind_of_stage(fn: object) -> FunctionKind:
    """Return the kind of a stage function."""
    return fn.kind if isinstance(fn, PerWorker) else kind_of(fn)


def check_function(subject: str, fn: object) -> None:
    """Raise GraphError if a stage function is no function, or a class of which an instance was probably meant."""
    if not callable(fn):
        hint = ": rename its method accumulate to __call__" if hasattr(fn, "accumulate") and has_flush(fn) else ""
        raise GraphError(f"{subject} needs a function, got {fn!r}{hint}")
    if needs_loop(fn) and has_flush(fn.make if isinstance(fn, PerWorker) else fn):
        raise GraphError(
            f"{subject} has a coroutine function with a method flush, which only ordinary functions can have: await in "
            f"a stage upstream, and collect its results here"
        )
    if (actor := actor_class(fn)) is not None:
        name = actor.__name__
        raise GraphError(
            f"{subject} needs a function, got the class {name}, of which each item would create an instance: pass an "
            f"instance, {name}(...), or per_worker({name}) for one in each worker. If the instances are the results, "
            f"pass `lambda item: {name}(item)`"
        )


def check_plain(subject: str, name: str, fn: Callable[..., Any] | None) -> None:
    """Raise GraphError if a function other than that of a stage is not an ordinary function."""
    kind = kind_of(fn)
    if kind is not FunctionKind.PLAIN:
        raise GraphError(
            f"{subject} needs {name} to be an ordinary function, got {kind.value}, of which a call does not run the "
            f"body: call it in a stage upstream, and read its result here"
        )


def needs_loop(fn: object) -> bool:
    """Return True if a stage function, or the items of a source, have to run on an event loop."""
    if isinstance(fn, PerWorker):
        return fn.asynchronous
    creates = isinstance(fn, type) and issubclass(fn, AsyncIterable)
    return kind_of(fn).asynchronous or creates or isinstance(fn, AsyncIterable)


def check_concurrency(subject: str, fn: object, concurrency: int | None) -> None:
    """Raise GraphError if a stage cannot have this `concurrency`."""
    if concurrency is None:
        if needs_loop(fn):
            raise GraphError(f"{subject} has a coroutine function, and needs a concurrency of at least 1, got None")
        return
    if concurrency < 1:
        raise GraphError(f"{subject} needs a concurrency of at least 1, got concurrency={concurrency}")
    if isinstance(fn, OnProcesses):
        raise GraphError(f"{subject} runs in processes, which have no concurrency: use workers={concurrency}")
    if kind_of_stage(fn) is FunctionKind.GENERATOR:
        raise GraphError(
            f"{subject} has a generator function and concurrency={concurrency}, which needs a coroutine function or an "
            f"asynchronous generator function: use workers={concurrency} for an ordinary one"
        )


def resolve_expand(subject: str, kind: FunctionKind, expand: bool | None) -> bool:
    """Return `expand`, by default True for generator functions; raise GraphError if one is not to be expanded."""
    if expand is None:
        return kind.generates
    if kind.generates and expand is False:
        raise GraphError(
            f"{subject} has {kind.value} and expand=False, so its results would be generators whose bodies have not "
            f"run: omit expand, or return a list"
        )
    return expand


def check_join_function(subject: str, kind: FunctionKind) -> None:
    """Raise GraphError if the function of a join generates its results: a join sends one for each tuple."""
    if kind.generates:
        raise GraphError(
            f"{subject} has {kind.value}, but a join sends one result for each tuple: return a list, and expand it in "
            f"the next stage"
        )
