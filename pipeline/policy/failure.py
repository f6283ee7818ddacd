"""Failure policies: pure decisions about items whose stage function raised.

    graph.stage("parse", parse, after=lines, on_error=SkipFailed(most=100))
    graph.stage("fetch", fetch, after=urls, on_error=Retry(times=3, first=0.5, then=SkipFailed(share=0.01)))

A policy is a frozen setting; `decide` is a pure function of the failed attempt and the number of items skipped so far,
so tests need neither threads nor time. Policies apply to exceptions of the stage function only (of `Exception`, not
SystemExit). An exception from `acquire`, `when`, a label, a channel, set-up or tear-down ends the run, because it is
not a property of the item. Results are sent after the item has succeeded, so a retry sends nothing twice; so are the
elements of an expansion, unless the policy has `expansion=Expansion.LAZY`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from threadloom.pipeline.core import StandInError

Errors = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]
"""The errors that a policy applies to: types, or a predicate, for example `lambda error: error.errno == EAGAIN`."""


def matches(error: Exception, errors: Errors) -> bool:
    """Return True if a policy for `errors` applies to `error`, or to the exception of a process that it replaces."""
    if not isinstance(errors, (tuple, type)):
        return bool(errors(error))
    types = errors if isinstance(errors, tuple) else (errors,)
    return isinstance(error, types) or (isinstance(error, StandInError) and any(map(error.stands_for, types)))


def _check_errors(policy: str, errors: object) -> None:
    types = errors if isinstance(errors, tuple) else (errors,)
    if not (callable(errors) and not isinstance(errors, type)):
        for each in types:
            if not (isinstance(each, type) and issubclass(each, BaseException)):
                raise ValueError(
                    f"{policy}: expected errors to be exception types, such as (OSError, ValueError), or a function "
                    f"that takes an exception, got {errors!r}"
                )


def _check_expansion(policy: str, value: object) -> None:
    if not isinstance(value, Expansion):
        raise ValueError(f"{policy}: expected expansion to be Expansion.COLLECTED or Expansion.LAZY, got {value!r}")


def _check_number(policy: str, name: str, value: object, kind: type = Real) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{policy}: expected {name} to be a {'whole ' * (kind is Integral)}number, got {value!r}")


class Decision(Enum):
    """The decision about a failed item."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class RetryAfter:
    """The decision to call the function again with the same item."""

    pause: float
    """Seconds to wait before the call; the end of the run interrupts the wait."""


@dataclass(frozen=True)
class Attempt:
    """A failed call of a stage function."""

    error: Exception
    number: int
    """Number of the call for this item, from 1."""
    skipped: int
    """Number of items of the stage skipped before this one."""
    items: int
    """Number of items of the stage started so far, this one included."""


class Expansion(Enum):
    """The time at which the elements of an expansion are sent, in a stage with a failure policy."""

    COLLECTED = "collected"
    """After the last one has been produced: an item that fails is retried or skipped as a whole."""
    LAZY = "lazy"
    """As they are produced. The policy decides about an error before the first element; an error after it fails the
    run, because elements have been sent. Ordered stages collect the elements in any case."""


class OnError(ABC):
    """A failure policy of a stage."""

    expansion: Expansion = Expansion.COLLECTED
    """The time at which the elements of an expansion are sent."""

    @property
    def skips(self) -> bool:
        """True if items may be skipped, so that there can be dead letters."""
        return False

    @abstractmethod
    def decide(self, attempt: Attempt) -> Decision | RetryAfter:
        """Return the decision about a failed attempt. Called by one worker of a stage at a time."""

    def final_check(self, skipped: int, items: int) -> str | None:
        """Return an error text if too many items were skipped by the end of the input, or None."""
        return None


@dataclass(frozen=True)
class FailFast(OnError):
    """The first error ends the run."""

    def decide(self, attempt: Attempt) -> Decision:
        return Decision.FAIL


