"""The control of a run as a state machine without threads: commands, states, and actions on channels and sources.

    command | new state | actions
    --------|-----------|------------------------------------------------------------------------------
    begin   | RUNNING   |
    pause   | PAUSED    | HOLD: idle workers take no items, sources produce none
    resume  | RUNNING   | RELEASE
    drain   | DRAINING  | CLOSE_SOURCES: sources end; and RELEASE if the run was paused
    stop    | STOPPING  | ABORT: all waits end with Cancelled
    end     | ENDED     |

Commands that come too late (a pause while draining, any command after a stop) have no effect; a stop repeats its action
each time, because a Ctrl-C may have interrupted the first one.

Ownership: both classes are plain state. `RunControl` is guarded by the lock of its run, a `WorkerCount` by the lock of
the input channel of its stage.
"""

from enum import Enum

from threadloom.pipeline.core import Cancelled, StageFailure


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
    ABORT = "abort"


ACTIVE_STATES = (RunState.RUNNING, RunState.PAUSED, RunState.DRAINING)
"""The states in which workers may run, so that more of them can be started."""


class RunControl:
    """The state of a run, and the first reason for stopping it. Each command returns the actions to carry out."""

    def __init__(self) -> None:
        self.state = RunState.READY
        self.outcome: StageFailure | Cancelled | None = None  # set once, by the first `stop`

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

    def stop(self, outcome: StageFailure | Cancelled) -> tuple[RunAction, ...]:
        """Stop the run; `outcome` is ignored if there is one already."""
        if self.outcome is None:
            self.outcome = outcome
        if self.state is not RunState.ENDED:
            self.state = RunState.STOPPING
        return (RunAction.ABORT,)

    def end(self) -> tuple[RunAction, ...]:
        """Record that all workers have ended."""
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
