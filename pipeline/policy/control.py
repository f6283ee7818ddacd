"""How a run is steered, apart from its threads: which orders are in force, and what a new one asks of the threads.

    order  | in force afterwards | asked of the threads
    -------|---------------------|-------------------------------------------------------------------------
    begin  | RUNNING             |
    pause  | PAUSED              | HOLD: whoever is free takes nothing; sources draw nothing
    resume | RUNNING             | RELEASE
    drain  | DRAINING            | CLOSE_SOURCES: sources draw nothing more; RELEASE, if it was paused
    stop   | STOPPING            | ABORT: every wait ends with Cancelled
    end    | ENDED               |

Orders that come too late (a pause of a run that drains, anything after a stop) change nothing and ask for nothing; a
stop is repeated as often as it is ordered, because a Ctrl-C may have cut the first one short.

Ownership: both classes are plain state. `RunControl` is guarded by the lock of its run, a `WorkerCount` by the lock of
the input channel of its stage.
"""

from enum import Enum

from threadloom.pipeline.core import Cancelled, StageFailure


class RunState(Enum):
    """What a run is doing."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


class RunAction(Enum):
    """What is asked of channels and sources."""

    HOLD = "hold"
    RELEASE = "release"
    CLOSE_SOURCES = "close sources"
    ABORT = "abort"


ACTIVE_STATES = (RunState.RUNNING, RunState.PAUSED, RunState.DRAINING)
"""The states in which threads may work, so that more of them can be hired."""


class RunControl:
    """The state of a run, and the first reason to stop it."""

    def __init__(self) -> None:
        self.state = RunState.READY
        self.outcome: StageFailure | Cancelled | None = None  # set once, by the first `stop` while the run is not over

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
        """Stop for this reason, unless there is one already."""
        if self.outcome is None:
            self.outcome = outcome
        if self.state is not RunState.ENDED:
            self.state = RunState.STOPPING
        return (RunAction.ABORT,)

    def end(self) -> tuple[RunAction, ...]:
        """Note that every worker has ended."""
        self.state = RunState.ENDED
        return ()

    def _go(self, to: RunState, allowed: tuple[RunState, ...], *actions: RunAction) -> tuple[RunAction, ...]:
        if self.state not in allowed:
            return ()
        self.state = to
        return actions


class WorkerCount:
    """How many workers a stage should have, and how many it has."""

    def __init__(self, workers: int) -> None:
        self.wanted = workers
        self.present = workers  # counted from the moment that a worker is promised to that at which it is let go

    def resize(self, workers: int) -> int:
        """Want another number; return how many have to be hired now. Those too many leave as they come by."""
        self.wanted = workers
        hired = max(0, workers - self.present)
        self.present += hired
        return hired

    @property
    def should_exit(self) -> bool:
        """Whether the next worker that comes by should leave."""
        return self.present > self.wanted

    def leave(self) -> None:
        """Let one worker go."""
        self.present -= 1