@dataclass(frozen=True)
class SkipFailed(OnError):
    """Items that raise one of `errors` are skipped, up to a number or a share of the items.

    The run fails on the item that would exceed `most` skipped items, or the `share` of the items started. The share is
    checked after `least` items have been started, so that a failure among the first few does not exceed it, and again
    at the end of the input. Without bounds, any number of items is skipped, but not all: a run in which every item of
    the stage failed has probably one cause, and fails. `share=1` accepts that. A run that skipped items logs how many,
    by stage and type of error, at its end.
    """

    most: int | None = None
    share: float | None = None
    least: int = 100
    errors: Errors = (Exception,)
    expansion: Expansion = Expansion.COLLECTED

    def __post_init__(self) -> None:
        _check_errors("SkipFailed", self.errors)
        _check_expansion("SkipFailed", self.expansion)
        _check_number("SkipFailed", "least", self.least, Integral)
        if self.most is not None:
            _check_number("SkipFailed", "most", self.most, Integral)
        if self.share is not None:
            _check_number("SkipFailed", "share", self.share)
        if self.most is not None and self.most < 0:
            raise ValueError(f"SkipFailed: expected most >= 0, got {self.most}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"SkipFailed: expected a share between 0 and 1, got {self.share}")

    @property
    def skips(self) -> bool:
        return True

    def decide(self, attempt: Attempt) -> Decision:
        if not matches(attempt.error, self.errors):
            return Decision.FAIL
        early = attempt.items < self.least
        wrong = self._too_many(attempt.skipped + 1) or (
            not early and self._too_large(attempt.skipped + 1, attempt.items)
        )
        return Decision.FAIL if wrong else Decision.SKIP

    def final_check(self, skipped: int, items: int) -> str | None:
        if self._too_large(skipped, items):
            return f"{skipped} of {items} items were skipped, more than the allowed share of {self.share:g}"
        if self.share is None and skipped and skipped == items:
            return f"all {items} items were skipped, which only share=1 accepts"
        return None

    def _too_many(self, skipped: int) -> bool:
        return self.most is not None and skipped > self.most

    def _too_large(self, skipped: int, items: int) -> bool:
        return self.share is not None and skipped > self.share * items


@dataclass(frozen=True)
class Retry(OnError):
    """An item that raises one of `errors` is retried up to `times` times with exponential backoff; then `then` decides.

    The pauses are first, first·factor, first·factor², ... seconds, at most `longest`.
    """

    times: int = 3
    first: float = 0.1
    factor: float = 2.0
    longest: float = 30.0
    errors: Errors = (Exception,)
    then: OnError = FailFast()
    expansion: Expansion = Expansion.COLLECTED

    def __post_init__(self) -> None:
        _check_errors("Retry", self.errors)
        _check_expansion("Retry", self.expansion)
        _check_number("Retry", "times", self.times, Integral)
        for name in ("first", "factor", "longest"):
            _check_number("Retry", name, getattr(self, name))
        if not isinstance(self.then, OnError):
            raise ValueError(f"Retry: expected then to be a failure policy, such as SkipFailed(), got {self.then!r}")
        if self.times < 1 or self.first < 0 or self.factor < 1:
            raise ValueError(
                f"Retry: expected times >= 1, first >= 0 and factor >= 1, got times={self.times}, first={self.first}, "
                f"factor={self.factor}"
            )

    @property
    def skips(self) -> bool:
        return self.then.skips

    def decide(self, attempt: Attempt) -> Decision | RetryAfter:
        if attempt.number > self.times or not matches(attempt.error, self.errors):
            return self.then.decide(attempt)
        try:
            pause = self.first * self.factor ** (attempt.number - 1)
        except OverflowError:
            pause = self.longest
        return RetryAfter(min(self.longest, pause))

    def final_check(self, skipped: int, items: int) -> str | None:
        return self.then.final_check(skipped, items)


@dataclass(frozen=True)
class DeadLetter:
    """A skipped item; see `Graph.dead_letters`."""

    stage: str
    """Name of the stage that skipped it."""
    item: Any
    """The argument of the stage function: an item, a group or a tuple."""
    error: Exception
    """The exception of the last attempt, with its traceback (which keeps the variables of that call alive)."""
    attempts: int
    """Number of calls of the function."""
