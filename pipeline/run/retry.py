"""Calls of a stage function under the failure policy of its stage: retries, skipped items and dead letters.

Guarantees: each failed item is counted once, as skipped or fatal; the delay before a retry ends at once with Cancelled
when the run is stopped; a dead letter is sent before the worker takes its next item.

Ownership: a `FailureCounters` is shared by the workers of a stage and guarded by its own lock; a `RetryRunner` belongs
to one worker.
"""

from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.core import Cancelled, TooManySkipped, format_error, type_name
from threadloom.pipeline.observe import SKIP, Stage
from threadloom.pipeline.policy import Attempt, DeadLetter, Decision, Expansion, OnError, RetryAfter
from threadloom.pipeline.run.late_calls import LateItem, TimedCalls
from threadloom.pipeline.run.started_expansion import StartedExpansion


class FailureCounters:
    """The numbers of items that one stage skipped and of calls that it repeated."""

    def __init__(self, policy: OnError, items: Callable[[], int]) -> None:
        self._lock = allocate_lock()
        self._policy = policy
        self._items = items  # returns the number of items started by the stage; takes no lock
        self.skipped = 0
        """Items skipped so far."""
        self.retried = 0
        """Calls repeated so far."""
        self.errors: Counter[str] = Counter()
        """Skipped items by the name of the type of the error."""
        self._first = ""  # the first error that was skipped, as text

    def decide(self, error: Exception, number: int, unfinished: int = 0) -> Decision | RetryAfter:
        """Return the policy's decision about call `number` (from 1) for an item, which raised `error`; count it.

        `unfinished` is the number of items that the failed call adds to those counted as started: 1 for a source.
        """
        with self._lock:
            attempt = Attempt(error, number, self.skipped, self._items() + unfinished)
            decision = self._policy.decide(attempt)
            if decision is Decision.SKIP:
                self.skipped += 1
                self.errors[type_name(error)] += 1
            elif isinstance(decision, RetryAfter):
                self.retried += 1
        if decision is Decision.SKIP and not attempt.skipped:
            self._first = format_error(error)
        if not isinstance(decision, (Decision, RetryAfter)):
            raise TypeError(
                f"decide() of {type(self._policy).__name__} returned {decision!r}, expected Decision.FAIL, "
                f"Decision.SKIP or RetryAfter(seconds)"
            )
        if decision is Decision.FAIL and attempt.skipped:
            with suppress(Exception):  # the text of the policy: the error to be reported is that of the item
                error.add_note(
                    f"{attempt.skipped} of {attempt.items} items of this stage were skipped before: {self._policy}"
                )
        return decision

    @property
    def items(self) -> int:
        """Items started so far."""
        return self._items()

    def freeze_total(self) -> None:
        """Store the final number of items, which drops the reference to the workers that count them."""
        items = self._items()
        self._items = lambda: items

    def check_end(self) -> None:
        """Raise TooManySkipped if the policy does not accept the number of skipped items at the end of the input."""
        with self._lock:
            problem = self._policy.final_check(self.skipped, self._items())
        if problem:
            raise TooManySkipped(
                f"{problem}, the first because of {self._first}: compare the dead letters to find a common cause, or "
                f"allow a larger share"
            )


@dataclass(frozen=True)
class RetryRunner:
    """The function of a stage for one worker, called under the stage's failure policy."""

    fn: Callable[[Any], Any]
    stage: Stage
    failures: FailureCounters
    send_letter: Callable[[Any], None]
    sleep: Callable[[float], None]
    """Sleeps for a number of seconds; raises Cancelled as soon as the run is stopped."""
    calls: TimedCalls | None
    """The calls of the worker if the stage has a time limit, else None."""

    def __call__(self, item: Any) -> Any:
        """Return the result for `item`, or SKIP (an empty expansion) if the policy skips it."""
        return self._try(item, 1)

    def resume(self, late: LateItem) -> Any:
        """Return the result for an item whose last call, in another thread, was given up."""
        if late.decision is Decision.SKIP:
            return self._skip(late.item, late.error, late.attempt)
        assert isinstance(late.decision, RetryAfter)
        self.sleep(late.decision.pause)
        return self._try(late.item, late.attempt + 1)

    def _try(self, item: Any, number: int) -> Any:
        """Call the function until it returns or the policy gives up; `number` is that of the first call."""
        while True:
            try:
                return self._call(item, number)
            except Exception as error:
                if isinstance(error, Cancelled):
                    self.sleep(0)  # raises Cancelled if this run was stopped, and not another one that `fn` uses
                decision = self.failures.decide(error, number)
                if decision is Decision.FAIL:
                    raise
                if decision is Decision.SKIP:
                    return self._skip(item, error, number)
                delay = decision.pause
            self.sleep(delay)
            number += 1

    def _call(self, item: Any, number: int) -> Any:
        if self.calls is None:
            return self._result(item)
        self.calls.begin(item, number)
        try:
            result = self._result(item)
        finally:
            self.calls.finish()  # raises if the call was given up, also if it returned a result
        self.calls.expanding = isinstance(result, StartedExpansion)
        return result

    def _result(self, item: Any) -> Any:
        result = self.fn(item)
        if not self.stage.expand:
            return result
        if self.stage.on_error.expansion is Expansion.COLLECTED or self.stage.ordered:
            return list(result)  # evaluated completely here, so that it fails before any element has been sent
        return StartedExpansion(result)

    def _skip(self, item: Any, error: Exception, number: int) -> Any:
        self.send_letter(DeadLetter(self.stage.name, item, error, number))
        return () if self.stage.expand else SKIP
