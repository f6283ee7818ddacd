"""The kinds of functions: ordinary, generator, coroutine and asynchronous generator functions.

A call of one of the last three runs nothing of its body, so an engine that takes it for an ordinary function loses the
work without an error.
"""

import inspect
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any


class FunctionKind(Enum):
    """The result of a call."""

    PLAIN = "an ordinary function"
    GENERATOR = "a generator function"
    COROUTINE = "a coroutine function"
    ASYNC_GENERATOR = "an asynchronous generator function"

    @property
    def asynchronous(self) -> bool:
        """True if the body runs on an event loop."""
        return self in (FunctionKind.COROUTINE, FunctionKind.ASYNC_GENERATOR)

    @property
    def generates(self) -> bool:
        """True if a call returns an iterator over the elements that the body yields."""
        return self in (FunctionKind.GENERATOR, FunctionKind.ASYNC_GENERATOR)


_TESTS: tuple[tuple[Callable[[Any], bool], FunctionKind], ...] = (
    (inspect.iscoroutinefunction, FunctionKind.COROUTINE),
    (inspect.isgeneratorfunction, FunctionKind.GENERATOR),
    (inspect.isasyncgenfunction, FunctionKind.ASYNC_GENERATOR),
)


def kind_of(fn: object) -> FunctionKind:
    """Return the kind of a function, a bound method, a `functools.partial`, or an object with `__call__`.

    A lambda or an undecorated wrapper that returns a coroutine is an ordinary function, unless it is marked by
    `inspect.markcoroutinefunction`.
    """
    fn = _unwrapped(fn)
    if isinstance(fn, type):  # a call creates an instance
        return FunctionKind.PLAIN
    for each in (fn, getattr(type(fn), "__call__", None)):  # noqa: B004 - not to find out if it is callable
        for test, kind in _TESTS:
            if test(each):
                return kind
    return FunctionKind.PLAIN


def kind_of_instances(make: object) -> FunctionKind:
    """Return the kind of the instances of a class as functions; PLAIN if `make` is no class."""
    make = _unwrapped(make)
    call = getattr(make, "__call__", None) if isinstance(make, type) and is_callable_class(make) else None  # noqa: B004
    return kind_of(call)


def is_async_manager(make: object) -> bool:
    """Return True if `make` is a class or a decorated function whose calls return asynchronous context managers."""
    make = _unwrapped(make)
    return hasattr(make, "__aenter__") or inspect.isasyncgenfunction(getattr(make, "__wrapped__", None))


def is_callable_class(kind: type) -> bool:
    """Return True if the instances of a class can be called."""
    return any("__call__" in base.__dict__ for base in kind.__mro__)


def actor_class(fn: object) -> type | None:
    """Return a class of which an instance was probably meant, one with `__call__` or a context manager; else None.

    Classes of the standard library that are context managers (`pathlib.Path`, `io.BytesIO`) are converters like `str`.
    """
    kind = _unwrapped(fn)
    if not isinstance(kind, type):
        return None
    manager = hasattr(kind, "__enter__") or hasattr(kind, "__aenter__")
    standard = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    return kind if is_callable_class(kind) or (manager and not standard) else None


def _unwrapped(fn: object) -> object:
    while isinstance(fn, partial):
        fn = fn.func
    return fn


def has_flush(fn: object) -> bool:
    """Return True if a function is an object with a method `flush`, or a class of such objects."""
    return callable(getattr(_unwrapped(fn), "flush", None))


def flushed(fn: object) -> Iterable[Any]:
    """Return the results of `fn.flush()`; none if it has no such method, or if that returns None."""
    flush = getattr(fn, "flush", None)
    results = flush() if callable(flush) else None
    if results is None:
        return ()
    if not isinstance(results, Iterable) or isinstance(results, (str, bytes)):
        raise TypeError(
            f"flush() of {type(fn).__name__} returned {type(results).__name__}, expected an iterable of results, or "
            f"None: return a list, or make it a generator function"
        )
    return results
