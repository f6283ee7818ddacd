"""The report of the error that ends a worker, when it is the turn of its item.

Guarantees: the first error of a worker is reported and no other. With `on_failure="drain"`, the failure of an ordered
stage is reported after everything before its item has been sent; the worker that finishes the item before reports it.

Ownership: an `ErrorReporter` belongs to the thread of its worker.
"""

from collections.abc import Callable

from threadloom.pipeline.core import Cancelled, StageFailure
from threadloom.pipeline.run.late_calls import GivenUpError
from threadloom.pipeline.run.rounds import RoundsEnded
from threadloom.pipeline.run.stage_runtime import NULL_CONTEXT, WorkerContext

AwaitTurn = Callable[[StageFailure], StageFailure | None]
"""Returns the failure of a stage once everything before its item has been sent; None if another worker will."""


class ErrorReporter:
    """The report of the errors of one worker to its run."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._reported = False

    def report(
        self, error: BaseException, failure_of: Callable[[BaseException], StageFailure], await_turn: AwaitTurn
    ) -> None:
        """Report the error that has ended the worker; only its first error counts.

        Cancelled is no failure once the run has been stopped. Before, it comes from another run or resource that the
        stage function uses. `failure_of` returns the failure with the current item of the worker.
        """
        if isinstance(error, GivenUpError):
            return
        if isinstance(error, Cancelled):
            try:
                self._context.sleep(0)
            except Cancelled:
                self._context.cancelled()
                return
        if self._reported:
            return
        self._reported = True
        failure = failure_of(error)
        if not self._context.drains:
            self._context.failed(failure)
            return
        try:
            first = await_turn(failure)
        except RoundsEnded:
            return
        except Exception as second:  # of sending results of an item before
            self._reported = False
            self.report(second, failure_of, await_turn)
            return
        if first is not None:
            self._context.failed(first)

    def drop_references(self) -> None:
        """Break the reference cycle to the run, after all threads have been joined."""
        self._context = NULL_CONTEXT
