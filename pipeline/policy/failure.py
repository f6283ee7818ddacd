"""What is done about an item whose stage function raised: pure decisions, apart from threads.

    graph.stage("parse", parse, after=lines, on_error=SkipFailed(most=100))
    graph.stage("fetch", fetch, after=urls, on_error=Retry(times=3, first=0.5, then=SkipFailed(share=0.01)))

A policy is a frozen setting; `decide` is a function of what failed and of how many were skipped before, so that a test
needs neither threads nor time. Policies decide about exceptions of the stage function alone (of `Exception`, not
SystemExit): what is raised by `acquire`, `when`, a label, a channel, set-up or tear-down ends the run, because it is no
property of the item. An item's results are sent only when it has succeeded, so that a retry sends nothing twice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any

Errors = tuple[type[Exception], ...]


class Decision(Enum):
    """What is done with an item that failed."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class RetryAfter:
    """Try the item once more."""

    pause: float
    """Seconds to wait before; the end of the run interrupts it."""


@dataclass(frozen=True)
class Attempt:
    """One call of a stage function that raised."""

    error: Exception
    number: int
    """Which call for this item it was, counted from 1."""
    skipped: int
    """Items of the stage that were skipped before this one."""
    items: int
    """Items of the stage that were begun, this one included."""


class OnError(ABC):
    """A failure policy of a stage."""

    @property
    def skips(self) -> bool:
        """Whether an item may be skipped, so that there can be dead letters."""
        return False

    @abstractmethod
    def decide(self, attempt: Attempt) -> Decision | RetryAfter:
        """Say what to do. Called by workers, one at a time for each stage."""

    def final_check(self, skipped: int, items: int) -> str | None:
        """Say what is wrong with how many were skipped, at the end of the input; None: nothing."""
        return None


@dataclass(frozen=True)
class FailFast(OnError):
    """The first error ends the run."""

    def decide(self, attempt: Attempt) -> Decision:
        return Decision.FAIL


@dataclass(frozen=True)
class SkipFailed(OnError):
    """Items that raise one of `errors` are skipped and counted, up to a number or a share of the items.

    The run fails with the item that would make more than `most` skipped, or more than the `share` of the items begun.
    The share is judged once `least` items were begun, so that one bad item among the first is not half of them, and
    again at the end of the input. Without either bound any number is skipped.
    """

    most: int | None = None
    share: float | None = None
    least: int = 100
    errors: Errors = (Exception,)

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 0:
            raise ValueError(f"SkipFailed needs most >= 0, got {self.most}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"SkipFailed needs a share between 0 and 1, got {self.share}")

    @property
    def skips(self) -> bool:
        return True

    def decide(self, attempt: Attempt) -> Decision:
        if not isinstance(attempt.error, self.errors):
            return Decision.FAIL
        early = attempt.items < self.least
        wrong = self._too_many(attempt.skipped + 1) or (
            not early and self._too_large(attempt.skipped + 1, attempt.items)
        )
        return Decision.FAIL if wrong else Decision.SKIP

    def final_check(self, skipped: int, items: int) -> str | None:
        if self._too_large(skipped, items):
            return f"{skipped} of {items} items were skipped, more than the share of {self.share:g} that may be"
        return None

    def _too_many(self, skipped: int) -> bool:
        return self.most is not None and skipped > self.most

    def _too_large(self, skipped: int, items: int) -> bool:
        return self.share is not None and skipped > self.share * items


@dataclass(frozen=True)
class Retry(OnError):
    """An item that raises one of `errors` is tried up to `times` more, after pauses that grow; then `then` decides.

    The pauses are first, first·factor, first·factor², ... seconds, at most `longest`.
    """

    times: int = 3
    first: float = 0.1
    factor: float = 2.0
    longest: float = 30.0
    errors: Errors = (Exception,)
    then: OnError = FailFast()

    def __post_init__(self) -> None:
        if self.times < 1 or self.first < 0 or self.factor < 1:
            raise ValueError(
                f"Retry needs times >= 1, first >= 0 and factor >= 1, got times={self.times}, first={self.first}, "
                f"factor={self.factor}"
            )

    @property
    def skips(self) -> bool:
        return self.then.skips

    def decide(self, attempt: Attempt) -> Decision | RetryAfter:
        if attempt.number > self.times or not isinstance(attempt.error, self.errors):
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
    """An item that was skipped because its stage function raised; see `Graph.dead_letters`."""

    stage: str
    """The stage that could not do it."""
    item: Any
    """The item, group or tuple that the function was called with."""
    error: Exception
    """What the last attempt raised, with its traceback (which keeps the variables of that call alive)."""
    attempts: int
    """How many times the function was called."""
