"""Commands to one run: changes of its state, applied to its channels and sources, and its end.

Guarantees: commands take effect one after the other. The first `stop` decides the outcome; every channel, resource and
set-up is then aborted, even if the `abort` of another raises. A command never waits for a lock that its own thread
holds: if a finaliser or a signal handler has interrupted the engine, another thread carries the command out.

Ownership: `control` is guarded by `lock`, which is acquired before the locks of channels and source gates, never after.
"""

from _thread import RLock
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from threadloom.pipeline.core import (
    Cancelled,
    OneShotEvent,
    PipelineError,
    PostponedCalls,
    StageFailure,
    format_error,
    holds,
)
from threadloom.pipeline.policy import FailureCuts, OnFailure, RunAction, RunControl
from threadloom.pipeline.run.assembly import Assembly
from threadloom.pipeline.run.thread_group import ThreadGroup


class Abortable(Protocol):
    """A resource that workers wait on, for example a pool or weight banks."""

    def abort(self) -> None:
        """Make every waiting and later call raise Cancelled. May be called from any thread, more than once."""


class Commands:
    """The state of one run and the commands that change it. Every method may be called again after a Ctrl-C."""

    def __init__(
        self,
        name: str,
        parts: Assembly,
        resources: Sequence[Abortable],
        threads: ThreadGroup,
        on_failure: OnFailure = OnFailure.STOP,
    ) -> None:
        self.lock = RLock()
        self.control = RunControl(FailureCuts(parts.successors()) if on_failure is OnFailure.DRAIN else None)
        self.decided = OneShotEvent()
        """Set when the outcome is decided, or when the last worker has ended."""
        self._name = name
        self._parts = parts
        self._resources = tuple(resources)
        self._threads = threads
        self._postponed = PostponedCalls()

    @property
    def outcome(self) -> StageFailure | Cancelled | None:
        """The failure or cancellation that ended the run; None while it is undecided or if the input ended."""
        return self.control.outcome

    def check_process(self) -> None:
        """Raise PipelineError in a child of the process that started the run."""
        if self._threads.forked:
            raise PipelineError(
                f"this run of {self._name!r} belongs to the parent of this process, and a child made by os.fork has "
                f"none of its threads: start a run in the child, or iterate in the parent"
            )

    def postpone(self, command: Callable[[], object]) -> bool:
        """Return True, and let another thread call the command, if the caller has interrupted the engine."""
        self.check_process()
        interrupted = holds(self.lock) or self._parts.interrupted
        if interrupted:
            self._postponed.add(command)
        return interrupted

    def order(self, order: Callable[[RunControl], Sequence[RunAction]]) -> None:
        """Change the state of the run and apply the resulting actions to channels and sources."""
        if self.postpone(partial(self.order, order)):
            return
        with self.lock:  # held while the actions are applied, so that they take effect in the order of the calls
            for action in order(self.control):
                self._parts.apply(action)

    def cancel(self) -> None:
        """Stop the run as cancelled, unless it has another outcome. Repeats everything if it is stopped already."""
        self._stop(self._cancellation())

    def stop_once(self, outcome: StageFailure | Cancelled | None = None) -> None:
        """Stop the run with this outcome, by default as cancelled. For workers.

        All workers of a stopped run come here, and abort nothing.
        """
        outcome = outcome or self._cancellation()
        if self.outcome is None:
            self._stop(outcome)
        else:
            with self.lock:
                self.control.stop(outcome)  # ignored, because it is not the first

    def fail(self, failure: StageFailure) -> None:
        """Stop the run with the failure of a worker; if the run is drained, end the input and output of its stage."""
        if self.control.cuts is None:
            self.stop_once(failure)
        else:
            self.order(partial(RunControl.fail, failure=failure))
            self._parts.discard_input(failure.stage)

    def forget_frames(self) -> None:
        """Replace the outcome by a copy without a traceback, after it has been raised.

        Its traceback refers to the run, and the run would refer to it: the item in the traceback would be freed by the
        garbage collector only.
        """
        if self.control.outcome is not None:
            self.control.outcome = self.control.outcome.without_traceback()

    def _cancellation(self) -> Cancelled:
        return Cancelled(f"the run of {self._name!r} was cancelled")

    def _stop(self, outcome: StageFailure | Cancelled) -> None:
        if self.postpone(partial(self._stop, outcome)):
            return
        self.order(partial(RunControl.stop, outcome=outcome))
        self.decided.set()  # before workers are aborted: one in its set-up either sees the event or is aborted here
        interrupt: BaseException | None = None
        for each in (*self._parts.abortables(), *self._resources, *self._parts.workers()):
            try:
                each.abort()
            except Exception as error:
                if self.outcome is not None:
                    self.outcome.add_note(f"abort() of {type(each).__name__} raised {format_error(error)}")
            except BaseException as error:  # Ctrl-C
                interrupt = error
        if interrupt is not None:
            raise interrupt
