"""Where failure policies meet threads: the calls of a stage function, guarded by the policy of its stage.

Guarantees: an item is counted once, as done, skipped or fatal; a pause before a retry ends at once when the run does,
with Cancelled; a dead letter is sent before the worker takes its next item.

Ownership: a `FailureCounters` is shared by the workers of a stage and belongs to its lock; a `RetryRunner` belongs to
one worker.
"""

from _thread import allocate_lock
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.core import Cancelled, TooManySkipped
from threadloom.pipeline.observe import SKIP, Stage
from threadloom.pipeline.policy import Attempt, DeadLetter, Decision, OnError, RetryAfter


class FailureCounters:
    """What the workers of a stage skipped and tried again."""

    def __init__(self, policy: OnError, items: Callable[[], int]) -> None:
        self._lock = allocate_lock()
        self._policy = policy
        self._items = items  # how many items of the stage were begun; called without a lock
        self.skipped = 0
        self.retried = 0

    def decide(self, error: Exception, number: int) -> Decision | RetryAfter:
        """Ask the policy, and count its verdict."""
        with self._lock:
            attempt = Attempt(error, number, self.skipped, self._items())
            verdict = self._policy.decide(attempt)
            if verdict is Decision.SKIP:
                self.skipped += 1
            elif isinstance(verdict, RetryAfter):
                self.retried += 1
        if verdict is Decision.FAIL and attempt.skipped:
            error.add_note(f"{attempt.skipped} of {attempt.items} items of this stage had been skipped: {self._policy}")
        return verdict

    def freeze_total(self) -> None:
        """Note how many items there were, now that there will be no more: who counts them need not be kept."""
        items = self._items()
        self._items = lambda: items

    def check_end(self) -> None:
        """Raise if too many were skipped, now that the stage has ended."""
        with self._lock:
            final_check = self._policy.final_check(self.skipped, self._items())
        if final_check:
            raise TooManySkipped(f"{final_check}: see what its dead letters have in common, or allow a larger share")


@dataclass(frozen=True)
class RetryRunner:
    """A stage function of one worker, called as its policy says."""

    fn: Callable[[Any], Any]
    stage: Stage
    failures: FailureCounters
    send_letter: Callable[[Any], None]
    pause: Callable[[float], None]
    """Wait so many seconds; raises Cancelled when the run ends."""

    def __call__(self, item: Any) -> Any:
        number = 1
        while True:
            try:
                result = self.fn(item)
                # All of an expansion is made here, so that it fails before anything of it has been sent.
                return list(result) if self.stage.expand else result
            except Cancelled:
                raise
            except Exception as error:
                verdict = self.failures.decide(error, number)
                if verdict is Decision.FAIL:
                    raise
                if verdict is Decision.SKIP:
                    self.send_letter(DeadLetter(self.stage.name, item, error, number))
                    return () if self.stage.expand else SKIP
                pause = verdict.pause
            self.pause(pause)
            number += 1
