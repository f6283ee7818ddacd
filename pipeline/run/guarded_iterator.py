"""The iterator of a source under a failure policy: an error of `__next__` is retried or skipped.

Guarantees: a failed call yields SKIP, so that the source can be paused, drained and stopped between two calls. The
delay before a retry ends at once with Cancelled when the run is stopped.

Ownership: a `GuardedIterator` belongs to one worker; the `FailureCounters` are shared by the workers of the source.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import isgenerator
from typing import Any, Final

from threadloom.pipeline.core import Cancelled
from threadloom.pipeline.observe import SKIP
from threadloom.pipeline.policy import DeadLetter, Decision
from threadloom.pipeline.run.retry import FailureCounters

LOG = logging.getLogger("threadloom.pipeline.source")

GENERATOR_ENDED: Final = (
    "a generator has ended once it has raised, so that the failure policy of its source cannot continue it: iterate an "
    "object whose __next__ can be called again, or let the source yield names and read them in a stage with the policy"
)


class GuardedIterator(Iterator[Any]):
    """An iterator around that of a source; SKIP replaces the element of each call that raised."""

    def __init__(
        self,
        iterator: Iterator[Any],
        source: str,
        failures: FailureCounters,
        send_letter: Callable[[DeadLetter], None],
        sleep: Callable[[float], None],
        *,
        closes: bool,
    ) -> None:
        self._iterator = iterator
        self._closes = closes  # True if `close` closes the iterator too
        self._source = source
        self._failures = failures
        self._send_letter = send_letter
        self._sleep = sleep  # raises Cancelled as soon as the run is stopped
        self._element = 0  # number of the next element, counting those that were skipped
        self._attempt = 1  # number of the next call for it
        self._skipped: Exception | None = None  # the error of the previous call, if that was skipped

    def __next__(self) -> Any:
        """Return the next element, or SKIP after an error; raise the errors that the policy does not accept."""
        try:
            element = next(self._iterator)
        except StopIteration:
            if self._skipped is not None:
                LOG.warning(
                    "source %r ended directly after an error that was skipped (%r): it may have more elements, if it "
                    "iterates a generator, which ends once it has raised",
                    self._source,
                    self._skipped,
                )
            raise
        except Exception as error:
            if isinstance(error, Cancelled):
                self._sleep(0)  # raises Cancelled if this run was stopped, and not another one that is iterated
            if not self._continues(error):
                raise
            return SKIP
        self._element += 1
        self._attempt = 1
        self._skipped = None
        return element

    def close(self) -> None:
        """Close the iterator, if the source has created it and it can be closed."""
        if self._closes and hasattr(self._iterator, "close"):
            self._iterator.close()

    def _continues(self, error: Exception) -> bool:
        """Carry out the decision of the policy about `error`; return False if it fails the run."""
        decision = self._failures.decide(error, self._attempt, unfinished=1)
        if decision is Decision.FAIL:
            return False
        if isgenerator(self._iterator):
            with suppress(Exception):  # an exception whose notes cannot be set is reported without one
                error.add_note(GENERATOR_ENDED)
            return False
        if decision is Decision.SKIP:
            self._send_letter(DeadLetter(self._source, self._element, error, self._attempt))
            self._element += 1
            self._attempt = 1
            self._skipped = error
        else:
            self._attempt += 1
            self._sleep(decision.pause)
        return True
