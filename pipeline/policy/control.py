"""The control of a run as a state machine without threads: commands, states, and actions on channels and sources.

    command | new state | actions
    --------|-----------|------------------------------------------------------------------------------
    begin   | RUNNING   |
    pause   | PAUSED    | HOLD: idle workers take no items, sources produce none
    resume  | RUNNING   | RELEASE
    drain   | DRAINING  | CLOSE_SOURCES: sources end; and RELEASE if the run was paused
    fail    | DRAINING  | CLOSE_SOURCES, TRUNCATE: input that ends anywhere is no error; RELEASE if paused
    stop    | STOPPING  | ABORT: all waits end with Cancelled
    end     | ENDED     |

`fail` is the failure of a stage in a run that is drained (`OnFailure.DRAIN`): the run ends with it, after a delay.

Commands that come too late (a pause while draining, any command after a stop) have no effect; a stop repeats its action
each time, because a Ctrl-C may have interrupted the first one.

Ownership: both classes are plain state. `RunControl` is guarded by the lock of its run, a `WorkerCount` by the lock of
the input channel of its stage.
"""

from enum import Enum

from threadloom.pipeline.core import Cancelled, StageFailure
from threadloom.pipeline.policy.on_failure import FailureCuts


class RunState(Enum):
    """The state of a run."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


class RunAction(Enum):
    """An action on the channels and sources of a run."""

    HOLD = "hold"
    RELEASE = "release"
    CLOSE_SOURCES = "close sources"
    TRUNCATE = "truncate"
    ABORT = "abort"


ACTIVE_STATES = (RunState.RUNNING, RunState.PAUSED, RunState.DRAINING)
"""The states in which workers may run, so that more of them can be started."""


class RunControl:
    """The state of a run, and the first reason for stopping it. Each command returns the actions to carry out.

    `cuts` collects the failures of a run that is drained; None if the first failure stops the run.
    """

    def __init__(self, cuts: FailureCuts | None = None) -> None:
        self.state = RunState.READY
        self.cuts = cuts
        self.outcome: StageFailure | Cancelled | None = None  # set once, by the first `stop` or by `end`

    @property
    def pending(self) -> StageFailure | None:
        """The failure with which the run will end once it is drained."""
        return self.cuts.first if self.cuts is not None else None

    def begin(self) -> tuple[RunAction, ...]:
        return self._go(RunState.RUNNING, (RunState.READY,))

    def pause(self) -> tuple[RunAction, ...]:
        return self._go(RunState.PAUSED, (RunState.RUNNING,), RunAction.HOLD)

    def resume(self) -> tuple[RunAction, ...]:
        return self._go(RunState.RUNNING, (RunState.PAUSED,), RunAction.RELEASE)

    def drain(self) -> tuple[RunAction, ...]:
        if self.state is RunState.PAUSED:
            return self._go(RunState.DRAINING, (RunState.PAUSED,), RunAction.CLOSE_SOURCES, RunAction.RELEASE)
        return self._go(RunState.DRAINING, (RunState.RUNNING,), RunAction.CLOSE_SOURCES)

    def fail(self, failure: StageFailure) -> tuple[RunAction, ...]:
        """Record a failure of a run that is drained: items before the failing one are still processed."""
        assert self.cuts is not None
        if self.outcome is not None or self.state not in ACTIVE_STATES:
            return ()
        self.cuts.add(failure)
        actions = (RunAction.CLOSE_SOURCES, RunAction.TRUNCATE)
        release = (RunAction.RELEASE,) if self.state is RunState.PAUSED else ()
        return self._go(RunState.DRAINING, ACTIVE_STATES, *actions, *release)

    def stop(self, outcome: StageFailure | Cancelled) -> tuple[RunAction, ...]:
        """Stop the run; `outcome` is ignored if there is one already, or a failure is pending."""
        if self.outcome is None:
            self.outcome = self.pending or outcome
        if self.state is not RunState.ENDED:
            self.state = RunState.STOPPING
        return (RunAction.ABORT,)

    def end(self) -> tuple[RunAction, ...]:
        """Record that all workers have ended."""
        self.outcome = self.outcome or self.pending
        self.state = RunState.ENDED
        return ()

    def _go(self, to: RunState, allowed: tuple[RunState, ...], *actions: RunAction) -> tuple[RunAction, ...]:
        if self.state not in allowed:
            return ()
        self.state = to
        return actions


class WorkerCount:
    """The intended and the actual number of workers of a stage."""

    def __init__(self, workers: int) -> None:
        self.wanted = workers
        self.present = workers  # from the decision to start a worker until `leave`

    def resize(self, workers: int) -> int:
        """Set the intended number; return how many workers to start now. Excess workers exit at their next `get`."""
        self.wanted = workers
        started = max(0, workers - self.present)
        self.present += started
        return started

    @property
    def should_exit(self) -> bool:
        """True if the next worker that asks for an item should exit."""
        return self.present > self.wanted

    def leave(self) -> None:
        """Record that a worker exits."""
        self.present -= 1
