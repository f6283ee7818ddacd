"""Checks of the types of arguments: a mistake is reported as it is declared, with stage, value and remedy."""

import math
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.graph.settings import RunOptions
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.policy import Gather, Join, OnError, OnFailure, Policy, Rate
from threadloom.pipeline.run import Controller, Watchdog


def check_names(subject: str, options: Mapping[str, object], allowed: Iterable[str]) -> None:
    """Raise GraphError if there is an option of another name."""
    names = sorted(allowed)
    for name in options:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(names)}"
            raise GraphError(f"{subject} has no option {name!r}: {hint}")


def check_source(subject: str, items: object) -> None:
    """Raise GraphError if the items of a source or a shard are neither an iterable nor a function that returns one."""
    if not callable(items) and not isinstance(items, (Iterable, AsyncIterable)) and not hasattr(items, "__getitem__"):
        raise GraphError(
            f"{subject} needs an iterable, or a function that returns one, got {items!r}: to send a single item, "
            f"put it into a list"
        )


def check_run_options(subject: str, options: Mapping[str, object]) -> None:
    """Raise GraphError if a keyword argument of a run has another name or the wrong type."""
    check_names(subject, options, RunOptions.__annotations__)
    if "grace" in options:
        _check(subject, "grace", options["grace"], _is_duration, "a number of seconds, 0 or more")
    if "watchdog" in options:
        expected = "a Watchdog, such as Watchdog(after=10), or None"
        _check(
            subject,
            "watchdog",
            options["watchdog"],
            lambda value: value is None or isinstance(value, Watchdog),
            expected,
        )
    if "controller" in options:
        expected = "a Controller, such as Controller(interval=1), or None"
        _check(
            subject,
            "controller",
            options["controller"],
            lambda value: value is None or isinstance(value, Controller),
            expected,
        )
    if "on_failure" in options:
        _check(subject, "on_failure", options["on_failure"], _is_on_failure, f"one of {', '.join(map(str, OnFailure))}")


def check_types(stage: Stage) -> None:
    """Raise GraphError if a setting of this stage is of the wrong type."""
    subject = f"{stage.kind.value} {stage.name!r}"
    for name in ("workers", "capacity"):
        _check(subject, name, getattr(stage, name), _is_number(Integral), "a whole number, such as 2")
    if stage.concurrency is not None:
        _check(subject, "concurrency", stage.concurrency, _is_number(Integral), "a whole number, such as 100")
    for name in ("expand", "ordered"):
        _check(subject, name, getattr(stage, name), lambda value: isinstance(value, bool), "True or False")
    for name in ("acquire", "when"):
        _check(subject, name, getattr(stage, name), lambda value: value is None or callable(value), "a function")
    if stage.limit is not None:
        _check(subject, "limit", stage.limit, _is_number(Real), "a number of seconds")
    if stage.rate is not None:
        _check(subject, "rate", stage.rate, _is_rate, "a positive number of items per second, or Rate(...)")
    policy = "a failure policy like SkipFailed()"
    _check(subject, "on_error", stage.on_error, lambda value: isinstance(value, OnError), policy)
    grouped = (Gather, Join) if stage.gathers and stage.kind is NodeKind.STAGE else Policy
    name, example = ("gather", "Gather(count=8)") if stage.gathers else ("admission", "InOrder(order=...)")
    _check(subject, name, stage.admission, lambda value: isinstance(value, grouped), f"a policy like {example}")


def _is_number(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return _is_number(Real)(value) and value >= 0  # type: ignore[operator]


def _is_rate(value: object) -> bool:
    return isinstance(value, Rate) or (_is_number(Real)(value) and 0 < value < math.inf)  # type: ignore[operator]


def _is_on_failure(value: object) -> bool:
    return value in list(OnFailure)


def _check(subject: str, name: str, value: Any, valid: Callable[[object], bool], expected: str) -> None:
    if valid(value):
        return
    got = f"the class {value.__name__}: call it to create an instance" if isinstance(value, type) else repr(value)
    raise GraphError(f"{subject} needs {name} to be {expected}, got {got}")
